"""Sampling beyond the training size with and without rescaled latents, in numbers [LDM v2, App. D.1, Fig. 15].

Four models that differ in their latent alone: KL and VQ as they come, and divided by their standard deviation. Scores
are `kd_effnet_<view>_<model>` for samples with eta = 0, and with `_eta1` for eta = 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldmlab.data.images import quantize_8bit, to_float
from ldmlab.evaluation.distances import FeatureMoments, Interval
from ldmlab.evaluation.metrics import SCORE_NETWORK
from ldmlab.evaluation.uncertainty import kernel_contrast
from ldmlab.experiments.latent_scale import BANDS, cosines, settled
from ldmlab.study.records.compare import comparison_key
from ldmlab.study.records.record import Record, as_metrics, load_records
from ldmlab.study.runs.conditioners import sample_labels
from ldmlab.study.runs.pictures import open_set
from ldmlab.study.runs.run import Run
from ldmlab.study.runs.run_scoring import ETAS
from ldmlab.study.training.progress import progress

KD = "kd_effnet"
FACTOR = 2  # samples are this many times the training size
VARIANTS = {"kl_none": ("kl", "none"), "kl_rescaled": ("kl", "first_batch"), "vq_none": ("vq", "none"),
            "vq_rescaled": ("vq", "first_batch")}
TITLES = {"kl_none": "KL, as it comes", "kl_rescaled": "KL, rescaled", "vq_none": "VQ, as it comes",
          "vq_rescaled": "VQ, rescaled"}
RESAMPLES = 100  # of the bootstrap of spectra and of steps t


def variants(run: Run) -> dict[str, Run]:
    """The runs of `VARIANTS` on the same pictures, the rescaled KL being `run` itself; ValueError at f = 1."""
    if run.spec.f == 1:
        raise ValueError("f = 1 has no first stage whose latent could be rescaled; accepted is one of 2 4 8 16 32")
    params = {**run.params, "data": run.spec.data.name}
    made = {}
    for key, (reg, mode) in VARIANTS.items():
        if (reg, mode) == (run.spec.reg, run.spec.diffusion.scale_mode):
            made[key] = run
            continue
        made[key] = Run(run.notebook, {**params, "reg": reg, "scale_mode": mode}, device=str(run.device), quiet=True)
        made[key].pictures = run.pictures
    return made


def train_all(runs: Mapping[str, Run]) -> dict[str, str]:
    """Train or load every first stage and diffusion model; the name of each model's folder."""
    return {key: run.diffusion.path.parent.name for key, run in runs.items()}


def sample_at(
    run: Run, y: Int[Tensor, " n"], factor: int = FACTOR, label: str = "samples", eta: float | int = 0.0
) -> Float[Tensor, "n 3 H W"]:
    """Samples at `factor` times the training size, by the same networks on larger latents [LDM v2, Sec. 4.3.2].

    Noise depends on the run's seed and the latent's shape alone, so models with equal channels start from the same.
    """
    plan, model = run.spec.evaluation, replace(run.diffusion.model, size=factor * run.spec.data.size)
    with progress(len(y), label, unit="pictures") as bar:
        return model.sample(y, num_steps=plan.final_steps, eta=eta, seed=run.spec.seed,
                            batch_size=max(1, plan.batch_size // factor**2),
                            progress=lambda done: bar.update(done - bar.n))


def real_at(run: Run, num: int = 0) -> Float[Tensor, "n 3 H W"]:
    """Validation pictures of `FACTOR` times the training size; `num` = 0 takes as many as are sampled."""
    data, num = run.spec.data, num or run.spec.num_scored
    large = open_set(data, "validation", num, size=FACTOR * data.size)
    return to_float(large.images(range(len(large))))


def windows(x: Float[Tensor, "n 3 H W"], size: int, seed: int = 0) -> Float[Tensor, "n 3 h w"]:
    """One square of `size` out of each picture, at a place of its own."""
    if min(x.shape[2:]) < size:
        raise ValueError(f"a window of {size} px does not fit into pictures of {x.shape[2]} x {x.shape[3]}")
    rng = np.random.default_rng(seed)
    tops, lefts = (rng.integers(0, side - size + 1, len(x)) for side in x.shape[2:])
    return torch.stack([picture[:, i:i + size, j:j + size] for picture, i, j in zip(x, tops, lefts, strict=True)])


def reduced(x: Float[Tensor, "n 3 H W"], size: int) -> Float[Tensor, "n 3 h w"]:
    """Whole pictures at a smaller size: bicubic, antialiased, clamped."""
    return torch.nn.functional.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def spectrum(x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n k"]:
    """Power of each picture's brightness at |k| = 1, 2, ... s - 1 half waves a side, in rings of width 1."""
    power, k = cosines(x.mean(1, keepdim=True))
    ring = k.astype(int).ravel()
    power = np.square(power).reshape(len(x), -1)
    return torch.from_numpy(np.stack([power[:, ring == i].sum(1) for i in range(1, x.shape[-1])], 1))


def record_rescaling(runs: Mapping[str, Run]) -> Record:
    """All numbers of the comparison, with intervals over samples; loaded if measured before on the same models."""
    run = runs["kl_rescaled"]
    record, size = run.new_record(), run.spec.data.size
    record.inputs |= {f"denoiser_{key}": each.diffusion.hash for key, each in runs.items()}
    record.inputs |= {"first_stage_vq": runs["vq_none"].first_stage.hash} | run.scorer.inputs(KD)
    if (known := run.measured_before(record)) is not None:
        return known
    record.protocol |= run.scorer.protocol | {
        "num_steps": run.spec.evaluation.final_steps, "large_size": FACTOR * size,
        "windows": f"one of {size} px a picture", "whole": f"bicubic to {size} px"}

    y = sample_labels(run.pictures.train.num_classes, run.spec.num_scored)
    real = real_at(run)
    found = _score_views(record, run, "real", {"2x": windows(real, size), "2x_whole": reduced(real, size)})
    power = {"real": spectrum(real)}
    for key, each in runs.items():
        for eta, suffix in ETAS:
            at = f"{TITLES[key]}, eta {eta:g}"
            large = quantize_8bit(sample_at(each, y, label=f"{at}, {FACTOR * size} px", eta=eta))
            small = quantize_8bit(sample_at(each, y, 1, label=f"{at}, {size} px", eta=eta))
            views = {"1x": small, "2x": windows(large, size), "2x_whole": reduced(large, size)}
            found |= _score_views(record, run, key, views, suffix)
            if eta == 0:
                power[key] = spectrum(large)
        _add_latent(record, key, each)
    for _, suffix in ETAS:
        _add_gains(record, found, run.scorer.reference(SCORE_NETWORK), suffix)
    _add_spectra(record, power, FACTOR * size)
    _add_prediction(record, runs)
    return record


def _score_views(
    record: Record, run: Run, key: str, views: Mapping[str, Tensor], suffix: str = ""
) -> dict[str, FeatureMoments]:
    """KD-EffNet of each view against the training pictures, with its interval, into the record; features by name."""
    found = {f"{KD}_{view}_{key}{suffix}": run.scorer.moments(x) for view, x in views.items()}
    for name, moments in found.items():
        record.metrics |= as_metrics({name: run.scorer.score(moments, (KD,))[KD]})
    return found


def _add_gains(record: Record, found: Mapping[str, FeatureMoments], real: FeatureMoments, suffix: str) -> None:
    """What rescaling gains at the large size, and what of it is not gained at the training size already.

    Differences of distances to one reference, of samples that share labels and noise, with paired intervals.
    """
    names = [f"{KD}_{view}_{key}{suffix}" for view in ("2x", "1x") for key in ("kl_none", "kl_rescaled")]
    for gain, used, weights in (("rescaling_gain_2x", names[:2], (1, -1)),
                                ("rescaling_gain_beyond_1x", names, (1, -1, -1, 1))):
        value, interval = kernel_contrast(real, [found[name] for name in used], weights, times=1000)
        about = {entry: record.metrics[names[0]][entry] for entry in ("n_fake", "n_real", "extractor", "weights_hash")}
        record.metrics[gain + suffix] = about | {"value": value, "name": "difference of KD-EffNet", "unit": "1",
                                                 "interval": asdict(interval)}


def _between(drawn: Sequence[float] | np.ndarray) -> dict[str, float | str]:
    """The middle 95 % of a bootstrap."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    return asdict(Interval(float(low), float(high), 0.95, f"bootstrap of the pictures, {len(drawn)} resamples"))


def _add_spectra(record: Record, power: Mapping[str, Tensor], side: int) -> None:
    """Power of samples over that of real pictures of their size: by wavelength, and over all waves longer than a
    training picture."""
    real, rng = power["real"].numpy(), np.random.default_rng(0)
    waves = [round(2 * side / k, 3) for k in range(1, real.shape[1] + 1)]
    long = slice(2 * FACTOR - 1)  # |k| = 1 .. 2 FACTOR - 1: longer than side / FACTOR

    def ratio(fake: np.ndarray, real: np.ndarray) -> np.ndarray:
        """By wavelength, and of all long waves as the last entry."""
        a, b = fake.mean(0), real.mean(0)
        return np.append(a / b, a[long].sum() / b[long].sum())

    for key in VARIANTS:
        fake = power[key].numpy()
        drawn = np.array([ratio(*(x[rng.integers(len(x), size=len(x))] for x in (fake, real)))
                          for _ in range(RESAMPLES)])
        low, high = np.quantile(drawn, (0.025, 0.975), 0)
        value = ratio(fake, real)
        for end, values in (("", value), ("_low", low), ("_high", high)):
            record.curves[f"spectrum_2x_{key}{end}"] = [[x, round(float(v), 4)] for x, v in
                                                        zip(waves, values[:-1], strict=True)]
        record.metrics[f"long_wave_power_2x_{key}"] = {
            "value": float(value[-1]), "interval": _between(drawn[:, -1]), "n_fake": len(fake), "n_real": len(real),
            "unit": "of that of real pictures of this size"}


def _add_latent(record: Record, key: str, run: Run) -> None:
    """The scale of a latent, and at which t layout and texture are settled."""
    stats, found, T = run.first_stage.stats, settled(run), run.diffusion.model.schedule.T
    record.metrics[f"latent_std_{key}"] = {"value": stats.std[0], "std_error": stats.std_error[0], "unit": "1",
                                           "n": stats.num_images, "rescaled": stats.mode != "none"}
    rng, n = np.random.default_rng(0), len(found.variance["layout"])
    draws = [rng.integers(n, size=n) for _ in range(RESAMPLES)]
    for band in BANDS:
        interval = _between([found.half(band, T, rows) for rows in draws])
        record.metrics[f"{band}_t_{key}"] = {"value": found.half(band, T), "interval": interval, "unit": "step t",
                                             "n": n}
        record.curves[f"{band}_{key}"] = [[t, round(float(v), 4)] for t, v in
                                          zip(found.t, found.share(band), strict=True)]


def _add_prediction(record: Record, runs: Mapping[str, Run]) -> None:
    """Where the rescaled model's numbers put the t of the other one, if a scale is nothing but a shift in time."""
    schedule = runs["kl_none"].diffusion.model.schedule.to("cpu")
    for band in BANDS:
        level = np.interp(record.value(f"{band}_t_kl_rescaled"), np.arange(schedule.T), schedule.log_snr)
        t = schedule.crossing(record.value("latent_std_kl_none"), float(level))
        record.metrics[f"{band}_t_kl_none_predicted"] = {"value": float(t), "unit": "step t"}


def comparable(record: Record) -> list[Record]:
    """This record, and those of its notebook with the same f whose scores may stand beside it: its seeds."""

    def key(r: Record) -> tuple:
        return (r.params["f"], *(r.protocol.get(name) for name in ("sampler", "num_steps", "noise", "large_size")),
                comparison_key(r, f"{KD}_2x_kl_rescaled"))

    others = [r for r in load_records(record.notebook) if r.file_name != record.file_name and key(r) == key(record)]
    return sorted([record, *others], key=lambda r: r.params["seed"])
