"""Replays of the classifier on noisy latents: the encoder half of the UNet with each of its pools."""

import pytest
import torch

from ldmlab.checkpoints.compvis import CLASSIFIER_RULES, from_compvis, to_compvis
from ldmlab.diffusion.classifier import NoisyClassifier
from ldmlab.diffusion.unet.unet import DenoiserConfig

from .case import Case, StateDict


def rename(state: StateDict) -> StateDict:
    """CompVis classifier keys -> ours."""
    return from_compvis(state, CLASSIFIER_RULES)


@torch.no_grad()
def replay_classifier(case: Case) -> None:
    c = {"num_heads": 1, "pool": "adaptive", **case.config}
    if not c.pop("conv_resample", True) or c.pop("use_new_attention_order", False):
        pytest.skip(f"{case.name}: resampling without convolution, other head order: no released model has them")
    pool = c.pop("pool")
    model = NoisyClassifier(DenoiserConfig.from_released(c), pool, c["image_size"]).eval()
    case.load_into(model, rename)
    state = model.state_dict()
    back = to_compvis(state, CLASSIFIER_RULES)
    assert set(back) == {key for key, _, _ in case.meta["weights"]}
    assert from_compvis(back, CLASSIFIER_RULES).keys() == state.keys()
    case.compare("out.logits", model(case.tensor("in.x"), case.tensor("in.t")))


REPLAYS = {"EncoderUNetModel": replay_classifier}
