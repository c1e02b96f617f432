"""Verdicts on claims: each under every score and sampler at hand, all of which must agree.

A claim is judged once per view (score and sampler), and supported or contradicted only if it is so in each: an
intersection-union test, whose level needs no correction [Berger 1982]. Verdicts of a ledger are corrected for the
number of its claims by the method of Holm [1979]: claims share their runs, which it allows for, and each verdict is
read on its own, so that one false verdict in the ledger counts, where the method of Benjamini and Hochberg would bound
their share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp, prod

from ldmlab.claims.definitions import CLAIMS, Claim, Part
from ldmlab.claims.estimates import LEVEL, MOST_SEEDS, Effect, estimate_effect, holm, joined
from ldmlab.claims.evidence import Evidence, Quantity
from ldmlab.claims.quantities import ETA_0, KD, View
from ldmlab.study.records.record import Record

SUPPORTED, CONTRADICTED, UNDERPOWERED = "supported", "contradicted", "underpowered"
DEPENDS_ON_SAMPLER, DEPENDS_ON_SCORE = "depends on the sampler", "depends on the score"
VERDICTS = (SUPPORTED, CONTRADICTED, DEPENDS_ON_SAMPLER, DEPENDS_ON_SCORE, UNDERPOWERED)
ALPHA, TARGET_POWER = 1 - LEVEL, 0.8


@dataclass(frozen=True)
class Seen:
    """A claim under one view: levels at which it is just supported and just contradicted, and its deciding part."""

    view: View
    p_support: float
    p_contra: float
    part: Part | None
    effect: Effect
    missing: tuple[str, ...]
    scored: bool = False  # whether the view's own score is at hand, and not only speeds beside it
    power: float | None = None
    seeds: int | None = None

    @property
    def name(self) -> str:
        """Score and sampler, in words."""
        return ", ".join(filter(None, self.view))

    @property
    def verdict(self) -> str:
        """The verdict of this view alone."""
        return SUPPORTED if self.p_support <= ALPHA else CONTRADICTED if self.p_contra <= ALPHA else UNDERPOWERED


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim; effect and interval are those of the deciding part, as factors for ratios.

    `verdict` is corrected for the number of claims, `raw` is not; so for `p` and `p_raw`, the levels at which the
    verdict is just reached (None where there is nothing to test). `seeds` is how many seeds of every cell would give a
    power of TARGET_POWER, None for more than MOST_SEEDS.
    """

    claim: Claim
    verdict: str
    why: str
    deciding: str = ""
    effect: float | None = None
    interval: tuple[float, float] | None = None
    runs: str = ""
    basis: str = ""
    raw: str = UNDERPOWERED
    p: float | None = None
    p_raw: float | None = None
    power: float | None = None
    seeds: int | None = None
    views: tuple[Seen, ...] = ()
    readings: tuple[str, ...] = ()

    @property
    def scores(self) -> str:
        """Scores that were at hand."""
        return ", ".join(dict.fromkeys(seen.view[0] for seen in self.views if seen.scored and seen.view[0]))

    @property
    def samplers(self) -> str:
        """Samplers that were at hand."""
        return ", ".join(dict.fromkeys(seen.view[1] for seen in self.views if seen.scored and seen.view[1]))


def views_of(claim: Claim) -> tuple[list[View], list[View]]:
    """(needed, further) views of a claim; parts without scores and samplers take part in each."""
    needed: dict[View, None] = {}
    others: dict[View, None] = {}
    for measure in (measure for part in claim.parts for measure in part.measures):
        scored = {view: None for view in measure.views if any(view)}
        needed |= {view: None for view in measure.needed if any(view)}
        others |= {view: None for view in scored if view[0] not in measure.plain or _is_plain(claim)}
    return list(needed) or [("", "")], [view for view in others if view not in needed]


def _is_plain(claim: Claim) -> bool:
    """Whether a claim is a comparison of means without factors and thresholds, that any score can decide."""
    return claim.threshold == 0 and all(part.weights and abs(sum(part.weights.values())) < 1e-9 for part in claim.parts)


def judge(claim: Claim, evidence: Evidence) -> Verdict:
    """The verdict on a claim from the records, not corrected for other claims.

    In each view a claim of all parts is supported if each exceeds the threshold at LEVEL, and contradicted if one falls
    short at the Bonferroni-corrected level; a claim of any part the other way round. All views must agree; where one
    supports and another contradicts, that is the verdict. Otherwise it is underpowered.
    """
    needed, further = views_of(claim)
    seen = [_see(claim, evidence, view) for view in needed]
    seen += [s for s in (_see(claim, evidence, view) for view in further) if s.scored and not s.missing]
    there, readings = [s for s in seen if s.part], _readings(claim, evidence)
    missing = tuple(dict.fromkeys(reason for s in seen for reason in s.missing))
    told = "; ".join(missing[:2] + ((f"and {len(missing) - 2} more",) if len(missing) > 2 else ()))
    if not there:
        return Verdict(claim, UNDERPOWERED, told, views=tuple(seen), readings=readings)
    p_support, p_contra = (1.0 if any(not s.part for s in seen) else max(getattr(s, p) for s in seen)
                           for p in ("p_support", "p_contra"))
    yes, no = min(there, key=lambda s: s.p_support), min(there, key=lambda s: s.p_contra)
    p_split = max(yes.p_support, no.p_contra)
    p_raw = min(p_support, p_contra, p_split)
    if p_raw > ALPHA:
        raw = UNDERPOWERED
    elif p_raw == p_support:
        raw = SUPPORTED
    elif p_raw == p_contra:
        raw = CONTRADICTED
    else:
        raw = DEPENDS_ON_SAMPLER if yes.view[0] == no.view[0] else DEPENDS_ON_SCORE
    # Shown is the view that is hardest to decide, or the one that contradicts.
    shown = max(there, key=lambda s: s.p_contra if raw == CONTRADICTED else s.p_support)
    powers = [s.power for s in seen if s.view in needed]
    seeds = [s.seeds for s in seen if s.view in needed]
    verdict = Verdict(
        claim, raw, "", ": ".join(filter(None, (shown.name, shown.part.label if shown.part else ""))),
        views=tuple(seen), readings=readings, raw=raw, p=p_raw, p_raw=p_raw, runs=shown.effect.runs,
        basis=shown.effect.basis, power=None if None in powers else min(p for p in powers if p is not None),
        seeds=None if None in seeds else max(n for n in seeds if n is not None))
    scale = exp if shown.part and shown.part.ratio else float
    low, high = shown.effect.interval()
    return replace(verdict, effect=scale(shown.effect.value), interval=(scale(low), scale(high)),
                   why=_why(verdict, there, shown, evidence, told))


def _see(claim: Claim, evidence: Evidence, view: View) -> Seen:
    found = [(part, _effect(claim, part, evidence, view)) for part in claim.parts]
    missing = tuple(dict.fromkeys(reason for _, effect in found for reason in effect.missing))
    present = [(part, effect) for part, effect in found if not effect.missing]
    if not present:
        return Seen(view, 1.0, 1.0, None, Effect(), missing)
    above, below = ([p(effect, claim.threshold) for _, effect in present] for p in (Effect.p_above, Effect.p_below))
    every, k = claim.combine == "all", len(found)
    if every:
        p_support, p_contra = 1.0 if missing else max(above), min(1.0, k * min(below))
    else:
        p_support, p_contra = min(1.0, k * min(above)), 1.0 if missing else max(below)
    # The part that prevents support, or for a claim of any part, that nearest to it; of parts that contradict, the
    # clearest.
    if p_contra <= ALPHA and every:
        part, effect = min(present, key=lambda pair: pair[1].p_below(claim.threshold))
    else:
        part, effect = (max if every else min)(present, key=lambda pair: pair[1].p_above(claim.threshold))
    scored = any(view in measure.views for part, _ in present for measure in part.measures)
    if missing:
        return Seen(view, p_support, p_contra, part, effect, missing, scored)
    return Seen(view, p_support, p_contra, part, effect, (), scored, _power(claim, present), _seeds(claim, present))


def _effect(claim: Claim, part: Part, evidence: Evidence, view: View) -> Effect:
    """A part's effect in a view, without seed 0 where that set the threshold."""
    effects = [estimate_effect(evidence, quantity, part.weights, 0 if claim.set_on_seed_0 else None)
               for quantity in _quantities(part, view)]
    if not effects:
        return Effect(missing=(f"{part.label} has no {' under '.join(filter(None, view))}",))
    return joined(effects) if len(effects) > 1 else effects[0]


def _quantities(part: Part, view: View) -> list[Quantity]:
    return [measure.views.get(view) or measure.views[view if any(view) else ("", "")] for measure in part.measures
            if view in measure.views] or [measure.views["", ""] for measure in part.measures
                                          if ("", "") in measure.views]


def _power(claim: Claim, present: Sequence[tuple[Part, Effect]], seeds: int | None = None) -> float:
    """Probability of support if each part exceeds the threshold by its effect of interest; parts as if independent."""
    if claim.combine == "all":
        return prod(effect.power(claim.beyond(part), LEVEL, seeds) for part, effect in present)
    level = 1 - ALPHA / len(present)
    return 1 - prod(1 - effect.power(claim.beyond(part), level, seeds) for part, effect in present)


def _seeds(claim: Claim, present: Sequence[tuple[Part, Effect]]) -> int | None:
    """The least number of seeds of every cell with a power of TARGET_POWER; None for more than MOST_SEEDS."""
    enough = partial(_power, claim, present)
    if enough(MOST_SEEDS) < TARGET_POWER:
        return None
    low, high = 1, MOST_SEEDS  # a single seed measures no spread
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) >= TARGET_POWER else (middle, high)
    return high


def _why(verdict: Verdict, there: Sequence[Seen], shown: Seen, evidence: Evidence, told: str) -> str:
    threshold, parts = verdict.claim.threshold, verdict.claim.parts
    said = [told] if told else []
    low, high = shown.effect.interval()
    if verdict.raw == SUPPORTED:
        said.insert(0, "the interval lies above the threshold")
    elif verdict.raw == CONTRADICTED:
        said.insert(0, "the interval lies below the threshold")
    elif verdict.raw == UNDERPOWERED and low <= threshold <= high:
        said.append("the interval contains the threshold")
    elif verdict.raw == UNDERPOWERED and high < threshold:
        said.append(f"the interval lies below the threshold, but not if corrected for all {len(parts)} parts"
                    if len(parts) > 1 and shown.verdict != CONTRADICTED else
                    "the interval lies below the threshold, but not under every score and sampler")
    if sum(s.scored for s in there) > 1:  # the numbers of all views, whatever the verdict
        said.append("; ".join(f"{s.name}: {_number(s)}" for s in there if s.scored))
    if verdict.raw == UNDERPOWERED and "one seed" in shown.effect.basis:
        said.append("a second seed would measure the spread")
    if verdict.claim.set_on_seed_0:
        said.append("seed 0 set the threshold and does not judge it")
    of = tuple(sorted(shown.part.weights or ())) if shown.part else ()
    if shown.part and shown.part.measures[0].name.endswith("after training") and (note := evidence.lengths(of)):
        said.append(note)
    return "; ".join(said)


def brief(value: float) -> str:
    """A number with three digits, or all digits before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _number(seen: Seen) -> str:
    scale = exp if seen.part and seen.part.ratio else float
    low, high = seen.effect.interval()
    return f"{brief(scale(seen.effect.value))} ({brief(scale(low))} to {brief(scale(high))}, {seen.verdict})"


def _readings(claim: Claim, evidence: Evidence) -> tuple[str, ...]:
    """The comparison at its own and at further points of training, by KD-EffNet at eta = 0: shown, not judged."""
    if not claim.beside:
        return ()
    said, without = [], 0 if claim.set_on_seed_0 else None
    for name, part in {"decides": claim.parts[0], **claim.beside}.items():
        quantity = part.measures[0].views[KD, ETA_0]
        if name == "decides":
            name = next(n for n in ("after training", "equal steps", "equal seconds", "equal FLOPs")
                        if n in quantity.name) + " (decides)"
        effect = _effect(claim, part, evidence, (KD, ETA_0))
        if effect.missing:
            said.append(f"{name}: no records")
            continue
        of = tuple(sorted(part.weights or ()))
        clock = evidence.clock(quantity.clock, of, without) if quantity.clock else None
        low, high = effect.interval()
        where = str(clock) if clock else evidence.lengths(of, without)
        said.append(f"{name}{f' [{where}]' if where else ''}: {brief(effect.value)} ({brief(low)} to {brief(high)})")
    return tuple(said)


def ledger(data: str, tier: str, records: Sequence[Record] | None = None) -> list[Verdict]:
    """A verdict on every claim from the records of one data set and tier, by default from all records on disk.

    `verdict` is corrected for all claims of which anything was measured. ValueError for tier smoke.
    """
    evidence = Evidence(data, tier, records)
    return corrected([judge(claim, evidence) for claim in CLAIMS])


def corrected(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Verdicts corrected for the number of those that had anything to test, by the method of Holm."""
    tested = [v for v in verdicts if v.p_raw is not None]
    levels = dict(zip((v.claim.id for v in tested), holm([v.p_raw or 0.0 for v in tested]), strict=True))

    def correct(v: Verdict) -> Verdict:
        if v.claim.id not in levels:
            return v
        p = levels[v.claim.id]
        if v.raw == UNDERPOWERED or p <= ALPHA:
            return replace(v, p=p)
        return replace(v, p=p, verdict=UNDERPOWERED, why=f"{v.raw} but for the correction for {len(tested)} claims; "
                                                         f"{v.why}")
    return [correct(v) for v in verdicts]
