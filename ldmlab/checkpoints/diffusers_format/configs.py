"""diffusers' config.json <-> our configurations, in both directions.

Settings that the other side cannot express raise a ValueError that names the field. Settings of training (dropout in a
first stage, the codebook's commitment) are lost, since diffusers does not have them.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from ldmlab.diffusion.conditioning.transformer import TokenTransformer
from ldmlab.diffusion.schedules import Schedule, cosine, linear, scaled_linear
from ldmlab.diffusion.unet.config import DenoiserConfig
from ldmlab.first_stage.networks import AutoencoderConfig

Json = dict[str, Any]

# Fields of which ldmlab supports one value, diffusers' default: written as such, and checked when read.
_FIRST_STAGE = {"act_fn": "silu"}
_KL = {"use_quant_conv": True, "use_post_quant_conv": True, "shift_factor": None, "latents_mean": None,
       "latents_std": None}
_VQ = {"norm_type": "group"}
_UNET = {"center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_scale_factor": 1,
         "downsample_padding": 1, "act_fn": "silu", "norm_eps": 1e-5, "time_embedding_type": "positional",
         "time_embedding_dim": None, "class_embed_type": None}
_UNCONDITIONAL = {"mid_block_type": "UNetMidBlock2D", "add_attention": True}
_CONDITIONAL = {"mid_block_type": "UNetMidBlock2DCrossAttn", "use_linear_projection": False,
                "dual_cross_attention": False, "only_cross_attention": False}
# Fields without effect, given those above.
_IDLE = {"resnet_out_scale_factor": 1.0, "conv_in_kernel": 3, "conv_out_kernel": 3, "attention_type": "default",
         "addition_embed_type_num_heads": 64}
_TEXT = {"activation_function": "gelu"}

_ENCODER_LEVELS = (("DownEncoderBlock2D", "UpDecoderBlock2D"), ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"))
_PLAIN, _RESAMPLING = ("DownBlock2D", "UpBlock2D"), ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
_SELF, _CROSS = ("AttnDownBlock2D", "AttnUpBlock2D"), ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")


class Fields:
    """Reader of a foreign configuration: each field is taken once, and `done` raises for those left over."""

    def __init__(self, values: Json, source: str):
        self.values, self.source = {k: v for k, v in values.items() if not k.startswith("_")}, source

    def take(self, name: str, *default: Any) -> Any:
        """Remove and return the value of a field, or the default; ValueError without either."""
        if name not in self.values and not default:
            raise ValueError(f"{self.source} lacks {name!r}")
        return self.values.pop(name, *default)

    def one(self, name: str, *default: Any) -> Any:
        """As `take`, for a field that is one value or a list of equal ones."""
        value = self.take(name, *default)
        if not isinstance(value, list | tuple):
            return value
        if len(set(value)) != 1:
            self.refuse(name, value, "the same at all levels")
        return value[0]

    def only(self, accepted: Json) -> "Fields":
        """Take fields of which only one value is accepted."""
        for name, value in accepted.items():
            if (got := self.take(name, value)) != value:
                self.refuse(name, got, repr(value))
        return self

    def levels(self, plain: tuple[str, str], attending: tuple[str, str]) -> tuple[bool, ...]:
        """Which levels have attention, by the names of the blocks down; those up must mirror them."""
        down, up = self.take("down_block_types"), self.take("up_block_types")
        attends = tuple(name == attending[0] for name in down)
        for name, types, side in (("down_block_types", down, 0), ("up_block_types", up[::-1], 1)):
            expected = [attending[side] if attend else plain[side] for attend in attends]
            if list(types) != expected:
                self.refuse(name, types, f"{plain[side]} and {attending[side]}, up as down")
        return attends

    def done(self, *without_effect: str) -> None:
        """Raise ValueError for fields that were not taken, unless they are None, False or in `without_effect`."""
        for name, value in self.values.items():
            if name not in without_effect and value is not None and value is not False:
                self.refuse(name, value, "no such field")

    def refuse(self, name: str, got: Any, accepted: str) -> None:
        """Raise ValueError for the value of a field."""
        raise ValueError(f"{self.source} has {name} = {got!r}, which ldmlab does not support: accepted is {accepted}")


def _cannot(field: str, why: str) -> ValueError:
    return ValueError(f"diffusers cannot build a model with {field}: {why}")


# --- First stages ----------------------------------------------------------------------------------------------------
def exportable_config(config: AutoencoderConfig) -> AutoencoderConfig:
    """A first stage of the same f, widths and attention, without the patches and shortcut that diffusers lacks."""
    finest = (1,) * int(math.log2(config.patch))
    return replace(config, patch=1, linear_shortcut=False, ch_mult=(*finest, *config.ch_mult))


def autoencoder_to_theirs(config: AutoencoderConfig, scale_factor: float) -> Json:
    """The configuration of an AutoencoderKL or a VQModel; ValueError for what diffusers cannot express."""
    if config.reg == "none":
        raise _cannot("f = 1", "pixels need no first stage")
    if config.patch > 1 or config.linear_shortcut:
        field = f"patch = {config.patch}" if config.patch > 1 else "linear_shortcut = True"
        raise _cannot(field, "`ldmlab.study.runs.export.exportable_run` trains a model that diffusers can build")
    if config.ch_mult[0] != 1:
        raise _cannot(f"ch_mult = {config.ch_mult}", "its first entry must be 1")
    sides = [config.resolution // 2**i for i in range(len(config.ch_mult))]
    names = [_ENCODER_LEVELS[side in config.attn_resolutions] for side in sides]
    theirs = {
        "in_channels": config.in_channels, "out_channels": config.in_channels, "latent_channels": config.z_channels,
        "block_out_channels": [config.ch * mult for mult in config.ch_mult], "layers_per_block": config.num_res_blocks,
        "down_block_types": [down for down, _ in names], "up_block_types": [up for _, up in reversed(names)],
        "norm_num_groups": config.norm_groups, "sample_size": config.resolution, "scaling_factor": scale_factor,
        "mid_block_add_attention": config.mid_attn, **_FIRST_STAGE,
    }
    if config.reg == "vq":
        return {"_class_name": "VQModel", **theirs, **_VQ, "num_vq_embeddings": config.num_codes,
                "vq_embed_dim": config.latent_channels}
    if config.latent_channels != config.z_channels:
        raise _cannot(f"embed_dim = {config.embed_dim}", f"under KL it must be z_channels = {config.z_channels}")
    return {"_class_name": "AutoencoderKL", **theirs, **_KL}


def autoencoder_to_ours(theirs: Json, source: str) -> tuple[AutoencoderConfig, float]:
    """The configuration of a first stage, and its scale factor.

    Deviation from diffusers: without `scaling_factor` in a VQModel it is 1 and not 0.18215. The released VQ models were
    converted before that field existed, and are not scaled (diffusers' issue 6725).
    """
    vq, fields = theirs["_class_name"] == "VQModel", Fields(theirs, source)
    fields.only(_FIRST_STAGE | (_VQ if vq else _KL))
    widths, side = fields.take("block_out_channels"), fields.take("sample_size")
    f, attends = 2 ** (len(widths) - 1), fields.levels(*_ENCODER_LEVELS)
    if any(width % widths[0] for width in widths):
        fields.refuse("block_out_channels", widths, "multiples of the first")
    if not isinstance(side, int) or side % f:
        fields.refuse("sample_size", side, f"an integer divisible by f = {f}")
    in_channels, z_channels = fields.take("in_channels"), fields.take("latent_channels")
    quantizer = {}
    if vq:
        dim = fields.take("vq_embed_dim", None)
        quantizer = {"num_codes": fields.take("num_vq_embeddings"), "embed_dim": None if dim == z_channels else dim}
    config = AutoencoderConfig(
        f=f, z_channels=z_channels, reg="vq" if vq else "kl", ch=widths[0],
        ch_mult=tuple(width // widths[0] for width in widths), num_res_blocks=fields.take("layers_per_block"),
        attn_resolutions=tuple(side // 2**i for i, attend in enumerate(attends) if attend), resolution=side,
        in_channels=in_channels, norm_groups=fields.take("norm_num_groups", 32),
        mid_attn=fields.take("mid_block_add_attention", True), **quantizer)
    scale = fields.take("scaling_factor", 1.0 if vq else 0.18215)
    fields.only({"out_channels": in_channels}).done("force_upcast", "lookup_from_codebook")
    return config, float(scale)


# --- Denoisers -------------------------------------------------------------------------------------------------------
def denoiser_to_theirs(config: DenoiserConfig, sample_size: int) -> Json:
    """The configuration of a UNet2DModel, or of a UNet2DConditionModel for a denoiser with cross-attention."""
    attends, cross = [config.attends(level) for level in range(len(config.widths))], config.context_dim is not None
    down, up = _RESAMPLING if config.resblock_updown else _PLAIN
    attend_down, attend_up = _CROSS if cross else _SELF
    theirs = {
        "sample_size": sample_size, "in_channels": config.in_channels, "out_channels": config.out_channels,
        "block_out_channels": list(config.widths), "layers_per_block": config.num_res_blocks,
        "down_block_types": [attend_down if attend else down for attend in attends],
        "up_block_types": [attend_up if attend else up for attend in reversed(attends)],
        "norm_num_groups": config.norm_groups, "dropout": config.dropout, "num_class_embeds": config.num_classes,
        "resnet_time_scale_shift": "scale_shift" if config.use_scale_shift_norm else "default", **_UNET,
    }
    if not cross:
        resample = "resnet" if config.resblock_updown else "conv"
        return {"_class_name": "UNet2DModel", **theirs, **_UNCONDITIONAL, "attention_head_dim": _head_dim(config),
                "attn_norm_num_groups": config.norm_groups, "downsample_type": resample, "upsample_type": resample}
    if config.resblock_updown:
        raise _cannot("resblock_updown = True", "not together with a context_dim")
    # Despite its name, `attention_head_dim` is the number of heads (diffusers' issue 2011).
    heads = config.num_heads or [max(1, config.heads(width)) for width in config.widths]
    return {"_class_name": "UNet2DConditionModel", **theirs, **_CONDITIONAL, "attention_head_dim": heads,
            "cross_attention_dim": config.context_dim, "transformer_layers_per_block": config.transformer_depth}


def _head_dim(config: DenoiserConfig) -> int | None:
    """Channels per head, the same at all levels of a UNet2DModel; None stands for one head."""
    if config.num_head_channels or config.num_heads == 1:
        return config.num_head_channels
    widths = {width for level, width in enumerate(config.widths) if config.attends(level)} | {config.widths[-1]}
    if len(widths) > 1 or config.num_heads is None:
        why = (f"without cross-attention it needs num_head_channels, equal at all levels with attention, of "
               f"widths {sorted(widths)}")
        raise _cannot(f"num_heads = {config.num_heads}", why)
    return widths.pop() // config.num_heads


def denoiser_to_ours(theirs: Json, source: str) -> tuple[DenoiserConfig, int]:
    """The configuration of a denoiser, and the side of its latents; ValueError for what ldmlab does not support."""
    cross, fields = theirs["_class_name"] == "UNet2DConditionModel", Fields(theirs, source)
    fields.only(_UNET | _IDLE | (_CONDITIONAL if cross else _UNCONDITIONAL))
    widths, groups, side = (fields.take(name) for name in ("block_out_channels", "norm_num_groups", "sample_size"))
    if not isinstance(side, int):
        fields.refuse("sample_size", side, "an integer")
    resample, resblock_updown = fields.take("downsample_type", "conv"), False
    if not cross:
        resblock_updown = resample == "resnet"
        fields.only({"upsample_type": resample})
        if fields.values.get("attn_norm_num_groups") is not None:  # None means the same number, or no norm
            fields.only({"attn_norm_num_groups": groups})
    attends = fields.levels(_RESAMPLING if resblock_updown else _PLAIN, _CROSS if cross else _SELF)
    shift = fields.take("resnet_time_scale_shift", "default")
    if shift not in ("default", "scale_shift"):
        fields.refuse("resnet_time_scale_shift", shift, "'default' or 'scale_shift'")
    config = DenoiserConfig(
        in_channels=fields.take("in_channels"), out_channels=fields.take("out_channels"), widths=tuple(widths),
        num_res_blocks=fields.one("layers_per_block"), norm_groups=groups, dropout=fields.take("dropout", 0.0),
        attention_at=tuple(2**level for level, attend in enumerate(attends) if attend),
        num_classes=fields.take("num_class_embeds", None), use_scale_shift_norm=shift == "scale_shift",
        resblock_updown=resblock_updown, context_dim=fields.one("cross_attention_dim") if cross else None,
        transformer_depth=fields.one("transformer_layers_per_block", 1), **_heads(fields, widths, attends, cross))
    fields.done("num_train_timesteps")
    return config, side


def _heads(fields: Fields, widths: list[int], attends: tuple[bool, ...], cross: bool) -> dict[str, int]:
    """Arguments of our configuration: the number of heads, or the channels per head."""
    value = fields.take("attention_head_dim")
    if not cross:
        return {"num_heads": 1} if value is None else {"num_head_channels": value}
    if isinstance(value, int):
        return {"num_heads": value}
    last = len(widths) - 1
    used = [(width, heads) for level, (width, heads) in enumerate(zip(widths, value, strict=True))
            if attends[level] or level == last]
    if len({heads for _, heads in used}) == 1:
        return {"num_heads": used[0][1]}
    if len({width // heads for width, heads in used}) > 1:
        fields.refuse("attention_head_dim", value, "the same number of heads, or of channels per head, at all levels")
    return {"num_head_channels": used[0][0] // used[0][1]}


# --- Text transformers -----------------------------------------------------------------------------------------------
def text_to_theirs(transformer: TokenTransformer) -> Json:
    """The configuration of an LDMBert."""
    attention: Any = transformer.layers[0].inner
    return {
        "architectures": ["LDMBertModel"], "model_type": "ldmbert", "vocab_size": transformer.vocab_size,
        "max_position_embeddings": transformer.max_length, "d_model": transformer.dim,
        "encoder_layers": len(transformer.layers) // 2, "num_hidden_layers": len(transformer.layers) // 2,
        "encoder_ffn_dim": 4 * transformer.dim, "encoder_attention_heads": attention.num_heads,
        "head_dim": attention.to_q.out_features // attention.num_heads, "pad_token_id": 0, **_TEXT,
    }


def text_to_ours(theirs: Json, source: str) -> dict[str, int]:
    """The arguments of a TokenTransformer."""
    fields = Fields(theirs, source).only(_TEXT | {"scale_embedding": False})
    dim = fields.take("d_model")
    fields.only({"encoder_ffn_dim": 4 * dim})
    return {"dim": dim, "vocab_size": fields.take("vocab_size"), "max_length": fields.take("max_position_embeddings"),
            "num_layers": fields.take("encoder_layers"), "num_heads": fields.take("encoder_attention_heads"),
            "head_dim": fields.take("head_dim")}


# --- Schedules -------------------------------------------------------------------------------------------------------
_BETAS = {"scaled_linear": scaled_linear, "linear": linear}


def schedule_to_theirs(schedule: Schedule) -> Json:
    """A DDIMScheduler with the steps of `samplers.ddim` where their number divides T and is smaller.

    It starts at t = 1, as released, and ends at alpha_bar_0.
    """
    start, end = (float(f"{beta:.9g}") for beta in (schedule.beta[0], schedule.beta[-1]))
    beta = schedule.beta.double().cpu()
    named = [name for name, rule in _BETAS.items()
             if start <= end and torch.allclose(rule(schedule.T, start, end).beta, beta, 1e-8, 0)]
    trained = {} if named else {"trained_betas": schedule.beta.tolist()}
    return {"_class_name": "DDIMScheduler", "num_train_timesteps": schedule.T, "beta_start": start, "beta_end": end,
            "beta_schedule": named[0] if named else "linear", **trained, "prediction_type": "epsilon",
            "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}


def schedule_to_ours(theirs: Json, source: str) -> Schedule:
    """beta_t of any scheduler; its choice of steps is dropped, since samplers here have their own."""
    fields = Fields(theirs, source)
    clips = theirs.get("_class_name") in ("DDIMScheduler", "DDPMScheduler")
    fields.only({"prediction_type": "epsilon", "rescale_betas_zero_snr": False, "thresholding": False})
    if clips and fields.take("clip_sample", True):
        fields.refuse("clip_sample", True, "False, since latents have no fixed range")
    T, betas = fields.take("num_train_timesteps"), fields.take("trained_betas", None)
    if betas is not None:
        return Schedule.from_beta(torch.tensor(betas, dtype=torch.float64))
    name = fields.take("beta_schedule")
    if name == "squaredcos_cap_v2":
        return cosine(T)
    if name not in _BETAS:
        fields.refuse("beta_schedule", name, f"one of {', '.join(_BETAS)}, squaredcos_cap_v2")
    return _BETAS[name](T, float(fields.take("beta_start")), float(fields.take("beta_end")))
