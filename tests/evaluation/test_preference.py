"""Shares, strengths and sample sizes, against known answers and against raters whose preference is known."""

import numpy as np
import pytest
from scipy.stats import binomtest

from ldmlab.evaluation.preference import (
    SimulatedRater,
    Vote,
    attentive,
    bradley_terry,
    known_share,
    power,
    preference,
    questions_needed,
    share_interval,
    simulated_class,
)


def votes_of(counts: dict[tuple[str, str], int], raters: int = 1) -> list[Vote]:
    """So many votes for each (winner, loser), dealt to raters in turn, a picture each."""
    pairs = [pair for pair, num in counts.items() for _ in range(num)]
    return [Vote(f"r{i % raters}", *pair, str(i)) for i, pair in enumerate(pairs)]


def answered(num: int, per_rater: int, taste_sd: float, seed: int, strengths=(0.8, 0.0), items: int = 40) -> list[Vote]:
    """Votes of a simulated class on random pairs of methods a, b, ... of given strengths."""
    names, rng, votes = "abcdef"[: len(strengths)], np.random.default_rng(seed), []
    for rater in simulated_class(num, names, taste_sd=taste_sd, seed=seed):
        for _ in range(per_rater):
            i, j = rng.choice(len(names), 2, replace=False)
            won = rng.random() < rater.probability(names[i], names[j], strengths[i] - strengths[j])
            pair = (names[i], names[j]) if won else (names[j], names[i])
            votes.append(Vote(rater.name, *pair, str(rng.integers(items))))
    return votes


def test_intervals_of_independent_answers_are_the_textbook_s():
    """Agresti and Coull's example: 0 of 10 has Wilson [0, 0.278] and Clopper-Pearson [0, 0.308]."""
    assert share_interval(0, 10).high == pytest.approx(0.2775, abs=1e-4)
    assert share_interval(0, 10, method="exact").high == pytest.approx(0.3085, abs=1e-4)
    with pytest.raises(ValueError, match="got 11 wins of 10"):
        share_interval(11, 10)


def test_answers_that_nobody_and_nothing_shares_have_wilson_s_interval():
    """One rater, a picture a question: no clusters, up to the number of pictures that Student's t allows for."""
    votes = votes_of({("a", "b"): 140, ("b", "a"): 60})
    p, plain = preference(votes, "a", "b"), share_interval(140, 200)
    assert (p.wins, p.n, p.share) == (140, 200, 0.7) and "one rater" in p.interval.method
    assert p.interval.low == pytest.approx(plain.low, abs=3e-3)
    assert p.interval.high == pytest.approx(plain.high, abs=3e-3)
    assert preference(votes, "b", "a").share == pytest.approx(0.3)


def test_raters_of_one_mind_each_count_as_little_more_than_an_answer():
    """Ten raters who always say the same, half of them a and half b, are ten answers and not two hundred."""
    votes = [Vote(f"r{r}", *(("a", "b") if r % 2 else ("b", "a")), str(i)) for r in range(10) for i in range(20)]
    p = preference(votes, "a", "b")
    assert p.design_effect == pytest.approx(20, rel=0.15)
    assert p.interval.high - p.interval.low > 0.9 * (share_interval(5, 10).high - share_interval(5, 10).low)
    assert p.by_rater["r1"] == (20, 20) and p.by_rater["r2"] == (0, 20)


def test_intervals_hold_a_known_preference_as_often_as_they_say():
    """For other raters and pictures: 95 % of simulated studies, where independence would hold far fewer."""
    known = known_share(np.full(1, 0.8), taste_sd=0.8)
    held, naive = [], []
    for seed in range(40):
        p = preference(answered(15, 20, 0.8, seed), "a", "b")
        plain = share_interval(p.wins, p.n)
        held.append(p.interval.low <= known <= p.interval.high)
        naive.append(plain.low <= known <= plain.high)
    assert np.mean(held) >= 0.88 and np.mean(naive) <= 0.8


def test_unanimous_answers_have_an_interval_that_ends_below_certainty():
    """20 of 20 is no proof; nothing divides by zero."""
    p = preference(votes_of({("a", "b"): 20}, raters=4), "a", "b")
    assert p.share == 1 and p.interval.high == 1 and 0.3 < p.interval.low < 0.9
    with pytest.raises(ValueError, match="no vote between 'a' and 'c'"):
        preference(votes_of({("a", "b"): 20}), "a", "c")


def test_two_methods_have_the_strengths_of_their_share():
    """With two methods the model is the share: its logit is the difference of the strengths."""
    s = bradley_terry(votes_of({("a", "b"): 150, ("b", "a"): 50}))
    assert s.probability("a", "b") == pytest.approx(0.75, abs=1e-4)
    assert s.values[0] - s.values[1] == pytest.approx(np.log(3), abs=1e-3) and sum(s.values) == pytest.approx(0)
    hessian = 1.96 * np.sqrt(1 / 150 + 1 / 50) / 2  # of half the difference
    assert s.intervals[0].high - s.values[0] == pytest.approx(hessian, rel=0.05)


def test_known_strengths_lie_in_their_intervals():
    """Four methods, twenty raters: what the raters were told to prefer is found."""
    strengths, held = (1.0, 0.3, -0.2, -1.1), []
    for seed in range(20):
        s = bradley_terry(answered(20, 15, 0.0, seed, strengths))
        held.append([i.low <= value <= i.high for i, value in zip(s.intervals, strengths, strict=True)])
    assert np.mean(held) > 0.9


def test_votes_that_fix_no_strengths_are_refused_and_say_what_is_missing():
    """Islands that never met, a group that always won, nothing at all."""
    with pytest.raises(ValueError, match="a, b and c, d were never compared"):
        bradley_terry(votes_of({("a", "b"): 1, ("b", "a"): 1, ("c", "d"): 1, ("d", "c"): 1}))
    with pytest.raises(ValueError, match="a won every comparison with b, c"):
        bradley_terry(votes_of({("a", "b"): 9, ("b", "c"): 2, ("c", "b"): 2}))
    with pytest.raises(ValueError, match="got 0 votes"):
        bradley_terry([])


def test_the_number_of_questions_reaches_its_power_and_one_fewer_does_not():
    """Power from an exact test, checked by counting outcomes; symmetric in the preference; more for less."""
    n = questions_needed(0.7)
    assert power(0.7, n) >= 0.8 > power(0.7, n - 1)
    won = np.arange(n + 1)
    significant = np.array([binomtest(int(k), n).pvalue <= 0.05 for k in won])
    outcomes = np.random.default_rng(0).binomial(n, 0.7, 20_000)
    assert significant[outcomes].mean() == pytest.approx(float(power(0.7, n)), abs=0.01)
    assert questions_needed(0.3) == n and questions_needed(0.7, 0.9) > n
    assert questions_needed(0.7, design_effect=2) == 2 * n
    assert questions_needed(0.51) == pytest.approx(19_600, rel=0.02)  # the normal approximation
    with pytest.raises(ValueError, match="too close to 0.5"):
        questions_needed(0.5)


def test_raters_who_miss_attention_checks_are_told_apart():
    """A quarter may go wrong: a slip of a finger excludes nobody who answered four checks."""
    checks = [("a", True)] * 3 + [("a", False), ("b", True), ("b", False)]
    assert attentive(checks) == {"a": True, "b": False}


def test_a_simulated_rater_is_what_its_parameters_say():
    """Noise, slips and taste; the class's own average is known."""
    assert SimulatedRater("r").probability("a", "b", 0.0) == 0.5
    assert SimulatedRater("r", lapse=1.0).probability("a", "b", 9.0) == 0.5
    assert SimulatedRater("r", lapse=0.1).probability("a", "b", 99.0) == pytest.approx(0.95)
    assert SimulatedRater("r", taste={"b": 2.0}).probability("a", "b", 2.0) == 0.5
    gains = np.array([0.2, 1.0, 2.0])
    drawn = [rater.probability("a", "b", float(gain)) for gain in gains
             for rater in simulated_class(800, "ab", sharpness=1.5, lapse=0.05, taste_sd=0.7)]
    assert known_share(gains, sharpness=1.5, lapse=0.05, taste_sd=0.7) == pytest.approx(np.mean(drawn), abs=0.015)
