"""The quantities that claims are about, each read from the metrics and curves of one notebook's records.

A `Measure` is one quantity under several views: by score, and by sampler. KD-EffNet is a kernel distance: it can be 0
or negative, so that quantities are the distance itself, never its logarithm; factors are weights of a difference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import erf, log, log2, sqrt
from typing import Any

import numpy as np
from scipy import stats

from ldmlab.claims.estimates import LEVEL
from ldmlab.claims.evidence import SCORE, Clock, ClockName, Quantity, Read, at, costs, is_number
from ldmlab.study.config.presets import study_spec
from ldmlab.study.records.compare import throughput
from ldmlab.study.records.record import Record

IMPERCEPTIBLE_RMSE = 4.5  # of 255 levels, 35 dB: hardly visible
KD, FID, JUDGED, LPIPS, PSNR = "KD-EffNet", "FID", "judged accuracy", "LPIPS (AlexNet)", "PSNR"
ETA_0, ETA_1 = "eta = 0", "eta = 1"
SAMPLERS = {ETA_0: "", ETA_1: "_eta1"}  # suffixes of metrics and curves
View = tuple[str, str]  # score and sampler; "" for quantities that have none


@dataclass(frozen=True)
class Measure:
    """One quantity by score and sampler. Those `needed` decide together; others must agree where records have them."""

    name: str
    views: Mapping[View, Quantity]
    needed: tuple[View, ...]
    plain: tuple[str, ...] = ()  # scores that mean nothing in weighted differences or against a threshold other than 0

    @property
    def notebook(self) -> str:
        """The notebook of its records."""
        return next(iter(self.views.values())).notebook


# --- Reading records -------------------------------------------------------------------------------------------------


def log_of(value: object) -> float | int | None:
    """The natural logarithm of a positive number, None for other values."""
    return log(value) if is_number(value) and value > 0 else None


def metric(record: Record, name: str) -> float | int | None:
    """The value of a metric, the first one of a list; None if it is absent or no finite number."""
    value = record.metrics.get(name, {}).get("value")
    value = value[0] if isinstance(value, list) and value else value
    return value if is_number(value) else None


def metric_error(record: Record, name: str) -> float | int | None:
    """The standard error of a metric, from its interval or as stated; None if it has neither."""
    entry = record.metrics.get(name, {})
    interval = entry.get("interval")
    if interval:
        named = isinstance(interval, Mapping)
        low, high = (interval["low"], interval["high"]) if named else interval
        return _error(low, high, interval.get("level", LEVEL) if named else LEVEL)
    stated = entry.get("std_error")
    stated = stated[0] if isinstance(stated, list) and stated else stated
    return stated if is_number(stated) else None


def _error(low: float | int, high: float | int, level: float = LEVEL) -> float:
    return (high - low) / (2 * float(stats.norm.ppf((1 + level) / 2)))


def curve_error(record: Record, curve: str, x: float | int) -> float | int | None:
    """The standard error of a curve at x, from its ends `<curve>_low` and `<curve>_high`; None without them."""
    low, high = at(record, f"{curve}_low", x), at(record, f"{curve}_high", x)
    return None if low is None or high is None else _error(low, high)


def _sum(terms: Sequence[tuple[float | int, float | int | None]], squared: bool = False) -> float | int | None:
    """The weighted sum of numbers, or the root of that of their squares; None if one is missing."""
    if any(value is None for _, value in terms):
        return None
    return sqrt(sum((w * v) ** 2 for w, v in terms if v is not None)) if squared else sum(
        w * v for w, v in terms if v is not None)


def _metrics(*terms: tuple[float | int, str]) -> tuple[Read, Read]:
    """(read, error) of a weighted sum of a record's metrics, their errors taken as independent."""
    return (lambda record, _: _sum([(w, metric(record, name)) for w, name in terms]),
            lambda record, _: _sum([(w, metric_error(record, name)) for w, name in terms], squared=True))


def _points(curve: str, *terms: tuple[float | int, float | int]) -> tuple[Read, Read]:
    """(read, error) of a weighted sum of a curve's values at several x."""
    return (lambda record, _: _sum([(w, at(record, curve, x)) for w, x in terms]),
            lambda record, _: _sum([(w, curve_error(record, curve, x)) for w, x in terms], squared=True))


def _log_metrics(*terms: tuple[float | int, str]) -> tuple[Read, Read]:
    """(read, error) of a weighted sum of logarithms of positive metrics."""
    def error(record: Record, name: str) -> float | int | None:
        value, found = metric(record, name), metric_error(record, name)
        return found / value if found is not None and value else None
    return (lambda record, _: _sum([(w, log_of(metric(record, name))) for w, name in terms]),
            lambda record, _: _sum([(w, error(record, name)) for w, name in terms], squared=True))


def _at_clock(curve: str, end: str) -> tuple[Read, Read]:
    """(read, error) of a distance at a clock, interpolated between milestones over the logarithm of cost.

    At the end of training of all models it is the metric `end`, whose sampler takes more steps than milestones do.
    """
    def read(record: Record, clock: Clock | None) -> float | int | None:
        if clock is None:
            return None
        if clock.at_end and end in record.metrics:
            return metric(record, end)
        cost = costs(record, clock.name)
        points = sorted((cost[int(step)], value) for step, value in record.curves.get(curve, ()) if int(step) in cost)
        if not points or not points[0][0] <= clock.value <= points[-1][0] * (1 + 1e-9):
            return None
        x, y = np.array(points).T
        return float(np.interp(log(clock.value), np.log(x), y))

    def error(record: Record, clock: Clock | None) -> float | int | None:
        if clock and clock.at_end and end in record.metrics:
            return metric_error(record, end)
        return curve_error(record, curve, clock.value) if clock and clock.name == "steps" else None
    return read, error


def late_change(share: float) -> Read:
    """A reader of the distance at the end minus (1 - `share`) times that at half of the steps, at eta = 0.

    Where half of the steps is no milestone, it is interpolated over the logarithm of steps between its neighbours.
    """
    def read(record: Record, _: Clock | None) -> float | int | None:
        points = sorted(map(tuple, record.curves.get(SCORE, ())))
        if len(points) < 2 or points[0][0] > points[-1][0] / 2:
            return None
        steps, values = np.array(points, float).T
        return float(values[-1] - (1 - share) * np.interp(log(steps[-1] / 2), np.log(steps), values))
    return read


def _steps_per_second(record: Record, _: Clock | None) -> float | int | None:
    points = record.curves.get("train_s", ())
    return log(points[-1][0] / points[-1][1]) if points else None


def coding_floor(beta_1: float) -> float:
    """Bits per colour value that a perfect reconstruction costs: a Gaussian of variance beta_1 at a level's middle.

    For levels 1 to 254 of pictures in [-1, 1]; at 0 and 255, whose bins are half-lines, it is below.

    >>> round(coding_floor(0.0015), 2)
    3.63
    """
    return -log2(erf(1 / 255 / sqrt(2 * beta_1)))


def _imperceptible_bits(record: Record, _: Clock | None) -> float | int | None:
    """Share of the bits above `coding_floor` that are sent after the RMSE is below IMPERCEPTIBLE_RMSE."""
    rate, rmse = ({t: value for t, value in record.curves.get(f"progressive_{name}", ())} for name in ("bpp", "rmse"))
    points = sorted((rate[t], rmse[t]) for t in rate if t in rmse)
    per_dim, p = metric(record, "bits_per_dim"), record.params
    if not points or not per_dim or not points[-1][1] <= IMPERCEPTIBLE_RMSE < points[0][1]:
        return None
    spec = study_spec(p["f"], p["reg"], p["data"], p["tier"], p["seed"], p["size"]).diffusion
    bits, error = np.array(points).T
    seen = float(np.interp(-IMPERCEPTIBLE_RMSE, -np.minimum.accumulate(error), bits)) / 3
    floor = coding_floor(spec.beta[0])
    return (per_dim - floor - seen) / (per_dim - floor) if per_dim > floor else None


# --- Measures ---------------------------------------------------------------------------------------------------------


def _one(name: str, notebook: str, key: str, needs: str, read: Read, error: Read | None = None, **more: Any) -> Measure:
    """A measure without scores and samplers."""
    more = {"error": error} | more if error else more
    return Measure(name, {("", ""): Quantity(name, notebook, key, f"{needs} of {notebook}", read, **more)}, (("", ""),))


def _distance(name: str, notebook: str, key: str, kind: str, reads: Callable[[str], tuple[Read, Read]],
              samplers: Sequence[str] = (ETA_0, ETA_1), needs: str = "", **more: Any) -> Measure:
    """A measure by KD-EffNet under each sampler; `reads` takes the sampler's suffix, `kind` is metric or curve."""
    views = {}
    for sampler in samplers:
        suffix = SAMPLERS[sampler]
        read, error = reads(suffix)
        said = needs or f"{kind} {key}{suffix}"
        views[KD, sampler] = Quantity(f"{name}, {sampler}", notebook, f"{key}{suffix}", f"{said} of {notebook}", read,
                                      error, **({"spread": 0.1, "floor": 50.0} | more))
    return Measure(name, views, tuple(views))


def _beside(measure: Measure, *others: tuple[str, str, float | int, dict[str, Any]]) -> Measure:
    """A measure with further scores of the same notebook, each under both samplers; `sign` -1 where more is better."""
    views = dict(measure.views)
    for score, key, sign, more in others:
        for sampler, suffix in SAMPLERS.items():
            read, error = _metrics((sign, f"{key}{suffix}"))
            views[score, sampler] = Quantity(f"{score} after training, {sampler}", measure.notebook, f"{key}{suffix}",
                                             f"metric {key}{suffix} of {measure.notebook}", read, error, **more)
    return replace(measure, views=views, plain=(JUDGED,))


STUDY, RESCALED, SAMPLING = "04_tradeoff", "06_snr_rescaling", "07_sampling"
KD_END = _beside(
    _distance(f"{KD} after training", STUDY, SCORE, "metric", lambda suffix: _metrics((1, SCORE + suffix))),
    (FID, "fid", 1, {"floor": 5.0}), (JUDGED, "judged_accuracy", -1, {"spread": 0.03}))


def at_equal(clock: ClockName) -> Measure:
    """KD-EffNet at equal steps, seconds (with the first stage's), or FLOPs of training."""
    return _distance(f"{KD} after equal {clock}", STUDY, SCORE, "curve",
                     lambda suffix: _at_clock(SCORE + suffix, SCORE + suffix), clock=clock, timed=clock == "seconds")


EQUAL_STEPS, EQUAL_SECONDS, EQUAL_FLOPS = at_equal("steps"), at_equal("seconds"), at_equal("FLOPs")
STAGNATES = 0.05
LATE = _one(f"{KD} at the end, minus 95 % of that at half of the steps", STUDY, SCORE,
            f"curve {SCORE} up to and from half of the steps", late_change(STAGNATES), spread=0.05, floor=50.0)
LATE = Measure(LATE.name, {(KD, ETA_0): LATE.views["", ""]}, ((KD, ETA_0),))
FID_END = Measure("FID after training", {view: q for view, q in KD_END.views.items() if view[0] == FID},
                  ((FID, ETA_0), (FID, ETA_1)))
TO_RECONSTRUCTIONS = _distance("distance to reconstructions", STUDY, f"{SCORE}_to_reconstructions", "metric",
                               lambda suffix: _metrics((1, f"{SCORE}_to_reconstructions{suffix}")))
LOST = 0.1
# Above 0 where less than a tenth of the distance remains once pictures are compared with reconstructions.
FIRST_STAGE_SHARE = _distance(
    "a tenth of the distance to pictures, minus that to reconstructions", STUDY, f"{SCORE}_to_reconstructions",
    "metric", lambda suffix: _metrics((LOST, SCORE + suffix), (-1, f"{SCORE}_to_reconstructions{suffix}")))


def _of_pixels(cell: tuple[int, str]) -> bool:
    """Pixels have no first stage, whose quantities therefore cannot differ between seeds."""
    return cell[0] == 1


def _reconstruction(name: str, key: str, sign: float | int, **more: Any) -> Quantity:
    read, error = _metrics((sign, key))
    return Quantity(name, STUDY, key, f"metric {key} of {STUDY}", read, error, shared=True, exact=_of_pixels, **more)


# The loss of quality, so that more is worse by both.
BLUR = Measure("loss of reconstructions", {
    (PSNR, ""): _reconstruction("PSNR of reconstructions, negative", "psnr", -1, unit="dB", spread=0.3),
    (LPIPS, ""): _reconstruction("LPIPS (AlexNet) of reconstructions", "lpips_alex", 1, spread=0.01),
}, ((PSNR, ""),))
RKD = Measure("rKD-EffNet", {(KD, ""): _reconstruction("rKD-EffNet", f"r{SCORE}", 1, floor=20.0)}, ((KD, ""),))
LATENT_STD = _one("standard deviation of the latents", STUDY, "latent_std", "metric latent_std",
                  *_log_metrics((1, "latent_std")), ratio=True, exact=_of_pixels)
FLOPS = _one("FLOPs per denoiser call", STUDY, "flops", "metric flops", *_log_metrics((1, "flops")), ratio=True,
             exact=lambda cell: True)
RATE = _one("sampled pictures per second", STUDY, "images_per_s", "curve images_per_s",
            lambda record, _: log_of(throughput(record)), ratio=True, timed=True, spread=0.05)
TRAIN_RATE = _one("training steps per second", STUDY, "train_s", "curve train_s", _steps_per_second, ratio=True,
                  timed=True, spread=0.05)
# One for each way of conditioning: scenes by class, twice, by text and by layout.
GUIDED = tuple(_distance(
    f"{KD} without guidance minus that at scale 1.5", notebook, f"{SCORE}_by_guidance", "curve",
    lambda suffix: _points(f"{SCORE}_by_guidance{suffix}", (1, 1.0), (-1, 1.5)), (ETA_0,), spread=10.0, floor=0.0)
    for notebook in ("03_diffusion", "08_class_conditional", "09_text_to_image", "10_layout_to_image"))
BITS = _one("share of imperceptible bits, above what a perfect reconstruction costs", "05_rate_distortion", "psnr",
            "curves progressive_bpp and progressive_rmse and metric bits_per_dim", _imperceptible_bits, spread=0.05)


def _twice(name: str, *terms: tuple[float | int, str]) -> Measure:
    """A weighted sum of distances of 06_snr_rescaling, by size and latent space, under both samplers."""
    keys = ", ".join(f"{SCORE}_{key}" for _, key in terms)
    return _distance(name, RESCALED, f"{SCORE}_{terms[0][1]}", "metric",
                     lambda suffix: _metrics(*((w, f"{SCORE}_{key}{suffix}") for w, key in terms)),
                     needs=f"metrics {keys} (and with _eta1)", spread=50.0, floor=0.0)


GAIN, AS_GOOD = 1.1, 1.25
GAIN_2X = _twice("distance at twice the size, KL not rescaled minus 1.1 times rescaled",
                 (1, "2x_kl_none"), (-GAIN, "2x_kl_rescaled"))
GAIN_BEYOND = _twice("decrease of distance by rescaling at twice the size, minus that at the training size",
                     (1, "2x_kl_none"), (-1, "2x_kl_rescaled"), (-1, "1x_kl_none"), (1, "1x_kl_rescaled"))
VQ_2X = _twice("distance at twice the size, 1.25 times that of rescaled VQ minus VQ as it comes",
               (AS_GOOD, "2x_vq_rescaled"), (-1, "2x_vq_none"))
LAYOUT = _one("ratio of t at which the layout is determined, KL not rescaled to rescaled", RESCALED,
              "layout_t_kl_none", "metrics layout_t_kl_none and layout_t_kl_rescaled",
              *_log_metrics((1, "layout_t_kl_none"), (-1, "layout_t_kl_rescaled")), ratio=True, spread=0.05)
ALMOST = 1.1
FEW_STEPS = _distance("1.1 times the distance with 200 DDIM steps minus that with 50", SAMPLING, f"{SCORE}_by_steps",
                      "curve", lambda suffix: _points(f"{SCORE}_by_steps{suffix}", (ALMOST, 200), (-1, 50)),
                      (ETA_0,), spread=10.0, floor=0.0)


def by_steps(steps: int) -> Measure:
    """KD-EffNet of 07_sampling at one number of DDIM steps."""
    return _distance(f"{KD} at {steps} DDIM steps", SAMPLING, f"{SCORE}_by_steps", "curve",
                     lambda suffix: _points(f"{SCORE}_by_steps{suffix}", (1, steps)))


def rate_by_steps(steps: int) -> Measure:
    """Pictures per second of 07_sampling at one number of DDIM steps."""
    return _one(f"pictures per second at {steps} DDIM steps", SAMPLING, "images_per_s", "curve images_per_s",
                lambda record, _: log_of(at(record, "images_per_s", steps)), ratio=True, timed=True, spread=0.05)
