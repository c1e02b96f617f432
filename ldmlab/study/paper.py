"""The paper's published numbers, as data: arXiv 2112.10752v2, each with the table or section it stands in."""

import csv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class FirstStageRow:
    """A row of Tab. 8: first stages trained on OpenImages, measured on ImageNet-val at 256 px."""

    name: str
    f: int
    reg: str
    num_codes: int | None
    c: int | None
    r_fid: float
    r_is: float | None
    psnr: float  # dB
    psim: float
    ssim: float
    note: str

    @property
    def dims(self) -> int | None:
        """Numbers in the latent of a picture of 256 px: what f and c cost together."""
        return None if self.c is None else (256 // self.f) ** 2 * self.c


def tab8() -> list[FirstStageRow]:
    """Tab. 8 in full, prior work and ablations included (see `note`)."""
    kinds = {"f": int, "num_codes": int, "c": int, "r_fid": float, "r_is": float, "psnr": float, "psim": float,
             "ssim": float}
    with open(HERE / "paper_tab8.csv", newline="") as file:
        return [FirstStageRow(**{key: (kinds[key](value) if value else None) if key in kinds else value
                                 for key, value in row.items()}) for row in csv.DictReader(file)]


def first_stages(reg: str) -> list[FirstStageRow]:
    """The paper's own first stages of Tab. 8, one for each f: that with most channels, and then most codes."""
    own = [row for row in tab8() if row.reg == reg and not row.note]
    return [max((row for row in own if row.f == f), key=lambda row: (row.c, row.num_codes or 0))
            for f in sorted({row.f for row in own})]


# Fig. 6, 7 and 17 are drawn, not tabulated; this is what the text says of them [LDM v2, Sec. 4.1].
FID_GAP_LDM1_LDM8 = 38.0  # after 2M steps, class-conditional ImageNet at 256 px, 5k samples
BEST_F = (4, 8)  # "offer the best conditions"
BALANCED_F = (4, 8, 16)  # "strike a good balance", two sentences earlier
