"""How well samples match their conditions, by guidance scale, beside fidelity and diversity [LDM v2, Tab. 3, 10].

The project's judge network scores every sample. Two baselines put its scores into perspective: unconditional samples
(`<measure>_untold` in records), and the same samples scored under the conditions of others.

Curves of the record run over guidance scales: `<measure>_by_guidance` for classifier-free guidance,
`<measure>_by_guidance_classifier` for another of `METHODS`, with the ends of intervals in `..._low` and `..._high`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldmlab.data.annotations.annotation import Annotation
from ldmlab.data.images import ImageSet, quantize_8bit, to_float
from ldmlab.diffusion.conditioning.tokens import Conditioner
from ldmlab.evaluation.distances import FeatureMoments, Score
from ldmlab.evaluation.judge import Judge, load_judge
from ldmlab.evaluation.neighbours import precision_recall_scores
from ldmlab.first_stage.reconstruct import reconstruct
from ldmlab.study.config.conditions import KINDS
from ldmlab.study.records.record import Record, add_points, as_metrics
from ldmlab.study.runs.classifier import TrainedClassifier, train_classifier
from ldmlab.study.runs.conditioners import sample_labels, validation_annotations
from ldmlab.study.runs.run import Run
from ldmlab.study.training.progress import progress

SCALES = (1.0, 1.25, 1.5, 3.0, 5.0, 10.0)
CLASSIFIER_SCALES = (1.0, 3.0, 10.0)
SCORES = ("kd_effnet", "precision", "recall")  # of METRICS
NUM_REACHABLE = 2048  # at most, reconstructions that precision and recall are taken against
# What counts as success for each kind of condition that the judge scores, the main measure first.
MEASURES = {name: kind.success for name, kind in KINDS.items() if kind.success}


@dataclass(frozen=True)
class GuidanceMethod:
    """A way to steer: its name in figures; whether the model is conditional, and what `guidance_scale` then scales."""

    name: str
    conditional: bool = True
    classifier: bool = False


METHODS = {
    "": GuidanceMethod("classifier-free"),
    "classifier": GuidanceMethod("classifier, on the conditional model", classifier=True),
    "classifier_alone": GuidanceMethod("classifier, on the unconditional model", conditional=False, classifier=True),
}


def curve_name(measure: str, way: str = "") -> str:
    """What a record calls a measure over guidance scales under one of `METHODS`."""
    return f"{measure}_by_guidance{'_' if way else ''}{way}"


def condition_kind(run: Run) -> str:
    """The kind of condition of the run's model: "class", "text" or "layout"; "" for an unconditional one."""
    conditioner = run.diffusion.model.conditioner
    return "" if conditioner is None else conditioner.kind


@dataclass
class Prompts:
    """The conditions of `n` samples: captions, boxes and labels, and as the conditioner reads them."""

    kind: str
    annotations: list[Annotation]
    y: Int[Tensor, "n ..."]

    def judged(self, judge: Judge, x: Float[Tensor, "n 3 h w"], shift: int = 0) -> dict[str, Score]:
        """The judge's scores of pictures `x` under their conditions; with a `shift`, under those so many further on."""
        seen = judge.predict(x)
        prompts = self.annotations[shift:] + self.annotations[:shift]
        judged = KINDS[self.kind].judged if self.kind in KINDS else None
        if judged is None:
            raise ValueError(f"the judge scores {', '.join(MEASURES)}; this model's condition is {self.kind or 'none'}")
        return judged(seen, prompts)

    @cached_property
    def labels(self) -> Int[Tensor, " n"]:
        """The class of each."""
        return torch.tensor([a.label for a in self.annotations])


def prompts_of(run: Run, n: int) -> Prompts:
    """Classes in equal shares; captions and layouts of validation pictures, which no model was trained on."""
    kind, conditioner = condition_kind(run), run.diffusion.model.conditioner
    if kind in ("", "class"):
        labels = sample_labels(run.pictures.train.num_classes, n)
        annotations = [Annotation(int(label), "", ()) for label in labels]
        return Prompts(kind, annotations, labels)
    if not isinstance(conditioner, Conditioner):
        raise ValueError(f"prompts are conditions that enter by tokens; that of {run.notebook} is of kind {kind}")
    annotations = validation_annotations(run.pictures, n)
    return Prompts(kind, annotations, conditioner.read(annotations))


def sample_prompts(
    run: Run, prompts: Prompts, scale: float | int, way: str = "", classifier: TrainedClassifier | None = None, *,
    on_pictures: Callable[[int], None] | None = None,
) -> Float[Tensor, "n 3 H W"]:
    """Samples of the prompts, guided by one of `METHODS` at `scale`, at 8 bits; the noise is equal at every scale.

    Scale 0 of classifier-free guidance leaves the condition out.
    """
    model, plan, n = run.diffusion.model, run.spec.evaluation, len(prompts.annotations)
    conditional, guided = METHODS[way].conditional and scale != 0, None
    if METHODS[way].classifier:
        guided = (classifier or train_classifier(run)).guide(run, prompts.labels, scale)
    samples = model.sample(
        prompts.y if conditional else model.null_condition(n), num_steps=plan.num_steps, seed=run.spec.seed,
        guided=guided,
        guidance_scale=1.0 if guided is not None or not conditional else scale, batch_size=plan.batch_size,
        progress=on_pictures)
    return quantize_8bit(samples)


# --- What is measured -------------------------------------------------------------------------------------------------


def record_guidance(run: Run) -> Record:
    """Success, KD-EffNet, precision and recall over guidance scales, with baselines and scores of real pictures.

    FID and IS join them where Inception's weights are at hand and the samples are more than its features. What was
    measured before, on the same model and by the same networks, is loaded. The judge is trained on `scenes`: for
    other data the measures of success are left out, and the record's events say so.
    """
    diffusion, scorer, kind = run.diffusion, run.scorer, condition_kind(run)
    if not kind:
        raise ValueError(f"{run.pictures.train.name} has neither classes nor another condition, and guidance needs one")
    judge = load_judge().to(run.device) if run.pictures.train.name == "scenes" else None
    ways = list(METHODS) if kind == "class" else [""]
    record = run.new_record()
    record.inputs |= {"denoiser": diffusion.hash} | scorer.inputs(*SCORES)
    classifier = train_classifier(run) if "classifier" in ways else None
    if classifier is not None:
        record.inputs["classifier"] = classifier.hash
    if judge is not None:
        record.inputs["caption_judge"] = judge.weights_hash
    fid_images, no_fid = _fid_reference(run, kind)
    if fid_images is not None:
        record.inputs["inception"] = scorer.inception.weights_hash
    if (known := run.measured_before(record)) is not None:
        return known
    record.protocol |= scorer.protocol | {
        "guidance_n": run.spec.num_scored, "condition": kind,
        "precision_recall_reference": "training pictures as the first stage gives them back",
        "labels": "equal shares" if kind == "class" else f"{kind} of validation pictures"}
    record.metrics["first_stage_flat"] = {"value": run.first_stage.flat,
                                           "unit": "whether validation PSNR was flat at the end"}
    record.events += diffusion.curve.events
    if judge is None:
        record.events.append("the judge is trained on scenes only: success is not measured")
    if classifier is not None:
        record.curves["classifier_accuracy_by_t"] = [[t, round(a, 4)] for t, a in classifier.accuracy]

    prompts = prompts_of(run, run.spec.num_scored)
    record.events += no_fid
    if fid_images is not None:
        record.protocol["fid_reference"] = fid_images.split
    by = Metrics(prompts, judge, reachable_moments(run),
                 None if fid_images is None else scorer.inception_moments(fid_images, batch_size=64))
    if judge is not None:
        _ceilings(record, run, judge, prompts)
    jobs = [(way, scale) for way in ways for scale in (SCALES if way == "" else CLASSIFIER_SCALES)]
    cost = lambda way, scale: 1 if way == "" and scale in (0.0, 1.0) else 2  # noqa: E731
    with progress(run.spec.num_scored * sum(cost(*job) for job in jobs + [("", 0.0)]), f"{diffusion.name}, all scales",
                  unit="pictures") as bar:

        def draw(way: str, scale: float) -> Tensor:
            done = 0

            def on_pictures(now: int) -> None:
                nonlocal done
                bar.update((now - done) * cost(way, scale))
                done = now

            return sample_prompts(run, prompts, scale, way, classifier, on_pictures=on_pictures)

        unconditional = draw("", 0.0)
        scores = _scores(run, by, unconditional)
        record.metrics |= as_metrics({f"{name}_untold": score for name, score in scores.items()})
        for way, scale in jobs:
            samples = draw(way, scale)
            scores = _scores(run, by, samples)
            if (way, scale) == ("", 1.0):
                record.metrics |= as_metrics(scores)
            add_points(record, {curve_name(m, way): score for m, score in scores.items()}, scale)
            if judge is not None:
                shuffled = prompts.judged(judge, samples, shift=1)
                add_points(record, {curve_name(f"{m}_shuffled", way): s for m, s in shuffled.items()}, scale)
    return record


def _ceilings(record: Record, run: Run, judge: Judge, prompts: Prompts) -> None:
    """The judge's scores of real pictures and of their reconstructions, upper bounds for those of samples."""
    val = run.pictures.val
    x = to_float(val.images(range(len(val))))
    val_prompts = Prompts(prompts.kind, run.pictures.annotations("val"), prompts.y)
    for name, pictures in (("pictures", x), ("reconstructions", reconstruct(run.first_stage.model, x))):
        record.metrics |= as_metrics({f"{key}_{name}": s for key, s in val_prompts.judged(judge, pictures).items()})


def reachable_moments(run: Run) -> FeatureMoments:
    """Features of training pictures as the first stage gives them back: the set that samples can come from.

    A small first stage blurs, and in the features every sample then lies far from every true picture: precision against
    those would be near 0 whatever the denoiser does, and recall with it.
    """
    train = run.pictures.train
    chosen = train.subset(min(NUM_REACHABLE, len(run.scorer.reference_set)))
    parts = (to_float(train.images(chosen[i:i + 256])) for i in range(0, len(chosen), 256))
    return run.scorer.moments(quantize_8bit(reconstruct(run.first_stage.model, x)) for x in parts)


@dataclass
class Metrics:
    """What samples are measured with, made once for all scales."""

    prompts: Prompts
    judge: Judge | None
    reachable: FeatureMoments
    inception: FeatureMoments | None  # of the reference of FID


def _fid_reference(run: Run, kind: str) -> tuple[ImageSet | None, list[str]]:
    """The pictures that FID compares with, or None; and, where Inception's weights are missing, an event that says so.

    FID is taken where the samples are more than Inception's 2048 features.

    Captions and layouts are those of validation pictures, and so is the reference, as in the paper's evaluation on
    COCO; classes are compared with training pictures [LDM v2, App. E.3].
    """
    images = run.pictures.train if kind == "class" else run.pictures.val
    if not run.scorer.is_smoke and min(run.spec.num_scored, len(images)) <= 2048:
        return None, []
    try:
        _ = run.scorer.inception
    except FileNotFoundError as error:
        return None, [f"no FID: {error}"]
    return images, []


def _scores(run: Run, by: Metrics, samples: Tensor) -> dict[str, Score]:
    """Everything that is measured of one set of samples."""
    scorer = run.scorer
    fake = scorer.moments(samples)
    scores = scorer.score(fake, ("kd_effnet",))
    scores |= precision_recall_scores(by.reachable, fake, scorer.protocol)
    if by.inception is not None:
        of = scorer.inception_scores(samples.split(64), by.inception)
        scores |= {"fid": of["fid"], "inception_score": of["inception_score"]}
    return scores | (by.prompts.judged(by.judge, samples) if by.judge is not None else {})


# --- Grids ------------------------------------------------------------------------------------------------------------


def scale_rows(run: Run, prompts: Prompts, scales: Sequence[float] = (0.0, 1.0, 3.0, 10.0)) -> dict[str, Tensor]:
    """Samples of the prompts at several scales of classifier-free guidance, a row each, for `picture_grid`."""
    names = {0.0: "unconditional", 1.0: "s = 1"}
    return {names.get(scale, f"s = {scale:g}"): sample_prompts(run, prompts, scale) for scale in scales}
