"""Claims of the paper in Sec. 4.1, 4.5 and App. D as statistical hypotheses, and verdicts on them from records.

A claim states that an effect exceeds a threshold, with the reason for it; thresholds were set when one seed of tier
`laptop` was known. The ledger holds the verdicts for one data set and tier; `python -m ldmlab.claims.claims --data
scenes --tier laptop` prints it. The claim that complex data need a smaller f [LDM v2, Sec. 4.1] is not included, since
it compares data sets.

Deviation: the paper uses FID on Inception features and class-conditional models at 256 px; here FD-lab replaces FID,
and a verdict holds for its data and tier only.

>>> next(claim.statement for claim in CLAIMS if claim.id == "speed-up")
'LDM-4 trains and samples at least 2.7 times as fast as LDM-1.'
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log

import pandas as pd

from ldmlab.claims.evidence import LEVEL, Cell, Effect, Evidence, Quantity, estimate_effect
from ldmlab.claims.quantities import (
    BITS,
    FD_END,
    FD_EQUAL_SECONDS,
    FD_EQUAL_STEPS,
    FEW_STEPS,
    FID,
    FLOPS,
    GAIN_2X,
    GAIN_BEYOND,
    GUIDED,
    LATE_GAIN,
    LATENT_STD,
    LAYOUT,
    PSNR,
    RATE,
    RFD,
    TRAIN_RATE,
    VQ_2X,
    by_steps,
)
from ldmlab.paper.numbers import FID_GAP_LDM1_LDM8, table
from ldmlab.study.config.budgets import evidence_tiers
from ldmlab.study.config.notebooks import FS
from ldmlab.study.records.record import Record

MIDDLE, STEPS = (4, 8, 16), (10, 50, 200)
STATED = table("Sec. 4.5")["inpainting"]  # factors stated in the text
SUPPORTED, CONTRADICTED, UNDERPOWERED = "supported", "contradicted", "underpowered"


# --- Claims ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One effect of a claim: a quantity and its weights by cell; weights None take the cell with most runs."""

    quantity: Quantity
    weights: dict[Cell, float] | None
    label: str = ""


@dataclass(frozen=True)
class Claim:
    """A falsifiable statement of the paper: all or any (`combine`) of its parts exceed the threshold.

    The threshold has the scale of the quantity: a logarithm for ratios. `reason` explains its value, `place` is the
    section, figure or table of the paper.
    """

    id: str
    statement: str
    place: str
    parts: tuple[Part, ...]
    threshold: float
    reason: str
    combine: str = "all"


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim; effect and interval are those of the deciding part, as factors for ratios."""

    claim: Claim
    verdict: str
    why: str
    deciding: str = ""
    effect: float | None = None
    interval: tuple[float, float] | None = None
    runs: str = ""
    basis: str = ""


def cell(f: int, reg: str = "kl") -> Cell:
    """The cell of f and regularizer as in records; the regularizer is "none" at f = 1."""
    return (f, "none" if f == 1 else reg)


def _more(quantity: Quantity, more: Sequence[Cell], less: Sequence[Cell]) -> Part:
    """The difference of a quantity's means over the cells `more` and the cells `less`."""
    weights = {c: 1 / len(more) for c in more} | {c: -1 / len(less) for c in less}
    names = [" ".join(f"f={f}{' VQ' if reg == 'vq' else ''}" for f, reg in cells) for cells in (more, less)]
    return Part(quantity, weights, f"{quantity.name}: {names[0]} against {names[1]}")


def _own(quantity: Quantity, *cells: Cell, sign: float = 1.0) -> tuple[Part, ...]:
    """The value of a quantity in each of the cells, times `sign`."""
    return tuple(Part(quantity, {c: sign}, f"{quantity.name}: f={c[0]}{' VQ' if c[1] == 'vq' else ''}") for c in cells)


def _falls(quantity: Quantity, fs: Sequence[int], sign: int = 1) -> tuple[Part, ...]:
    """The decrease of a quantity from each f to the next; the increase for sign -1."""
    return tuple(_more(quantity, [cell(a)], [cell(b)]) for a, b in (pair[::sign] for pair in pairwise(fs)))


ANY_LEAD = "any difference that the interval confirms"
CLAIMS: tuple[Claim, ...] = (
    Claim("slow-f1", "At equal steps, pixel-based LDM-1 is worse than LDM-4, -8 and -16.", "Sec. 4.1 (i), Fig. 6",
          (_more(FD_EQUAL_STEPS, [cell(1)], [cell(f) for f in MIDDLE]),), 0.0, ANY_LEAD),
    Claim("slow-f2", "At equal steps, LDM-2 is worse than LDM-4, -8 and -16.", "Sec. 4.1 (i), Fig. 6",
          (_more(FD_EQUAL_STEPS, [cell(2)], [cell(f) for f in MIDDLE]),), 0.0, ANY_LEAD),
    Claim("stagnates-f32", "LDM-32 stagnates early: it hardly improves in the second half of training.",
          "Sec. 4.1 (ii), Fig. 6", _own(LATE_GAIN, cell(32), sign=-1.0), -log(1.05), "a gain below 5 % counts as none"),
    Claim("limited-f32", "Too much compression limits quality: LDM-32 ends worse than LDM-4, -8 and -16.",
          "Sec. 4.1 (ii), Fig. 6", (_more(FD_END, [cell(32)], [cell(f) for f in MIDDLE]),), 0.0, ANY_LEAD),
    Claim("gap-f1-f8", "At equal steps, LDM-8 is much better than pixel-based LDM-1.", "Sec. 4.1",
          (_more(FD_EQUAL_STEPS, [cell(1)], [cell(8)]),), log(1.5), "a large gap: a factor of 1.5"),
    Claim("gap-38", f"After training, LDM-8 leads LDM-1 by {FID_GAP_LDM1_LDM8:g} in FID.", "Sec. 4.1",
          (_more(FID, [cell(1)], [cell(8)]),), FID_GAP_LDM1_LDM8 / 2,
          "half of it: data and training budgets differ, and FD-lab is not FID"),
    Claim("balance-f4-f16", "LDM-4 to -16 are better than LDM-1 at equal steps and sample faster.",
          "Sec. 4.1, Fig. 6", tuple(part for f in MIDDLE for part in (
              _more(FD_EQUAL_STEPS, [cell(1)], [cell(f)]), _more(RATE, [cell(f)], [cell(1)]))), 0.0, ANY_LEAD),
    Claim("best-f4-f8", "LDM-4 and -8 end better than every other f.", "Sec. 4.1, Fig. 7", tuple(
        _more(FD_END, [cell(f)], [cell(best)]) for best in (4, 8) for f in FS if f not in (4, 8)), 0.0, ANY_LEAD),
    Claim("equal-cost", "At equal training time, LDM-1 is worse than LDM-4, -8 and -16, too.",
          "App. D.5, Fig. 17", (_more(FD_EQUAL_SECONDS, [cell(1)], [cell(f) for f in MIDDLE]),), 0.0, ANY_LEAD),
    Claim("throughput-rises", "Sampling gets faster with every doubling of f.", "Sec. 4.1, Fig. 7",
          _falls(RATE, FS, -1), 0.0, ANY_LEAD),
    Claim("speed-up", "LDM-4 trains and samples at least 2.7 times as fast as LDM-1.", "Sec. 4.5, Tab. 6",
          (_more(RATE, [cell(4)], [cell(1)]), _more(TRAIN_RATE, [cell(4)], [cell(1)])), log(STATED["speed_up"]),
          "the paper's factor"),
    Claim("quality-factor", "At equal steps, LDM-4 improves on LDM-1 by a factor of at least 1.6.", "Sec. 4.5, Tab. 6",
          (_more(FD_EQUAL_STEPS, [cell(1)], [cell(4)]),), log(STATED["fid_factor"]), "the paper's factor"),
    Claim("flops-fall", "A lower-dimensional space makes a model of equal size cheaper, at every doubling of f.",
          "Sec. 3.2", _falls(FLOPS, FS), 0.0, "FLOPs are counted, not estimated"),
    Claim("psnr-falls", "A first stage of larger f reconstructs worse, at every doubling.", "Sec. 4.1 (ii), Tab. 8",
          _falls(PSNR, FS[1:]), 0.0, ANY_LEAD),
    Claim("rfd-rises", "Less downsampling allows better quality: rFD rises with every doubling of f.",
          "Fig. 1, Tab. 8", _falls(RFD, FS[1:], -1), 0.0, ANY_LEAD),
    Claim("vq-reconstructs-worse", "VQ first stages reconstruct slightly worse than KL ones of the same f.",
          "Sec. 4, Tab. 8", (_more(PSNR, [cell(f) for f in MIDDLE], [cell(f, "vq") for f in MIDDLE]),), 0.0, ANY_LEAD),
    Claim("vq-samples-better", "Models in VQ latents sometimes sample better than those in KL latents.", "Sec. 4",
          tuple(_more(FD_END, [cell(f)], [cell(f, "vq")]) for f in MIDDLE), 0.0, "any difference at any f",
          combine="any"),
    Claim("kl-snr-high", "Without rescaling, the SNR of KL latents is very high.", "App. D.1",
          _own(LATENT_STD, *map(cell, MIDDLE)), log(2), "standard deviation 2, four times the SNR"),
    Claim("vq-variance-near-1", "VQ latents have a variance close to 1.", "App. D.1",
          tuple(part for sign in (1.0, -1.0)
                for part in _own(LATENT_STD, *(cell(f, "vq") for f in MIDDLE), sign=sign)),
          -log(2) / 2, "variance between 1/2 and 2"),
    Claim("layout-early", "Without rescaling, KL latents determine the layout earlier in denoising, at larger t.",
          "App. D.1", (Part(LAYOUT, None, LAYOUT.name),), 0.0, ANY_LEAD),
    Claim("rescaling-helps", "Rescaling the KL latent improves convolutional samples of twice the size.",
          "App. D.1, Fig. 15", (Part(GAIN_2X, None, GAIN_2X.name),), log(1.1), "10 %: the gain in Fig. 15 is visible"),
    Claim("rescaling-cures", "Rescaling improves samples of twice the training size more than those at that size.",
          "App. D.1, Fig. 15", (Part(GAIN_BEYOND, None, GAIN_BEYOND.name),), 0.0, ANY_LEAD),
    Claim("vq-needs-none", "VQ latents need no rescaling: samples of twice the size are as good as of rescaled KL.",
          "App. D.1, Fig. 15", (Part(VQ_2X, None, VQ_2X.name),), -log(1.25), "as good: less than 25 % worse"),
    Claim("pareto-f4-f8", "At any number of DDIM steps, LDM-4 and -8 are better and faster than LDM-1.",
          "Sec. 4.1, Fig. 7", tuple(part for f in (4, 8) for steps in STEPS for part in (
              _more(by_steps("fd_lab_by_steps", "FD-lab", steps), [cell(1)], [cell(f)]),
              _more(by_steps("images_per_s", "pictures per second", steps, timed=True, spread=0.05), [cell(f)],
                    [cell(1)]))), 0.0, ANY_LEAD),
    Claim("fewer-steps", "With LDM-4 and -8, 50 DDIM steps are almost as good as 200.",
          "Sec. 2, Fig. 7", _own(FEW_STEPS, cell(4), cell(8)), -log(1.1), "almost: within 10 %"),
    Claim("guidance-boosts", "Classifier-free guidance improves samples.", "Sec. 4.3.1, App. D.4, Tab. 10",
          (Part(GUIDED, None, GUIDED.name),), 0.0, ANY_LEAD),
    Claim("imperceptible-bits", "Most bits of a pixel-based model describe imperceptible details.", "Sec. 1, Fig. 2",
          _own(BITS, cell(1)), 0.5, "most: more than half"),
)


# --- Verdicts --------------------------------------------------------------------------------------------------------


def judge(claim: Claim, evidence: Evidence) -> Verdict:
    """The verdict on a claim from the records.

    A claim of all parts is supported if each exceeds the threshold at LEVEL, and contradicted if one falls short at
    the Bonferroni-corrected level; a claim of any part the other way round. Otherwise it is underpowered.
    """
    found = [(part, estimate_effect(evidence, part.quantity, part.weights)) for part in claim.parts]
    present = [(part, e) for part, e in found if not e.missing]
    missing = list(dict.fromkeys(reason for _, e in found for reason in e.missing))
    missing = missing[:2] + ([f"and {len(missing) - 2} more"] if len(missing) > 2 else [])
    if not present:
        return Verdict(claim, UNDERPOWERED, "; ".join(missing))
    joint, every = 1 - (1 - LEVEL) / len(found), claim.combine == "all"
    part, shown = (min if every else max)(present, key=lambda pair: pair[1].interval(joint)[0 if not every else 1])
    low, high = ([e.interval(level) for _, e in present] for level in ((LEVEL, joint) if every else (joint, LEVEL)))
    above, below = [lo > claim.threshold for lo, _ in low], [hi < claim.threshold for _, hi in high]
    if (all(above) and not missing) if every else any(above):
        verdict, level = SUPPORTED, LEVEL if every else joint
    elif any(below) if every else (all(below) and not missing):
        verdict, level = CONTRADICTED, joint if every else LEVEL
    else:
        verdict, level = UNDERPOWERED, LEVEL
        if every:  # the part that prevents support
            part, shown = min(present, key=lambda pair: pair[1].interval(LEVEL)[0])
    return _verdict(claim, verdict, part, shown, level, missing)


def _verdict(claim: Claim, verdict: str, part: Part, shown: Effect, level: float, missing: list[str]) -> Verdict:
    scale = exp if part.quantity.ratio else float
    low, high = shown.interval(level)
    interval = scale(low), scale(high)
    if verdict == UNDERPOWERED:
        held = ["the interval contains the threshold"] if low <= claim.threshold <= high else (
            [f"the interval lies below the threshold, but not if corrected for all {len(claim.parts)} parts"]
            if high < claim.threshold else [])
        why = missing + held + (
            ["a second seed would measure the spread"] if shown.basis.startswith("one seed") else [])
    else:
        why = [f"the interval lies {'above' if verdict == SUPPORTED else 'below'} the threshold"] + missing
    return Verdict(claim, verdict, "; ".join(why), part.label, scale(shown.value), interval, shown.runs, shown.basis)


def ledger(data: str, tier: str, records: Sequence[Record] | None = None) -> list[Verdict]:
    """A verdict on every claim from the records of one data set and tier, by default from all records on disk.

    ValueError for tier smoke.
    """
    evidence = Evidence(data, tier, records)
    return [judge(claim, evidence) for claim in CLAIMS]


def frame(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """The ledger with one row per claim; factors are written as x1.5."""
    def shown(value: float | None, claim: Claim) -> str:
        quantity = claim.parts[0].quantity
        return "" if value is None else f"{'x' * quantity.ratio}{value:.3g} {quantity.unit}".strip()

    rows = [{
        "claim": v.claim.id, "statement": v.claim.statement, "place": f"LDM v2, {v.claim.place}", "verdict": v.verdict,
        "effect": shown(v.effect, v.claim),
        "interval": "" if v.interval is None else " to ".join(shown(end, v.claim) for end in v.interval),
        "threshold": shown((exp if v.claim.parts[0].quantity.ratio else float)(v.claim.threshold), v.claim),
        "reason": v.claim.reason, "effect of": v.deciding, "runs": v.runs, "basis": v.basis, "why": v.why,
    } for v in verdicts]
    return pd.DataFrame(rows).set_index("claim")


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The ledger as a Markdown table."""
    shown = frame(verdicts).drop(columns=["reason", "effect of"]).reset_index()
    rows = [shown.columns, ["---"] * len(shown.columns), *shown.itertuples(index=False)]
    return "\n".join("| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |" for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The claims ledger of one data set and tier.")
    parser.add_argument("--data", default="scenes", help="name of the data set, as in the records")
    parser.add_argument("--tier", default="laptop", choices=evidence_tiers())
    options = vars(parser.parse_args())
    known = Evidence(**options)
    print(f"{len(known.records)} records of {known.data}, tier {known.tier}; {known.left_out} with other versions or "
          f"sizes of the pictures are left out.\n\n{markdown(ledger(**options))}")
