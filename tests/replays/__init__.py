"""Replays of the recorded cases: module name in index.json -> function(case)."""

from . import classifier, conditioning, diffusion, first_stage, layouts, spatial
from .blocks import replay_blocks

REPLAYS = {
    **classifier.REPLAYS,
    **conditioning.REPLAYS,
    **diffusion.REPLAYS,
    **first_stage.REPLAYS,
    **layouts.REPLAYS,
    **spatial.REPLAYS,
    "blocks": replay_blocks,
}
