"""What has been trained already, and what to take where nothing has been: shipped models, or a minute's training.

`python -m ldmlab.study.runs.shipped_models` trains or loads the study's LDM-8 on `scenes` and writes the two files
that are shipped.
"""

from dataclasses import replace
from pathlib import Path

from torch import nn

from ldmlab.checkpoints.files import load_model, save_model
from ldmlab.data.images import ImageSet
from ldmlab.first_stage.latents import weights_hash
from ldmlab.perception.files import WEIGHTS
from ldmlab.study.config.notebooks import FS
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import StudySpec, content_key
from ldmlab.study.runs.diffusion import has_diffusion, load_diffusion
from ldmlab.study.runs.first_stage import (
    TrainedFirstStage,
    has_first_stage,
    load_first_stage,
    train_first_stage,
)
from ldmlab.study.runs.run import Run

SHIPPED = {part: WEIGHTS / f"tour-{part}.safetensors" for part in ("first-stage", "diffusion")}

# Of the study's steps; on two cores, about a minute each.
FIRST_STAGE_PART, DIFFUSION_PART = 1 / 6, 1 / 8


def prepare_tour(run: Run) -> str:
    """Give the run models without a long wait, and say which: its own, the shipped ones, or a minute's training each.

    The shipped ones are those of the study's own run for f = 8 on `scenes` at the laptop tier; they stand in for
    exactly that run and no other.
    """
    spec, pictures = run.spec, run.pictures
    if has_first_stage(spec, pictures) and has_diffusion(
            spec, pictures, train_first_stage(spec, pictures, run.device)):
        return f"{spec.name} as 04_tradeoff trained it here"
    if run_key(spec, pictures.train) == load_model(SHIPPED["first-stage"])[1]["run_key"]:
        run.first_stage = load_first_stage(spec, pictures, SHIPPED["first-stage"], run.device)
        run.diffusion = load_diffusion(spec, pictures, run.first_stage, SHIPPED["diffusion"], run.device)
        return f"{spec.name} as shipped with the project; 04_tradeoff trains it anew"
    run.spec = minute_spec(run)
    return f"{spec.name}, each model trained for about a minute"


def run_key(spec: StudySpec, images: ImageSet) -> str:
    """What fixes a run's two models."""
    return content_key(spec.first_stage, spec.diffusion, images.fingerprint, spec.seed)


def ship(run: Run, files: dict[str, Path]) -> None:
    """Write both models of a run in half precision, with where they come from.

    They are files of their own, so hashes are of the rounded weights, and the second names the first.
    """
    hashes: dict[str, str] = {}
    modules: dict[str, tuple[Path | None, nn.Module]] = {
        "first-stage": (run.first_stage.path, run.first_stage.model),
        "diffusion": (run.diffusion.path, run.diffusion.model.trained)}
    for part, (path, module) in modules.items():
        assert path is not None  # only the identity has no file
        tensors, meta = load_model(path)
        meta.pop("unchecked", None)
        rounded = {name: value.half() for name, value in tensors.items()}
        module.load_state_dict(rounded)
        hashes[part] = weights_hash(module)
        meta |= {"hash": hashes[part], "hash_before_rounding": meta["hash"],
                 "run_key": run_key(run.spec, run.pictures.train)}
        if part == "diffusion":
            meta |= {"first_stage": hashes["first-stage"]}
        save_model(files[part], rounded, meta)


def minute_spec(run: Run) -> StudySpec:
    """The run's spec, with training cut to a minute for each model that is not on disk yet."""
    spec, pictures = run.spec, run.pictures
    if not has_first_stage(spec, pictures):
        stage = spec.first_stage
        steps = max(12, round(stage.num_steps * FIRST_STAGE_PART))
        spec = replace(spec, first_stage=replace(stage, num_steps=steps, disc_start=max(1, steps // 2),
                                                 val_every=max(1, steps // 10)))
    if has_first_stage(spec, pictures) and has_diffusion(
            spec, pictures, train_first_stage(spec, pictures, run.device)):
        return spec
    steps = max(16, round(spec.diffusion.num_steps * DIFFUSION_PART))
    plan, evaluation = spec.diffusion, spec.evaluation
    return replace(
        spec, diffusion=replace(plan, num_steps=steps, warmup_steps=min(plan.warmup_steps, steps // 4), milestones=()),
        evaluation=replace(evaluation, num_samples=min(256, evaluation.num_samples),
                           num_reference=min(2000, evaluation.num_reference)))


def trained_first_stages(run: Run) -> dict[int, TrainedFirstStage]:
    """First stages on disk that differ from the run's own in f only, by f; the run's own among them."""
    spec, found = run.spec, {run.spec.f: run.first_stage}
    for f in FS:
        if f in (1, spec.f) or spec.data.size % f:
            continue
        reg = "kl" if spec.f == 1 else spec.reg
        other = study_spec(f, reg, spec.data.name, spec.tier, spec.seed, spec.data.size,
                           perceptual=spec.first_stage.perceptual)
        if has_first_stage(other, run.pictures):
            found[f] = train_first_stage(other, run.pictures, run.device)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    ship(Run("00_tour", {"f": 8, "data": "scenes", "tier": "laptop", "seed": 0, "perceptual": ""}), SHIPPED)
