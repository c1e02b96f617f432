"""A folder handed by `-p picture`: a row for each file, and nothing found wrong only after training."""

import pytest
import torch
from made_files import encoded, lay_out, picture, write_tar
from matplotlib import pyplot as plt
from PIL import Image

from ldmlab.data.user_pictures import LONGEST_NAME, open_user_pictures, row_names
from ldmlab.study.runs.run import Run
from ldmlab.widgets.own_pictures import own_pictures

LONG = "IMG_20240607_holiday_in_brittany"
ROWS = {
    "dots": (["set.v1.png", "set.v2.png"], ["set.v1", "set.v2"]),
    "folders": (["a/0.png", "b/0.png"], ["a/0", "b/0"]),
    "endings": (["0.jpg", "0.png"], ["0.jpg", "0.png"]),
    "one folder": (["a/0.png", "a/1.png"], ["0", "1"]),
    "twice in a tar": (["0.png", "0.png"], ["0.png", "0.png (2)"]),
    "long, other ends": ([f"{LONG}_1.png", f"{LONG}_2.png"], ["IMG_20240…brittany_1", "IMG_20240…brittany_2"]),
    "long, other middles": ([f"{LONG}1{LONG}.png", f"{LONG}2{LONG}.png"],
                            ["IMG_20240…n_brittany", "IMG_20240…n_brittany (2)"]),
    "a name that is taken": (["x (2).png", "x.jpg", "x.png"], ["x (2).png", "x.jpg", "x.png"]),
}


@pytest.mark.parametrize("what", ROWS)
def test_rows_have_different_names(what):
    """As short as tells them apart."""
    files, names = ROWS[what]
    assert row_names(files) == names and len(set(names)) == len(files)
    assert all(len(n.removesuffix(" (2)")) <= LONGEST_NAME for n in names)


def use(seen):
    return lambda x, *_: seen.append(x) or {"given": x[None, :3] if x.ndim == 3 else torch.zeros(1, 3, 8, 8)}


def test_every_picture_has_its_row(tmp_path):
    """None is dropped for a name that begins like another's; a name with dollars is no formula."""
    files = {f"{LONG}_{k}.png": encoded(picture(k)) for k in range(3)} | {"$a$b$.png": encoded(picture(4))}
    for path in (lay_out(tmp_path / "set", files), write_tar(tmp_path / "set.tar", files)):
        seen = []
        fig = own_pictures(use(seen), str(path))
        fig.canvas.draw()
        assert len(seen) == len(fig.axes) == 4 and len({ax.texts[0].get_text() for ax in fig.axes}) == 4
        plt.close(fig)


def test_bad_pictures_of_a_folder_are_passed_over_and_said(tmp_path, capsys):
    """Named with the reason; the others are used, also where the model refuses one."""
    files = {"a.png": encoded(picture()), "b.png": b"no picture", "c.png": encoded(picture(0, 4, 4)), "d.tif": encoded(
        Image.new("F", (8, 8), 7.0), "TIFF")}
    rows = [name for name, _ in open_user_pictures(lay_out(tmp_path, files), smallest=8)]
    said = capsys.readouterr().out
    assert rows == ["a"] and "3 of 4 pictures under" in said and "passed over: b.png is not a picture" in said
    assert "c.png is 4 x 4; sides are 8 or more" in said and "d.tif has floats from 7 to 7" in said

    def refuses_small(x):
        if x.shape[-1] < 8:
            raise ValueError("too small for the model")
        return {"given": x[None]}

    fig = own_pictures(refuses_small, str(tmp_path))
    assert len(fig.axes) == 1 and "c is passed over: too small for the model" in capsys.readouterr().out
    plt.close(fig)


BAD = {
    "empty folder": ({}, "holds no picture"), "no picture in it": ({"a.txt": b"x"}, "holds no picture"),
    "all damaged": ({"a.png": b"x", "b.png": b""}, "a.png is not a picture.*; .*b.png is not a picture"),
    "too small": ({"a.png": encoded(picture(0, 3, 3))}, "a.png is 3 x 3; sides are"),
}


@pytest.mark.parametrize("notebook", ["11_semantic_synthesis", "12_super_resolution", "13_inpainting",
                                      "15_beyond_training_size"])
@pytest.mark.parametrize("what", BAD)
def test_a_folder_without_a_usable_picture_is_refused_before_training(what, notebook, tmp_path, monkeypatch):
    """As soon as the run is opened: no data, no model is touched."""
    monkeypatch.setenv("LDMLAB_ROOT", str(tmp_path / "root"))
    files, message = BAD[what]
    (tmp_path / "own").mkdir()
    params = dict(f=8, reg="kl", data="scenes", size=0, tier="smoke", seed=0, factor=2, degradation="bicubic",
                  attention=True, picture=str(lay_out(tmp_path / "own", files)))
    if notebook == "11_semantic_synthesis" and what == "too small":
        files["a.png"] = encoded(Image.new("L", (3, 3)))
        lay_out(tmp_path / "own", files)
    if notebook == "13_inpainting" and files:
        masks = {f"{n[0]}_mask.png": encoded(Image.new("L", (3, 3), 255)) for n in files if "png" in n}
        lay_out(tmp_path / "own", masks)
    with pytest.raises(ValueError, match=message):
        Run(notebook, params, "cpu", quiet=True)
    assert not (tmp_path / "root").exists()


def test_a_usable_picture_is_no_hindrance(tmp_path):
    """The check keeps nothing and says nothing."""
    params = dict(f=8, reg="kl", data="scenes", size=0, tier="smoke", seed=0, attention=True)
    files = {"a.png": encoded(picture(0, 40, 40)), "a_mask.png": encoded(Image.new("L", (40, 40), 255))}
    path = str(lay_out(tmp_path, files))
    assert Run("13_inpainting", params | {"picture": path}, "cpu", quiet=True).params["picture"] == path


def test_label_maps_with_labels_that_the_data_lacks_are_refused_before_training(tiny_run, tmp_path):
    """It was an error of the first sample."""
    maps = {"low.png": 3, "high.png": 200}
    for name, label in maps.items():
        Image.new("L", (32, 32), label).save(tmp_path / name)
    assert tiny_run("11_semantic_synthesis", picture=str(tmp_path / "low.png")).pictures.train.map_names
    with pytest.raises(ValueError, match="high.* has the label 200; those of the data's label maps are 0 to 27"):
        _ = tiny_run("11_semantic_synthesis", picture=str(tmp_path)).pictures
