"""Replays of the recorded cases: module name in index.json -> function(case)."""

from . import diffusion, first_stage

REPLAYS = {**first_stage.REPLAYS, **diffusion.REPLAYS}
