"""The figures of the study, by name: what each shows, and whose records it takes."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from matplotlib.figure import Figure

from ldmlab.study.config.notebooks import NOTEBOOKS, StudyFigure
from ldmlab.study.records.record import Record


class Drawing(NamedTuple):
    """A figure of the study: what it shows, whose records it takes, and the metric by which they have to compare."""

    shows: str
    notebook: str
    metric: str
    draw: Callable[[Sequence[Record]], Figure]
    per_f: bool = False  # one f at a time


def _load_function(figure: StudyFigure) -> Callable[[Sequence[Record]], Figure]:
    module, _, name = figure.function.rpartition(".")
    function = getattr(import_module(f"ldmlab.figures.{module}"), name)
    return (lambda records: function(records[0])) if figure.one_record else function


DRAWINGS: dict[str, Drawing] = {
    figure.name: Drawing(figure.shows, row.name, figure.metric, _load_function(figure), figure.per_f)
    for row in NOTEBOOKS.values() for figure in row.figures
}
