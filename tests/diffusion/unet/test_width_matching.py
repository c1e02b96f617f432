"""Matching the size of UNets across latents of different shape."""

from dataclasses import replace

import pytest

from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet, count_params, describe, match_widths

TEMPLATE = DenoiserConfig(
    in_channels=4, out_channels=4, widths=(48, 80), num_res_blocks=1, attention_at=(1, 2), num_heads=2, context_dim=16,
    norm_groups=8,
)
VARIANTS = [
    TEMPLATE,
    replace(TEMPLATE, context_dim=None, num_classes=7, use_scale_shift_norm=True),
    replace(TEMPLATE, widths=(16, 16, 32), resblock_updown=True, num_heads=None, num_head_channels=8),
    replace(TEMPLATE, widths=(80,), attention_at=(1,), transformer_depth=2),
]


@pytest.mark.parametrize("config", VARIANTS)
def test_counting_without_building_is_right(config):
    """The count from the plan is that of the model."""
    assert count_params(config) == count_params(UNet(config))


@pytest.mark.parametrize("target", [1_235_000, 5_000_000])
@pytest.mark.parametrize("widths, attention_at", [((24, 40, 64, 64), (8,)), ((32, 48, 80), (4,)), ((48, 80), (1, 2))])
def test_matched_widths_meet_the_target(widths, attention_at, target):
    """Within 3 %, in multiples of the step, not decreasing, everything else as in the template."""
    template = replace(TEMPLATE, widths=widths, attention_at=attention_at)
    config = match_widths(template, target)
    assert abs(count_params(config) / target - 1) <= 0.03
    assert all(w % 8 == 0 for w in config.widths) and list(config.widths) == sorted(config.widths)
    assert replace(config, widths=template.widths) == template
    ratios = [w / w0 for w, w0 in zip(config.widths, template.widths, strict=True)]
    assert max(ratios) / min(ratios) < 1.8


def test_a_template_of_the_right_size_is_kept():
    """Matching is idempotent."""
    assert match_widths(TEMPLATE, count_params(TEMPLATE)) == TEMPLATE


def test_out_of_reach_names_the_nearest():
    """One level in coarse steps cannot meet every size: the error says the nearest that it can."""
    template = replace(TEMPLATE, widths=(64,), attention_at=(1,))
    target = (count_params(template) + count_params(replace(template, widths=(128,)))) // 2
    with pytest.raises(ValueError, match=r"nearest, \(\d+,\), has [\d,]+"):
        match_widths(template, target, step=64)
    with pytest.raises(ValueError, match="target_params"):
        match_widths(template, 0)


def test_description_says_what_was_chosen():
    """A line to print: widths, attention, count, and the miss."""
    line = describe(TEMPLATE, count_params(TEMPLATE) * 2)
    assert "48-80" in line and f"{count_params(TEMPLATE):,}" in line and "-50.0%" in line
