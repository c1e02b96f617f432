"""Splits, masks and classes are told apart by the usual spellings of their folders, and doubts are said."""

import pytest
from made_files import write_tar

from ldmlab.data.images import open_dataset

from .sets_of_files import check_report, folder, png, used

N = 4
# folders -> (pictures of train, of test, classes)
LAYOUTS = {
    "lower": (["train/a", "train/b", "test/a", "test/b"], 8, 8, ("a", "b")),
    "-ing": (["Training/a", "Training/b", "Testing/a", "Testing/b"], 8, 8, ("a", "b")),
    "capitals": (["TRAIN/a", "TRAIN/b", "VAL/a", "VAL/b", "TEST/a", "TEST/b"], 8, 8, ("a", "b")),
    "prefix": (["seg_train/a", "seg_train/b", "seg_test/a", "seg_test/b"], 8, 8, ("a", "b")),
    "suffix": (["train_images", "test_images"], 4, 4, None),
    "camel": (["TrainImages/a", "TrainImages/b", "ValImages/a"], 8, 0, ("a", "b")),
    "years": (["train2017", "val2017", "test2017"], 4, 4, None),
    "spaces": (["train set", "test set"], 4, 4, None),
    "dev": (["train/a", "train/b", "dev/a", "dev/b"], 8, 0, ("a", "b")),
    "eval": (["tr/a", "tr/b", "eval/a"], 8, 4, ("a", "b")),
    "masks inside": (["train/images", "train/masks", "val/images", "val/masks"], 4, 0, None),
    "labels inside": (["train/img", "train/label", "val/img", "val/label"], 4, 0, None),
    "masks outside": (["images/train", "masks/train", "images/val", "masks/val"], 4, 0, None),
    "classes below images": (["train/images/a", "train/images/b", "test/images/a"], 8, 4, ("a", "b")),
    "classes outside": (["a/train", "a/test", "b/train", "b/test"], 8, 8, ("a", "b")),
    "two domains": (["trainA", "trainB", "testA", "testB"], 8, 8, ("A", "B")),
    "common folder": (["v1/data/train/a", "v1/data/train/b", "v1/data/test/a"], 8, 4, ("a", "b")),
}


@pytest.mark.parametrize("folders, train, test, classes", LAYOUTS.values(), ids=LAYOUTS)
def test_splits_in_their_usual_spellings(folders, train, test, classes, tmp_path):
    """Test pictures are not trained on, splits are no classes, and masks no pictures."""
    root = folder(tmp_path / "set", [f"{name}/{k}.png" for name in folders for k in range(N)])
    sets, report = used(root), check_report(root)
    held = len(sets["validation"]) if "drawn" in report.splits else 0
    assert len(sets["train"]) + held == train and len(sets.get("test", ())) == test
    assert open_dataset(root, size=8).classes == classes
    assert "by folders" in report.splits and not any("looks like" in note for note in report.notes)


NO_SPLITS = {
    "a class called train": (["train", "bus", "car"], ("bus", "car", "train"), "the folder train looks like a split"),
    "two words": (["train_station", "test_tube"], ("test_tube", "train_station"), ""),
    "with and without": (["mask", "no_mask"], ("mask", "no_mask"), "the class 'mask' looks like a folder of masks"),
}


@pytest.mark.parametrize("folders, classes, note", NO_SPLITS.values(), ids=NO_SPLITS)
def test_classes_that_look_like_something_else(folders, classes, note, tmp_path):
    """They stay classes, with a word in the report."""
    root = folder(tmp_path / "set", [f"{name}/{k}.png" for name in folders for k in range(N)])
    assert open_dataset(root, size=8).classes == classes
    assert (note in " ".join(check_report(root).notes)) if note else not check_report(root).notes


def test_what_lies_outside_of_splits_and_beside_images_is_counted(tmp_path):
    """Folders that belong to no split, and siblings of `images`."""
    root = folder(tmp_path / "a", ["train/0.png", "train/1.png", "test/0.png", "extra/0.png", "cover.png"])
    assert check_report(root).left_out["outside of the folders of splits"].names == ["cover.png", "extra/0.png"]
    root = folder(tmp_path / "b", ["images/0.png", "images/1.png", "masks/0.png", "extra/0.png"])
    left_out = check_report(root).left_out
    assert left_out["in folders of masks or labels (masks)"].names == ["masks/0.png"]
    assert left_out["beside the folder images"].names == ["extra/0.png"]
    root = folder(tmp_path / "c", ["cat/0.png", "dog/0.png", "masks/0.png"])
    assert open_dataset(root, size=8).classes == ("cat", "dog") and check_report(root).num_left_out == 1


def test_splits_without_train_are_refused(tmp_path):
    """val and test alone are no two classes to train on."""
    root = folder(tmp_path / "set", ["val/0.png", "test/0.png"])
    with pytest.raises(ValueError, match="no train split; it has validation, test"):
        open_dataset(root, size=8)


def test_shards_named_by_split(tmp_path):
    """Capitals and further words in the names of shards."""
    write_tar(tmp_path / "Birds_TRAIN_000.tar", {f"{k}.png": png(k) for k in range(5)})
    write_tar(tmp_path / "Birds_Test_000.tar", {f"{k}.png": png(9 + k) for k in range(2)})
    found = used(tmp_path)
    assert (len(found["train"]) + len(found["validation"]), len(found["test"])) == (5, 2)


def test_known_layouts_keep_their_names(tmp_path):
    """Names decide about splits and fingerprints: what was read rightly before is read under the same names."""
    for k, (names, expected) in enumerate([
        (["train/images/0.png", "val/images/0.png"], "images/0.png"), (["train/a/0.png", "val/a/0.png"], "a/0.png"),
        (["x/a/0.png", "x/a/1.png"], "0.png"), (["images/0.png", "images/1.png"], "0.png"),
    ]):
        root = folder(tmp_path / str(k), names)
        assert expected in {name for part in used(root).values() for name in part}
