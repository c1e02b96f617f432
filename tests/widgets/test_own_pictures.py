"""Pictures of one's own in a notebook: by path a figure, without one a field; what is wrong is told, nothing runs."""

import datetime
import io

import pytest
import torch
from PIL import Image

from ldmlab.widgets import own_pictures as own
from ldmlab.widgets.own_pictures import own_pictures


def _save(path, size=(20, 16), colour=(200, 30, 30), mode="RGB"):
    Image.new(mode, size, colour).save(path)


def _use(seen):
    def use(*given):
        seen.append(given)
        print("padded from 16 x 20 to 32 x 32, cropped back")
        return {"given": given[0][None, :3].expand(1, 3, -1, -1) if given[0].ndim == 3 else torch.zeros(1, 3, 8, 8)}

    return use


def test_every_picture_of_a_folder_is_used_with_its_mask(tmp_path):
    """In order, opened in its own size, the mask as 0 and 1."""
    for name in ("b", "a"):
        _save(tmp_path / f"{name}.png")
        _save(tmp_path / f"{name}_mask.png", colour=255, mode="L")
    seen = []
    fig = own_pictures(_use(seen), str(tmp_path), "mask")
    assert len(fig.axes) == 2 and len(seen) == 2
    picture, mask = seen[0]
    assert picture.shape == (3, 16, 20) and mask.shape == (1, 16, 20) and mask.min() == 1


def test_what_is_wrong_is_told_before_anything_is_used(tmp_path):
    """A missing mask, one of another size, and a file that is no picture: named, and nothing has run."""
    seen = []
    _save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has no mask; add a_mask\.png beside it"):
        own_pictures(_use(seen), str(tmp_path / "a.png"), "mask")
    _save(tmp_path / "a_mask.png", size=(8, 8), colour=255, mode="L")
    with pytest.raises(ValueError, match="a_mask.png is 8 x 8, its picture 16 x 20"):
        own_pictures(_use(seen), str(tmp_path / "a.png"), "mask")
    (tmp_path / "c.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"c\.png is not a picture"):
        own_pictures(_use(seen), str(tmp_path / "c.png"))
    with pytest.raises(ValueError, match="picture, mask or labels; got 'sound'"):
        own_pictures(_use(seen), "", "sound")
    assert not seen


def test_without_a_path_and_a_front_end_it_says_how(capsys):
    """papermill has nobody to upload anything."""
    assert own_pictures(_use([])) is None
    assert "-p picture PATH" in capsys.readouterr().out


def test_an_upload_is_used_and_a_wrong_one_told_in_its_place(monkeypatch):
    """In a browser: the picture appears; bytes that are no picture leave a sentence, and the field stays usable."""
    monkeypatch.setattr(own, "has_front_end", lambda: True)
    seen = []
    panel = own_pictures(_use(seen))
    fields, said, picture = panel.children
    raw = io.BytesIO()
    Image.new("RGB", (20, 16), (1, 2, 3)).save(raw, "PNG")

    def upload(content):
        file = {"name": "x.png", "type": "image/png", "size": len(content), "content": memoryview(content),
                "last_modified": datetime.datetime(2026, 1, 1)}
        fields.children[0].set_trait("value", (file,))

    upload(b"no picture")
    assert "not a picture" in said.value and not seen
    upload(raw.getvalue())
    assert len(seen) == 1 and "cropped back" in said.value and bytes(picture.value).startswith(b"\x89PNG")
