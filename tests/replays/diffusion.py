"""Replays of the diffusion parts: UNet and its blocks, conditions, schedules, samplers, objective, EMA, training."""

import math

import pytest
import torch
from torch import Tensor, nn

from ldmlab.checkpoints.compvis import UNET_RULES, from_compvis, to_compvis
from ldmlab.diffusion import schedules
from ldmlab.diffusion.conditioning.spatial import LabelMap
from ldmlab.diffusion.conditioning.spatial_ops import fill, inpainting_condition
from ldmlab.diffusion.conditioning.tokens import ClassEmbedder, conditioned
from ldmlab.diffusion.ema import EMA
from ldmlab.diffusion.guidance import classifier_free
from ldmlab.diffusion.likelihood import prior_kl
from ldmlab.diffusion.samplers import ddim, ddim_alpha_bars, ddim_sigma, ddim_timesteps, ddpm, plms
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.training import DiffusionModule, denoising_error, weighted_objective
from ldmlab.diffusion.unet.attention import (
    CrossAttention,
    FeedForward,
    SelfAttention,
    SpatialTransformer,
    TransformerBlock,
)
from ldmlab.diffusion.unet.blocks import Downsample, ResBlock, Upsample, timestep_embedding
from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet
from ldmlab.first_stage.latents import latent_stats

from . import first_stage
from .case import Case, StateDict


def rename(state: StateDict) -> StateDict:
    """CompVis UNet keys -> ours."""
    return from_compvis(state, UNET_RULES)


def unet(case: Case, config: dict, part: str | None = None) -> UNet:
    """Our UNet of a recorded `unet_config`, with its weights."""
    if not config.get("conv_resample", True) or config.get("use_new_attention_order"):
        pytest.skip(f"{case.name}: resampling without convolution, other head order: no released model has them")
    plain = {name: value for name, value in config.items() if name != "conv_resample"}
    model = UNet(DenoiserConfig.from_released(plain))
    case.load_into(model, rename, part)
    return model.eval()


def schedule_of(settings: dict, start: float = 0.0015, end: float = 0.0195) -> Schedule:
    """The schedule of the recorded constructor arguments; models were recorded with these ends where none are named."""
    T, kind = settings.get("timesteps", 1000), settings.get("beta_schedule", "linear")
    if kind == "cosine":
        return schedules.cosine(T, settings.get("cosine_s", 8e-3))
    make = {"linear": schedules.scaled_linear, "sqrt_linear": schedules.linear, "sqrt": schedules.sqrt}[kind]
    return make(T, settings.get("linear_start", start), settings.get("linear_end", end))


# --- UNet ------------------------------------------------------------------------------------------------------------
def replay_unet(case: Case) -> None:
    model, seen = unet(case, case.config), {}
    watched = {"time_embed": model.time_embed, "input_blocks_0": model.down[0], "input_blocks_1": model.down[1],
               "middle_block": model.middle}
    for name, module in watched.items():
        module.register_forward_hook(lambda module, args, out, name=name: seen.update({f"mid.{name}": out}))
    given = {name: case.tensor(f"in.{name}") for name in ("context", "y") if f"in.{name}" in case.arrays}
    eps = model(case.tensor("in.x"), case.tensor("in.t"), **given)
    case.compare("out.eps", eps)
    for key in case.recorded("mid."):
        case.compare(key, seen[key])
    if "out.loss_mean_sq" in case.arrays:
        loss = eps.square().mean()
        loss.backward()
        case.compare("out.loss_mean_sq", loss)
        case.compare("out.grad_l2_sorted_by_key", sorted_norms({k: p.grad for k, p in model.named_parameters()}))
        case.compare("out.grad_first_conv", model.down[0][0].weight.grad)


def sorted_norms(state: StateDict) -> Tensor:
    """The L2 norm of each entry, by CompVis key in alphabetical order."""
    return torch.stack([value.norm() for _, value in sorted(to_compvis(state, UNET_RULES).items())])


def replay_timestep_embedding(case: Case) -> None:
    t = case.tensor("in.t")
    for key in case.recorded("out.dim"):
        case.compare(key, timestep_embedding(t, int(key.removeprefix("out.dim"))))
    for key in case.recorded("out.maxperiod"):
        period, dim = key.removeprefix("out.maxperiod").split("_dim")
        case.compare(key, timestep_embedding(t, int(dim), float(period)))
    case.leave_out("out.model_py", "another embedding, defined beside the first stage and never called")
    case.leave_out("out.repeat_only", "an option of no model")


@torch.no_grad()
def replay_spatial_transformer(case: Case) -> None:
    c = case.config
    context_dim = c["context_dim"] or c["n_heads"] * c["d_head"]  # without a context, the block attends to itself
    model = SpatialTransformer(c["in_channels"], context_dim, c["n_heads"], c["d_head"], c["depth"])
    case.load_into(model, rename)
    given = [case.tensor("in.context")] if "in.context" in case.arrays else []
    case.compare("out.y", model.eval()(case.tensor("in.x"), *given))


def cross_attention_rename(state: StateDict) -> StateDict:
    """The rules know cross-attention as a part of its block."""
    whole = rename({f"attn2.{key}": value for key, value in state.items()})
    return {key.removeprefix("cross_attention."): value for key, value in whole.items()}


@torch.no_grad()
def replay_cross_attention(case: Case) -> None:
    c = case.config
    model = CrossAttention(c["query_dim"], c["context_dim"] or c["query_dim"], c["heads"], c["dim_head"])
    case.load_into(model, cross_attention_rename)
    case.compare("out.y", model.eval()(case.tensor("in.x"), case.tensor("in.context")))
    if "in.mask" in case.arrays:
        pytest.skip(f"{case.name}: equal without the mask; no model uses one")


def _resblock(s: dict) -> tuple[nn.Module, object]:
    resample = "up" if s.get("up") else "down" if s.get("down") else None
    c_out, film = s.get("out_channels") or s["channels"], s.get("use_scale_shift_norm", False)
    return ResBlock(s["channels"], c_out, s["emb_channels"], scale_shift=film, resample=resample), rename


def _self_attention(s: dict) -> tuple[nn.Module, object]:
    c = s["channels"]
    heads = c // s["num_head_channels"] if "num_head_channels" in s else s["num_heads"]

    def renamed(state: StateDict) -> StateDict:
        """The other order, q, k, v before heads, is a permutation of the rows of qkv."""
        state = rename(state)
        if s.get("use_new_attention_order"):
            rows = torch.arange(3 * c).view(3, heads, c // heads).transpose(0, 1).flatten()
            state |= {key: value[rows] for key, value in state.items() if key.startswith("qkv.")}
        return state

    return SelfAttention(c, heads), renamed


def _feed_forward_rename(state: StateDict) -> StateDict:
    whole = rename({f"ff.{key}": value for key, value in state.items()})
    return {key.removeprefix("feed_forward."): value for key, value in whole.items()}


def _downsample_rename(state: StateDict) -> StateDict:
    return {key.replace("op.", "conv."): value for key, value in state.items()}


BLOCKS = {
    "unet_resblock": _resblock,
    "unet_resblock_film_up": _resblock,
    "unet_resblock_down": _resblock,
    "unet_attn_legacy": _self_attention,
    "unet_attn_neworder": _self_attention,
    "unet_downsample": lambda s: (Downsample(s["channels"]), _downsample_rename),
    "unet_upsample": lambda s: (Upsample(s["channels"]), rename),
    "spatial_transformer": lambda s: (
        SpatialTransformer(s["in_channels"], s["context_dim"], s["n_heads"], s["d_head"], s["depth"]), rename),
    "basic_transformer_block": lambda s: (
        TransformerBlock(s["dim"], s["context_dim"], s["n_heads"], s["d_head"]), rename),
    "feedforward_geglu": lambda s: (FeedForward(s["dim"], s.get("mult", 4)), _feed_forward_rename),
}
# Blocks of the original that none of its models contains, and so not ours either.
NOT_IN_ANY_MODEL = ("unet_resblock_useconv", "feedforward_gelu")


# --- Conditions ------------------------------------------------------------------------------------------------------
def class_embedder(case: Case, params: dict, part: str | None = None) -> ClassEmbedder:
    """The original counts "no class" among its n_classes, as the last."""
    model = ClassEmbedder(params["n_classes"] - 1, params["embed_dim"])
    case.load_into(model, rename, part)
    return model.eval()


@torch.no_grad()
def replay_class_embedder(case: Case) -> None:
    case.compare("out.c", class_embedder(case, case.config)(case.tensor("in.label")))


def replay_apply_model(case: Case) -> None:
    """Concatenation on channels, noisy latent first; several contexts one after the other; class labels."""
    model, x, t = unet(case, case.config["unet"], "unet"), case.tensor("in.x"), case.tensor("in.t")
    key = case.config["conditioning_key"]
    given = {name.removeprefix("in."): case.tensor(name) for name in sorted(case.recorded("in.c"))}
    concat = [c for c in given.values() if c.ndim == 4]
    tokens = [c for c in given.values() if c.ndim == 3]
    context = torch.cat(tokens, 1) if tokens else None
    y = given["c"] if key == "adm" else None

    def denoise(z: Tensor) -> Tensor:
        return model(torch.cat([z, *concat], 1), t, context, y)

    case.compare("out.eps", denoise(x))
    noise = case.tensor("in.noise")
    z_t = schedule_of(case.config.get("ddpm", {})).q_sample(x, t, noise)
    kind = case.config.get("ddpm", {}).get("loss_type", "l2")
    case.compare("out.p_losses_loss", denoising_error(denoise(z_t), noise, kind).mean())


# --- Schedules -------------------------------------------------------------------------------------------------------
def replay_schedule(case: Case) -> None:
    schedule = schedule_of(case.config, start=1e-4, end=2e-2)  # the defaults of DDPM.register_schedule
    ab, variance = schedule.alpha_bar, schedule.posterior_variance
    of_z0, of_z_t = schedule.posterior_coefficients
    ours = {
        "betas": schedule.beta,
        "betas_float64": schedule.beta,
        "alphas_cumprod": ab,
        "alphas_cumprod_prev": schedule.alpha_bar_prev,
        "sqrt_alphas_cumprod": ab.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - ab).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - ab).log(),
        "sqrt_recip_alphas_cumprod": ab.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / ab - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": of_z0,
        "posterior_mean_coef2": of_z_t,
        "lvlb_weights": schedule.vlb_weights,
        "derived_log_snr_float64": schedule.log_snr,
    }
    if case.config.get("parameterization", "eps") != "eps":
        case.leave_out("out.lvlb_weights", "only noise is predicted here")
    if case.config.get("v_posterior", 0) != 0:
        for name in ("posterior_variance", "posterior_log_variance_clipped", "lvlb_weights"):
            case.leave_out(f"out.{name}", "the variance is that of the posterior, not a mixture with beta")
    for name, table in ours.items():
        if f"out.{name}" not in case.left_out:
            case.compare(f"out.{name}", table)
    if case.left_out:
        pytest.skip(f"{case.name}: equal, but for what no model uses: {', '.join(sorted(case.left_out))}")


def replay_ddim_parameters(case: Case) -> None:
    c = case.config
    start, end = c["linear"]
    schedule = schedules.scaled_linear(c["T"], start, end)
    rule = {"uniform": "compvis", "quad": "compvis-quad"}[c["discretize"]]
    for S in c["S"]:
        timesteps = ddim_timesteps(S, c["T"], rule)
        case.compare(f"out.S{S}.timesteps", torch.tensor(timesteps[::-1]))
        pairs = ddim_alpha_bars(schedule, timesteps)[::-1]
        ab_t, ab_s = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
        every_step = schedule.alpha_bar.float(), schedule.alpha_bar_prev.float()  # as recorded, rounding errors and all
        for eta in c["etas"]:
            name = f"out.S{S}.eta{eta:g}"
            case.compare(f"{name}.ddim_alphas", ab_t)
            case.compare(f"{name}.ddim_alphas_prev", ab_s)
            case.compare(f"{name}.ddim_sqrt_one_minus_alphas", (1 - ab_t).sqrt())
            case.compare(f"{name}.ddim_sigmas", torch.tensor([ddim_sigma(*pair, eta) for pair in pairs]))
            case.compare(f"{name}.sigmas_orig_steps", ddim_sigma(*every_step, eta))


# --- Samplers --------------------------------------------------------------------------------------------------------
def conditional_eps_model(case: Case, model: UNet):
    """The noise prediction that a sampler asks for: plain, or guided by the recorded labels."""
    if not case.config.get("cond_stage"):
        return model
    embed = class_embedder(case, case.config["cond_stage"]["params"], "cond_stage")
    context, scale = embed(case.tensor("in.labels")), case.config["cfg_scale"]
    null = embed.null(len(context))
    case.compare("mid.c", context)
    if "mid.uc" in case.arrays:
        null = embed(case.tensor("in.uncond_labels"))
        case.compare("mid.uc", null)
    return classifier_free(model, context, null, 1.0 if scale is None else scale)


@torch.no_grad()
def replay_ddim(case: Case) -> None:
    c = case.config
    if c.get("quantize_x0"):
        pytest.skip(f"{case.name}: quantising z0_hat at each step is not built")
    eps_model = conditional_eps_model(case, unet(case, c["unet"], "unet"))
    visited, z_T = [], case.tensor("in.x_T")
    z_seen, z0_seen = [z_T], [z_T]

    def watched(z_t: Tensor, t: Tensor) -> Tensor:
        visited.append(int(t[0]))
        return eps_model(z_t, t)

    def on_step(i: int, t: int, z: Tensor, z0_hat: Tensor) -> None:
        z_seen.append(z)
        z0_seen.append(z0_hat)

    if case.meta["module"] == "PLMSSampler":
        z = plms(watched, z_T, schedule_of(c["ddpm"]), c["S"], rule="compvis", on_step=on_step)
    else:
        masked = {"known": case.tensor("in.x0"), "mask": case.tensor("in.mask")} if "in.mask" in case.arrays else {}
        z = ddim(watched, z_T, schedule_of(c["ddpm"]), c["S"], eta=c["eta"], generator=_tape(case, bool(masked)),
                 rule="compvis", on_step=on_step, **masked)
    case.compare("out.model_eval_timesteps", torch.tensor(visited))
    case.compare("out.x_inter", torch.stack(z_seen))
    case.compare("out.pred_x0", torch.stack(z0_seen))
    case.compare("out.samples", z)


def _tape(case: Case, masked: bool):
    """Recorded noise in the order in which ours draws it: a step first noises what is known, then adds its own."""
    sources = []
    if masked:
        sources.append(case.tensor("in.q_sample_noise_per_step"))
    if case.config["eta"] > 0:
        sources.append(case.config.get("temperature", 1.0) * case.tensor("in.noise_per_call"))
    draws = iter([noise for step in zip(*sources, strict=True) for noise in step])
    return lambda like: next(draws)


@torch.no_grad()
def replay_ddpm(case: Case) -> None:
    c = case.config
    schedule, z_T = schedule_of({"timesteps": c["timesteps"], **c["ddpm"]}), case.tensor("in.x_T")
    model, draws = unet(case, c["unet"], "unet"), iter(case.tensor("in.noise_per_step"))
    seen, first_too = [z_T], case.meta["module"].startswith("LatentDiffusion")

    def on_step(i: int, t: int, z: Tensor, z0_hat: Tensor) -> None:
        if t % 5 == 0 or (first_too and i == 0):
            seen.append(z)

    z = ddpm(model, z_T, schedule, generator=lambda like: next(draws), clip=c["clip_denoised"], on_step=on_step)
    case.compare("out.intermediates_every5", torch.stack(seen))
    case.compare("out.samples", z)


@torch.no_grad()
def replay_class_conditional(case: Case) -> None:
    """Labels to pictures: class tokens, guided DDIM or PLMS, decoder."""
    c = case.config
    model, first = unet(case, c["unet"], "unet"), autoencoder(case, c["first_stage"])
    embed = class_embedder(case, c["cond_stage"]["params"], "cond_stage")
    y = case.tensor("in.labels")
    eps_model = classifier_free(model, embed(y), embed(torch.full_like(y, c["uncond_label"])), c["scale"])
    z_T = case.tensor("in.x_T")
    if c["sampler"] == "PLMSSampler":
        z = plms(eps_model, z_T, schedule_of(c["ddpm"]), c["S"], rule="compvis")
    else:
        noise = torch.Generator().manual_seed(0) if c["eta"] == 0 else _tape(case, masked=False)
        z = ddim(eps_model, z_T, schedule_of(c["ddpm"]), c["S"], eta=c["eta"], rule="compvis", generator=noise)
    case.compare("out.z", z)
    scaled = z / z.abs().max() * 0.5  # only to keep untrained weights in range
    case.compare("mid.z_scaled", scaled)
    decoded = first.decode(scaled)
    case.compare("out.decoded", decoded)
    case.compare("out.image01", ((decoded + 1) / 2).clamp(0, 1))


@torch.no_grad()
def replay_inpainting(case: Case) -> None:
    """Mask and masked picture to a picture: DDIM on [z_t, latent, mask], decoder, known pixels kept."""
    c = case.config
    model, first = unet(case, c["unet"], "unet"), autoencoder(case, c["first_stage"])
    x, mask = case.tensor("in.image"), case.tensor("in.mask01")
    condition = inpainting_condition(x, mask, first.encode)
    case.compare("mid.cond", condition)

    def eps_model(z_t: Tensor, t: Tensor) -> Tensor:
        return model(torch.cat([z_t, condition], 1), t)

    schedule = schedule_of({}, *c["linear"])
    z = ddim(eps_model, case.tensor("in.x_T"), schedule, c["S"], eta=c["eta"], rule="compvis")
    case.compare("out.z", z)
    scaled = z / z.abs().max() * 0.5  # only to keep untrained weights in range
    case.compare("mid.z_scaled", scaled)
    decoded = first.decode(scaled)
    case.compare("out.decoded", decoded)
    case.compare("out.inpainted", (fill(x, decoded, mask) + 1) / 2)


# --- Objective, EMA, training ----------------------------------------------------------------------------------------
@torch.no_grad()
def replay_p_losses(case: Case) -> None:
    settings = case.config["ddpm"]
    if settings.get("parameterization", "eps") != "eps":
        pytest.skip(f"{case.name}: only the noise is predicted here")
    model, schedule = unet(case, case.config["unet"], "unet"), schedule_of(settings)
    z0, noise, t = (case.tensor(f"in.{name}") for name in ("x0", "noise", "t"))
    z_t = schedule.q_sample(z0, t, noise)
    eps_hat = model(z_t, t)
    error = denoising_error(eps_hat, noise, settings.get("loss_type", "l2"))
    weight = settings.get("original_elbo_weight", 0.0)
    logvar = torch.full((schedule.T,), settings.get("logvar_init", 0.0))
    bound = weighted_objective(error, t, schedule, vlb_weight=1.0) - error.mean()
    plain = weighted_objective(error, t, schedule, vlb_weight=weight)
    whole = weighted_objective(error, t, schedule, logvar=logvar, vlb_weight=weight)
    case.compare("out.x_t", z_t)
    case.compare("out.model_out", eps_hat)
    for loss, model_name in ((plain, "ddpm"), (whole, "ldm")):
        case.compare(f"out.{model_name}_loss", loss)
        logged = {"loss": loss, "loss_simple": error.mean(), "loss_vlb": bound,
                  "loss_gamma": weighted_objective(error, t, schedule, logvar=logvar)}
        for name, value in logged.items():
            if f"out.{model_name}.val.{name}" in case.arrays:
                case.compare(f"out.{model_name}.val.{name}", value)
    if "out.ldm.logvar" in case.arrays:
        case.compare("out.ldm.logvar", logvar.mean())

    def at_t(table: Tensor) -> Tensor:
        return table[t].view(-1, 1, 1, 1)

    # From here on with the recorded answer: near t = T, z0_hat is eps_hat's rounding two hundred times over.
    eps_hat, variance = case.tensor("out.model_out"), schedule.posterior_variance
    case.compare("out.q_mean", at_t(schedule.alpha_bar.sqrt()) * z0)
    case.compare("out.q_var", at_t(1 - schedule.alpha_bar))
    case.compare("out.q_logvar", at_t((1 - schedule.alpha_bar).log()))
    z0_hat = schedule.predict_z0(z_t, t, eps_hat)
    case.compare("out.pred_x0", z0_hat)
    case.compare("out.post_mean", schedule.posterior_mean(z0_hat, z_t, t))
    case.compare("out.post_var", at_t(variance))
    case.compare("out.post_logvar", at_t(variance.clamp(min=1e-20).log()))
    case.compare("out.pmv_clip_x0", z0_hat.clamp(-1, 1))
    case.compare("out.pmv_clip_mean", schedule.posterior_mean(z0_hat.clamp(-1, 1), z_t, t))
    case.leave_out("out.eps_from_x0", "the noise that a z0_hat stands for: no sampler here asks for it")
    # Recorded in float32, where exp(logvar) - 1 - logvar cancels to some 4e-8 of a value of 1e-4.
    case.compare("out.prior_bpd", prior_kl(z0, schedule) / (z0[0].numel() * math.log(2)), tol=1e-3)


def replay_ema(case: Case) -> None:
    c = case.config
    # A flat module whose parameters bear the recorded names: the average knows no more of a model than these.
    model = nn.Module()
    names = list(c["name_map"])
    parameters = {name: nn.Parameter(case.weights()[name]) for name in names}
    model.named_parameters = lambda: iter(parameters.items())
    ema = EMA(model, c.get("decay", 0.9999), warmup=c.get("use_num_upates", True))
    for step in range(c["steps"]):
        for name, parameter in parameters.items():
            parameter.data.copy_(case.tensor(f"in.step{step}.{name}"))
        ema.update(model)
        for name in names:
            case.compare(f"out.step{step}.{name}", ema.state_dict()["shadow"][name])
        recorded = ema.num_updates if ema.warmup else -1  # the original marks the absence of warm-up by -1
        case.compare(f"out.step{step}.num_updates", torch.tensor(recorded))
    case.compare("out.decay", torch.tensor(ema.decay))


def autoencoder(case: Case, config: dict) -> nn.Module:
    build = first_stage.kl_autoencoder if config["target"].endswith("KL") else first_stage.vq_autoencoder
    model = build(config["params"]).eval()
    case.load_into(model, first_stage.rename, "first_stage")
    return model


@torch.no_grad()
def replay_scaling(case: Case) -> None:
    model = autoencoder(case, case.config["first_stage"])
    x, z = case.tensor("in.image_nhwc").movedim(-1, 1), case.tensor("in.z")
    latent = model.encode(x)
    if model.reg == "kl":
        latent = latent.mean + latent.std * case.tensor("in.posterior_noise")
    stats = latent_stats(latent, "first_batch" if case.config["ldm"].get("scale_by_std") else "none")
    if "out.scale_factor" in case.arrays:
        case.compare("out.scale_factor", torch.tensor(stats.scale_factor[0]))
    case.compare("out.get_input_z", stats.scale(latent))
    case.compare("out.decode_first_stage", model.decode(stats.unscale(z)))
    if "out.decode_force_not_quantize" in case.arrays:
        case.compare("out.decode_force_not_quantize", model.decode(stats.unscale(z), quantize=False))


class SoftLabelMap(LabelMap):
    """The recorded maps are no labels but any numbers, a channel a label."""

    def encode(self, y: Tensor) -> Tensor:
        return self.rescaler(y)


def label_map(case: Case, params: dict, part: str) -> SoftLabelMap:
    model = SoftLabelMap(2 ** params.get("n_stages", 1), params["in_channels"], params["out_channels"])
    case.load_into(model.rescaler, lambda state: state, part)
    return model


# tau_theta by its recorded name; None is for a model without.
TAUS = {"ClassEmbedder": class_embedder, "SpatialRescaler": label_map, None: None}


def replay_training(case: Case) -> None:
    """Steps of our LightningModule, taken by hand so that t and noise are the recorded ones."""
    c = case.config
    ldm = c["ldm"]
    kind = ldm["cond"].get("target", "ClassEmbedder").rsplit(".")[-1] if "cond" in ldm else None
    if kind not in TAUS:
        pytest.skip(f"{case.name}: {kind} is not built yet")
    tau = TAUS[kind](case, ldm["cond"]["params"], "cond_stage").train() if kind else None
    if tau is not None:
        tau.requires_grad_(ldm.get("cond_stage_trainable", False))
    model, loss_type, schedule = unet(case, c["unet"], "unet").train(), ldm.get("loss_type", "l2"), schedule_of(ldm)
    module = DiffusionModule(model, schedule, tau, lr=c["lr"], loss=loss_type)
    optimizer = module.configure_optimizers()
    losses = []
    for step in range(len(case.tensor("out.losses"))):
        z0 = case.tensor(f"in.step{step}.image").movedim(-1, 1)  # the first stage is the identity
        t, noise = case.tensor(f"in.step{step}.t"), case.tensor(f"in.step{step}.noise")
        y = case.tensor(f"in.step{step}.{ldm.get('cond_stage_key', 'class_label')}") if tau is not None else None
        y = y.movedim(-1, 1) if kind == "SpatialRescaler" else y
        if step == 0:
            eps_hat = conditioned(model, tau, y)(schedule.q_sample(z0, t, noise), t)
            error = denoising_error(eps_hat, noise, loss_type)
            bound = weighted_objective(error, t, schedule, vlb_weight=1.0) - error.mean()
            case.compare("out.step0.z", module.z0_from_moments(z0))
            case.compare("out.step0.loss_vlb", bound)
            if tau is not None:
                case.compare("out.step0.c", tau(y))
        loss = module.eps_loss(z0, y, t, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.ema.update(module.trained)
        losses.append(loss.detach())
    averaged = {name.removeprefix("denoiser."): value for name, value in module.ema.state_dict()["shadow"].items()}
    case.compare("out.losses", torch.stack(losses))
    case.compare("out.unet_param_l2_sorted", sorted_norms(dict(model.named_parameters())))
    case.compare("out.unet_out_conv_weight", model.head_conv.weight)
    case.compare("out.ema_out_conv_weight", averaged["head_conv.weight"])
    averaged = {name: value for name, value in averaged.items() if not name.startswith("tau.")}
    case.compare("out.ema_l2_sorted", sorted_norms(averaged))
    if tau is not None:
        norms = [parameter.norm() for _, parameter in sorted(tau.named_parameters())]
        case.compare("out.cond_stage_param_l2_sorted", torch.stack(norms))


REPLAYS = {
    "UNetModel": replay_unet,
    "timestep_embedding": replay_timestep_embedding,
    "SpatialTransformer": replay_spatial_transformer,
    "CrossAttention": replay_cross_attention,
    "ClassEmbedder": replay_class_embedder,
    "LatentDiffusion.apply_model": replay_apply_model,
    "DDPM.register_schedule": replay_schedule,
    "DDIMSampler.make_schedule": replay_ddim_parameters,
    "DDIMSampler": replay_ddim,
    "PLMSSampler": replay_ddim,
    "LatentDiffusion.p_sample_loop": replay_ddpm,
    "DDPM.p_sample": replay_ddpm,
    "pipeline.class_conditional": replay_class_conditional,
    "pipeline.inpaint": replay_inpainting,
    "LatentDiffusion.p_losses": replay_p_losses,
    "LitEma": replay_ema,
    "LatentDiffusion.scaling": replay_scaling,
    "LatentDiffusion.training": replay_training,
}
