"""Our UNets of the released hyper-parameters have the released models' parameters, name by name."""

import hashlib
import json

import pytest
import torch

from ldmlab.checkpoints.compvis import UNET_RULES, from_compvis, to_compvis
from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet, count_params

COMMON = {"image_size": 64, "in_channels": 3, "out_channels": 3, "num_res_blocks": 2}


def transformer(context_dim, depth=1):
    return {"use_spatial_transformer": True, "transformer_depth": depth, "context_dim": context_dim}


def unet(model_channels, channel_mult, attention_resolutions, **more):
    return {**COMMON, "model_channels": model_channels, "channel_mult": channel_mult,
            "attention_resolutions": attention_resolutions, **more}


LATENT4 = {"in_channels": 4, "out_channels": 4, "image_size": 32}
# Released model: hyper-parameters, number of parameters, hash of the sorted (key, shape) pairs of its state dict.
RELEASED = {
    "celeba256, ffhq256, lsun_beds256": (
        unet(224, [1, 2, 3, 4], [8, 4, 2], num_head_channels=32), 274056163, "a220b657b2ea793a"),
    "lsun_churches256": (
        unet(192, [1, 2, 2, 4, 4], [1, 2, 4, 8], num_heads=8, use_scale_shift_norm=True, resblock_updown=True,
             **LATENT4), 294966916, "2665cab4c15abca6"),
    "cin256": (
        unet(256, [1, 2, 4], [4, 2, 1], num_head_channels=32, **transformer(512), **LATENT4),
        394984196, "9199b39734029b8a"),
    "cin256-v2": (
        unet(192, [1, 2, 3, 5], [8, 4, 2], num_heads=1, **transformer(512)), 400920579, "09f2795a807f7f3b"),
    "text2img256": (
        unet(192, [1, 2, 3, 5], [8, 4, 2], num_head_channels=32, **transformer(640)), 403623939, "dc8c0d974c687ed9"),
    "txt2img-1p4B": (
        unet(320, [1, 2, 4, 4], [4, 2, 1], num_heads=8, legacy=False, use_checkpoint=True, **transformer(1280),
             **LATENT4), 872300484, "3c97329575e48224"),
    "layout2img-openimages256": (
        unet(128, [1, 2, 3, 4], [8, 4, 2], num_head_channels=32, **transformer(512, 3)),
        246277379, "d61c3a7cf420acec"),
    "semantic_synthesis256, semantic_synthesis512": (
        unet(128, [1, 4, 8], [32, 16, 8], num_heads=8, in_channels=6), 215229315, "20bef2a988dd09c8"),
    "bsr_sr": (
        unet(160, [1, 2, 2, 4], [16, 8], num_head_channels=32, in_channels=6), 113622563, "10d8052cea48ca99"),
    "inpainting_big": (
        unet(256, [1, 2, 3, 4], [8, 4, 2], num_heads=8, resblock_updown=True, in_channels=7),
        387245827, "e4ad612ef707c92e"),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_unet(name):
    """Number of parameters, counted without building and in the model; keys and shapes through the map, both ways."""
    hyper_parameters, num_params, keys_hash = RELEASED[name]
    config = DenoiserConfig.from_released(hyper_parameters)
    with torch.device("meta"):
        state = UNet(config).state_dict()
    theirs = to_compvis(state, UNET_RULES)
    pairs = sorted([key, list(value.shape)] for key, value in theirs.items())
    assert count_params(config) == sum(value.numel() for value in state.values()) == num_params
    assert hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16] == keys_hash
    assert list(from_compvis(theirs, UNET_RULES)) == list(state)


@pytest.mark.parametrize("change, message", [
    (dict(conv_resample=False), "conv_resample"), (dict(channel_mult=[2, 4]), "first entry of channel_mult"),
])
def test_what_no_released_model_uses_is_refused(change, message):
    """An option that would be ignored silently gives another model than its author meant."""
    with pytest.raises(ValueError, match=message):
        DenoiserConfig.from_released({**unet(32, [1, 2], [1], num_heads=4), **change})
