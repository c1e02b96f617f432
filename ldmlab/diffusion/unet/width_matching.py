"""UNets with equal numbers of parameters for latents of different shapes, for comparisons over f [LDM v2, Sec. 4.1]."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch
from torch import nn

from ldmlab.diffusion.unet.config import Block, DenoiserConfig, build_ends, plan


def count_params(model: nn.Module | DenoiserConfig) -> int:
    """The number of parameters of a module, or of the UNet that a config describes, without building it."""
    if isinstance(model, nn.Module):
        return sum(p.numel() for p in model.parameters())
    layout = plan(model)
    one_level = replace(model, widths=model.widths[:1], attention_at=(), num_heads=1, num_head_channels=None)
    stages = (*layout.down, layout.middle, *layout.up)
    return _count_ends(one_level) + sum(_count_block(block, one_level) for stage in stages for block in stage)


@lru_cache(maxsize=100_000)
def _count_block(block: Block, config: DenoiserConfig) -> int:
    with torch.device("meta"):
        return count_params(block.build(config))


@lru_cache(maxsize=10_000)
def _count_ends(config: DenoiserConfig) -> int:
    with torch.device("meta"):
        return sum(count_params(module) for module in build_ends(config) if module is not None)


def match_widths(
    template: DenoiserConfig, target_params: int, tolerance: float = 0.03, step: int = 8
) -> DenoiserConfig:
    """The template with widths changed so that the UNet has `target_params` parameters, within `tolerance`.

    Widths stay multiples of `step`, do not decrease, and keep about the template's proportions: among those near them
    the choice has the least relative miss plus a tenth of the widest departure. ValueError, naming the nearest size,
    if none is within tolerance.
    """
    if target_params < 1 or not 0 < tolerance < 1 or step < 1:
        raise ValueError(f"need target_params >= 1, 0 < tolerance < 1, step >= 1, "
                         f"got {target_params}, {tolerance}, {step}")
    scale = _scale_to(template, target_params, step)
    candidates = {config.widths: config for config in _near(template, scale, step)}
    counts = {widths: count_params(config) for widths, config in candidates.items()}
    misses = {widths: abs(count / target_params - 1) for widths, count in counts.items()}
    within = [widths for widths, miss in misses.items() if miss <= tolerance]
    if not within:
        nearest = min(misses, key=misses.__getitem__)
        raise ValueError(f"no widths near those of {template.widths} in steps of {step} give {target_params:,} "
                         f"parameters within {tolerance:.1%}; the nearest, {nearest}, has {counts[nearest]:,}")

    def cost(widths: tuple[int, ...]) -> float:
        ratios = [math.log(w / w0) for w, w0 in zip(widths, template.widths, strict=True)]
        return misses[widths] + 0.1 * (max(ratios) - min(ratios))

    return candidates[min(within, key=cost)]


def describe(config: DenoiserConfig, target_params: int | None = None) -> str:
    """One line on a UNet's size: widths, blocks, attention, parameters, and how far from the target they are."""
    count = count_params(config)
    at = ", ".join(f"1/{factor}" for factor in sorted(config.attention_at)) or "the middle only"
    miss = "" if target_params is None else f" ({count / target_params - 1:+.1%} of {target_params:,})"
    return (f"UNet {'-'.join(map(str, config.widths))}, {config.num_res_blocks} residual blocks a level, "
            f"attention at {at}: {count:,} parameters{miss}")


def _near(template: DenoiserConfig, scale: float, step: int) -> Iterator[DenoiserConfig]:
    """Configs of non-decreasing widths, each one of the four valid ones around the scaled template's."""
    choices = []
    for unit, w0 in zip(_units(template, step), template.widths, strict=True):
        below = math.floor(scale * w0 / unit)
        choices.append([k * unit for k in range(max(1, below - 1), below + 3)])
    for widths in itertools.product(*choices):
        if list(widths) == sorted(widths):
            yield replace(template, widths=widths)


def _units(template: DenoiserConfig, step: int) -> list[int]:
    """Per level, what a width must be a multiple of: the step, the groups of the norms, the heads if it attends."""
    per_head = template.num_heads or template.num_head_channels or 1
    attends = [template.attends(level) or level == len(template.widths) - 1 for level in range(len(template.widths))]
    return [math.lcm(step, template.norm_groups, per_head if attend else 1) for attend in attends]


def _scale_to(template: DenoiserConfig, target_params: int, step: int) -> float:
    """The factor on all widths at which the count passes the target; bisection in the logarithm."""
    units = _units(template, step)

    def count(scale: float) -> int:
        scaled = [max(unit, round(scale * w / unit) * unit) for unit, w in zip(units, template.widths, strict=True)]
        return count_params(replace(template, widths=tuple(scaled)))

    low, high = 1 / 16, 16.0
    for _ in range(16):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if count(middle) < target_params else (low, middle)
    return math.sqrt(low * high)
