"""A canvas on which boxes are drawn with the mouse."""

import itertools
from collections.abc import Sequence

from ldmlab.figures.style import TINTS


class BoxDrawing:
    """A canvas on which boxes are drawn by dragging the mouse.

    `boxes` are (name, x0, y0, x1, y1) with coordinates as fractions of the picture's sides; `names` are the choices.
    """

    SIDE = 288  # side of the canvas in pixels

    def __init__(self, names: Sequence[str], boxes: Sequence[tuple] = ()):
        import ipycanvas
        import ipywidgets

        self.boxes = list(boxes)
        self._start: tuple[float | int, float | int] | None = None
        self._now: tuple[float | int, float | int] = (0, 0)
        self.name = ipywidgets.Dropdown(options=list(names), description="object")
        undo, clear = (ipywidgets.Button(description=text) for text in ("undo", "clear"))
        undo.on_click(lambda _: self._keep(self.boxes[:-1]))
        clear.on_click(lambda _: self._keep([]))
        self.controls = ipywidgets.HBox([self.name, undo, clear])
        self.canvas = ipycanvas.Canvas(width=self.SIDE, height=self.SIDE, layout={"width": f"{self.SIDE}px"})
        self.canvas.on_mouse_down(self.press)
        self.canvas.on_mouse_move(self.move)
        self.canvas.on_mouse_up(self.release)
        self._draw()

    def press(self, x: float | int, y: float | int) -> None:
        """Start a box at a corner, in pixels of the canvas."""
        self._start = self._now = (x, y)

    def move(self, x: float | int, y: float | int) -> None:
        """Move the opposite corner while the mouse button is held."""
        if self._start is not None:
            self._now = (x, y)
            self._draw()

    def release(self, x: float | int, y: float | int) -> None:
        """End the box at the opposite corner; boxes of at most 3 pixels a side are dropped, as from plain clicks."""
        if self._start is not None:
            (x0, x1), (y0, y1) = (sorted(ends) for ends in zip(self._start, (x, y), strict=True))
            self._start = None
            new = [(self.name.value, *(end / self.SIDE for end in (x0, y0, x1, y1)))]
            self._keep(self.boxes + (new if x1 - x0 > 3 and y1 - y0 > 3 else []))

    def _keep(self, boxes: list[tuple]) -> None:
        self.boxes = boxes
        self._draw()

    def _draw(self) -> None:
        from ipycanvas import hold_canvas

        canvas, side = self.canvas, self.SIDE
        with hold_canvas():
            canvas.fill_style = "#f4f4f2"
            canvas.fill_rect(0, 0, side, side)
            canvas.font, canvas.line_width = "12px sans-serif", 2
            for tint, (name, *ends) in zip(itertools.cycle(TINTS), self.boxes, strict=False):
                x0, y0, x1, y1 = (end * side for end in ends)
                canvas.stroke_style = canvas.fill_style = tint
                canvas.stroke_rect(x0, y0, x1 - x0, y1 - y0)
                canvas.fill_text(name, x0 + 4, y0 + 14)
            if self._start is not None:
                canvas.stroke_style = "#6b7280"
                (x0, y0), (x1, y1) = self._start, self._now
                canvas.stroke_rect(x0, y0, x1 - x0, y1 - y0)
