"""CompVis state dicts <-> ours: declarative rename rules, applied in order, the same table read both ways."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class Rule(NamedTuple):
    """One rename: `theirs` and `ours` are templates in which `{name}` stands for a run of digits, the same on both sides."""

    theirs: str
    ours: str


FIRST_STAGE_RULES: tuple[Rule, ...] = ()
UNET_RULES: tuple[Rule, ...] = ()


def _rename(key: str, rules: Sequence[Rule], source: str) -> str:
    target = "ours" if source == "theirs" else "theirs"
    for rule in rules:
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(getattr(rule, source)))
        match = re.search(rf"(?:^|(?<=\.)){pattern}(?=\.|$)", key)
        if match:
            key = key[: match.start()] + getattr(rule, target).format(**match.groupdict()) + key[match.end() :]
    return key


def from_compvis(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Rename a CompVis state dict to our keys; values untouched."""
    return {_rename(key, rules, "theirs"): value for key, value in state.items()}


def to_compvis(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Rename our state dict to CompVis keys; values untouched."""
    return {_rename(key, list(reversed(rules)), "ours"): value for key, value in state.items()}
