"""The user's own pictures in a notebook, from a path or uploaded in the browser; errors are shown in the widget."""

import contextlib
import html
import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ldmlab.data.annotations.label_maps import map_labels
from ldmlab.data.user_pictures import decode_bytes, open_mask, open_user_pictures
from ldmlab.figures.pictures import picture_grid
from ldmlab.study.training.progress import has_front_end
from ldmlab.widgets.sliders import as_png

if TYPE_CHECKING:
    from ipywidgets import Widget

Use = Callable[..., Mapping[str, Tensor]]  # (picture), (picture, mask) or (labels) -> columns of (1, 3, h, w)
NO_PICTURE = "no picture of your own: pass one with -p picture PATH"


def open_labels(raw: bytes, name: str) -> Tensor:
    """Decode the bytes of a label map to (h, w) int64; `name` is used in errors. ValueError if it is no label map."""
    return torch.from_numpy(map_labels(bytes(raw), name)).long()


def own_pictures(use: Use, path: str = "", wants: str = "picture", caption: str = "") -> "Widget | Figure | None":
    """Apply `use` to the pictures under `path`, one row each; without a path, show an upload field.

    `wants` is "picture", "mask" (a picture and its mask, `a_mask.png` beside `a.png`) or "labels" (a label map).
    Without a path and a front end, a hint is printed and None returned. Of several files those that cannot be used are
    passed over, and printed; ValueError where none is left, before any is used.
    """
    if wants not in ("picture", "mask", "labels"):
        raise ValueError(f"wants must be picture, mask or labels; got {wants!r}")
    if path:
        rows, columns, refused = {}, list[str](), list[ValueError]()
        for name, given in list(open_user_pictures(path, wants)):
            try:
                made = use(*given)
            except ValueError as error:
                print(f"{name} is passed over: {error}", flush=True)
                refused.append(error)
                continue
            rows[name.replace("$", r"\$")], columns = torch.cat(list(made.values())), list(made)  # no formula
        if not rows:
            raise refused[0]
        return picture_grid(rows, columns=columns, caption=caption, cell=1.7)
    if not has_front_end():
        print(NO_PICTURE)
        return None
    return _uploads(use, wants, caption)


def _uploads(use: Use, wants: str, caption: str) -> "Widget":
    import ipywidgets

    names = {"picture": ("picture",), "mask": ("picture", "mask"), "labels": ("label map",)}[wants]
    fields = [ipywidgets.FileUpload(accept="image/*", multiple=False, description=name) for name in names]
    picture = ipywidgets.Image(format="png", layout={"max_width": "100%", "align_self": "flex-start",
                                                     "display": "none"})
    message = ipywidgets.HTML("Choose a file." if len(names) == 1 else "Choose a picture and its mask, white in the "
                           "hole.")

    def show(_: object = None) -> None:
        if not all(field.value for field in fields):
            return
        message.value = "working …"
        try:
            raw = [bytes(field.value[0]["content"]) for field in fields]
            given: tuple[Tensor, ...]
            if wants == "labels":
                given = (open_labels(raw[0], "the upload"),)
            else:
                first = decode_bytes(raw[0])
                given = (first, *(open_mask(part, (first.shape[1], first.shape[2])) for part in raw[1:]))
            notes = io.StringIO()
            with contextlib.redirect_stdout(notes):  # prints of a handler would go to JupyterLab's log
                made = use(*given)
            fig = picture_grid({"": torch.cat(list(made.values()))}, columns=tuple(made), caption=caption, cell=1.9)
            picture.value, picture.layout.display = as_png(fig), None
            message.value = "<br>".join(dict.fromkeys(map(html.escape, notes.getvalue().splitlines())))
        except ValueError as error:
            message.value = html.escape(str(error))

    for field in fields:
        field.observe(show, "value")
    return ipywidgets.VBox([ipywidgets.HBox(fields), message, picture])
