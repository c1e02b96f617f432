"""CompVis state dicts <-> ours: declarative rename rules, applied in order, the same table read both ways."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class Rule(NamedTuple):
    """One rename: `theirs` and `ours` are templates in which `{name}` stands for a run of digits, the same on both sides."""

    theirs: str
    ours: str


FIRST_STAGE_RULES: tuple[Rule, ...] = (
    Rule("encoder.down.{i}.block.{j}", "encoder.levels.{i}.blocks.{j}"),  # level 0 is the finest, there and here
    Rule("encoder.down.{i}.attn.{j}", "encoder.levels.{i}.attentions.{j}"),
    Rule("encoder.down.{i}.downsample", "encoder.levels.{i}.resample"),
    Rule("decoder.up.{i}.block.{j}", "decoder.levels.{i}.blocks.{j}"),
    Rule("decoder.up.{i}.attn.{j}", "decoder.levels.{i}.attentions.{j}"),
    Rule("decoder.up.{i}.upsample", "decoder.levels.{i}.resample"),
    Rule("mid.attn_1", "mid.attention"),
    Rule("nin_shortcut", "shortcut"),
    Rule("proj_out", "out"),
    Rule("quant_conv", "to_latent"),
    Rule("post_quant_conv", "from_latent"),
    Rule("quantize.embedding.weight", "quantizer.codebook"),
    Rule("discriminator.main.{i}", "discriminator.layers.{i}"),
)
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
