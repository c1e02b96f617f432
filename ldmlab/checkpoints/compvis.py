"""CompVis state dicts <-> ours: rename rules for both directions, the modules of a file, and the ignored entries."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from torch import Tensor


class Rule(NamedTuple):
    """Rename of whole dotted parts of a key; `{name}` stands for the same digits in both templates."""

    theirs: str
    ours: str


FIRST_STAGE_RULES: tuple[Rule, ...] = (
    Rule("encoder.down.{i}.block.{j}", "encoder.levels.{i}.blocks.{j}"),  # level 0 is the finest in both
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
UNET_RULES: tuple[Rule, ...] = (
    Rule("input_blocks.{i}", "down.{i}"),
    Rule("middle_block", "middle"),
    Rule("output_blocks.{i}", "up.{i}"),
    Rule("down.{i}.{j}.op", "down.{i}.{j}.conv"),
    Rule("label_emb", "label_embed"),
    Rule("out.0", "head_norm"),
    Rule("out.2", "head_conv"),
    Rule("in_layers.0", "norm_in"),
    Rule("in_layers.2", "conv_in"),
    Rule("emb_layers.1", "emb_proj"),
    Rule("out_layers.0", "norm_out"),
    Rule("out_layers.3", "conv_out"),
    Rule("skip_connection", "skip"),
    Rule("transformer_blocks.{i}", "blocks.{i}"),
    Rule("attn1", "self_attention"),
    Rule("attn2", "cross_attention"),
    Rule("self_attention.to_out.0", "self_attention.out"),  # after the rules that rename its parent
    Rule("cross_attention.to_out.0", "cross_attention.out"),
    Rule("ff", "feed_forward"),
    Rule("feed_forward.net.0.proj", "feed_forward.proj_in"),
    Rule("feed_forward.net.2", "feed_forward.out"),
)

TRANSFORMER_RULES: tuple[Rule, ...] = (
    Rule("transformer.norm", "norm"),  # before the layers' norms get this name, or after they lose it in reverse
    Rule("transformer.attn_layers.layers.{i}.0", "layers.{i}.norm"),
    Rule("transformer.attn_layers.layers.{i}.1", "layers.{i}.inner"),
    Rule("inner.net.0.0", "inner.0"),
    Rule("inner.net.2", "inner.2"),
    Rule("inner.to_out", "inner.out"),
    Rule("transformer.token_emb", "token_embedding"),
    Rule("transformer.pos_emb.emb", "position_embedding"),
)
DISCRIMINATOR_RULES: tuple[Rule, ...] = (Rule("main.{i}", "layers.{i}"),)
CLASSIFIER_RULES: tuple[Rule, ...] = (
    Rule("out.{i}", "head.{i}"),  # before the rules of the UNet, whose `out` is another
    Rule("head.{i}.positional_embedding", "head.{i}.position"),
    Rule("head.{i}.qkv_proj", "head.{i}.qkv"),
    Rule("head.{i}.c_proj", "head.{i}.out"),
    *UNET_RULES,
)


class Part(NamedTuple):
    """One module of a released model: the prefix of its keys in a file, its name in ldmlab, and the rename rules."""

    theirs: str
    ours: str
    rules: tuple[Rule, ...]


LDM_PARTS: tuple[Part, ...] = (
    Part("model.diffusion_model.", "denoiser", UNET_RULES),
    Part("first_stage_model.", "first_stage", FIRST_STAGE_RULES),
    Part("cond_stage_model.", "conditioner", TRANSFORMER_RULES),  # the other conditioners' keys are the same in both
)
FIRST_STAGE_PARTS: tuple[Part, ...] = (
    Part("loss.discriminator.", "discriminator", DISCRIMINATOR_RULES),
    Part("", "first_stage", FIRST_STAGE_RULES),
)


class Ignored(NamedTuple):
    """Entries that belong to no module of ldmlab: a regular expression for the whole key, and the reason."""

    pattern: str
    reason: str


TABLES = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)
IGNORED: tuple[Ignored, ...] = (
    Ignored("|".join(TABLES), "tables of the schedule, computed from its beta_t"),
    Ignored("lvlb_weights", "weights of the variational bound, computed from beta_t; older files have them"),
    Ignored("logvar", "log-scale of the loss at each t, a constant: no released model learns it"),
    Ignored("scale_factor", "read into the model's scale_factor"),
    Ignored(r"model_ema\.(decay|num_updates)", "settings of the average, needed for further training only"),
    Ignored(r"cond_stage_model\.transformer\.to_logits\..*", "logits over words, which an LDM does not use"),
    Ignored(r"(first_stage_model\.)?loss\.perceptual_loss\..*", "LPIPS: frozen, and published by its authors"),
    Ignored(r"(first_stage_model\.)?loss\.logvar", "log-scale of the likelihood, a constant"),
    Ignored(r"first_stage_model\.loss\.discriminator\..*", "an LDM does not train its first stage"),
)
IGNORED_FOR_MASKS = Ignored(r"cond_stage_model\..*", "a copy of the first stage, which also encodes the masked picture")


@cache
def _pattern(template: str) -> re.Pattern[str]:
    digits = re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(template))
    return re.compile(rf"(?:^|(?<=\.)){digits}(?=\.|$)")


def _rename(state: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Apply (source, target) templates in order; ValueError where two keys would become the same."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        new = key
        for source, target in pairs:
            if match := _pattern(source).search(new):
                new = new[: match.start()] + target.format(**match.groupdict()) + new[match.end() :]
        if new in renamed:
            raise ValueError(f"two keys become {new!r}; one of them is {key!r}")
        renamed[new] = value
    return renamed


def from_compvis(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Rename the keys of a CompVis state dict to ours; ValueError where two would become the same."""
    return _rename(state, [(rule.theirs, rule.ours) for rule in rules])


def to_compvis(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Rename the keys of our state dict to CompVis's; ValueError where two would become the same."""
    return _rename(state, [(rule.ours, rule.theirs) for rule in reversed(rules)])
