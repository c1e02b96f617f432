"""A canvas on which boxes are drawn with the mouse."""

import itertools
from collections.abc import Sequence

from ldmlab.figures.style import TINTS


class BoxDrawing:
    """A canvas on which boxes are drawn by dragging the mouse; `boxes` are (name, x0, y0, x1, y1) in fractions."""

    SIDE = 288  # pixels of the canvas

    def __init__(self, names: Sequence[str], boxes: Sequence[tuple] = ()):
        import ipycanvas
        import ipywidgets

        self.boxes, self._start, self._now = list(boxes), None, None
        self.name = ipywidgets.Dropdown(options=list(names), description="thing")
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
        """The first corner, in pixels of the canvas."""
        self._start = self._now = (x, y)

    def move(self, x: float | int, y: float | int) -> None:
        """The box so far, while the button is held."""
        if self._start is not None:
            self._now = (x, y)
            self._draw()

    def release(self, x: float | int, y: float | int) -> None:
        """The other corner; a click without a drag is no box."""
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
