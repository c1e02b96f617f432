"""The paper's published numbers, as data: arXiv 2112.10752v2, each with its table, row, mark and source.

`paper.csv` has every number of Tab. 1-18, a number a line, and those that captions and text add. The points of Fig. 6,
7 and 17 are drawn there, not tabulated, so they are absent here. Marks: S stands in the paper's plain text; W stands in
the paper too, where that text loses captions and mathematics, and was read in the ar5iv rendering of the same version
(or in the source named); R stands in the authors' released configurations, weights or README; D is derived by
arithmetic. `paper_linter` finds where they contradict.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CSV = Path(__file__).with_name("paper.csv")

Value = float | int | str | tuple[int, ...]


@dataclass(frozen=True)
class Number:
    """One published number; `value` is a tuple where the table lists several (channel multipliers, resolutions)."""

    table: str
    row: str
    metric: str
    value: Value
    mark: str
    note: str
    source: str


@dataclass(frozen=True)
class FirstStageRow:
    """A row of Tab. 8: first stages trained on OpenImages, measured on ImageNet-val at 256 px."""

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
        """Numbers in the latent of a picture of 256 px: what f and c cost together."""
        return None if self.c is None else (256 // self.f) ** 2 * self.c


@cache
def numbers() -> tuple[Number, ...]:
    """Every number, in the paper's order of rows."""
    with open(CSV, newline="") as file:
        return tuple(Number(**{**line, "value": _parse(line["value"])}) for line in csv.DictReader(file))


def table(name: str) -> dict[str, dict[str, Value]]:
    """A table as {row: {metric: value}}: `table("Tab. 13")["LDM-8"]["batch_size"]`."""
    found: dict[str, dict[str, Value]] = {}
    for number in numbers():
        if number.table == name:
            found.setdefault(number.row, {})[number.metric] = number.value
    if not found:
        raise ValueError(f"no table {name!r}; there are {', '.join(sorted({n.table for n in numbers()}))}")
    return found


def tab8() -> list[FirstStageRow]:
    """Tab. 8 in full, prior work and the variant without attention included (see `note`)."""
    fields = FirstStageRow.__dataclass_fields__
    notes = {n.row: n.note for n in numbers() if n.table == "Tab. 8" and n.metric == "r_fid"}
    return [FirstStageRow(name=name.partition(" ")[0], note=notes[name],
                          **{key: value for key, value in row.items() if key in fields})
            for name, row in table("Tab. 8").items()]


def first_stages(reg: str) -> list[FirstStageRow]:
    """The paper's own first stages of Tab. 8, one for each f: that with most channels, and then most codes."""
    own = [row for row in tab8() if row.reg == reg and not row.note]
    return [max((row for row in own if row.f == f), key=lambda row: (row.c, row.num_codes or 0))
            for f in sorted({row.f for row in own})]


def _parse(text: str) -> Value:
    """A whole number, a decimal, whole numbers with spaces between, or words."""
    words = text.split()
    if len(words) > 1 and all(word.isdigit() for word in words):
        return tuple(map(int, words))
    for kind in (int, float):
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
# What the text says of the points that Fig. 6 and 7 draw [LDM v2, Sec. 4.1].
_SAID = table("Sec. 4.1")
FID_GAP_LDM1_LDM8 = float(_SAID["LDM-1 and LDM-8"]["fid_gap"])
BEST_F = _SAID["the best conditions"]["f"]
BALANCED_F = _SAID["a good balance"]["f"]
