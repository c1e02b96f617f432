"""What has been trained already, and what to take where nothing has been: the same models, a minute's training each."""

from dataclasses import replace

from ldmlab.study.presets import FS, StudySpec, study_spec
from ldmlab.study.runs import Pictures, TrainedFirstStage, diffusion_folder, first_stage_folder, train_first_stage
from ldmlab.study.session import Run

# Of the study's steps; on two cores, about a minute each.
FIRST_STAGE_PART, DIFFUSION_PART = 1 / 6, 1 / 8


def has_first_stage(spec: StudySpec, pictures: Pictures) -> bool:
    """Whether the first stage of a spec is on disk; the identity always is."""
    return spec.f == 1 or (first_stage_folder(spec, pictures.train) / "first_stage.safetensors").exists()


def has_diffusion(spec: StudySpec, pictures: Pictures, first_stage: TrainedFirstStage) -> bool:
    """Whether the diffusion model of a spec, on this first stage, is on disk."""
    return (diffusion_folder(spec, pictures.train, first_stage) / "diffusion.safetensors").exists()


def minute_spec(run: Run) -> StudySpec:
    """The run's spec, with training cut to a minute for each model that is not on disk yet."""
    spec, pictures = run.spec, run.pictures
    if not has_first_stage(spec, pictures):
        plan = spec.first_stage
        steps = max(12, round(plan.num_steps * FIRST_STAGE_PART))
        spec = replace(spec, first_stage=replace(plan, num_steps=steps, disc_start=max(1, steps // 2),
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
        other = study_spec(f, reg, spec.data.name, spec.tier, spec.seed, spec.data.size)
        if has_first_stage(other, run.pictures):
            found[f] = train_first_stage(other, run.pictures, run.device)
    return dict(sorted(found.items()))
