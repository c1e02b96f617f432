"""Distortion against true bits, a run at a time: its first stage, JPEG and WebP, its diffusion model [LDM v2, Fig. 2].

Curves of the record are named `<coder>_<what>` and run over the coder's setting: `latent_psnr` is [[step, dB], ...].
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import isfinite, log, log2
from typing import Any

import PIL
import torch
from jaxtyping import Float, Int
from PIL import features
from torch import Tensor

from ldmlab.data.images import to_float
from ldmlab.diffusion.likelihood import pixel_decoder, rate_distortion, variational_bound
from ldmlab.diffusion.samplers import ddim_alpha_bars, ddim_step, ddim_timesteps
from ldmlab.evaluation.rate import (
    CODECS,
    FULL_CHROMA,
    Coded,
    LatentCoder,
    PosteriorCoder,
    count_symbols,
    entropy,
    file_codec,
    posterior_stats,
)
from ldmlab.first_stage.autoencoder import AutoencoderKL, FirstStage
from ldmlab.first_stage.reconstruct import latents_of
from ldmlab.study.config.presets import study_spec
from ldmlab.study.records.record import Record, as_metrics
from ldmlab.study.runs.first_stage import has_first_stage, train_first_stage
from ldmlab.study.runs.run import Run
from ldmlab.study.training.progress import progress

STEPS = (1, 4, 16, 32, 64, 128, 256, 512)  # of KL latents, in units of `PosteriorStats.step`
QUALITIES = {"jpeg": (1, 5, 10, 20, 40, 60, 75, 85, 90, 95), "webp": (0, 1, 5, 10, 20, 40, 60, 75, 90)}
MOST_TABLES = 20_000  # training pictures that code tables are learned from
MOST_PROGRESSIVE = 256  # validation pictures that the diffusion model codes
FREE_DB = 0.1  # rounding that costs less PSNR than this is called free

Coder = Callable[[Tensor], Coded]


def training_moments(run: Run) -> Iterator[Tensor]:
    """Cached moments of the training pictures that code tables are learned from, in batches."""
    num = min(MOST_TABLES, len(run.pictures.train))
    for start in range(0, num, 1024):
        yield run.latents.__getitems__(list(range(start, min(start + 1024, num))))["moments"]


def latent_coder(run: Run, step: float | int = 0) -> LatentCoder:
    """The run's first stage as a coder; KL needs `step`, in units of `PosteriorStats.step`."""
    moments = partial(training_moments, run)
    unit = step * posterior_stats(moments()).step if run.first_stage.model.reg == "kl" else None
    return LatentCoder.learn(run.first_stage.model, moments, unit)


def record_rate_distortion(run: Run) -> Record:
    """All that one run measures: bits and distortions of the first stage, of files, and of the diffusion model.

    What was measured before, on the same models and by the same networks, is loaded.
    """
    first_stage, diffusion, scorer = run.first_stage, run.diffusion, run.scorer
    record = run.new_record()
    record.inputs |= {"denoiser": diffusion.hash} | scorer.inputs("fd_lab", "fd_referee", perceptual=True)
    if (known := run.measured_before(record)) is not None:
        return known
    record.protocol |= {
        "num_val": len(run.pictures.val), "tables_from": min(MOST_TABLES, len(run.pictures.train)),
        "pillow": PIL.__version__, "libjpeg_turbo": features.version("libjpeg_turbo"),
        "webp": features.version("webp"), "full_chroma_from": FULL_CHROMA,
    }
    record.metrics = as_metrics(scorer.reconstruction(first_stage))
    record.events += scorer.missing
    coders = _coders(run)
    with progress(sum(map(len, coders.values())), "rate and distortion", unit="settings") as bar:
        for name, settings in coders.items():
            for setting, make in settings.items():
                for what, value in _measure(run, make(), set(record.metrics)).items():
                    record.curves.setdefault(f"{name}_{what}", []).append([setting, value])
                bar.update()
    record.metrics |= _latent_metrics(run, record)
    _progressive(run, record)
    return record


def _coders(run: Run) -> dict[str, dict[int | float, Callable[[], Coder]]]:
    """By name and setting; tables are learned when their turn comes."""
    model = run.first_stage.model
    coders: dict[str, dict[int | float, Callable[[], Coder]]] = {}
    if isinstance(model, AutoencoderKL):
        coders["latent"] = {step: partial(latent_coder, run, step) for step in STEPS}
        draws = lambda: torch.Generator().manual_seed(run.spec.seed)  # noqa: E731
        coders["posterior"] = {0: lambda: PosteriorCoder(model, None, draws())}
        # The same samples at another price: a Gaussian fitted to the latents, where the loss has a standard normal.
        coders["fitted_posterior"] = {
            0: lambda: PosteriorCoder(model, posterior_stats(training_moments(run)).prior, draws())}
    if model.reg == "vq":
        coders["latent"] = {0: partial(latent_coder, run)}
    for codec in CODECS:
        coders[codec] = {quality: partial(_file_coder, codec, quality) for quality in QUALITIES[codec]}
    return coders


def _file_coder(codec: str, quality: int) -> Coder:
    """A file format at one quality, 0 to 100, as a coder."""
    return partial(file_codec, codec=codec, quality=quality)


def _measure(run: Run, coder: Coder, wanted: set[str]) -> dict[str, float]:
    """Mean bits a pixel of the validation pictures, with its standard error, and the distortions that are `wanted`."""
    sent: list[tuple[Tensor, Tensor]] = []

    def reconstruct(x: Tensor) -> Tensor:
        coded = coder(x)
        sent.append((coded.bits, coded.file_bits))
        return coded.x_rec.to(x.device)

    # rFD is wanted where the scorer gave it.
    scores = run.scorer.score_reconstructions(reconstruct, run.pictures.val, num_resamples=0)
    bpp, file_bpp = (torch.cat(bits) / run.spec.data.size**2 for bits in zip(*sent, strict=True))
    distortions = {name: scores[name.removesuffix("_lab")].value for name in ("psnr", "perceptual", "rfd_lab")}
    found = {"bpp": bpp.mean().item(), "bpp_se": (bpp.std() / len(bpp) ** 0.5).item(),
             "file_bpp": file_bpp.mean().item(),
             **{name: value for name, value in distortions.items() if name in wanted}}
    return {what: float(f"{value:.6g}") for what, value in found.items() if isfinite(value)}


@torch.inference_mode()
def _latent_metrics(run: Run, record: Record) -> dict[str, dict]:
    """What the first stage's bits rest on: the step, the entropies, and the lengths of code under both tables."""
    model, val = run.first_stage.model, run.pictures.val
    if model.reg == "none":
        return {}
    found: dict[str, dict] = {}
    if model.reg == "kl":
        step = free_step(record)
        unit = posterior_stats(training_moments(run)).step
        found = {"free_step": {"value": step, "unit": "steps whose error is as large as the posterior's noise"},
                 "posterior_step": {"value": [float(f"{value:.4g}") for value in unit], "unit": "z, a channel"}}
    coder = latent_coder(run, record_step(found))
    if model.reg == "vq":
        found = {"num_codes": {"value": coder.num_symbols, "unit": "1"},
                 "fixed_bpp": {"value": log2(coder.num_symbols) / model.f**2, "unit": "bit a pixel"}}
    batches = (to_float(val.images(range(i, min(i + 128, len(val))))).to(run.device) for i in range(0, len(val), 128))
    symbols = torch.cat([coder.symbols(x) for x in batches])
    counts = count_symbols([symbols], coder.num_symbols)
    found["symbols_used"] = {"value": int((counts.sum((0, 1)) > 0).sum()), "unit": "1"}
    for name, groups, code in (("marginal", counts.sum(1), coder.by_channel), ("by_place", counts, coder.by_place)):
        measured, length = entropy(groups), code.bits(symbols).mean().item() / symbols[0].numel()
        found[f"entropy_{name}"] = {"value": measured.bits, "bias": -measured.bias, "unit": "bit a symbol"}
        found[f"code_length_{name}"] = {"value": length, "unit": "bit a symbol"}
    return found


def _progressive(run: Run, record: Record) -> None:
    """The diffusion model as a coder of validation pictures, by time; at f = 1 also its bound as a lossless code.

    Its class labels are sent first, log2 of their number each.
    """
    model, plan = run.diffusion.model, run.spec.evaluation
    num, num_times = min(MOST_PROGRESSIVE, len(run.pictures.val)), 2 * plan.num_steps
    labels, x = run.pictures.val.labels(range(num)), to_float(run.pictures.val.images(range(num)))
    label_bits = log2(max(1, run.pictures.train.num_classes))
    generator, found, nats = torch.Generator().manual_seed(run.spec.seed), [], []
    with progress(num, "progressive coding", unit="pictures") as bar, torch.inference_mode():
        for part, y in zip(x.split(plan.batch_size), labels.split(plan.batch_size), strict=True):
            z0 = model.stats.scale(latents_of(model.first_stage, part)).to(model.device)
            options: dict[str, Any] = {"generator": generator, "num_times": num_times}
            eps_model = model.eps_model(y.to(model.device))
            found.append(rate_distortion(eps_model, z0, part.to(model.device), model.decode, model.schedule, **options))
            if model.first_stage.reg == "none":
                nats.append(variational_bound(eps_model, z0, model.schedule, decoder=pixel_decoder, **options).nats)
            bar.update(len(part))
    sent = torch.cat([part.rate for part in found]) + label_bits / run.spec.data.size**2
    rmse = torch.cat([part.rmse for part in found])
    for what, values in (("bpp", sent), ("rmse", rmse)):
        for name, row in ((what, values.mean(0)), (f"{what}_se", values.std(0) / num**0.5)):
            record.curves[f"progressive_{name}"] = [[int(t), float(f"{value:.6g}")] for t, value in
                                                    zip(found[0].times, row, strict=True)]
    record.protocol |= {"progressive_num": num, "progressive_times": num_times}
    if nats:
        bits = (torch.cat(nats) / log(2) + label_bits) / x[0].numel()
        record.metrics["bits_per_dim"] = {"value": bits.mean().item(), "se": (bits.std() / num**0.5).item(), "n": num,
                                          "unit": "bit a colour value of a pixel, at most"}


def nearest_setting(record: Record, coder: str, bpp: float | int) -> tuple[int | float, float]:
    """The setting of a coder whose rate is nearest to `bpp`, by ratio, and that rate; (0, 0) if all its rates are 0."""
    rates = [(abs(log2(rate / bpp)), setting, rate) for setting, rate in record.curves[f"{coder}_bpp"] if rate > 0]
    return min(rates)[1:] if rates else (0, 0.0)


@torch.inference_mode()
def pictures_at(
    run: Run, records: Sequence[Record], x: Float[Tensor, "n 3 H W"], bpp: float | int
) -> dict[str, Float[Tensor, "n 3 H W"]]:
    """x, and what comes back of it at about one rate: files, and each first stage on disk with a record.

    Names say the mean rate over the validation pictures. First stages whose nearest rate is more than twice or less
    than half of `bpp` are left out.
    """
    rows = {"x": x}
    for codec in CODECS:
        quality, rate = nearest_setting(records[0], codec, bpp)
        rows[f"{codec}, {rate:.2g} bpp"] = file_codec(x, codec, int(quality)).x_rec
    ours = [r for r in records if r.params["seed"] == run.spec.seed and points(r, "latent", "bpp")]
    for record in sorted(ours, key=lambda r: (r.params["reg"], r.params["f"])):
        f, reg = record.params["f"], record.params["reg"]
        step, rate = nearest_setting(record, "latent", bpp)
        spec = run.spec if (f, reg) == (run.spec.f, run.spec.reg) else study_spec(
            f, reg, run.spec.data.name, run.spec.tier, run.spec.seed, run.spec.data.size,
            perceptual=run.spec.first_stage.perceptual)
        if bpp / 2 <= rate <= 2 * bpp and has_first_stage(spec, run.pictures):
            model = train_first_stage(spec, run.pictures, run.device).model
            rows[f"{spec.first_stage.name}, {rate:.2g} bpp"] = rounded(model, x, record, step)
    return rows


def rounded(first_stage: FirstStage, x: Tensor, record: Record, step: int | float) -> Tensor:
    """x_rec from latents rounded as `record` measured it at `step`; VQ needs no rounding."""
    z = latents_of(first_stage, x)
    if step:
        unit = step * torch.tensor(record.metrics["posterior_step"]["value"])[:, None, None]
        z = (z / unit).round() * unit
    return first_stage.decode(z.to(next(first_stage.parameters()).device)).clamp(-1, 1).cpu()


@torch.inference_mode()
def completions(run: Run, x: Float[Tensor, "n 3 H W"], y: Int[Tensor, " n"], t: int, seed: int = 0) -> Tensor:
    """What the diffusion model makes of a picture's z_t alone: sampled from step `t` down, DDIM with eta = 1.

    z_t keeps what is above the noise; the sampler invents the rest, another with each seed.
    """
    model, schedule = run.diffusion.model, run.diffusion.model.schedule
    eps_model, generator = model.eps_model(y.to(model.device)), torch.Generator(model.device).manual_seed(seed)
    z0 = model.stats.scale(latents_of(model.first_stage, x)).to(model.device)
    at = lambda s: torch.full((len(x),), s, device=model.device)  # noqa: E731
    z = schedule.q_sample(z0, at(t), torch.randn(z0.shape, generator=generator, device=model.device))
    visited = [t, *(s for s in ddim_timesteps(run.spec.evaluation.num_steps, schedule.T) if s < t)]
    for s, (ab_t, ab_s) in zip(visited, ddim_alpha_bars(schedule, visited), strict=True):
        z = ddim_step(z, eps_model(z, at(s)), ab_t, ab_s, 1.0, generator)
    return model.decode(z).cpu()


def record_step(metrics: dict[str, dict]) -> int | float:
    """The step at which a first stage is shown by one point: KL at its `free_step`; 0, none, for VQ."""
    return metrics.get("free_step", {"value": 0})["value"]


def free_step(record: Record) -> int | float:
    """The coarsest step of the KL latents whose PSNR is within FREE_DB of the finest one's."""
    measured = sorted(record.curves["latent_psnr"])
    return max(step for step, psnr in measured if psnr >= measured[0][1] - FREE_DB)


def points(record: Record, coder: str, what: str, rate: str = "bpp") -> list[list[float]]:
    """[bits a pixel, value] of one coder of a record, in order of the rate."""
    rates, values = (as_function(record, f"{coder}_{name}") for name in (rate, what))
    return sorted([rates[setting], values[setting]] for setting in rates if setting in values)


def as_function(record: Record, curve: str) -> dict[float | int, float]:
    """The points of a record's curve as {x: value}; empty where the record has no such curve."""
    return {x: value for x, value in record.curves.get(curve, ())}


def working_point(record: Record) -> dict[str, float]:
    """bpp and distortions of the first stage at its true bits: VQ as it is, KL at `free_step`; none at f = 1."""
    if "latent_bpp" not in record.curves:
        return {}
    setting = record_step(record.metrics)
    return {what: as_function(record, f"latent_{what}")[setting]
            for what in ("bpp", "bpp_se", "psnr", "perceptual", "rfd_lab") if f"latent_{what}" in record.curves}
