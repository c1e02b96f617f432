"""Weights in diffusers' names and shapes <-> ours: rename rules for both directions, and changes of shape.

diffusers numbers blocks by level, ldmlab by stage, so the rules depend on the model. Its attention has matrices in
place of our 1x1 convolutions, and separate q, k, v in the denoiser's self-attention.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldmlab.checkpoints.compvis import UNET_RULES, Rule
from ldmlab.checkpoints.compvis import from_compvis as to_right
from ldmlab.checkpoints.compvis import to_compvis as to_left
from ldmlab.checkpoints.foreign import check_kinds, check_values, peeled, peeling_note
from ldmlab.checkpoints.state import OURS_ONLY
from ldmlab.diffusion.conditioning.transformer import TokenTransformer
from ldmlab.diffusion.unet.config import DenoiserConfig
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.first_stage.autoencoder import AutoencoderKL, AutoencoderVQ
from ldmlab.first_stage.networks import AutoencoderConfig

# Names of attention before version 0.12 of diffusers, which the released models on the hub have.
OLD_NAMES: tuple[Rule, ...] = (
    Rule("query", "to_q"), Rule("key", "to_k"), Rule("value", "to_v"), Rule("proj_attn", "to_out.0"),
)
_UNUSED = re.compile(r"to_logits\..*")  # LDMBert's logits over words, which no pipeline uses
_MATRICES = re.compile(r"\.(q|k|v|out|qkv|proj_out)\.weight$")


def autoencoder_rules(config: AutoencoderConfig) -> tuple[Rule, ...]:
    """Rules of a first stage; diffusers numbers the decoder's levels from the coarsest."""
    last = len(config.ch_mult) - 1
    decoder = [
        Rule(f"decoder.up_blocks.{last - i}.{theirs}", f"decoder.levels.{i}.{ours}") for i in range(last + 1)
        for theirs, ours in (("resnets", "blocks"), ("attentions", "attentions"), ("upsamplers.0", "resample"))]
    return (
        Rule("encoder.down_blocks.{i}.resnets", "encoder.levels.{i}.blocks"),
        Rule("encoder.down_blocks.{i}.attentions", "encoder.levels.{i}.attentions"),
        Rule("encoder.down_blocks.{i}.downsamplers.0", "encoder.levels.{i}.resample"),
        *decoder,
        Rule("mid_block.resnets.0", "mid.block_1"),
        Rule("mid_block.attentions.0", "mid.attention"),
        Rule("mid_block.resnets.1", "mid.block_2"),
        Rule("conv_shortcut", "shortcut"),
        Rule("group_norm", "norm"),
        Rule("to_q", "q"),
        Rule("to_k", "k"),
        Rule("to_v", "v"),
        Rule("to_out.0", "out"),
        Rule("conv_norm_out", "norm_out"),
        Rule("quant_conv", "to_latent"),
        Rule("post_quant_conv", "from_latent"),
        Rule("quantize.embedding.weight", "quantizer.codebook"),
    )


_ENDS: tuple[Rule, ...] = (
    Rule("time_embedding.linear_1", "time_embed.0"),
    Rule("time_embedding.linear_2", "time_embed.2"),
    Rule("class_embedding", "label_embed"),
    Rule("conv_in", "down.0.0"),  # before blocks of ours get a conv_in, or after they lose it in reverse
    Rule("conv_norm_out", "head_norm"),
    Rule("conv_out", "head_conv"),
)
_RES_BLOCK: tuple[Rule, ...] = tuple(
    Rule(f"{place}.{theirs}", f"{place}.{ours}") for place in ("resnets.{i}", "downsamplers.0", "upsamplers.0")
    for theirs, ours in (("norm1", "norm_in"), ("conv1", "conv_in"), ("time_emb_proj", "emb_proj"),
                         ("norm2", "norm_out"), ("conv2", "conv_out"), ("conv_shortcut", "skip")))
_SELF_ATTENTION: tuple[Rule, ...] = (
    Rule("attentions.{i}.group_norm", "attentions.{i}.norm"),
    Rule("attentions.{i}.to_out.0", "attentions.{i}.proj_out"),
)
# Inside a transformer block diffusers keeps CompVis's names.
_TRANSFORMER = UNET_RULES[UNET_RULES.index(Rule("transformer_blocks.{i}", "blocks.{i}")):]


def unet_rules(config: DenoiserConfig) -> tuple[Rule, ...]:
    """Rules of a denoiser: first the names inside of its ends and blocks, then the position of each block."""
    last, n = len(config.widths) - 1, config.num_res_blocks
    places = [("mid_block.resnets.0", "middle.0"), ("mid_block.attentions.0", "middle.1"),
              ("mid_block.resnets.1", "middle.2")]
    for i in range(last + 1):
        down, up = 1 + i * (n + 1), i * (n + 1)  # our stages: conv_in, then n blocks and a step down a level
        for j in range(n):
            places += [(f"down_blocks.{i}.resnets.{j}", f"down.{down + j}.0"),
                       (f"down_blocks.{i}.attentions.{j}", f"down.{down + j}.1")]
        for j in range(n + 1):
            places += [(f"up_blocks.{i}.resnets.{j}", f"up.{up + j}.0"),
                       (f"up_blocks.{i}.attentions.{j}", f"up.{up + j}.1")]
        if i < last:
            after = 2 if config.attends(last - i) else 1  # a step up shares the stage of the level's last block
            places += [(f"down_blocks.{i}.downsamplers.0", f"down.{down + n}.0"),
                       (f"up_blocks.{i}.upsamplers.0", f"up.{up + n}.{after}")]
    inside = _SELF_ATTENTION if config.context_dim is None else _TRANSFORMER
    return (*_ENDS, *_RES_BLOCK, *inside, *(Rule(*place) for place in places))


def text_rules(num_layers: int) -> tuple[Rule, ...]:
    """Rules of LDMBert, of which each layer is two of ours: attention, then the MLP."""
    layers = [
        Rule(f"model.layers.{i}.{theirs}", f"layers.{2 * i + mlp}.{ours}") for i in range(num_layers)
        for theirs, mlp, ours in (("self_attn_layer_norm", 0, "norm"), ("self_attn", 0, "inner"),
                                  ("final_layer_norm", 1, "norm"), ("fc1", 1, "inner.0"), ("fc2", 1, "inner.2"))]
    return (
        Rule("model.layer_norm", "norm"),  # before the layers' norms get this name, as in TRANSFORMER_RULES
        *layers,
        Rule("inner.q_proj", "inner.to_q"),
        Rule("inner.k_proj", "inner.to_k"),
        Rule("inner.v_proj", "inner.to_v"),
        Rule("inner.out_proj", "inner.out"),
        Rule("model.embed_tokens", "token_embedding"),
        Rule("model.embed_positions", "position_embedding"),
    )


def _rules(module: nn.Module) -> tuple[Rule, ...]:
    match module:
        case AutoencoderKL() | AutoencoderVQ():
            return autoencoder_rules(module.config)
        case UNet():
            return unet_rules(module.config)
        case TokenTransformer():
            return text_rules(len(module.layers) // 2)
    raise TypeError(f"diffusers has first stages, denoisers and text transformers; got a {type(module).__name__}")


def to_theirs(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a first stage, denoiser or text transformer under diffusers' names; TypeError for other modules.

    A text transformer gets zero weights for the logits over words, which LDMBert has but does not use.
    """
    rules = _rules(module)
    state = {key: value for key, value in module.state_dict().items() if key not in OURS_ONLY}
    if not _keeps_shapes(module):
        state = {key: value.flatten(1) if _MATRICES.search(key) else value for key, value in state.items()}
    if isinstance(module, UNet):
        state = _split(state, module.config)
    theirs = to_left(state, rules)
    if isinstance(module, TokenTransformer):
        words = module.token_embedding.weight
        theirs |= {"to_logits.weight": words.new_zeros(words.shape), "to_logits.bias": words.new_zeros(len(words))}
    return theirs


def load_theirs(module: nn.Module, theirs: Mapping[str, Tensor], source: str) -> list[str]:
    """Load weights under diffusers' names, new or old, into a module; returns notes on what was done to names.

    A prefix that all names have is taken off. Of a module on "meta" nothing is loaded, but all is checked. ValueError,
    naming `source`, for a misfit, and for weights that are NaN, infinite or quantized.
    """
    own = {key: value for key, value in module.state_dict().items() if key not in OURS_ONLY}
    tried = []
    for prefix, entries in peeled({key: value for key, value in theirs.items() if not _UNUSED.fullmatch(key)}):
        state = _ours(module, entries, own)
        problems = _misfit(state, own)
        tried.append((sum(map(len, problems.values())), prefix, entries, state, problems))
        if not any(problems.values()):
            break
    _, prefix, entries, state, problems = min(tried, key=lambda one: one[0])
    found = [f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
             for kind, keys in problems.items() if keys]
    if found:
        raise ValueError(f"{source} does not fit the model of its configuration: {'; '.join(found)} "
                         f"(in ldmlab's names)")
    check_kinds(source, state, own)
    check_values(source, entries)
    if not any(value.is_meta for value in own.values()):
        module.load_state_dict(state)
    return [peeling_note(prefix, len(entries), len(theirs))] if prefix else []


def _ours(module: nn.Module, theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names and in our shapes, as far as they are those of the module."""
    state = to_right(to_right(theirs, OLD_NAMES), _rules(module))
    if isinstance(module, UNet):
        state = _fuse(state, own, module.config)
    return {key: value.reshape(own[key].shape) if _MATRICES.search(key) and key in own
            and value.numel() == own[key].numel() else value for key, value in state.items()}


def _misfit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, list[str]]:
    shapes = [f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}" for key, value in own.items()
              if key in state and state[key].shape != value.shape]
    return {"missing": sorted(own.keys() - state.keys()), "unexpected": sorted(state.keys() - own.keys()),
            "of another shape": shapes}


def _keeps_shapes(module: nn.Module) -> bool:
    """Whether attention has the same shapes in both libraries, as in transformer blocks."""
    return isinstance(module, TokenTransformer) or (isinstance(module, UNet) and module.config.context_dim is not None)


def _split(state: Mapping[str, Tensor], config: DenoiserConfig) -> dict[str, Tensor]:
    """Split the q, k, v of self-attention, which ldmlab stores concatenated by head, into three tensors."""
    split = {}
    for key, value in state.items():
        if ".qkv." not in key:
            split[key] = value
            continue
        heads = value.unflatten(0, (config.heads(len(value) // 3), 3, -1))
        split |= {key.replace(".qkv.", f".to_{name}."): heads[:, i].flatten(0, 1) for i, name in enumerate("qkv")}
    return split


def _fuse(state: Mapping[str, Tensor], own: Mapping[str, Tensor], config: DenoiserConfig) -> dict[str, Tensor]:
    """Inverse of `_split`, for tensors that fit self-attention of ours; others are not changed."""
    fused = dict(state)
    for key, like in own.items():
        names = [key.replace(".qkv.", f".to_{name}.") for name in "qkv"]
        if ".qkv." in key and all(name in state and 3 * len(state[name]) == len(like) for name in names):
            heads = [fused.pop(name).unflatten(0, (config.heads(len(like) // 3), -1)) for name in names]
            fused[key] = torch.stack(heads, 1).flatten(0, 2)
    return fused
