"""The quantities that claims are about, each read from the metrics and curves of one notebook's records."""

from collections.abc import Callable, Mapping, Sequence
from math import log, sqrt
from typing import Any

import numpy as np
from scipy import stats

from ldmlab.claims.evidence import LEVEL, Evidence, Quantity, is_number
from ldmlab.study.records.compare import throughput
from ldmlab.study.records.record import Record

Read = Callable[[Record, Evidence], float | None]
IMPERCEPTIBLE_RMSE = 4.5  # of 255 levels, 35 dB: hardly visible


# --- Reading records -------------------------------------------------------------------------------------------------


def log_of(value: object) -> float | None:
    """The natural logarithm of a positive number, None for other values."""
    return log(value) if is_number(value) and value > 0 else None


def metric(record: Record, name: str) -> float | int | None:
    """The value of a metric, the first one of a list; None if it is absent or no finite number."""
    value = record.metrics.get(name, {}).get("value")
    value = value[0] if isinstance(value, list) and value else value
    return value if is_number(value) else None


def log_error(name: str) -> Callable[[Record], float | None]:
    """A function that reads the standard error of a metric's logarithm from its interval or standard error."""

    def read(record: Record) -> float | None:
        entry, value = record.metrics.get(name, {}), metric(record, name)
        if (bounds := _bounds(entry)) and bounds[0] > 0:
            return log(bounds[1] / bounds[0]) / (2 * stats.norm.ppf((1 + _level(entry)) / 2))
        std_error = entry.get("std_error")
        std_error = std_error[0] if isinstance(std_error, list) and std_error else std_error
        return std_error / value if is_number(std_error) and value else None

    return read


def plain_error(name: str) -> Callable[[Record], float | None]:
    """A function that reads the standard error of a metric from its interval."""

    def read(record: Record) -> float | None:
        entry = record.metrics.get(name, {})
        bounds = _bounds(entry)
        return (bounds[1] - bounds[0]) / (2 * stats.norm.ppf((1 + _level(entry)) / 2)) if bounds else None

    return read


def _bounds(entry: Mapping) -> Sequence[float] | None:
    """The ends of a metric's interval, stored as a pair or with names."""
    interval = entry.get("interval")
    return (interval["low"], interval["high"]) if isinstance(interval, Mapping) else interval


def _level(entry: Mapping) -> float:
    interval = entry.get("interval")
    return interval.get("level", LEVEL) if isinstance(interval, Mapping) else LEVEL


def at(record: Record, curve: str, x: float | int | None) -> float | int | None:
    """The value of a curve at exactly x, None if it has none."""
    return None if x is None else {key: value for key, value in record.curves.get(curve, ())}.get(x)


def _late_gain(record: Record, _: Evidence) -> float | None:
    points = sorted(map(tuple, record.curves.get("fd_lab", ())))
    half = [value for step, value in points[:-1] if step <= points[-1][0] / 2]
    return log(half[-1] / points[-1][1]) if half else None


def _at_equal_seconds(record: Record, evidence: Evidence) -> float | None:
    """ln FD-lab after `shared_seconds` of training, interpolated between milestones over the logarithm of time."""
    milestones = sorted(map(tuple, record.curves.get("fd_lab", ())))
    timed = [(seconds, value) for step, value in milestones if (seconds := at(record, "train_s", step))]
    end = evidence.shared_seconds
    if not timed or not end or end < timed[0][0]:
        return None
    seconds, values = np.log(timed).T
    return float(np.interp(log(end), seconds, values))


def _steps_per_second(record: Record, _: Evidence) -> float | None:
    points = record.curves.get("train_s", ())
    return log(points[-1][0] / points[-1][1]) if points else None


def _imperceptible_bits(record: Record, _: Evidence) -> float | None:
    """Share of the bits of a lossless code that are sent after the RMSE is below IMPERCEPTIBLE_RMSE."""
    rate, rmse = ({t: value for t, value in record.curves.get(f"progressive_{name}", ())} for name in ("bpp", "rmse"))
    points = sorted((rate[t], rmse[t]) for t in rate if t in rmse)
    per_dim = metric(record, "bits_per_dim")
    if not points or not per_dim or not points[-1][1] <= IMPERCEPTIBLE_RMSE < points[0][1]:
        return None
    bits, error = np.array(points).T
    return 1 - float(np.interp(-IMPERCEPTIBLE_RMSE, -np.minimum.accumulate(error), bits)) / (3 * per_dim)


def _ratio(first: str, second: str) -> Read:
    """A function that reads ln of the ratio of two metrics of a record."""
    def read(record: Record, _: Evidence) -> float | None:
        a, b = log_of(metric(record, first)), log_of(metric(record, second))
        return None if a is None or b is None else a - b
    return read


def _ratio_error(first: str, second: str) -> Callable[[Record], float | None]:
    def read(record: Record) -> float | None:
        a, b = log_error(first)(record), log_error(second)(record)
        return None if a is None or b is None else sqrt(a**2 + b**2)
    return read


def _along(curve: str, first: float | int, second: float | int) -> Read:
    """A function that reads ln of the ratio of a curve's values at two x."""
    def read(record: Record, _: Evidence) -> float | None:
        a, b = log_of(at(record, curve, first)), log_of(at(record, curve, second))
        return None if a is None or b is None else a - b
    return read


def _log_metric(name: str, notebook: str, key: str, **more: Any) -> Quantity:
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
FLOPS = _log_metric("FLOPs per denoiser call", "04_tradeoff", "flops", spread=0.0)
RATE = Quantity("sampled pictures per second", "04_tradeoff", "fd_lab", "curve images_per_s of 04_tradeoff",
                lambda record, _: log_of(throughput(record)), timed=True, spread=0.05)
TRAIN_RATE = Quantity("training steps per second", "04_tradeoff", "fd_lab", "curve train_s of 04_tradeoff",
                      _steps_per_second, timed=True, spread=0.05)
GUIDED = Quantity("ratio of FD-lab without guidance to that at scale 1.5", "03_diffusion", "fd_lab_by_guidance",
                  "curve fd_lab_by_guidance of 03_diffusion at 1 and 1.5", _along("fd_lab_by_guidance", 1.0, 1.5),
                  spread=0.02)
BITS = Quantity("share of imperceptible bits", "05_rate_distortion", "psnr",
                "curves progressive_bpp and progressive_rmse and metric bits_per_dim of 05_rate_distortion",
                _imperceptible_bits,
                ratio=False, spread=0.05)
RESCALED = "06_snr_rescaling"
GAIN_2X = Quantity("ratio of FD-lab at twice the size, KL not rescaled to rescaled", RESCALED, "fd_lab_2x_kl_rescaled",
                   "metrics fd_lab_2x_kl_none and fd_lab_2x_kl_rescaled of 06_snr_rescaling",
                   _ratio("fd_lab_2x_kl_none", "fd_lab_2x_kl_rescaled"),
                   _ratio_error("fd_lab_2x_kl_none", "fd_lab_2x_kl_rescaled"))
GAIN_BEYOND = Quantity("decrease of FD-lab by rescaling at twice the size, minus that at the training size", RESCALED,
                       "rescaling_gain_beyond_1x", "metric rescaling_gain_beyond_1x of 06_snr_rescaling",
                       lambda record, _: metric(record, "rescaling_gain_beyond_1x"),
                       plain_error("rescaling_gain_beyond_1x"), ratio=False, spread=5.0)
VQ_2X = Quantity("ratio of FD-lab at twice the size, rescaled KL to VQ", RESCALED, "fd_lab_2x_vq_none",
                 "metrics fd_lab_2x_kl_rescaled and fd_lab_2x_vq_none of 06_snr_rescaling",
                 _ratio("fd_lab_2x_kl_rescaled", "fd_lab_2x_vq_none"),
                 _ratio_error("fd_lab_2x_kl_rescaled", "fd_lab_2x_vq_none"))
LAYOUT = Quantity("ratio of t at which the layout is determined, KL not rescaled to rescaled", RESCALED,
                  "layout_t_kl_none",
                  "metrics layout_t_kl_none and layout_t_kl_rescaled of 06_snr_rescaling",
                  _ratio("layout_t_kl_none", "layout_t_kl_rescaled"),
                  _ratio_error("layout_t_kl_none", "layout_t_kl_rescaled"), spread=0.05)
SAMPLING = "07_sampling"
FEW_STEPS = Quantity("ratio of FD-lab with 200 DDIM steps to that with 50", SAMPLING, "fd_lab",
                     "curve fd_lab_by_steps of 07_sampling", _along("fd_lab_by_steps", 200, 50), spread=0.02)


def by_steps(curve: str, name: str, steps: int, **more: Any) -> Quantity:
    """The quantity of a curve of 07_sampling at one number of DDIM steps."""
    return Quantity(f"{name} at {steps} DDIM steps", SAMPLING, "fd_lab", f"curve {curve} of 07_sampling",
                    lambda record, _: log_of(at(record, curve, steps)), **more)
