"""What the claims are judged by: each quantity, and the names that the notebooks' records have for it.

A notebook that records one of these under its name counts as evidence; without it, a claim says what it misses.
"""

from collections.abc import Callable, Mapping, Sequence
from math import log, sqrt

import numpy as np
from scipy import stats

from ldmlab.claims.evidence import LEVEL, Evidence, Quantity, is_number
from ldmlab.study.records.compare import throughput
from ldmlab.study.records.record import Record

UNSEEN = 4.5  # root mean square error, of 255 levels, that hardly anyone sees: 35 dB


# --- Reading records -------------------------------------------------------------------------------------------------


def log_of(value: object) -> float | None:
    """Natural logarithm; None of what has none."""
    return log(value) if is_number(value) and value > 0 else None


def metric(record: Record, name: str) -> float | int | None:
    """A metric's number, the first of several."""
    value = record.metrics.get(name, {}).get("value")
    value = value[0] if isinstance(value, list) and value else value
    return value if is_number(value) else None


def log_error(name: str) -> Callable[[Record], float | None]:
    """Reader of the standard error of a metric's logarithm, from its interval or standard error."""

    def read(record: Record) -> float | None:
        entry, value = record.metrics.get(name, {}), metric(record, name)
        if (bounds := _bounds(entry)) and bounds[0] > 0:
            return log(bounds[1] / bounds[0]) / (2 * stats.norm.ppf((1 + _level(entry)) / 2))
        std_error = entry.get("std_error")
        std_error = std_error[0] if isinstance(std_error, list) and std_error else std_error
        return std_error / value if is_number(std_error) and value else None

    return read


def plain_error(name: str) -> Callable[[Record], float | None]:
    """Reader of the standard error of a metric, from its interval."""

    def read(record: Record) -> float | None:
        entry = record.metrics.get(name, {})
        bounds = _bounds(entry)
        return (bounds[1] - bounds[0]) / (2 * stats.norm.ppf((1 + _level(entry)) / 2)) if bounds else None

    return read


def _bounds(entry: Mapping) -> Sequence[float] | None:
    """A metric's interval, written as a pair or with names."""
    interval = entry.get("interval")
    return (interval["low"], interval["high"]) if isinstance(interval, Mapping) else interval


def _level(entry: Mapping) -> float:
    interval = entry.get("interval")
    return interval.get("level", LEVEL) if isinstance(interval, Mapping) else LEVEL


def at(record: Record, curve: str, x: float | int | None) -> float | int | None:
    """A curve's value at exactly x."""
    return dict(map(tuple, record.curves.get(curve, ()))).get(x)


def _late_gain(record: Record, _: Evidence) -> float | None:
    points = sorted(map(tuple, record.curves.get("fd_lab", ())))
    half = [value for step, value in points[:-1] if step <= points[-1][0] / 2]
    return log(half[-1] / points[-1][1]) if half else None


def _at_equal_seconds(record: Record, evidence: Evidence) -> float | None:
    """ln FD-lab when `shared_seconds` of training had passed, on the line between the milestones around it."""
    milestones = sorted(map(tuple, record.curves.get("fd_lab", ())))
    timed = [(seconds, value) for step, value in milestones if (seconds := at(record, "train_s", step))]
    end = evidence.shared_seconds
    if not timed or not end or end < timed[0][0]:
        return None
    seconds, values = np.log(timed).T
    return float(np.interp(log(end), seconds, values))


def _steps_a_second(record: Record, _: Evidence) -> float | None:
    points = record.curves.get("train_s", ())
    return log(points[-1][0] / points[-1][1]) if points else None


def _imperceptible_bits(record: Record, _: Evidence) -> float | None:
    """Share of the bits of a lossless code that come after the picture is within UNSEEN levels of 255."""
    rate, rmse = (dict(map(tuple, record.curves.get(f"progressive_{name}", ()))) for name in ("bpp", "rmse"))
    points = sorted((rate[t], rmse[t]) for t in rate if t in rmse)
    per_dim = metric(record, "bits_per_dim")
    if not points or not per_dim or not points[-1][1] <= UNSEEN < points[0][1]:
        return None
    bits, error = np.array(points).T
    return 1 - float(np.interp(-UNSEEN, -np.minimum.accumulate(error), bits)) / (3 * per_dim)


def _ratio(first: str, second: str):
    """ln of one metric of a record over another."""
    def read(record: Record, _: Evidence) -> float | None:
        a, b = log_of(metric(record, first)), log_of(metric(record, second))
        return None if a is None or b is None else a - b
    return read


def _ratio_error(first: str, second: str):
    def read(record: Record) -> float | None:
        errors = log_error(first)(record), log_error(second)(record)
        return None if None in errors else sqrt(sum(error**2 for error in errors))
    return read


def _along(curve: str, first: float | int, second: float | int):
    """ln of a curve's value at one x over that at another."""
    def read(record: Record, _: Evidence) -> float | None:
        a, b = log_of(at(record, curve, first)), log_of(at(record, curve, second))
        return None if a is None or b is None else a - b
    return read


def _log_metric(name: str, notebook: str, key: str, **more) -> Quantity:
    return Quantity(name, notebook, key, f"metric {key} of {notebook}", lambda record, _: log_of(metric(record, key)),
                    log_error(key), **more)


# --- Quantities -------------------------------------------------------------------------------------------------------

FD_END = _log_metric("FD-lab after training", "04_tradeoff", "fd_lab")
FD_EQUAL_STEPS = Quantity(
    "FD-lab after equal steps", "04_tradeoff", "fd_lab", "curve fd_lab of 04_tradeoff with a step that all runs share",
    lambda record, evidence: log_of(at(record, "fd_lab", evidence.shared_step)))
FD_EQUAL_SECONDS = Quantity(
    "FD-lab after equal seconds", "04_tradeoff", "fd_lab", "curves fd_lab and train_s of 04_tradeoff",
    _at_equal_seconds, timed=True)
LATE_GAIN = Quantity("FD-lab gained in the second half of training", "04_tradeoff", "fd_lab",
                     "curve fd_lab of 04_tradeoff, scored up to and after half of the steps", _late_gain, spread=0.05)
FID = Quantity("FID after training", "04_tradeoff", "fid", "metric fid of 04_tradeoff, on Inception features",
               lambda record, _: metric(record, "fid"), plain_error("fid"), ratio=False, spread=2.0)
PSNR = Quantity("PSNR of reconstructions", "04_tradeoff", "psnr", "metric psnr of 04_tradeoff",
                lambda record, _: metric(record, "psnr"), plain_error("psnr"), ratio=False, unit="dB", spread=0.3)
RFD = _log_metric("rFD-lab", "04_tradeoff", "rfd_lab")
LATENT_STD = _log_metric("standard deviation of the latents", "04_tradeoff", "latent_std")
FLOPS = _log_metric("FLOPs a denoiser call", "04_tradeoff", "flops", spread=0.0)
RATE = Quantity("sampled pictures a second", "04_tradeoff", "fd_lab", "curve images_per_s of 04_tradeoff",
                lambda record, _: log_of(throughput(record)), timed=True, spread=0.05)
TRAIN_RATE = Quantity("training steps a second", "04_tradeoff", "fd_lab", "curve train_s of 04_tradeoff",
                      _steps_a_second, timed=True, spread=0.05)
GUIDED = Quantity("FD-lab without over with guidance 1.5", "03_diffusion", "fd_lab_by_guidance",
                  "curve fd_lab_by_guidance of 03_diffusion at 1 and 1.5", _along("fd_lab_by_guidance", 1.0, 1.5),
                  spread=0.02)
BITS = Quantity("imperceptible share of the bits", "05_rate_distortion", "psnr",
                "curves progressive_bpp and progressive_rmse and metric bits_per_dim of 05_rate_distortion",
                _imperceptible_bits,
                ratio=False, spread=0.05)
RESCALED = "06_snr_rescaling"
GAIN_2X = Quantity("FD-lab at twice the size, KL as it comes over rescaled", RESCALED, "fd_lab_2x_kl_rescaled",
                   "metrics fd_lab_2x_kl_none and fd_lab_2x_kl_rescaled of 06_snr_rescaling",
                   _ratio("fd_lab_2x_kl_none", "fd_lab_2x_kl_rescaled"),
                   _ratio_error("fd_lab_2x_kl_none", "fd_lab_2x_kl_rescaled"))
GAIN_BEYOND = Quantity("FD-lab that rescaling takes away beyond what it does at the training size", RESCALED,
                       "rescaling_gain_beyond_1x", "metric rescaling_gain_beyond_1x of 06_snr_rescaling",
                       lambda record, _: metric(record, "rescaling_gain_beyond_1x"),
                       plain_error("rescaling_gain_beyond_1x"), ratio=False, spread=5.0)
VQ_2X = Quantity("FD-lab at twice the size, rescaled KL over VQ as it comes", RESCALED, "fd_lab_2x_vq_none",
                 "metrics fd_lab_2x_kl_rescaled and fd_lab_2x_vq_none of 06_snr_rescaling",
                 _ratio("fd_lab_2x_kl_rescaled", "fd_lab_2x_vq_none"),
                 _ratio_error("fd_lab_2x_kl_rescaled", "fd_lab_2x_vq_none"))
LAYOUT = Quantity("t at which layout settles, KL as it comes over rescaled", RESCALED, "layout_t_kl_none",
                  "metrics layout_t_kl_none and layout_t_kl_rescaled of 06_snr_rescaling",
                  _ratio("layout_t_kl_none", "layout_t_kl_rescaled"),
                  _ratio_error("layout_t_kl_none", "layout_t_kl_rescaled"), spread=0.05)
SAMPLING = "07_sampling"
FEW_STEPS = Quantity("FD-lab at 200 over 50 DDIM steps", SAMPLING, "fd_lab", "curve fd_lab_by_steps of 07_sampling",
                     _along("fd_lab_by_steps", 200, 50), spread=0.02)


def by_steps(curve: str, name: str, steps: int, **more) -> Quantity:
    """A quantity of 07_sampling at one number of steps."""
    return Quantity(f"{name} at {steps} DDIM steps", SAMPLING, "fd_lab", f"curve {curve} of 07_sampling",
                    lambda record, _: log_of(at(record, curve, steps)), **more)
