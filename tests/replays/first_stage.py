"""Replays of the first stage's parts: autoencoders, quantizer, losses, discriminator, LPIPS."""

import tempfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ldmlab.checkpoints.compvis import FIRST_STAGE_RULES, from_compvis, to_compvis
from ldmlab.first_stage.autoencoder import AutoencoderConfig, AutoencoderKL, AutoencoderVQ
from ldmlab.first_stage.losses import FirstStageLoss, PatchDiscriminator, adaptive_weight
from ldmlab.first_stage.networks import (
    Attention,
    Decoder,
    Downsample,
    Encoder,
    LinearAttention,
    Options,
    ResBlock,
    Upsample,
)
from ldmlab.first_stage.regularizers import DiagonalGaussian, VectorQuantizer, codebook_usage
from ldmlab.perception.losses import LpipsLoss
from ldmlab.tensor_files import save_tensors

from .case import Case, StateDict


def rename(state: StateDict) -> StateDict:
    """CompVis first-stage keys -> ours."""
    return from_compvis(state, FIRST_STAGE_RULES)


def rename_part(theirs: str, ours: str):
    """The same for a module by itself, whose keys lack the prefix that the rules know it by."""

    def renamed(state: StateDict) -> StateDict:
        whole = rename({f"{theirs}.{key}": value for key, value in state.items()})
        return {key.removeprefix(f"{ours}."): value for key, value in whole.items()}

    return renamed


def options(dd: dict) -> Options:
    """The released code's unused choices, from a `ddconfig`."""
    linear = dd.get("use_linear_attn", False) or dd.get("attn_type") == "linear"
    return Options(dd.get("resamp_with_conv", True), linear, dd.get("tanh_out", False))


def autoencoder_config(dd: dict, reg: str, **more) -> AutoencoderConfig:
    """Our config from a `ddconfig`; the same for released models and recorded cases."""
    assert dd.get("out_ch", dd["in_channels"]) == dd["in_channels"], "a first stage gives back what it gets"
    attention = dd.get("attn_type", "vanilla") != "none"
    return AutoencoderConfig(
        f=2 ** (len(dd["ch_mult"]) - 1),
        z_channels=dd["z_channels"],
        reg=reg,
        ch=dd["ch"],
        ch_mult=tuple(dd["ch_mult"]),
        num_res_blocks=dd["num_res_blocks"],
        attn_resolutions=tuple(dd["attn_resolutions"]) if attention else (),
        resolution=dd["resolution"],
        in_channels=dd["in_channels"],
        dropout=dd.get("dropout", 0.0),
        mid_attn=attention,
        **more,
    )


def kl_autoencoder(config: dict) -> AutoencoderKL:
    return AutoencoderKL(autoencoder_config(config["ddconfig"], "kl", embed_dim=config["embed_dim"]))


def vq_autoencoder(config: dict) -> AutoencoderVQ:
    sizes = {"embed_dim": config["embed_dim"], "num_codes": config["n_embed"]}
    return AutoencoderVQ(
        autoencoder_config(config["ddconfig"], "vq", commitment=config.get("beta", 0.25), vq_legacy=True, **sizes)
    )


@torch.no_grad()
def replay_kl(case: Case) -> None:
    model = kl_autoencoder(case.config).eval()
    case.load_into(model, rename)
    seen = {}
    model.decoder.mid.block_1.register_forward_hook(lambda module, args, out: seen.update(block_1=out))
    x = case.tensor("in.x")

    posterior = model.encode(x)
    case.compare("mid.encoder_out", model.encoder(x))
    case.compare("out.moments", model.to_latent(model.encoder(x)))
    case.compare("out.mean", posterior.mode())
    case.compare("out.logvar", posterior.logvar)
    case.compare("out.std", posterior.std)
    z = posterior.mean + posterior.std * case.tensor("in.noise")
    case.compare("out.sample", z)
    case.compare("out.decode_mode", model.decode(posterior.mode()))
    case.compare("mid.decoder_mid_block_1", seen["block_1"])
    case.compare("out.decode_z", model.decode(case.tensor("in.z")))

    other = DiagonalGaussian(case.tensor("in.other_moments"))
    case.compare("out.kl", posterior.kl())
    case.compare("out.kl_other", posterior.kl(other))
    case.compare("out.nll_of_sample", posterior.nll(z))
    case.compare("out.normal_kl_map", posterior.kl_map())


@torch.no_grad()
def replay_vq(case: Case) -> None:
    model = vq_autoencoder(case.config).eval()
    case.load_into(model, rename)
    h, z = model.encode(case.tensor("in.x")), case.tensor("in.z")
    case.compare("out.encode_prequant", h)
    for name, latent in {"x": h, "z": z}.items():
        quantized = model.quantizer(latent)
        case.compare(f"out.{name}_quant", quantized.z_q)
        shape = case.tensor(f"out.{name}_indices").shape  # flat, or (b, h, w) with sane_index_shape
        case.compare(f"out.{name}_indices", quantized.indices.reshape(shape))
        for legacy in (True, False):
            model.quantizer.legacy = legacy
            loss = model.quantizer(latent).loss
            case.compare(f"out.{name}_loss_{'legacy' if legacy else 'nonlegacy'}", loss)
    case.compare("out.decode_from_h", model.decode(h))
    case.compare("out.decode_from_z", model.decode(z))
    case.compare("out.decode_z_force_not_quantize", model.decode(z, quantize=False))
    case.compare("out.vqmodel_encode_quant", model.quantizer(h).z_q)
    codes = model.quantizer.embed(quantized.indices)
    case.compare("out.codebook_entry_bchw", codes)
    case.compare("out.codebook_entry_flat", codes.movedim(1, -1).flatten(0, 2))
    usage = codebook_usage(quantized.counts)
    case.compare("out.perplexity_z", usage.perplexity)
    case.compare("out.cluster_usage_z", usage.num_used)


def replay_quantizer(case: Case) -> None:
    config = case.config
    upstream = case.tensor("in.upstream_grad")
    for legacy, name in ((True, "legacy"), (False, "nonlegacy")):
        quantizer = VectorQuantizer(config["n_e"], config["e_dim"], config["beta"], legacy=legacy)
        case.load_into(quantizer, rename_part("quantize", "quantizer"))
        z = case.tensor("in.z").requires_grad_()
        out = quantizer(z)
        case.compare(f"out.loss_{name}", out.loss)
        dz, dcodes = torch.autograd.grad(out.loss, [z, quantizer.codebook])
        case.compare(f"out.dloss_dz_{name}", dz)
        case.compare(f"out.dloss_dE_{name}", dcodes)
    out = quantizer(z)
    case.compare("out.indices", out.indices.reshape(case.tensor("out.indices").shape))
    case.compare("out.zq", out.z_q)
    dz, dcodes = torch.autograd.grad(out.z_q, [z, quantizer.codebook], upstream, allow_unused=True)
    case.compare("out.straight_through_dz", dz)
    case.compare("out.straight_through_dE_is_none", dcodes is None)


@torch.no_grad()
def replay_encoder_decoder(case: Case) -> None:
    dd = case.config
    config = autoencoder_config(dd, "kl" if dd.get("double_z", True) else "vq")
    encoder, decoder = Encoder(config, options(dd)).eval(), Decoder(config, options(dd)).eval()
    case.load_into(encoder, rename_part("encoder", "encoder"), part="encoder")
    case.load_into(decoder, rename_part("decoder", "decoder"), part="decoder")
    case.compare("out.enc", encoder(case.tensor("in.x")))
    decode = decoder.features if dd.get("give_pre_end") else decoder
    case.compare("out.dec", decode(case.tensor("in.z")))


BLOCKS = {
    "vae_resnet": lambda s: (ResBlock(s["in_channels"], s.get("out_channels") or s["in_channels"]), rename),
    "vae_attn": lambda s: (Attention(s["in_channels"]), rename),
    "vae_linattn": lambda s: (LinearAttention(s["in_channels"]), rename),
    "vae_downsample": lambda s: (Downsample(s["in_channels"], s["with_conv"]), rename),
    "vae_upsample": lambda s: (Upsample(s["in_channels"], s["with_conv"]), rename),
}


def discriminator(num_layers=3, ch=64, actnorm=False, in_channels=3) -> PatchDiscriminator:
    return PatchDiscriminator(num_layers, ch, "actnorm" if actnorm else "batch", in_channels)


@torch.no_grad()
def replay_discriminator(case: Case) -> None:
    config = case.config
    model = discriminator(
        config.get("n_layers", 3), config.get("ndf", 64), config.get("use_actnorm", False), config.get("input_nc", 3)
    )
    case.load_into(model, rename_part("discriminator", "discriminator"))
    x = case.tensor("in.x")
    case.compare("out.logits_eval_fresh", model.eval()(x))
    case.compare("out.logits_train", model.train()(x))
    case.compare("out.logits_eval_after_train", model.eval()(x))
    after = {f"discriminator.{key}": value for key, value in model.state_dict().items()}
    for key, value in to_compvis(after, FIRST_STAGE_RULES).items():
        name = f"out.sd_after.{key.removeprefix('discriminator.')}"
        if name in case.arrays:
            case.compare(name, value)


def _stub_distance(x, y):
    """In place of LPIPS, as the cases were recorded."""
    return (x - y).square().mean((1, 2, 3))


def _batch_norms(loss: FirstStageLoss) -> list[torch.nn.BatchNorm2d]:
    return [module for module in loss.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def _first_stage_loss(case: Case, config: dict) -> FirstStageLoss:
    if config.get("disc_loss", "hinge") != "hinge" or config.get("disc_conditional"):
        pytest.skip(f"{case.name}: only the hinge loss without conditioning is built, as in every released model")
    kl = config["kind"] == "kl"
    layers, ch = config.get("disc_num_layers", 3), config.get("disc_ndf", 64)
    return FirstStageLoss(
        _stub_distance,
        discriminator(layers, ch, config.get("use_actnorm", False), config.get("disc_in_channels", 3)),
        disc_start=config["disc_start"],
        reduction="sum" if kl else "mean",
        reg_weight=config.get("kl_weight", 1.0) if kl else config.get("codebook_weight", 1.0),
        perceptual_weight=config.get("perceptual_weight", 1.0),
        disc_weight=config.get("disc_weight", 1.0) * config.get("disc_factor", 1.0),
        logvar=config.get("logvar_init", 0.0) if kl else 0.0,
    )


def replay_loss(case: Case) -> None:
    config = {**case.config, **case.config.get("extra", {})}
    step, kl = config["global_step"], config["kind"] == "kl"
    loss, factor = _first_stage_loss(case, config), config.get("disc_factor", 1.0)
    started = factor if step >= config["disc_start"] else 0.0
    x, h = case.tensor("in.x"), case.tensor("in.h")
    weight = case.tensor("in.last_layer_weight").requires_grad_()
    reg = DiagonalGaussian(case.tensor("in.moments")).kl().mean() if kl else case.tensor("in.codebook_loss")

    def reconstruct():
        return F.conv2d(h, weight, padding=1)

    case.compare("in.rec", reconstruct())

    # The autoencoder's turn.
    case.load_into(loss.train(), rename)
    x_rec = reconstruct()
    terms = loss.generator_terms(x, x_rec, reg, weight, step)
    terms.loss.backward()
    g, d_weight = terms.adversarial, terms.adversarial_weight
    if loss.adversary_active(step):
        d_weight = d_weight / factor
    else:  # the original evaluates the discriminator, and its weight, before its start, too
        x_rec = reconstruct()
        g, nll = loss.adversarial_term(x_rec), loss.reconstruction_terms(x, x_rec)[0]
        if factor or not kl:
            grads = (torch.autograd.grad(term, weight, retain_graph=True)[0] for term in (nll, g))
            d_weight = config.get("disc_weight", 1.0) * adaptive_weight(*grads)
    rec = terms.l1 + loss.perceptual_weight * terms.perceptual
    logged = {
        "total_loss": terms.loss,
        "logvar": loss.logvar,
        "kl_loss": terms.reg,
        "quant_loss": terms.reg,
        "nll_loss": terms.nll,
        "rec_loss": rec,
        "p_loss": terms.perceptual,
        "d_weight": d_weight,
        "disc_factor": started,
        "g_loss": g,
    }
    case.compare("out.opt0.loss", terms.loss)
    case.compare("out.opt0.grad_last_layer", weight.grad)
    if "out.opt0.log.perplexity" in case.arrays:
        usage = codebook_usage(torch.bincount(case.tensor("in.predicted_indices"), minlength=config["n_classes"]))
        logged |= {"perplexity": usage.perplexity, "cluster_usage": usage.num_used}
    for key in case.recorded("out.opt0.log."):
        case.compare(key, logged[key.removeprefix("out.opt0.log.")])
    assert all(p.grad is None for p in loss.discriminator.parameters())

    # The discriminator's turn.
    case.load_into(loss, rename)
    for norm in _batch_norms(loss):
        norm.reset_running_stats()
    d_loss, real, fake = loss.discriminator_loss(x, reconstruct())
    d_loss = d_loss * started  # a trainer of ours would not call it before the start
    d_loss.backward()
    case.compare("out.opt1.loss", d_loss)
    case.compare("out.opt1.log.disc_loss", d_loss)
    case.compare("out.opt1.log.logits_real", real)
    case.compare("out.opt1.log.logits_fake", fake)
    grads = {f"discriminator.{key}": p.grad for key, p in loss.discriminator.named_parameters()}
    norms = [grad.norm() for _, grad in sorted(to_compvis(grads, FIRST_STAGE_RULES).items())]
    case.compare("out.opt1.disc_grad_l2_sorted_by_key", torch.stack(norms))

    # Validation.
    with torch.no_grad():
        case.compare("out.logits_fake_train_mode", loss.discriminator(reconstruct()))
        for key in case.recorded("out.opt"):  # both were recorded as views of the running mean: its last state
            if key.endswith("after_running_mean0"):
                case.compare(key, _batch_norms(loss)[0].running_mean)
        terms = loss.eval().generator_terms(x, reconstruct(), reg, weight, step)
        case.compare("out.eval_nograd.opt0.loss", terms.loss)
        case.compare("out.eval_nograd.opt0.d_weight", terms.adversarial_weight)


@torch.no_grad()
def replay_lpips(case: Case) -> None:
    """Our LPIPS, handed the recorded weights as a trunk file and as linear layers."""
    trunk = {f"features.{key.split('.', 2)[2]}": value for key, value in case.weights().items() if "slice" in key}
    with tempfile.TemporaryDirectory() as folder:
        loss = LpipsLoss(trunk=save_tensors(Path(folder, "vgg16.safetensors"), trunk, {}))
    model = loss.model

    def with_alias(state: StateDict) -> StateDict:
        """The package lists its five linear layers twice."""
        return state | {key.replace("lin", "lins.", 1): value for key, value in state.items() if key.startswith("lin")}

    case.load_into(model, with_alias)
    x, y = case.tensor("in.x"), case.tensor("in.y")
    case.compare("mid.scaled_x", model.scaling_layer(x))
    maps = model.net(model.scaling_layer(x))
    for i, features in enumerate(maps):
        case.compare(f"mid.feat{i}_mean_abs", features.abs().mean())
    case.compare("mid.feat4", maps[-1])
    case.compare("out.lpips", loss.train()(x, y).view(-1, 1, 1, 1))


REPLAYS = {
    "AutoencoderKL": replay_kl,
    "VQModelInterface": replay_vq,
    "VectorQuantizer2": replay_quantizer,
    "Encoder/Decoder": replay_encoder_decoder,
    "ldm.modules.losses.contperceptual.LPIPSWithDiscriminator": replay_loss,
    "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator": replay_loss,
    "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator": replay_loss,
    "NLayerDiscriminator": replay_discriminator,
    "LPIPS": replay_lpips,
}
