"""The compression trade-off, one f at a time: train or load both stages, score them, time them [LDM v2, Sec. 4.1]."""

from ldmlab.diffusion.unet.unet import count_params
from ldmlab.study.records.record import Record
from ldmlab.study.runs.run import Run


def record_tradeoff(run: Run) -> Record:
    """All that one point of the study measures: quality over training, the first stage's floor, speed, cost.

    What was measured before, on the same models and by the same judge, is loaded.
    """
    first_stage, diffusion, scorer = run.first_stage, run.diffusion, run.scorer
    record = run.new_record()
    record.inputs |= {"denoiser": diffusion.hash, "judge": scorer.nets["fd-lab"].weights_hash}
    if (known := run.measured_before(record)) is not None:
        return known
    record.protocol.update(scorer.protocol)

    scores = scorer.reconstruction(first_stage)
    scores |= scorer.score(scorer.sample(diffusion.model, label=f"samples of {diffusion.name}"))
    # The protocol is the record's; a score repeats only what is its own.
    record.metrics = {
        name: {key: value for key, value in score.as_dict().items() if key != "protocol" and value != ""}
        for name, score in scores.items()
    }
    denoiser = diffusion.model.denoiser
    side, c = run.spec.data.size // run.spec.f, denoiser.config.in_channels
    curve, stage_curve = diffusion.curve, first_stage.curve
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
        **{name: curve.values[name] for name in ("fd_lab", "kid_lab", "loss", "train_s")},
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
