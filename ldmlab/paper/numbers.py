"""The paper's published numbers, as data: arXiv 2112.10752v2, each with its table, row, mark and source.

`paper.csv` has every number of Tab. 1-18, one per line, and those in captions and text. The points of Fig. 6, 7 and 17
are plotted, not tabulated, and therefore absent. Marks: S, read in the paper's plain text; W, read in the ar5iv
rendering of the same version (or in the source named), since plain text loses captions and mathematics; R, read in the
released configurations, weights or README; D, derived by arithmetic. `ldmlab.paper.linter` finds contradictions.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CSV = Path(__file__).with_name("paper.csv")

Value = Any  # float, int, str, or tuple[int, ...] for lists such as channel multipliers


@dataclass(frozen=True)
class Number:
    """One published number; `value` is a tuple for lists, such as channel multipliers or resolutions."""

    table: str
    row: str
    metric: str
    value: Value
    mark: str
    note: str
    source: str


@dataclass(frozen=True)
class FirstStageRow:
    """A row of Tab. 8: a first stage trained on OpenImages, measured on ImageNet-val at 256 px."""

    name: str
    f: int
    reg: str
    r_fid: float
    psnr: float  # dB
    psim: float
    ssim: float
    c: int | None = None
    num_codes: int | None = None
    r_is: float | None = None
    note: str = ""

    @property
    def dims(self) -> int | None:
        """Dimensions of the latent of a picture of 256 px, None if c is not stated."""
        return None if self.c is None else (256 // self.f) ** 2 * self.c


@cache
def numbers() -> tuple[Number, ...]:
    """All numbers, in the paper's order."""
    with open(CSV, newline="") as file:
        return tuple(Number(**{**line, "value": _parse(line["value"])}) for line in csv.DictReader(file))


def table(name: str) -> dict[str, dict[str, Value]]:
    """A table as {row: {metric: value}}; ValueError for an unknown name, listing the known ones.

    >>> table("Tab. 13")["LDM-8"]["batch_size"]
    64
    """
    found: dict[str, dict[str, Value]] = {}
    for number in numbers():
        if number.table == name:
            found.setdefault(number.row, {})[number.metric] = number.value
    if not found:
        raise ValueError(f"no table {name!r}; there are {', '.join(sorted({n.table for n in numbers()}))}")
    return found


def tab8() -> list[FirstStageRow]:
    """All rows of Tab. 8, including prior work and the variant without attention, which have a `note`."""
    fields = FirstStageRow.__dataclass_fields__
    notes = {n.row: n.note for n in numbers() if n.table == "Tab. 8" and n.metric == "r_fid"}
    return [FirstStageRow(name=name.partition(" ")[0], note=notes[name],
                          **{key: value for key, value in row.items() if key in fields})
            for name, row in table("Tab. 8").items()]


def first_stages(reg: str) -> list[FirstStageRow]:
    """The paper's own first stages of Tab. 8 with `reg` "kl" or "vq", one for each f.

    Of several, that with most channels, then that with most codes.

    >>> [(row.f, row.psnr) for row in first_stages("kl")]
    [(2, 32.47), (4, 27.53), (8, 24.19), (16, 24.08), (32, 22.27)]
    """
    own = [row for row in tab8() if row.reg == reg and not row.note]
    return [max((row for row in own if row.f == f), key=lambda row: (row.c, row.num_codes or 0))
            for f in sorted({row.f for row in own})]


def _parse(text: str) -> Value:
    """Parse an integer, a decimal, integers separated by spaces, or text."""
    words = text.split()
    if len(words) > 1 and all(word.isdigit() for word in words):
        return tuple(map(int, words))
    kinds: tuple[type, ...] = (int, float)
    for kind in kinds:
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _guidance() -> tuple[tuple[float, float, float], ...]:
    """Guidance scale, FID and Inception score of LDM-4 on ImageNet, 250 DDIM steps [LDM v2, Tab. 10]."""
    rows = {row.get("guidance_scale", 1.0): row for name, row in table("Tab. 10").items()
            if name.startswith("ImageNet / LDM-4")}
    return tuple((float(scale), row["fid"], row["is"]) for scale, row in sorted(rows.items()))


TAB10_GUIDANCE = _guidance()
# Statements of the text on the points plotted in Fig. 6 and 7 [LDM v2, Sec. 4.1].
_TEXT = table("Sec. 4.1")
FID_GAP_LDM1_LDM8 = float(_TEXT["LDM-1 and LDM-8"]["fid_gap"])
BEST_F = _TEXT["the best conditions"]["f"]
BALANCED_F = _TEXT["a good balance"]["f"]
