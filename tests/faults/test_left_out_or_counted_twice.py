"""Nothing is left out, counted twice or renamed without a word: each real file once, and a count of the others."""

import json
import os
import socket
import subprocess
import sys

import pytest
from made_files import write_tar

from ldmlab.data.dataset_names import check_data_name
from ldmlab.data.images import open_dataset
from ldmlab.data.listing.report import DataReport

from .sets_of_files import check_report, folder, png, used

TEN = [f"{k}.png" for k in range(10)]


def all_used(path) -> list[str]:
    return sorted(name for names in used(path).values() for name in names)


LINKS = {  # what links: (target, link) below a folder of ten pictures in `a`
    "itself": [(".", "a/all")],
    "the folder above": [("..", "a/up")],
    "the folder above the set": [("../..", "a/out")],
    "two to itself": [(".", "x"), (".", "y")],
    "to each other": [("../b", "a/b"), ("../a", "b/a")],
    "a second name of the folder": [("a", "latest")],
    "a second name that sorts first": [("a", "0")],
    "a link to a link": [("a", "m"), ("m", "n")],
}


@pytest.mark.parametrize("links", LINKS.values(), ids=LINKS)
def test_links_neither_hang_nor_multiply(links, tmp_path):
    """Ten files are ten pictures, on one side of the split each, under their own names."""
    root = folder(tmp_path / "set", [f"a/{name}" for name in TEN])
    (root / "b").mkdir()
    for target, link in links:
        (root / link).symlink_to(target)
    assert all_used(root) == TEN
    report = check_report(root)
    assert report.used == {"train": 8, "validation": 2} and report.num_left_out == len(links)


def test_links_and_hard_links_to_files_count_once(tmp_path):
    """Second names of a file are counted, with up to three of them; the file stays under its own name."""
    root = folder(tmp_path / "set", [f"b/{name}" for name in TEN])
    for k in range(4):
        (root / f"a{k}.png").symlink_to(root / "b" / TEN[0])
    os.link(root / "b" / TEN[1], root / "z.png")
    (root / "gone.png").symlink_to("/nowhere/x.png")
    assert all_used(root) == TEN or all_used(root) == [f"b/{name}" for name in TEN]
    left_out = check_report(root).left_out
    assert left_out["names of a file that is in the set already (links)"].count == 5
    assert left_out["names of a file that is in the set already (links)"].names == ["a0.png", "a1.png", "a2.png"]
    assert left_out["links that lead nowhere"].names == ["gone.png"]


def test_splits_made_of_links_stay_splits(tmp_path):
    """A pool of files beside train and val of links to them: the splits are used, and no picture is in both."""
    root = folder(tmp_path / "set", [f"pool/{name}" for name in TEN])
    for k, name in enumerate(TEN):
        for split in ("train",) if k < 7 else ("val",) if k < 9 else ("train", "val"):
            (root / split).mkdir(exist_ok=True)
            (root / split / name).symlink_to(f"../pool/{name}")
    found = used(root)
    assert found == {"train": [*TEN[:7], "9.png"], "validation": TEN[7:9]}


def test_a_link_as_the_set_and_links_out_of_it(tmp_path):
    """Links to files elsewhere are the usual way to make a subset."""
    folder(tmp_path / "all", TEN)
    (tmp_path / "set").symlink_to(tmp_path / "all")
    (tmp_path / "subset").mkdir()
    for name in TEN[:4]:
        (tmp_path / "subset" / name).symlink_to(tmp_path / "all" / name)
    assert all_used(tmp_path / "set") == TEN and all_used(tmp_path / "subset") == TEN[:4]


def test_a_cycle_of_many_folders_ends(tmp_path):
    """Each of eight folders links to all others: without an end if every path were followed."""
    root = folder(tmp_path / "set", [f"{k}/x.png" for k in range(8)])
    for a in range(8):
        for b in range(8):
            if a != b:
                (root / str(a) / f"to{b}").symlink_to(f"../{b}")
    code = ("import sys; from ldmlab.data.file_sets.file_set import FileSet; "
            "print(sum(FileSet.open('folder', sys.argv[1]).report.used.values()))")
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "8", done.stderr


def test_what_is_no_regular_file_is_never_opened(tmp_path, monkeypatch):
    """A pipe would hang, and a link to /dev/zero never end; tar files that are pipes are no shards."""
    root = folder(tmp_path / "set", TEN)
    os.mkfifo(root / "pipe.png")
    (root / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(root)  # paths of sockets are short
        server.bind("s.png")
        assert all_used(root) == TEN
    assert check_report(root).left_out["no regular files (pipes, sockets, devices)"].count == 3
    os.mkfifo(root / "x.tar")
    assert check_data_name(root) == "folder" and all_used(root) == TEN


@pytest.mark.parametrize("litter", ["@eaDir", "$RECYCLE.BIN", "System Volume Information", ".Trash-1000", "__MACOSX",
                                    ".ipynb_checkpoints", "lost+found", "#recycle", "found.000"])
def test_litter_is_no_class(litter, tmp_path):
    """Folders of systems and tools are not entered, and counted."""
    root = folder(tmp_path / "set", [*(f"cat/{n}" for n in TEN), *(f"dog/{n}" for n in TEN), f"{litter}/old.png"])
    assert open_dataset(root, size=8).classes == ("cat", "dog")
    assert (check_report(root).folders.count, check_report(root).folders.names) == (1, [litter])


def test_files_of_other_kinds_are_counted_by_kind(tmp_path):
    """Formats that are not read, litter, texts and everything else, each with up to three names."""
    root = folder(tmp_path / "set", TEN)
    for name in (*(f"{k}.heic" for k in range(5)), "a.jxl", "Thumbs.db", ".DS_Store", "._0.png", "0.txt", "list.md",
                 "LICENSE"):
        (root / name).write_bytes(b"x")
    report = check_report(root)
    counts = {reason: (group.count, len(group.names)) for reason, group in report.left_out.items()}
    assert counts == {
        ".heic files, a format that is not read": (5, 3), ".jxl files, a format that is not read": (1, 1),
        "hidden and system files": (3, 3), "other files, .md": (1, 1), "other files, without an ending": (1, 1)}
    assert report.beside == {"text and JSON files": 1} and report.found == 22


def test_a_folder_of_formats_that_are_not_read_says_so(tmp_path):
    """The message counts them and names the cure."""
    for k in range(3):
        (tmp_path / f"{k}.heic").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"it holds 3 \.heic files, formats that are not read: convert them"):
        open_dataset(tmp_path, size=8)


def test_a_leftover_tar_does_not_win_over_the_pictures(tmp_path):
    """The kind with more pictures is the data, and the other is counted."""
    root = folder(tmp_path / "set", [f"{k:02}.png" for k in range(20)])
    write_tar(root / "preview.tar", {f"p{k}.png": png(k) for k in range(2)})
    assert len(all_used(root)) == 20
    assert check_report(root).left_out["tar files beside pictures, which hold more"].names == ["preview.tar"]
    for k in range(4):
        write_tar(root / f"shard-{k}.tar", {f"{k}-{i}.png": png(i) for i in range(9)})
    assert len(all_used(root)) == 38
    assert check_report(root).left_out["pictures beside the tar files, which hold more"].count == 20


@pytest.mark.parametrize("pattern, message", [("s-{000..003}.tar", "2 of 4 shards do not exist, such as .*s-002.tar"),
                                              ("s-{000,005}.tar", "1 of 2 shards do not exist, such as .*s-005.tar")])
def test_missing_shards_are_refused(pattern, message, tmp_path):
    """A range of which some shards are missing is a copy that did not finish."""
    for k in range(2):
        write_tar(tmp_path / f"s-{k:03}.tar", {f"{k}.png": png(k)})
    with pytest.raises(ValueError, match=message):
        open_dataset(str(tmp_path / pattern), size=8)
    assert len(all_used(str(tmp_path / "s-{000..001}.tar"))) == len(all_used(str(tmp_path / "s-*.tar"))) == 2


DOTS = {  # names of pictures and texts -> those used, in a folder and in a tar file
    "numbers": (["photo.png", *(f"photo.{k}.png" for k in range(1, 12))], None, None),
    "dates": (["IMG.png", "IMG.2021-03-01.png"], None, None),
    "versions": (["v1.png", "v1.0 render.png", "v2.png"], None, None),
    "maps beside pictures": (["a.png", "a.depth.png", "b.png", "b.depth.png"], ["a.png", "b.png"], None),
    "one sample": (["k.input.png", "k.depth.png", "k.cls", "l.input.png", "l.depth.png", "l.cls"],
                   ["k.input.png", "k.depth.png", "l.input.png", "l.depth.png"], ["k.input.png", "l.input.png"]),
    "one sample of views": (["k.0.png", "k.1.png", "k.txt", "l.0.png", "l.1.png", "l.txt"],
                            ["k.0.png", "k.1.png", "l.0.png", "l.1.png"], ["k.0.png", "l.0.png"]),
    "texts of their own": (["f.1.png", "f.1.cls", "f.2.png", "f.2.cls"], ["f.1.png", "f.2.png"], None),
}


@pytest.mark.parametrize("names, in_folder, in_tar", DOTS.values(), ids=DOTS)
def test_names_with_dots(names, in_folder, in_tar, tmp_path):
    """A companion is left out where it is one: a known kind beside its picture, or a second picture of a sample."""
    pictures = [name for name in names if name.endswith(".png")]
    in_folder = in_folder or pictures
    (tmp_path / "set").mkdir()
    members = {name: png(k) if name.endswith(".png") else str(k % 2).encode() for k, name in enumerate(names)}
    for name, data in members.items():
        (tmp_path / "set" / name).write_bytes(data)
    write_tar(tmp_path / "set.tar", members)
    assert all_used(tmp_path / "set") == sorted(in_folder)
    assert all_used(tmp_path / "set.tar") == sorted(in_tar or in_folder)
    check_report(tmp_path / "set")
    check_report(tmp_path / "set.tar")


def test_a_sample_keeps_class_and_map(tmp_path):
    """The key ends at the first dot: k.cls and k.seg.png belong to k.rgb.png."""
    members = {}
    for k in range(8):
        members |= {f"{k}.rgb.png": png(k), f"{k}.depth.png": png(90 + k), f"{k}.seg.png": png(50 + k),
                    f"{k}.cls": str(k % 2).encode()}
    report, images = check_report(write_tar(tmp_path / "s.tar", members)), open_dataset(tmp_path / "s.tar", size=8)
    assert sum(report.used.values()) == 8 and report.beside == {"text and JSON files": 8, "label maps": 8}
    assert images.num_classes == 2 and set(images.labels().tolist()) == {0, 1}


def test_names_that_are_not_utf8(tmp_path):
    r"""A file named caf\xe9.png is a picture, in a folder and in a tar file; its name can be printed and stored."""
    root = folder(tmp_path / "set", TEN)
    (root / os.fsdecode(b"caf\xe9.png")).write_bytes(png(77))
    members = {os.fsdecode(b"caf\xe9.png"): png(77)} | {n: png(k) for k, n in enumerate(TEN)}
    packed = write_tar(tmp_path / "set.tar", members)
    for data in (root, packed):
        assert r"caf\xe9.png" in all_used(data)
        images = open_dataset(data, size=8)
        json.dumps(images.report.as_dict()).encode()
        assert len(images.fingerprint) == 64 and len(images) in (8, 9)
    assert open_dataset(root, size=8).fingerprint == open_dataset(packed, size=8).fingerprint


def test_the_report_as_lines_and_as_a_table(tmp_path):
    """Plain text for logs, HTML for notebooks with names escaped, JSON for records."""
    report = DataReport("a<b", "folder", found=3, used={"train": 2})
    report.leave_out("hidden and system files", "<x>")
    assert str(report).splitlines()[:3] == ["data a<b:", "  found:       3 files", "  used:        2 pictures: 2 train"]
    assert "&lt;x&gt;" in report._repr_html_() and "<x>" not in report._repr_html_()
    assert report.as_dict()["left_out"] == {"hidden and system files": [1, "<x>"]}
