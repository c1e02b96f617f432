"""Semantic synthesis: pictures from label maps, and whether they show what the map says [LDM v2, Sec. 4.3.2].

On `scenes`, the judge labels every pixel of a sample, and its labels are compared with the map.
Baselines say what that is worth: samples held against another's map, and the judge on pictures that are right.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ldmlab.data.images import quantize_8bit
from ldmlab.data.scenes.scene import LABELS
from ldmlab.diffusion.unet.unet import count_params
from ldmlab.evaluation.distances import Score
from ldmlab.evaluation.judge import load_judge
from ldmlab.evaluation.uncertainty import mean_score
from ldmlab.experiments.restoration import SCORES, add_method, restored_scores, true_pictures
from ldmlab.first_stage.reconstruct import reconstruct
from ldmlab.study.records.record import Record, as_metrics
from ldmlab.study.runs.conditioners import as_spatial, spatial_conditions
from ldmlab.study.runs.run import Run
from ldmlab.study.training.progress import progress

METHODS = {
    "samples": "samples for their maps", "others": "samples, held against another's map",
    "reconstructions": "first stage, of the true picture", "truth": "the true pictures",
}
MEASURES = {"pixels": "pixels of the right label", "miou": "mean IoU over labels"}


def label_maps(run: Run, n: int) -> Int[Tensor, "n H W"]:
    """The label maps of the first `n` validation pictures, in turn."""
    return spatial_conditions(as_spatial(run.conditioner), run.pictures, n)


def synthesize(
    run: Run, maps: Int[Tensor, "n H W"], *, seed: int | None = None, label: str = ""
) -> Float[Tensor, "n 3 H W"]:
    """Samples of the run's model for label maps of any size, as they would be saved."""
    plan, model = run.spec.evaluation, run.diffusion.model
    with progress(len(maps), label or f"{run.spec.name}, from label maps", unit="pictures") as bar:
        x = model.sample(maps, num_steps=plan.num_steps, batch_size=plan.batch_size,
                         seed=run.spec.seed if seed is None else seed, progress=lambda done: bar.update(done - bar.n))
    return quantize_8bit(x)


def agreement(run: Run, x: Float[Tensor, "n 3 H W"], maps: Int[Tensor, "n H W"]) -> dict[str, Score]:
    """Share of pixels that the judge gives the map's label, mean over pictures; and IoU over all, mean over labels.

    The judge works at 32 x 32, so maps are resized to it by nearest neighbours.
    """
    judge = load_judge()
    seen = judge.predict(x).regions
    target = F.interpolate(maps[:, None].float(), size=seen.shape[1:], mode="nearest")[:, 0].long()
    right = (seen == target).float().mean((1, 2))
    present = target.unique()
    overlap = torch.stack([((seen == k) & (target == k)).sum() / ((seen == k) | (target == k)).sum() for k in present])
    about: dict[str, Any] = {"extractor": "judge", "weights_hash": judge.weights_hash}
    return {"pixels": mean_score(right, "pixels of the right label", **about),
            "miou": Score(overlap.mean().item(), f"mean IoU over {len(present)} labels", "1", len(x), len(x), **about)}


def record_semantic(run: Run) -> Record:
    """FD-lab, KID-lab, PD-referee of samples for validation maps, and on `scenes` how well they agree with their maps.

    What was measured before, on the same models, is loaded.
    """
    diffusion, scorer = run.diffusion, run.scorer
    record = run.new_record()
    record.inputs |= {"denoiser": diffusion.hash, "caption_judge": load_judge().weights_hash}
    record.inputs |= scorer.inputs(*SCORES)
    if (known := run.measured_before(record)) is not None:
        return known
    record.events += scorer.missing
    x = true_pictures(run)
    maps = label_maps(run, len(x))
    record.protocol |= scorer.protocol | {
        "n": len(x), "labels": "none", "perceptual": "PD-referee, pairs", "targets": "validation pictures",
        "num_labels": len(run.pictures.train.map_names)}
    record.events += diffusion.curve.events
    record.metrics["num_params"] = {"value": count_params(diffusion.model.trained), "unit": "1"}
    samples = synthesize(run, maps)
    rec = quantize_8bit(reconstruct(run.first_stage.model, x))
    for method, pictures in {"samples": samples, "reconstructions": rec}.items():
        scores = restored_scores(run, x, pictures)
        if "fd_lab" not in scores and method == "samples":
            record.events.append(f"FD-lab left out: {len(x)} pictures, or the training set, fewer than features")
        add_method(record, method, scores)
    if run.pictures.train.map_names != LABELS:
        record.events.append("the judge is trained on `scenes` only: whether samples show their maps is not measured")
        return record
    shifted = maps.roll(1, 0)
    for method, (pictures, targets) in {"samples": (samples, maps), "others": (samples, shifted),
                                      "reconstructions": (rec, maps), "truth": (x, maps)}.items():
        scores = agreement(run, pictures, targets)
        record.metrics |= as_metrics({f"{name}_{method}": score for name, score in scores.items()})
    return record
