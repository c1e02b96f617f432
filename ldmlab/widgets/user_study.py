"""The user study in JupyterLab: two pictures, shown for a few seconds, and two buttons [LDM v2, App. E.3.6]."""

import asyncio
import html
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldmlab.data.images import to_uint8
from ldmlab.experiments.user_study.session import Session, Side
from ldmlab.figures.pictures import picture_grid
from ldmlab.study.training.progress import has_front_end

if TYPE_CHECKING:
    from ipywidgets import Widget

SIDE = 256  # approximate side on the screen in pixels; rounded to a multiple of the picture's side
_GAP_S = 0.4  # blank seconds between an answer and the next pictures, against comparing across questions


def ask(session: Session, exposure_s: float | int = 3.0) -> "Widget | Figure":
    """The panel of a session; without a front end, a figure of one of its questions.

    The condition is shown between the two pictures, as in the paper. Pictures are hidden after `exposure_s` seconds,
    and answers are accepted from then on; with 0 the pictures stay. ValueError if `exposure_s` is negative.
    """
    if exposure_s < 0:
        raise ValueError(f"exposure_s must be 0 (no limit) or more seconds, got {exposure_s}")
    if has_front_end():
        return Panel(session, exposure_s).widget
    question = next((q for q in session.questions if q.task != "check"), session.questions[0])
    condition, left, right = session.pictures(question)
    columns = {"left": left, "right": right} if condition is None else {
        "left": left, session.comparison.given: condition, "right": right}
    shown = torch.stack([enlarged(picture, left.shape[-1]) for picture in columns.values()])
    return picture_grid({"": shown}, columns=list(columns), cell=1.8, caption=(
        f"{session.comparison.ask} One of {len(session.questions)} questions. To answer, run this cell in "
        f"JupyterLab, where it shows the pictures with two buttons."))


def enlarged(x: Float[Tensor, "*n 3 h w"], side: int) -> Float[Tensor, "*n 3 H W"]:
    """Pictures upsampled to `side` pixels in width by nearest-neighbour interpolation."""
    h, w = x.shape[-2:]
    return F.interpolate(x if x.ndim == 4 else x[None], (round(h * side / w), side), mode="nearest").view(
        *x.shape[:-2], -1, side)


def _later(seconds: float | int, call: Callable[[], None]) -> None:
    """Call after `seconds` in the kernel's event loop, which also runs the buttons, so that handlers never overlap."""
    asyncio.get_running_loop().call_later(seconds, call)


class Panel:
    """The widgets of a session and their handlers; `later(seconds, call)` schedules a call."""

    def __init__(
        self, session: Session, exposure_s: float | int = 3.0, later: Callable[[float, Callable], object] = _later
    ):
        import ipywidgets as w

        self.session, self.exposure_s, self._later, self._turn = session, exposure_s, later, 0
        own = session.comparison.truth.shape[-1]
        self.side = own * max(1, round(SIDE / own))
        shape = {"width": f"{self.side}px"}
        self.left, self.middle, self.right = (w.Image(format="png", layout=shape) for _ in range(3))
        self.buttons: dict[Side, w.Button] = {
            side: w.Button(description=side, tooltip=f"the {side} one", disabled=True, layout=shape)
            for side in ("left", "right")}
        for side, button in self.buttons.items():
            button.on_click(lambda _, side=side: self.answer(side))
        self.start = w.Button(description="start", button_style="primary")
        self.start.on_click(lambda _: self.show())
        self.bar = w.IntProgress(min=0, max=len(session.questions), layout={"width": "200px"})
        self.progress, self.message = w.HTML(), w.HTML()
        given = w.HTML(f"<div style='text-align:center'>{html.escape(session.comparison.given)}</div>")
        places = [w.VBox([self.left, self.buttons["left"]]), w.VBox([self.right, self.buttons["right"]])]
        if session.comparison.condition is not None:
            places.insert(1, w.VBox([self.middle, given]))
        self.pictures = w.HBox(places)
        self.widget = w.VBox([w.HTML(f"<b>{html.escape(session.comparison.ask)}</b>"),
                              w.HBox([self.bar, self.progress]), self.pictures, self.message, self.start])
        self.hide()
        self._count()
        resumed = f"Questions answered before: {self.bar.value}. " if self.bar.value else ""
        limit = f"Each pair is shown for {exposure_s:g} s; then choose." if exposure_s else "There is no time limit."
        keys = "Space presses a button, Tab moves to the other one."
        self.message.value = "<br>".join([f"You are {session.rater}. {resumed}{limit} {keys}",
                                       *map(html.escape, session.problems)])
        if session.current is None:
            self.thank()

    def show(self) -> None:
        """Show the pictures of the current question, and hide them after `exposure_s` seconds."""
        self._turn += 1
        turn, question = self._turn, self.session.current
        if question is None:
            return self.thank()
        self.start.layout.display, self.message.value = "none", ""
        condition, left, right = self.session.pictures(question)
        for place, picture in ((self.left, left), (self.middle, condition), (self.right, right)):
            if picture is not None:
                place.value = _png(enlarged(picture, self.side))
        self.session.shown()
        if self.exposure_s:
            self._later(self.exposure_s, lambda: self._time_is_up(turn))
        else:
            self._enable(True)

    def _time_is_up(self, turn: int) -> None:
        if turn == self._turn:  # not the timer of an earlier question
            self.session.hidden()
            self.hide()
            self._enable(True)

    def hide(self) -> None:
        """Replace the pictures by grey ones."""
        h, w = self.session.comparison.truth.shape[2:]
        grey = _png(torch.full((3, h, w), 0.8))
        for place in (self.left, self.middle, self.right):
            place.value = grey

    def answer(self, side: Side) -> None:
        """Save the answer of a button and continue with the next question after a short pause."""
        if self.buttons[side].disabled:
            return  # a second click before the button was disabled
        self._enable(False)
        try:
            self.session.answer(side)
        except OSError as error:
            self.message.value = f"The answer was not saved: {html.escape(str(error))}"
            self._enable(True)
            return
        self.hide()
        self._count()
        self._later(_GAP_S, self.show)

    def thank(self) -> None:
        """Show the final message with a summary of this rater's answers."""
        self.start.layout.display = self.pictures.layout.display = "none"
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self.session.summary())
        self.message.value = f"<b>Thank you, {self.session.rater}.</b> Your answers:<ul>{lines}</ul>"

    def _enable(self, on: bool) -> None:
        for button in self.buttons.values():
            button.disabled = not on
        if on:
            self.buttons["left"].focus()

    def _count(self) -> None:
        done, num = len(self.session.answers), len(self.session.questions)
        self.bar.value, self.progress.value = done, f"question {done + 1} of {num}" if done < num else f"{num} of {num}"


def _png(picture: Float[Tensor, "3 h w"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(picture[None].cpu())[0].permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()
