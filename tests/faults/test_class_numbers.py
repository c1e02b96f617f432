"""Class ids are names, not sizes: those present are classes 0 to n - 1."""

import json

import pytest
import torch
from made_files import lay_out, write_tar

from ldmlab.data.images import open_dataset
from ldmlab.study.runs.conditioners import sample_labels
from ldmlab.study.runs.pictures import labels_named

from .sets_of_files import check_report, png

PICTURES = [png(k) for k in range(12)]
# what files state -> (number of classes, their names, the label of the first picture)
IDS = {
    "0 to n - 1": ([0, 1, 2], 3, None),
    "of 1000": ([207, 291, 999], 3, ("207", "291", "999")),
    "from 1": ([1, 2, 3, 4], 4, ("1", "2", "3", "4")),
    "by value": ([10, 9, 100], 3, ("9", "10", "100")),
    "with a gap": ([0, 1, 3], 3, ("0", "1", "3")),
    "10^12": ([10**12, 5], 2, ("5", "1000000000000")),
    "15 digits": ([281474976710657, 281474976710658], 2, ("281474976710657", "281474976710658")),
    "20 digits": ([28147497671065712345, 1], 2, ("1", "28147497671065712345")),
    "negative": ([-1, 0, 1], 3, ("-1", "0", "1")),
    "one only": ([7], 0, None),
    "names": (["dog", "cat"], 2, ("cat", "dog")),
    "mixed": (["cat", 3], 2, ("3", "cat")),
    "other digits": (["²", "³"], 2, ("²", "³")),
}


@pytest.mark.parametrize("kind", ["cls", "json"])
@pytest.mark.parametrize("ids, num, names", IDS.values(), ids=IDS)
def test_ids_are_mapped_to_those_present(ids, num, names, kind, tmp_path):
    """Every class that can be asked for has pictures, and the report says which id is which class."""
    members = {}
    for k, data in enumerate(PICTURES):
        label = ids[k % len(ids)]
        members[f"{k:02}.png"] = data
        members[f"{k:02}.{kind}"] = str(label).encode() if kind == "cls" else json.dumps({"label": label}).encode()
    path = write_tar(tmp_path / "set.tar", members)
    sets = [open_dataset(path, size=8, split=split) for split in ("train", "validation")]
    labels = torch.cat([images.labels() for images in sets]).tolist()
    assert (sets[0].num_classes, sets[0].classes) == (num, names)
    assert set(sample_labels(num, 64).tolist()) == set(labels) if num else set(labels) == {-1}
    order = [names.index(str(ids[int(n[:2]) % len(ids)])) for s in sets for n in s._source.names] if names else labels
    assert labels == order
    report = check_report(path)
    assert report.class_ids == (names if names and any(isinstance(i, int) for i in ids) else ())


def test_labels_that_are_no_ids_are_said(tmp_path):
    """A list, an object or a long file is no class: the pictures have none, and the report counts the files."""
    members = {f"{k}.png": data for k, data in enumerate(PICTURES)}
    members |= {"0.json": b'{"label": [0, 1]}', "1.json": b'{"label": {"a": 1}}', "2.cls": b"x" * 5000,
                "3.json": b"[" * 100_000, "4.json": b'{"label": 3.0}', "5.cls": b"4"}
    report = check_report(write_tar(tmp_path / "set.tar", members))
    assert any(note.startswith("3 .cls and .json files hold a class that is no id") for note in report.notes)
    assert report.class_ids == ("3", "4") and any("training pictures have no class" in note for note in report.notes)


def test_classes_without_names_are_asked_for_by_number(tmp_path):
    """Ids from 0 have no names; `-p classes` takes the numbers."""
    members = {f"{k}.png": data for k, data in enumerate(PICTURES)} | {f"{k}.cls": b"%d" % (k % 3) for k in range(12)}
    images = open_dataset(write_tar(tmp_path / "set.tar", members), size=8)
    assert labels_named(images, "2, 0").tolist() == [2, 0] and labels_named(images, "").tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="no class '3'; there are 3, such as"):
        labels_named(images, "3")


def test_a_class_without_training_pictures_cannot_be_asked_for(tmp_path):
    """A model never saw it; by its name it was accepted."""
    members = {f"train/{name}/{k}.png": PICTURES[k] for name in ("cat", "dog") for k in range(3)}
    folder = lay_out(tmp_path / "set", members | {f"val/{name}/0.png": PICTURES[5] for name in ("bird", "cat", "dog")})
    images = open_dataset(folder, size=8)
    assert labels_named(images, "dog").tolist() == [2]
    with pytest.raises(ValueError, match="classes = 'dog, bird': no train picture of set is of class bird"):
        labels_named(images, "dog, bird")
