"""The claims ledger of one data set and tier as a table: `python -m ldmlab.claims.claims --data scenes --tier laptop`.

Claims are in `definitions`, their verdicts are made in `judging`.
"""

import argparse
from collections.abc import Sequence
from math import exp

import pandas as pd

from ldmlab.claims.definitions import Claim
from ldmlab.claims.estimates import LEVEL, MOST_SEEDS
from ldmlab.claims.evidence import Evidence
from ldmlab.claims.judging import TARGET_POWER, Verdict, brief, ledger
from ldmlab.study.config.budgets import evidence_tiers


def frame(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """The ledger with one row per claim; factors are written as x1.5."""
    def shown(value: float | None, claim: Claim, ratio: bool) -> str:
        return "" if value is None else f"{'x' * ratio}{brief(value)} {claim.parts[0].unit}".strip()

    rows = []
    for v in verdicts:
        claim = v.claim
        # The deciding part of a claim on quality and speed may be either.
        part = next((part for part in claim.parts if part.label and v.deciding.endswith(part.label)), claim.parts[0])
        threshold = exp(claim.threshold) if part.ratio else claim.threshold
        beyond = claim.beyond(part)
        alternative = f"x{exp(claim.threshold + beyond):.3g}" if part.ratio else f"{claim.threshold + beyond:.3g}"
        rows.append({
            "claim": claim.id, "statement": claim.statement, "place": f"LDM v2, {claim.place}",
            "verdict": v.verdict, "uncorrected": v.raw,
            "effect": shown(v.effect, claim, part.ratio),
            "interval": "" if v.interval is None else " to ".join(shown(e, claim, part.ratio) for e in v.interval),
            "threshold": shown(threshold, claim, part.ratio), "rule": f"{claim.combine} of {len(claim.parts)} > "
            f"threshold: {claim.reason}" if len(claim.parts) > 1 else f"> threshold: {claim.reason}",
            "effect of": v.deciding, "scores": v.scores, "samplers": v.samplers,
            "level": "" if v.p_raw is None else f"{v.p_raw:.2g}, corrected {v.p:.2g}",
            "power": "" if v.power is None else f"{v.power:.0%} at {alternative}; {TARGET_POWER:.0%} with "
            + (f"{v.seeds} seeds" if v.seeds else f"more than {MOST_SEEDS} seeds"),
            "runs": v.runs, "basis": v.basis, "why": v.why, "readings": "; ".join(v.readings),
        })
    return pd.DataFrame(rows).set_index("claim")


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The ledger as a Markdown table."""
    shown = frame(verdicts).reset_index()
    rows = [shown.columns, ["---"] * len(shown.columns), *shown.itertuples(index=False)]
    return "\n".join("| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |" for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The claims ledger of one data set and tier.")
    parser.add_argument("--data", default="scenes", help="name of the data set, as in the records")
    parser.add_argument("--tier", default="laptop", choices=evidence_tiers())
    options = vars(parser.parse_args())
    known = Evidence(**options)
    print(f"{len(known.records)} records of {known.data}, tier {known.tier}; {known.left_out} with other versions or "
          f"sizes of the pictures are left out. Intervals are at {LEVEL:.0%}; verdicts are corrected for the number of "
          f"claims (Holm).\n\n{markdown(ledger(**options))}")
