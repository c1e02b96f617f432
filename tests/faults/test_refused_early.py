"""What can be known before training is refused before training, with the parameter, its value and the cure."""

import pytest
import torch
from matplotlib import pyplot as plt

from ldmlab.data.annotations.annotation import Box
from ldmlab.figures.pictures import layout_grid, picture_grid
from ldmlab.study.config.presets import study_spec
from ldmlab.study.runs import pictures
from ldmlab.study.runs.pictures import open_pictures
from ldmlab.study.runs.run import Run

from .sets_of_files import folder


def split_names(train: int, val: int) -> list[str]:
    return [*(f"train/{k}.png" for k in range(train)), *(f"val/{k}.png" for k in range(val))]


TOO_FEW = {  # pictures -> (tier, part of the message)
    "2": ([f"{k}.png" for k in range(2)], "smoke", r"has 1 validation pictures, and 8 or more are needed"),
    "40": ([f"{k}.png" for k in range(40)], "smoke", "add pictures, to about 100 or more, or put some in"),
    "7 of val": (split_names(40, 7), "smoke", r"has 7 validation pictures.*put more into the validation split"),
    "4 of train": (split_names(4, 8), "laptop", "has 4 training pictures, and 5 or more are needed; add pictures"),
}


@pytest.mark.parametrize("names, tier, message", TOO_FEW.values(), ids=TOO_FEW)
def test_sets_that_are_too_small(names, tier, message, tmp_path, lab_root, monkeypatch):
    """Nothing is decoded, and the message names the data."""
    monkeypatch.setattr(pictures, "decoded", lambda images: pytest.fail("decoded"))
    root = folder(tmp_path / "set", names)
    with pytest.raises(ValueError, match=message) as raised:
        open_pictures(study_spec(8, data=str(root), tier=tier))
    assert f"data = {str(root)!r}" in str(raised.value)


def test_sets_that_are_large_enough(tmp_path, lab_root, capsys):
    """Five and eight do at any tier, and the report is printed once."""
    root = folder(tmp_path / "set", split_names(5, 8))
    assert len(open_pictures(study_spec(8, data=str(root), tier="laptop")).train) == 5
    said = capsys.readouterr().out
    assert said.count("fingerprint:") == 1 and "13 pictures: 5 train, 8 validation" in said
    assert "8-bit RGB PNG of 5 looked at" in said


def test_unreadable_pictures_count_as_missing(tmp_path, lab_root):
    """A validation split of eight of which one is damaged is too small, and is said to be."""
    root = folder(tmp_path / "set", split_names(20, 8))
    (root / "val" / "0.png").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="0.png"), pytest.raises(ValueError, match="has 7 validation pictures"):
        open_pictures(study_spec(8, data=str(root), tier="smoke"))


def test_a_record_keeps_the_report(tmp_path, lab_root):
    """With what was left out, and under the label of the data."""
    root = folder(tmp_path / "set", split_names(20, 8))
    (root / "train" / "x.heic").write_bytes(b"x")
    params = {"f": 1, "reg": "none", "data": str(root), "size": 0, "tier": "smoke", "seed": 0}
    run = Run("01_autoencoders", params, "cpu", quiet=True)
    record = run.new_record()
    assert record.pictures["left_out"] == {".heic files, a format that is not read": [1, "train/x.heic"]}
    assert record.pictures["used"] == {"train": 20, "validation": 8}
    assert record.params["data"] == f"set-{record.pictures['fingerprint'][:8]}" and str(tmp_path) not in str(record)


def test_names_with_dollars_are_drawn(tmp_path):
    """Two $ in the name of a folder or class are no formula."""
    x = torch.zeros(2, 3, 8, 8)
    for name in ("a$b$c", "$\\frac$", "10$ and 20$"):
        box = Box(name, 0, 0.0, 0.0, 1.0, 1.0)
        for fig in (picture_grid({"x": x}, columns=[name, name], caption=f"{name} at 32 px"),
                    layout_grid([[box], [box]], {"x": x}, caption=name)):
            fig.savefig(tmp_path / "x.png")
            plt.close(fig)
