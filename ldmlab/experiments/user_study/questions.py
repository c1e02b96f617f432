"""Questions of the user study: pictures to compare and their order [LDM v2, App. E.3.6].

Task "truth" compares a method with the real picture, task "methods" two methods. Task "check" compares the real picture
with a strongly degraded copy, as an attention check.
Deviation: the paper mentions no attention checks.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ldmlab.data.images import to_uint8
from ldmlab.evaluation.distortions import degrade

TRUTH, SPOILED = "real picture", "spoiled picture"
Task = Literal["truth", "methods", "check"]
BLOCK: tuple[Task, ...] = ("truth", "truth", "methods", "methods", "check")  # every five questions, in random order


@dataclass(frozen=True)
class Comparison:
    """Pictures to compare, in [-1, 1]: n real ones, those of each method in the same order, and their conditions.

    `ask` is the question to raters, `given` names the condition. ValueError for sets of different length or shape.
    """

    name: str
    ask: str
    truth: Float[Tensor, "n 3 H W"]
    methods: Mapping[str, Float[Tensor, "_ 3 _ _"]]  # of the same shape
    condition: Float[Tensor, "_ 3 _ _"] | None = None  # of any size
    given: str = ""

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError(f"{self.name}: no method to compare with the real pictures")
        for name, x in self.methods.items():
            if name in (TRUTH, SPOILED) or x.shape != self.truth.shape:
                raise ValueError(f"{self.name}: a method needs a name other than {TRUTH!r} and {SPOILED!r} and "
                                 f"pictures of shape {tuple(self.truth.shape)}; got {name!r} with {tuple(x.shape)}")
        if self.condition is not None and len(self.condition) != len(self.truth):
            raise ValueError(f"{self.name}: {len(self.truth)} pictures, but {len(self.condition)} conditions")

    @cached_property
    def pictures(self) -> dict[str, Tensor]:
        """All pictures by method, including the real and the degraded ones."""
        return {TRUTH: self.truth, SPOILED: degrade(self.truth, "noise", 1.5), **self.methods}

    @cached_property
    def hashes(self) -> dict[str, list[str]]:
        """The first 12 digits of the SHA-256 of each picture's 8-bit values, by method."""
        return {name: [hashlib.sha256(picture.numpy().tobytes()).hexdigest()[:12] for picture in to_uint8(x.cpu())]
                for name, x in self.pictures.items()}


@dataclass(frozen=True)
class Question:
    """Two methods on one picture, and their sides."""

    task: Task
    item: int
    left: str
    right: str

    @property
    def id(self) -> str:
        """Identifier of the question, independent of rater and sides."""
        return f"{self.task}/{self.item}/{'/'.join(sorted((self.left, self.right)))}"


def plan_questions(comparison: Comparison, rater: str, seed: int, num: int) -> list[Question]:
    """The first `num` questions of a rater; order, sides and pictures are determined by `seed` and the rater's name.

    Every five questions contain one check and two of each task. Methods take turns, and no picture is repeated before
    all have been shown. A shorter plan is a prefix of a longer one. ValueError if there are fewer than `num` questions.
    """
    plan = list(itertools.islice(_questions(comparison, rater, seed), max(num, 0)))
    if num < 1 or len(plan) < num:
        raise ValueError(f"{comparison.name} has {len(plan) if num > 0 else 'more than 0'} questions for a rater, "
                         f"got num = {num}")
    return plan


def _questions(comparison: Comparison, rater: str, seed: int) -> Iterator[Question]:
    digest = int.from_bytes(hashlib.sha256(rater.encode()).digest()[:8], "big")
    rng, methods, n = np.random.default_rng([seed, digest]), list(comparison.methods), len(comparison.truth)
    pairs: dict[str, list] = {"truth": [(TRUTH, m) for m in methods], "check": [(TRUTH, SPOILED)],
                              "methods": list(itertools.combinations(methods, 2)) or [(TRUTH, methods[0])]}
    turns = {task: itertools.cycle([pairs[task][i] for i in rng.permutation(len(pairs[task]))]) for task in BLOCK}
    order, seen, asked = rng.permutation(n), np.zeros(n), set()
    while True:
        for task in (BLOCK[i] for i in rng.permutation(len(BLOCK))):
            pair = next(turns[task])
            free = [i for i in order if (i, pair) not in asked]
            if not free:
                return
            item = int(min(free, key=lambda i: seen[i]))
            seen[item] += 1
            asked.add((item, pair))
            left, right = pair if rng.random() < 0.5 else pair[::-1]
            yield Question("truth" if TRUTH in pair and task == "methods" else task, item, left, right)
