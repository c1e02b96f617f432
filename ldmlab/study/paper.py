"""The paper's published numbers, as data: arXiv 2112.10752v2, each with its table, row, mark and source.

`paper.csv` has Tab. 1, 8, 12-15 and 18, a number a line. Marks: S stands in the paper's text, R in the authors'
released configurations or README, D is derived from those by arithmetic. Notes name contradictions.
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


# Fig. 6, 7 and 17 are drawn, not tabulated, so their points are absent here; this is what the text says of them
# [LDM v2, Sec. 4.1].
FID_GAP_LDM1_LDM8 = 38.0  # after 2M steps, class-conditional ImageNet at 256 px, 5k samples
BEST_F = (4, 8)  # "offer the best conditions"
BALANCED_F = (4, 8, 16)  # "strike a good balance", two sentences earlier


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

# Tab. 10, LDM-4 on class-conditional ImageNet, 250 DDIM steps: guidance scale, FID, Inception score.
TAB10_GUIDANCE = ((1.0, 10.56, 103.49), (1.25, 3.95, 178.22), (1.5, 3.60, 247.67))
