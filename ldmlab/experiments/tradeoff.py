"""The compression trade-off, one f at a time: train or load both stages, score them, time them [LDM v2, Sec. 4.1]."""

from ldmlab.diffusion.unet.unet import count_params
from ldmlab.evaluation.metrics import METRICS
from ldmlab.study.records.record import Record, as_metrics
from ldmlab.study.runs.run import Run


def record_tradeoff(run: Run) -> Record:
    """All that one point of the study measures: quality over training, the first stage's floor, speed, cost.

    What was measured before, on the same models and by the same networks, is loaded.
    """
    first_stage, diffusion, scorer = run.first_stage, run.diffusion, run.scorer
    record = run.new_record()
    record.inputs |= {"denoiser": diffusion.hash} | scorer.inputs(perceptual=True)
    if (known := run.measured_before(record)) is not None:
        return known
    record.protocol.update(scorer.protocol)

    scores = scorer.reconstruction(first_stage)
    scores |= scorer.score(scorer.sample(diffusion.model, label=f"samples of {diffusion.name}"))
    record.metrics = as_metrics(scores)
    record.events += scorer.missing
    denoiser = diffusion.model.denoiser
    side, c = run.spec.data.size // run.spec.f, diffusion.model.denoiser_config.in_channels
    curve, stage_curve = diffusion.curve, first_stage.curve
    at_milestones = [row.key for row in METRICS.values() if row.at_milestones]
    record.metrics |= {
        "num_params": {"value": count_params(denoiser), "unit": "1"},
        "num_params_first_stage": {"value": first_stage.num_params, "unit": "1"},
        "latent_dims": {"value": side * side * c, "unit": "1"},
        "latent_std": {"value": list(first_stage.stats.std), "unit": "1", "mode": first_stage.stats.mode,
                       "std_error": list(first_stage.stats.std_error)},
        "flops": {"value": scorer.flops(diffusion.model), "unit": "FLOP per picture and denoiser call"},
        "train_s": {"value": round(curve.last("train_s"), 1), "unit": "s"},
        "first_stage_train_s": {"value": round(stage_curve.last("train_s"), 1) if run.spec.f > 1 else 0.0, "unit": "s"},
        "first_stage_flat": {"value": first_stage.flat, "unit": "whether validation PSNR was flat at the end"},
    }
    record.curves = {
        **{name: curve.values[name] for name in (*at_milestones, "loss", "train_s") if name in curve.values},
        **{name: stage_curve.values[name] for name in ("val_psnr",) if name in stage_curve.values},
        "images_per_s": scorer.speed(diffusion.model),
    }
    record.curves = {name: _thin(points) for name, points in record.curves.items()}
    record.events += diffusion.curve.events
    return record


def _thin(points: list[list[float | int]], most: int = 80) -> list[list[float | int]]:
    """At most about `most` points, first and last kept: a record stays a page long."""
    stride = max(1, len(points) // most)
    kept = points[::stride] + ([points[-1]] if (len(points) - 1) % stride else [])
    return [[x, round(y, 6)] for x, y in kept]
