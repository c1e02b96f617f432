"""Replays of the recorded cases: module name in index.json -> function(case)."""

from . import diffusion, first_stage
from .blocks import replay_blocks

REPLAYS = {**first_stage.REPLAYS, **diffusion.REPLAYS, "blocks": replay_blocks}
