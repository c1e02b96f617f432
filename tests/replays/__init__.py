"""Replays of the recorded cases: module name in index.json -> function(case)."""

from . import classifier, conditioning, diffusion, first_stage, layouts, learning_rates, spatial
from .blocks import replay_blocks

REPLAYS = {
    **classifier.REPLAYS,
    **conditioning.REPLAYS,
    **diffusion.REPLAYS,
    **first_stage.REPLAYS,
    **layouts.REPLAYS,
    **learning_rates.REPLAYS,
    **spatial.REPLAYS,
    "blocks": replay_blocks,
}
