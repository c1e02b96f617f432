"""A rater's session, and preferences estimated from the answers of all raters [LDM v2, App. E.3.6]."""

import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from torch import Tensor

from ldmlab.evaluation.preference import Preference, Strengths, Vote, attentive, bradley_terry, preference
from ldmlab.experiments.user_study.answers import RATER, Answer, append_answer, read_answers
from ldmlab.experiments.user_study.questions import TRUTH, Comparison, Question, plan_questions
from ldmlab.study.records.record import now

Side = Literal["left", "right"]


class Session:
    """The questions of one rater in order; answers are saved to `path`, and a rater with answers there continues.

    Answers to other versions of a picture are ignored, so that its question is repeated. `clock` returns seconds.
    ValueError for an invalid name of a rater, or more questions than there are.
    """

    def __init__(
        self, comparison: Comparison, path: Path, rater: str = "", num_questions: int = 10, seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        if rater and not RATER.fullmatch(rater):
            raise ValueError(f"a rater's name must have 1 to 32 letters, digits, - and _; got {rater!r}")
        self.comparison, self.path, self.seed, self._clock = comparison, Path(path), seed, clock
        self.rater = rater or f"rater-{secrets.token_hex(3)}"
        self.questions = plan_questions(comparison, self.rater, seed, num_questions)
        before, self.problems = read_answers(self.path)
        mine = {a.question: a for a in before if a.rater == self.rater and is_current(comparison, a)}
        self.answers = {q.id: mine[q.id] for q in self.questions if q.id in mine}
        self._shown: float | None = None
        self._hidden: float | None = None

    @property
    def current(self) -> Question | None:
        """The next question without an answer; None if all are answered."""
        return next((question for question in self.questions if question.id not in self.answers), None)

    def pictures(self, question: Question) -> tuple[Tensor | None, Tensor, Tensor]:
        """Condition (None if there is none), left and right picture, each (3, h, w) in [-1, 1]."""
        condition, all_ = self.comparison.condition, self.comparison.pictures
        return (None if condition is None else condition[question.item], all_[question.left][question.item],
                all_[question.right][question.item])

    def shown(self) -> None:
        """Record when the pictures of the current question were shown."""
        self._shown, self._hidden = self._clock(), None

    def hidden(self) -> None:
        """Record when the pictures were hidden."""
        self._hidden = self._clock()

    def answer(self, side: Side) -> Answer:
        """Save which side was preferred, and move to the next question; RuntimeError if no pictures were shown."""
        question = self.current
        if question is None or self._shown is None:
            raise RuntimeError("there is no question to answer" if question is None else "no pictures were shown yet")
        end, hashes = self._clock(), self.comparison.hashes
        gone = end if self._hidden is None else self._hidden
        answer = Answer(
            now(), self.rater, question.id, question.task, question.item, question.left, question.right, side,
            round(end - self._shown, 2), round(gone - self._shown, 2), self.seed,
            hashes[question.left][question.item], hashes[question.right][question.item])
        append_answer(self.path, answer)
        self.answers[question.id] = answer
        self._shown = None
        return answer

    def summary(self) -> list[str]:
        """This rater's answers in sentences: checks, methods against the real pictures, methods against each other."""
        counts: dict[tuple[str, str, str], list[int]] = {}
        for a in self.answers.values():
            first, second = sorted((a.left, a.right), key=lambda name: (name == TRUTH, name))
            pair = counts.setdefault((a.task, *((TRUTH, first) if a.task == "check" else (first, second))), [0, 0])
            pair[0] += a.winner == (TRUTH if a.task == "check" else first)
            pair[1] += 1
        texts = {"check": "attention checks right", "truth": "{0} preferred to the {1}",
                 "methods": "{0} preferred to {1}"}
        return [f"{texts[task].format(*names)}: {won} of {n}" for (task, *names), (won, n) in sorted(counts.items())]


def is_current(comparison: Comparison, answer: Answer) -> bool:
    """Whether an answer refers to the current versions of the pictures."""
    return all(answer.item < len(comparison.truth) and comparison.hashes.get(name, {}) and
               comparison.hashes[name][answer.item] == digest
               for name, digest in ((answer.left, answer.left_hash), (answer.right, answer.right_hash)))


# --- Results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """Preferences of a group of raters; those who failed their attention checks are listed in `excluded`."""

    vs_truth: dict[str, Preference]  # how often a method was preferred to the real picture
    between: dict[tuple[str, str], Preference]
    strengths: Strengths | None
    raters: list[str]
    excluded: list[str]
    notes: list[str]  # what was excluded or could not be computed


def results(comparison: Comparison, answers: Sequence[Answer], level: float = 0.95) -> Results:
    """Shares with intervals at `level` for both tasks, and Bradley-Terry strengths of methods and real pictures."""
    now_ = [answer for answer in answers if is_current(comparison, answer)]
    passed = attentive((a.rater, a.winner == TRUTH) for a in now_ if a.task == "check")
    raters = sorted({a.rater for a in now_})
    excluded = [rater for rater in raters if not passed.get(rater, True)]
    votes = [Vote(a.rater, a.winner, a.loser, str(a.item)) for a in now_
             if a.task != "check" and a.rater not in excluded]
    asked = {frozenset((vote.winner, vote.loser)) for vote in votes}
    notes, strengths = [], None
    if old := len(answers) - len(now_):
        notes.append(f"{old} answers refer to other versions of the pictures")
    if unchecked := [rater for rater in raters if rater not in passed]:
        notes.append(f"raters without an attention check so far: {len(unchecked)}")
    if excluded:
        notes.append(f"raters excluded for failed attention checks: {len(excluded)}")
    try:
        strengths = bradley_terry(votes, level)
    except ValueError as error:
        notes.append(str(error))
    return Results(
        {m: preference(votes, m, TRUTH, level) for m in comparison.methods if {m, TRUTH} in asked},
        {pair: preference(votes, *pair, level) for pair in itertools.combinations(comparison.methods, 2)
         if set(pair) in asked},
        strengths, [rater for rater in raters if rater not in excluded], excluded, notes)


def as_table(found: Results) -> pd.DataFrame:
    """Shares of both tasks with interval and effective number of answers, one row per pair; empty without answers."""
    rows = {f"{name} over the {TRUTH}": p for name, p in found.vs_truth.items()}
    rows |= {f"{first} over {second}": p for (first, second), p in found.between.items()}
    return pd.DataFrame({name: {"share": p.share, "low": p.interval.low, "high": p.interval.high, "answers": p.n,
                                "raters": len(p.by_rater), "effective answers": p.n / p.design_effect}
                         for name, p in rows.items()}).T.round(2)
