"""Fetching from a server that resumes, breaks off, lies or shows a web page: a whole file or a clear error."""

import errno
import hashlib
import io
import json
import shutil
import socket
import threading
import zipfile
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ldmlab.atomic import DiskFull
from ldmlab.checkpoints.__main__ import main
from ldmlab.checkpoints.downloads import download, manifest, transfer
from ldmlab.checkpoints.downloads.download import fetch
from ldmlab.checkpoints.downloads.manifest import Copy, ReleasedFile
from ldmlab.checkpoints.downloads.transfer import FetchError

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def zipped(**members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


WHOLE = zipped(**{"model.ckpt": CONTENT})


class Server(ThreadingHTTPServer):
    """Serves `content` to whoever asks; the other attributes say how it misbehaves. `asked` has the Range headers."""

    def __init__(self):
        self.content, self.type, self.tag, self.status = CONTENT, "application/octet-stream", '"one"', 200
        self.ranges, self.break_after, self.promise, self.asked = True, None, None, []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        same = self.headers.get("If-Range") in (None, server.tag)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges and same else 0
        if start and start >= len(server.content):
            return self.send_error(416)
        if server.status != 200:
            return self.send_error(server.status)
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.type)
        self.send_header("Content-Length", str(server.promise or len(body)))
        if server.tag:
            self.send_header("ETag", server.tag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        self.wfile.write(body[: server.break_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def offer(server, monkeypatch):
    """Put one row into the manifest, at the server's address unless it says otherwise."""

    def offered(**changes):
        url = f"http://127.0.0.1:{server.server_address[1]}/x"
        row = replace(ReleasedFile("x", "x.ckpt", (url,), "a test"), **changes)
        monkeypatch.setattr(download, "find_released_file", lambda name: row)
        monkeypatch.setattr(manifest, "released_files", lambda: {"x": row})
        return row

    offered()
    return offered


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def kept(folder):
    """Bytes of partial downloads."""
    return sum(path.stat().st_size for path in folder.glob(".*.download"))


def test_a_file_arrives_and_is_not_fetched_twice(server, offer, tmp_path):
    """The bytes, a record of where they came from and how far to trust them; the second call asks nobody."""
    heard = []
    path = fetch("x", tmp_path, lambda done, total: heard.append((done, total)))
    assert path.read_bytes() == CONTENT and heard[0] == (0, len(CONTENT)) and heard[-1] == (len(CONTENT),) * 2
    record = json.loads((tmp_path / "x.ckpt.json").read_text())
    assert record["sha256"] == DIGEST and "first use" in record["trust"] and record["from"].endswith("/x")
    assert fetch("x", tmp_path) == path and len(server.asked) == 1
    assert visible(tmp_path) == ["x.ckpt", "x.ckpt.json"] and kept(tmp_path) == 0


def test_a_file_that_changes_later_is_refused(offer, tmp_path):
    """Trust on first use: the recorded hash holds, on disk and for a second download."""
    path = fetch("x", tmp_path)
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match="x.ckpt.json states"):
        fetch("x", tmp_path)
    assert path.read_bytes() == b"other"


def test_another_file_at_the_address_is_refused(server, offer, tmp_path):
    """The record outlives the file: what comes instead never takes its name."""
    fetch("x", tmp_path).unlink()
    server.content = CONTENT[::-1]
    with pytest.raises(FetchError, match="has changed"):
        fetch("x", tmp_path)
    assert visible(tmp_path) == ["x.ckpt.json"]


@pytest.mark.parametrize("tag", ['"one"', ""])
def test_a_broken_connection_is_taken_up_again(server, offer, tmp_path, tag):
    """Each try goes on where the last one stopped, with and without a tag of the file's version."""
    server.break_after, server.tag = 4000, tag
    assert fetch("x", tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=4000-", "bytes=8000-"]


def test_what_has_arrived_waits_for_the_next_call(server, offer, tmp_path):
    """A server that dies loses nothing; the message says how much is kept."""
    server.break_after, server.content = 1000, bytes(10 * 1000)  # more than a call tries
    with pytest.raises(FetchError, match="broke off after 5000 of 10000.*kept"):
        fetch("x", tmp_path)
    assert visible(tmp_path) == [] and kept(tmp_path) == 5000
    server.status = 503
    with pytest.raises(FetchError, match="503"):
        fetch("x", tmp_path)
    assert kept(tmp_path) == 5000
    server.status, server.break_after = 200, None
    assert fetch("x", tmp_path).read_bytes() == server.content and server.asked[-1] == "bytes=5000-"


@pytest.mark.parametrize("change", ["no ranges", "new tag", "shorter", "longer"])
def test_where_it_cannot_go_on_it_begins_anew(server, offer, tmp_path, monkeypatch, change):
    """A server without ranges, or with another file by now: never a mixture of two files."""
    monkeypatch.setattr(download, "_TRIES", 1)
    server.break_after, server.tag = 4000, '"one"' if change == "new tag" else ""
    with pytest.raises(FetchError, match="broke off"):
        fetch("x", tmp_path)
    server.break_after = None
    server.ranges = change != "no ranges"
    server.tag = '"two"' if change == "new tag" else server.tag
    server.content = {"shorter": b"s" * 3000, "longer": b"n" * 20_000}.get(change, CONTENT[::-1])
    assert fetch("x", tmp_path).read_bytes() == server.content


def test_a_download_with_a_wrong_hash_is_deleted(server, offer, tmp_path):
    """Also the download itself: to go on from it would fail for ever; the right file comes on the next call."""
    offer(sha256=DIGEST)
    server.content = CONTENT[::-1]
    with pytest.raises(FetchError, match=f"the manifest states {DIGEST}"):
        fetch("x", tmp_path)
    assert visible(tmp_path) == [] and kept(tmp_path) == 0
    server.content = CONTENT
    fetch("x", tmp_path)
    assert "as the manifest states" in (tmp_path / "x.ckpt.json").read_text()


def test_another_size_is_refused_before_a_byte_is_kept(server, offer, tmp_path):
    """The manifest's size and the server's promise are compared first."""
    offer(size=len(CONTENT) + 1)
    with pytest.raises(FetchError, match=f"offers {len(CONTENT)} bytes"):
        fetch("x", tmp_path)
    assert visible(tmp_path) == [] and kept(tmp_path) == 0


def test_a_server_that_promises_more_than_it_has(server, offer, tmp_path):
    """The end of the stream is not taken for the end of the file."""
    server.promise, server.ranges = len(CONTENT) + 500, False
    with pytest.raises(FetchError, match="broke off"):
        fetch("x", tmp_path)
    assert visible(tmp_path) == []


@pytest.mark.parametrize("kind, page", [
    ("text/html; charset=utf-8", b"this link has expired"),
    ("application/octet-stream", b"\n <!DOCTYPE html><p>gone"),
])
def test_a_web_page_is_no_file(server, offer, tmp_path, kind, page):
    """A dead link often answers 200 with a page; it does not harm what had arrived of the real file either."""
    server.break_after = 1000
    server.content = bytes(10_000)
    with pytest.raises(FetchError):
        fetch("x", tmp_path)
    server.break_after, server.type, server.content, server.tag = None, kind, page, '"two"'
    with pytest.raises(FetchError, match="a web page"):
        fetch("x", tmp_path)
    assert visible(tmp_path) == [] and kept(tmp_path) == 5000


def test_errors_say_what_to_do(server, offer, tmp_path):
    """Status, address, size, and where a file fetched by other means belongs."""
    row = offer(size=12_300_000)
    server.status = 404
    with pytest.raises(FetchError) as error:
        fetch("x", tmp_path)
    for part in ("404", "the file has been removed", row.urls[0], "12.3 MB", str(tmp_path / "x.ckpt")):
        assert part in str(error.value)


def test_offline(offer, tmp_path):
    """Nobody answers: said so, at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    offer(urls=(f"http://127.0.0.1:{port}/x",))
    with pytest.raises(FetchError, match="cannot be reached.*is there a network"):
        fetch("x", tmp_path)


def test_a_second_address_is_tried(server, offer, tmp_path):
    """Where the first fails, the next one of the manifest is asked."""
    row = offer()
    offer(urls=("http://127.0.0.1:9/x", *row.urls))
    assert fetch("x", tmp_path).read_bytes() == CONTENT


def test_a_full_disk_is_noticed_before(server, offer, tmp_path, monkeypatch):
    """The message has the need and the folder; what had arrived stays, and is whole once there is room."""
    usage = namedtuple("usage", "total used free")
    offer(member="model.ckpt")
    server.content = zipped(**{"model.ckpt": bytes(100_000)})
    real = shutil.disk_usage
    for free, arrived in ((10, 0), (5000, len(server.content))):  # no room for the zip; none for what is inside
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(free, 0, free))
        with pytest.raises(DiskFull, match="disk full.*Free space"):
            fetch("x", tmp_path)
        assert visible(tmp_path) == [] and kept(tmp_path) == arrived
    monkeypatch.setattr(shutil, "disk_usage", real)
    asked = len(server.asked)
    assert fetch("x", tmp_path).read_bytes() == bytes(100_000) and len(server.asked) == asked


def test_a_disk_that_fills_up_on_the_way(server, offer, tmp_path, monkeypatch):
    """Somebody else may take the room: what has arrived stays, and counts."""

    class Full(io.FileIO):
        def write(self, data):
            super().write(data[:3000])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "open", Full, raising=False)
        with pytest.raises(DiskFull, match="the partial download is kept"):
            fetch("x", tmp_path)
    assert visible(tmp_path) == [] and kept(tmp_path) == 3000
    assert fetch("x", tmp_path).read_bytes() == CONTENT and server.asked[-1] == "bytes=3000-"


def test_of_a_zip_only_the_checkpoint_is_kept(server, offer, tmp_path):
    """Whatever folder it names inside the zip: names in there are never paths, and nothing else is unpacked."""
    offer(member="model.ckpt")
    server.content = zipped(**{"../../model.ckpt": CONTENT, "../evil.txt": b"no", "/etc/config.yaml": b"no"})
    folder = tmp_path / "a" / "b"
    assert fetch("x", folder).read_bytes() == CONTENT
    assert visible(folder) == ["x.ckpt", "x.ckpt.json"] and visible(tmp_path / "a") == ["b"]
    assert visible(tmp_path) == ["a"]


@pytest.mark.parametrize("content, message", [
    (zipped(**{"last.ckpt": CONTENT, "__MACOSX/._last.ckpt": b""}), None),
    (zipped(**{"a/model.ckpt": b"1", "b/model.ckpt": b"2"}), "must hold one model.ckpt; it holds a/model.ckpt, b/"),
    (zipped(readme=b""), "it holds readme"),
    (CONTENT, "not a complete zip"),
    (WHOLE[:-30], "not a complete zip"),
    (WHOLE[:60] + bytes(40) + WHOLE[100:], "not a complete zip"),  # the list of contents is right, the contents are not
])
def test_zips_of_another_make(server, offer, tmp_path, content, message):
    """An only checkpoint of another name is taken; what is doubtful, missing or damaged is refused, and not kept."""
    offer(member="model.ckpt")
    server.content = content
    if message is None:
        assert fetch("x", tmp_path).read_bytes() == CONTENT
    else:
        with pytest.raises(FetchError, match=message):
            fetch("x", tmp_path)
        assert visible(tmp_path) == [] and kept(tmp_path) == 0


def test_files_put_there_by_hand(server, offer, tmp_path):
    """A zip or a checkpoint from elsewhere does as well, without a network; the zip stays the user's."""
    offer(member="model.ckpt")
    (tmp_path / "x.zip").write_bytes(zipped(**{"model.ckpt": CONTENT}))
    assert fetch("x", tmp_path).read_bytes() == CONTENT and (tmp_path / "x.zip").exists()
    offer(sha256=DIGEST, file="y.ckpt", other_names=("z.ckpt",))
    (tmp_path / "z.ckpt").write_bytes(CONTENT)
    assert fetch("x", tmp_path) == tmp_path / "z.ckpt"
    assert server.asked == []


def test_copies_of_others_are_compared(offer, tmp_path):
    """Their hash is nobody's promise: a difference warns and is written down, and does not refuse."""
    offer(copy=Copy(DIGEST, None, "https://example.org"))
    record = fetch("x", tmp_path).with_name("x.ckpt.json")
    assert "the same as the copy" in record.read_text()
    offer(file="y.ckpt", copy=Copy("0" * 64, None, "https://example.org"))
    with pytest.warns(UserWarning, match="the copy at https://example.org has 000"):
        fetch("x", tmp_path)
    assert "NOT that of the copy" in (tmp_path / "y.ckpt.json").read_text()


def test_two_at_once_download_once(server, offer, tmp_path):
    """The second waits for the first, and finds the file."""
    threads = [threading.Thread(target=fetch, args=("x", tmp_path, lambda *_: None)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(server.asked) == 1 and (tmp_path / "x.ckpt").read_bytes() == CONTENT


def test_https_does_not_lead_to_http(monkeypatch, tmp_path):
    """A redirect must not open the way to whoever sits on the line."""
    answer = io.BytesIO(CONTENT)
    answer.url = "http://example.org/x"
    monkeypatch.setattr(transfer, "urlopen", lambda *_, **__: answer)
    with pytest.raises(FetchError, match="leads to http://example.org"):
        transfer.transfer("https://example.org/x", tmp_path / "part", None, lambda *_: None)


def test_the_command(server, offer, tmp_path, capsys):
    """`fetch x` prints path and hash, `fetch` lists; a failure is its message and a status, no traceback."""

    def run(*words, status=0):
        assert main(["fetch", *words]) == status
        return capsys.readouterr()

    assert "http://127.0.0.1" in run().out
    assert DIGEST in run("x", "--folder", str(tmp_path)).out
    server.status = 404
    failed = run("x", "--folder", str(tmp_path / "other"), status=1).err
    assert "404" in failed.splitlines()[-1] and "Traceback" not in failed


def test_the_folder_can_be_named_once(offer, tmp_path, monkeypatch):
    """$LDMLAB_CHECKPOINTS, for a disk with room."""
    monkeypatch.setenv("LDMLAB_CHECKPOINTS", str(tmp_path / "big"))
    assert fetch("x") == tmp_path / "big" / "x.ckpt"
