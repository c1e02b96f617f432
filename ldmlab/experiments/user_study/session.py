"""A rater's session, and what a class of raters preferred [LDM v2, App. E.3.6]."""

import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from ldmlab.evaluation.preference import Preference, Strengths, Vote, attentive, bradley_terry, preference
from ldmlab.experiments.user_study.answers import RATER, Answer, append_answer, read_answers
from ldmlab.experiments.user_study.questions import TRUTH, Comparison, Question, plan_questions
from ldmlab.study.records.record import now

Side = Literal["left", "right"]


class Session:
    """Hands one rater question after question, and writes each answer down; a rater known by name goes on.

    Answers to other versions of a picture do not count, so its question comes again.
    """

    def __init__(
        self, comparison: Comparison, path: Path, rater: str = "", num_questions: int = 10, seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        if rater and not RATER.fullmatch(rater):
            raise ValueError(f"a rater has up to 32 letters, digits, - and _; got {rater!r}")
        self.comparison, self.path, self.seed, self._clock = comparison, Path(path), seed, clock
        self.rater = rater or f"rater-{secrets.token_hex(3)}"
        self.questions = plan_questions(comparison, self.rater, seed, num_questions)
        before, self.problems = read_answers(self.path)
        mine = {a.question: a for a in before if a.rater == self.rater and is_current(comparison, a)}
        self.answers = {q.id: mine[q.id] for q in self.questions if q.id in mine}
        self._shown = self._hidden = None

    @property
    def current(self) -> Question | None:
        """The next question without an answer; None when all have one."""
        return next((question for question in self.questions if question.id not in self.answers), None)

    def pictures(self, question: Question) -> tuple[Tensor | None, Tensor, Tensor]:
        """Condition, left and right picture, each (3, h, w)."""
        condition, all_ = self.comparison.condition, self.comparison.pictures
        return (None if condition is None else condition[question.item], all_[question.left][question.item],
                all_[question.right][question.item])

    def shown(self) -> None:
        """The pictures of the current question appear: its time runs."""
        self._shown, self._hidden = self._clock(), None

    def hidden(self) -> None:
        """They are gone."""
        self._hidden = self._clock()

    def answer(self, side: Side) -> Answer:
        """Write down which side was preferred, and go on; RuntimeError where no question is open."""
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


    def so_far(self) -> list[str]:
        """What this rater preferred, in sentences: checks, each method against the real pictures, method to method."""
        counts: dict[tuple[str, str, str], list[int]] = {}
        for a in self.answers.values():
            first, second = sorted((a.left, a.right), key=lambda name: (name == TRUTH, name))
            pair = counts.setdefault((a.task, *((TRUTH, first) if a.task == "check" else (first, second))), [0, 0])
            pair[0] += a.winner == (TRUTH if a.task == "check" else first)
            pair[1] += 1
        said = {"check": "attention checks right", "truth": "{0} rather than the {1}", "methods": "{0} rather than {1}"}
        return [f"{said[task].format(*names)}: {won} of {n}" for (task, *names), (won, n) in sorted(counts.items())]


def is_current(comparison: Comparison, answer: Answer) -> bool:
    """Whether an answer is about these very pictures."""
    return all(answer.item < len(comparison.truth) and comparison.hashes.get(name, {}) and
               comparison.hashes[name][answer.item] == digest
               for name, digest in ((answer.left, answer.left_hash), (answer.right, answer.right_hash)))


# --- Results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """What a class of raters preferred; raters who failed their attention checks are left out, and named."""

    vs_truth: dict[str, Preference]  # how often the method was taken for the better, or the real, picture
    between: dict[tuple[str, str], Preference]
    strengths: Strengths | None
    raters: list[str]
    excluded: list[str]
    notes: list[str]  # what is missing, and why


def results(comparison: Comparison, answers: Sequence[Answer], level: float = 0.95) -> Results:
    """Shares with intervals for both tasks, and Bradley-Terry strengths over all methods and the real pictures."""
    now_ = [answer for answer in answers if is_current(comparison, answer)]
    passed = attentive((a.rater, a.winner == TRUTH) for a in now_ if a.task == "check")
    raters = sorted({a.rater for a in now_})
    excluded = [rater for rater in raters if not passed.get(rater, True)]
    votes = [Vote(a.rater, a.winner, a.loser, str(a.item)) for a in now_
             if a.task != "check" and a.rater not in excluded]
    asked = {frozenset((vote.winner, vote.loser)) for vote in votes}
    notes, strengths = [], None
    if old := len(answers) - len(now_):
        notes.append(f"{old} answers are about other versions of the pictures")
    if unchecked := [rater for rater in raters if rater not in passed]:
        notes.append(f"raters without an attention check so far: {len(unchecked)}")
    if excluded:
        notes.append(f"raters left out, since they failed attention checks: {len(excluded)}")
    try:
        strengths = bradley_terry(votes, level)
    except ValueError as error:
        notes.append(str(error))
    return Results(
        {m: preference(votes, m, TRUTH, level) for m in comparison.methods if {m, TRUTH} in asked},
        {pair: preference(votes, *pair, level) for pair in itertools.combinations(comparison.methods, 2)
         if set(pair) in asked},
        strengths, [rater for rater in raters if rater not in excluded], excluded, notes)


def as_table(found: Results):
    """Shares of both tasks, a pandas DataFrame with a row each; empty where nobody has answered."""
    import pandas as pd

    rows = {f"{name} over the {TRUTH}": p for name, p in found.vs_truth.items()}
    rows |= {f"{first} over {second}": p for (first, second), p in found.between.items()}
    return pd.DataFrame({name: {"share": p.share, "low": p.interval.low, "high": p.interval.high, "answers": p.n,
                                "raters": len(p.by_rater), "worth, if independent": p.n / p.design_effect}
                         for name, p in rows.items()}).T.round(2)
