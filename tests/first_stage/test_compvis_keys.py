"""The key map of first stages, read both ways."""

import pytest
import torch

from ldmlab.checkpoints.compvis import FIRST_STAGE_RULES, Rule, from_compvis, to_compvis
from ldmlab.first_stage.autoencoder import AutoencoderConfig, build_autoencoder
from ldmlab.first_stage.losses import FirstStageLoss, PatchDiscriminator


@pytest.mark.parametrize("reg", ["kl", "vq"])
def test_round_trip_loses_nothing(reg):
    """Our keys to CompVis's and back are the same, in order, at every kind of layer; values are not touched."""
    sizes = dict(ch=8, ch_mult=(1, 2, 2), num_res_blocks=2, norm_groups=4, resolution=16, attn_resolutions=(8, 4))
    model = build_autoencoder(AutoencoderConfig(f=4, z_channels=3, reg=reg, num_codes=8, **sizes))
    model.loss = FirstStageLoss(lambda x, y: x, PatchDiscriminator(2, 8), disc_start=0, reduction="sum", reg_weight=1.0)
    ours = model.state_dict()
    theirs = to_compvis(ours, FIRST_STAGE_RULES)
    back = from_compvis(theirs, FIRST_STAGE_RULES)
    assert list(back) == list(ours) and all(back[key] is ours[key] for key in ours)
    assert len(theirs) == len(ours)


def test_keys_are_those_of_the_released_code():
    """A few names of each kind, as they stand in released checkpoints."""
    rename = {
        "encoder.down.0.block.1.nin_shortcut.weight": "encoder.levels.0.blocks.1.shortcut.weight",
        "first_stage_model.encoder.down.3.attn.0.proj_out.bias": (
            "first_stage_model.encoder.levels.3.attentions.0.out.bias"
        ),
        "encoder.down.10.downsample.conv.bias": "encoder.levels.10.resample.conv.bias",
        "decoder.up.2.upsample.conv.weight": "decoder.levels.2.resample.conv.weight",
        "decoder.mid.attn_1.q.weight": "decoder.mid.attention.q.weight",
        "decoder.conv_out.weight": "decoder.conv_out.weight",
        "quant_conv.weight": "to_latent.weight",
        "post_quant_conv.bias": "from_latent.bias",
        "quantize.embedding.weight": "quantizer.codebook",
        "loss.discriminator.main.3.running_mean": "loss.discriminator.layers.3.running_mean",
        "loss.logvar": "loss.logvar",
    }
    state = dict.fromkeys(rename, torch.zeros(1))
    assert list(from_compvis(state, FIRST_STAGE_RULES)) == list(rename.values())
    assert list(to_compvis(from_compvis(state, FIRST_STAGE_RULES), FIRST_STAGE_RULES)) == list(rename)


def test_a_lossy_table_is_refused():
    """Two keys that would become one are an error, not a silent loss of weights."""
    with pytest.raises(ValueError, match="two keys become 'c'"):
        from_compvis({"a": torch.zeros(1), "b": torch.zeros(1)}, [Rule("a", "c"), Rule("b", "c")])
