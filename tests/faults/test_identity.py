"""Data is told apart by its content: models, records, figures and caches of two sets never meet, old ones are found."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from made_files import write_tar
from matplotlib import pyplot as plt

from ldmlab.data.file_sets.file_set import data_label
from ldmlab.data.images import open_dataset
from ldmlab.data.listing import content
from ldmlab.study.config.data_names import labels_of
from ldmlab.study.records.compare import load_comparable
from ldmlab.study.records.record import Record, load_records, save_figure

from .sets_of_files import folder, png

NAMES = [f"{k:02}.png" for k in range(20)]
PARAMS = {"f": 8, "reg": "kl", "data": "pets", "size": 32, "tier": "smoke", "seed": 0}


def fingerprint(path, **options) -> str:
    return open_dataset(path, size=8, **options).fingerprint


def test_equal_bytes_are_equal_data(tmp_path):
    """A copy at other times, in another folder or in a tar file has the same fingerprint, and none by the old rule."""
    root = folder(tmp_path / "set", NAMES)
    shutil.copytree(root, tmp_path / "copy")
    for name in NAMES:
        os.utime(tmp_path / "copy" / name, ns=(7, 7))
    packed = write_tar(tmp_path / "set.tar", {name: (root / name).read_bytes() for name in NAMES})
    assert fingerprint(root) == fingerprint(tmp_path / "copy") == fingerprint(packed)
    former = {open_dataset(path, size=8).former_fingerprint for path in (root, tmp_path / "copy", packed)}
    assert len(former) == 3 and fingerprint(root) not in former


CHANGES = {
    "a byte": lambda root: (root / "03.png").write_bytes((root / "03.png").read_bytes()[:-1] + b"!"),
    "a name": lambda root: (root / "03.png").rename(root / "3.png"),
    "two files exchanged": lambda root: (root / "03.png").rename(root / "x") and (root / "04.png").rename(
        root / "03.png") and (root / "x").rename(root / "04.png"),
    "one file less": lambda root: (root / "03.png").unlink(),
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_another_fingerprint(change, cached, tmp_path):
    """Also where sizes and times stay what they were, and hashes are cached."""
    root, options = folder(tmp_path / "set", NAMES), {"cache_dir": tmp_path / "cache"} if cached else {}
    for name in NAMES:
        os.utime(root / name, ns=(10**18, 10**18))
    before = fingerprint(root, **options)
    assert fingerprint(root, **options) == before
    change(root)
    for file in root.iterdir():
        os.utime(file, ns=(10**18, 10**18))
    assert fingerprint(root, **options) != before


def test_known_files_are_not_read_again(tmp_path, monkeypatch):
    """A second opening reads no picture; a new file is the only one that is read; a damaged cache is made anew."""
    root, cache = folder(tmp_path / "set", NAMES), tmp_path / "cache"
    before, read, hash_some = fingerprint(root, cache_dir=cache), [], content._hash_some
    monkeypatch.setattr(content, "_hash_some", lambda work: read.extend(p for _, (p, *_) in work) or hash_some(work))
    assert fingerprint(root, cache_dir=cache) == before and read == []
    (root / "new.png").write_bytes(png(99))
    assert fingerprint(root, cache_dir=cache) != before and read == [str(root / "new.png")]
    (file,) = cache.glob("contents-*")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    fingerprint(root, cache_dir=cache)
    assert len(read) == 1 + 21


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    """Hashes are computed again; nothing is raised."""
    (tmp_path / "cache").write_text("a file")
    root = folder(tmp_path / "set", NAMES)
    assert fingerprint(root, cache_dir=tmp_path / "cache") == fingerprint(root)


TWO_SETS = [("projA/images", "projB/images"), ("set.v1", "set.v2"), ("a/scenes", "b/scenes"),
            ("x" * 240, "x" * 239 + "y")]


@pytest.mark.parametrize("names", TWO_SETS, ids=lambda names: names[0][:12])
def test_two_sets_have_two_names_for_records_and_figures(names, tmp_path, lab_root):
    """Whatever their paths end in; each name fits into a file's, and an equal copy has the same."""
    roots = [folder(tmp_path / name, NAMES, 50 * k) for k, name in enumerate(names)]
    labels = [open_dataset(root, size=8).label for root in roots]
    assert labels == [data_label(str(root)) for root in roots] and len(set(labels)) == 2
    paths = {Record("n", "x", PARAMS | {"data": label}).save(tmp_path / "records") for label in labels}
    paths |= {save_figure(plt.figure(figsize=(1, 1)), "tradeoff", label, "smoke", 32) for label in labels}
    plt.close("all")
    assert len(paths) == 4 and all(path.is_file() for path in paths)
    shutil.copytree(roots[0], tmp_path / "other" / Path(names[0]).name)
    assert open_dataset(tmp_path / "other" / Path(names[0]).name, size=8).label == labels[0]
    assert "scenes" not in labels and open_dataset("scenes", size=32, num=2).label == "scenes"


def test_a_long_parameter_fits_into_a_name(tmp_path):
    """Names of records are cut with a hash of the whole, so that two long ones differ."""
    records = [Record("n", "x", PARAMS | {"note": "é" * 300 + end}) for end in "ab"]
    paths = [record.save(tmp_path) for record in records]
    assert paths[0] != paths[1] and max(len(os.fsencode(path.name)) for path in paths) <= 210
    assert [record.params["note"][-1] for record in load_records("n", tmp_path)] in (["a", "b"], ["b", "a"])


def test_models_of_earlier_versions_are_found(tmp_path):
    """A folder under the former fingerprint is taken while there is none under the content's."""
    images = open_dataset(folder(tmp_path / "set", NAMES), size=8)

    def place(fingerprint: str) -> Path:
        return tmp_path / f"model-{fingerprint[:12]}"

    assert images.find(place) == place(images.fingerprint)
    place(images.former_fingerprint).mkdir()
    assert images.find(place) == place(images.former_fingerprint)
    place(images.fingerprint).mkdir()
    assert images.find(place) == place(images.fingerprint)
    scenes = open_dataset("scenes", size=32, num=2)
    assert scenes.former_fingerprint == scenes.fingerprint


def test_caches_of_earlier_versions_are_found(tmp_path):
    """Decoded pictures under the former fingerprint are not decoded again."""
    root, cache = folder(tmp_path / "set", NAMES), tmp_path / "cache"
    images = open_dataset(root, size=8)
    images.__dict__["fingerprint"] = images.former_fingerprint  # as an earlier version wrote it
    images.in_memory(cache_dir=cache)
    files = sorted(path.name for path in cache.iterdir())
    again = open_dataset(root, size=8).in_memory(cache_dir=cache)
    assert sorted(path.name for path in cache.iterdir()) == files and len(again) == len(images)


def test_records_of_earlier_versions_are_found(tmp_path, lab_root):
    """A record under the plain name and the former fingerprint counts as measured, and compares with new ones."""
    images = open_dataset(folder(tmp_path / "pets", NAMES), size=8)
    metrics = {"fd_lab": {"value": 1.0, "weights_hash": "w"}}
    old = Record("04_tradeoff", "LDM-8", PARAMS, metrics, inputs={"data": images.former_fingerprint})
    old.save()
    new = Record("04_tradeoff", "LDM-8", PARAMS | {"data": images.label}, inputs={"data": images.fingerprint})
    new.set_data({"name": images.name}, images.former_fingerprint)
    found = replace(new, inputs=new.inputs | {"fd_extractor": "w"}).stored()
    assert found is not None and found.value("fd_lab") == 1.0 and found.params["data"] == images.label
    other = replace(found, params=found.params | {"seed": 1})
    other.save()
    assert len(load_comparable(found)) == 2
    touched = replace(new, inputs={"data": "f" * 64, "fd_extractor": "w"}, pictures={"former_fingerprint": "0" * 64,
                                                                                    "name": "pets"})
    assert touched.stored() is None
    assert labels_of(str(tmp_path / "pets")) == {"pets", images.label}
    assert labels_of("pets-1a2b3c4d") == {"pets-1a2b3c4d"} and labels_of("scenes") == {"scenes"}
