"""Pictures to numbers: everything that a record holds of samples, reconstructions and restored pictures.

The metrics of samples are the rows of `evaluation.metrics.METRICS`; a further row is in every record that names none.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldmlab.data.images import ImageSet, quantize_8bit
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.evaluation.cost import count_flops, throughput
from ldmlab.evaluation.distances import KEEP, FeatureMoments, Score, check_enough, moments_of, reference_moments
from ldmlab.evaluation.inception import KEEP as INCEPTION_KEEP
from ldmlab.evaluation.inception import InceptionNet, inception_scores
from ldmlab.evaluation.metrics import METRICS
from ldmlab.evaluation.neighbours import memorisation_score, nearest, nearness_ratio
from ldmlab.evaluation.reconstruction import psnr, reconstruction_scores, ssim
from ldmlab.evaluation.uncertainty import mean_score
from ldmlab.perception.lab_networks import FeatureNet, feature_net
from ldmlab.perception.losses import LpipsLoss, PsimLoss, perceptual_loss
from ldmlab.perception.pictures import check_range_of_set
from ldmlab.study.config.paths import runs_dir
from ldmlab.study.config.specs import SpatialSpec, StudySpec
from ldmlab.study.records.networks import EXTRACTORS
from ldmlab.study.runs.conditioners import sample_conditions
from ldmlab.study.runs.first_stage import TrainedFirstStage
from ldmlab.study.runs.pictures import Pictures, open_set
from ldmlab.study.training.progress import progress


class Scorer:
    """The networks that score, and how: seed, number of resamples, and what is done where pictures are too few.

    `fd-lab` scores; `referee`, independent of it, says whether the order of the f's depends on the extractor.
    """

    def __init__(self, device: torch.device | str, *, seed: int = 0, is_smoke: bool = False, num_resamples: int = 200,
                 allow_missing_fd: bool = False, perceptual: str = "student"):
        """At smoke, few pictures are scored all the same; `allow_missing_fd` leaves a distance out for which they are
        too few, where otherwise a ValueError refuses it. `perceptual` as `perceptual_loss` takes it."""
        self.device, self.seed, self.is_smoke = torch.device(device), seed, is_smoke
        self.allow_missing_fd = allow_missing_fd
        self.nets = {name: feature_net(name).to(device)
                     for name in dict.fromkeys(metric.extractor for metric in METRICS.values())}
        self.num_resamples = num_resamples
        self._perceptual, self.trained_on = perceptual, False
        self.missing: list[str] = []  # scores that were asked for and cannot be had: events of a record

    # --- Networks -----------------------------------------------------------------------------------------------------

    @cached_property
    def perceptual(self) -> PsimLoss | LpipsLoss:
        """The perceptual loss that reconstructions are also measured by: that of the first stage's training."""
        return perceptual_loss(self._perceptual)

    @cached_property
    def lpips(self) -> LpipsLoss | None:
        """LPIPS of AlexNet on this device, which trains nothing; None, said in `missing`, without its weights."""
        try:
            return LpipsLoss("alex").to(self.device)
        except FileNotFoundError as error:
            self.missing.append(f"lpips_alex left out: {error}")
            return None

    @cached_property
    def pair_distance(self) -> PsimLoss:
        """PSIM-lab's formula on the features of the referee."""
        return PsimLoss(feature_net("referee")).to(self.device)

    @cached_property
    def inception(self) -> InceptionNet:
        """Inception on this device; FileNotFoundError where its weights are not at hand."""
        return InceptionNet().to(self.device)

    def _net(self, extractor: str) -> FeatureNet:
        return self.inception if extractor == "inception" else self.nets[extractor]

    def inputs(self, *metrics: str, perceptual: bool = False) -> dict[str, str]:
        """Hashes of the networks behind the named metrics, as a record's inputs; of all that `score` takes by itself.

        "pd_referee" is among the names, besides the rows of METRICS. `perceptual` adds the perceptual loss.
        LPIPS of AlexNet is beside both where its weights are at hand.
        """
        metrics = metrics or tuple(row.key for row in METRICS.values() if row.standard)
        extractors = ["referee" if name == "pd_referee" else METRICS[name].extractor for name in metrics]
        found = {EXTRACTORS[name]: self.nets[name].weights_hash for name in extractors}
        if self.lpips is not None and (perceptual or "pd_referee" in metrics):
            found["lpips_alex"] = self.lpips.weights_hash
        return found | ({"perceptual": self.perceptual.weights_hash} if perceptual else {})

    # --- Samples against a reference set ------------------------------------------------------------------------------

    def moments(
        self, pictures: Tensor | Iterable[Float[Tensor, "_ 3 h w"]], extractor: str = "fd-lab", *,
        batch_size: int = 256, keep: int = KEEP,
    ) -> FeatureMoments:
        """Features of pictures in [-1, 1], taken as they are; `keep` = 0 keeps all vectors of a tensor of pictures."""
        if isinstance(pictures, Tensor):
            keep, pictures = keep or len(pictures), pictures.split(batch_size)
        return moments_of(pictures, self._net(extractor), keep=keep)

    def moments_of_set(
        self, images: ImageSet, extractor: str = "fd-lab", *, keep: int = KEEP, batch_size: int = 128
    ) -> FeatureMoments:
        """Features of a whole set of pictures, kept on disk; `keep` = 0 keeps all vectors. "inception" is one, too."""
        return reference_moments(images, self._net(extractor), runs_dir() / "moments", keep=keep or len(images),
                                 batch_size=batch_size)

    def reference(self, name: str) -> FeatureMoments:
        """Features under an extractor of the pictures that samples are compared with where no others are given."""
        raise ValueError("this scorer has no reference set of its own; give `score` a `reference`")

    @property
    def protocol(self) -> dict[str, Any]:
        """What a score of samples has to be compared under."""
        return {}

    def score(
        self, samples: Tensor | FeatureMoments, metrics: Sequence[str] = (), *, reference: FeatureMoments | None = None,
        intervals: bool = True, num_resamples: int = 0, seed: int | None = None, allow_few: bool | None = None,
    ) -> dict[str, Score]:
        """The named metrics of samples in [-1, 1], rounded to 8 bits as they would be saved; by default the standard.

        `samples` that are `moments` already, and a `reference` other than the scorer's own, are those of the one
        extractor that the named metrics share. With `intervals`, over the samples at this reference. A distance of
        fewer pictures than it needs is taken if `allow_few` (default: at smoke), left out if `allow_missing_fd`, and
        a ValueError otherwise.
        """
        rows = [METRICS[name] for name in metrics] or [row for row in METRICS.values() if row.standard]
        if isinstance(samples, Tensor):
            samples = quantize_8bit(samples)
        allow_few = self.is_smoke if allow_few is None else allow_few
        options = {"num_resamples": num_resamples or self.num_resamples, "seed": self.seed if seed is None else seed}
        features: dict[str, FeatureMoments] = {}
        scores = {}
        for row in rows:
            if row.extractor not in features:
                features[row.extractor] = (samples if isinstance(samples, FeatureMoments)
                                           else self.moments(samples, row.extractor))
            fake, real = features[row.extractor], reference if reference is not None else self.reference(row.extractor)
            if not row.enough(real, fake) and not (row.refuse_few and allow_few):
                if row.refuse_few and not self.allow_missing_fd:
                    check_enough(real.dim, real=real.n, generated=fake.n)
                continue
            score = row(real, fake, self.protocol)
            if intervals and row.interval is not None:
                score = replace(score, interval=row.interval(real, fake, **options))
            scores[row.key] = score
        return scores

    def inception_scores(
        self, samples: Iterable[Float[Tensor, "_ 3 h w"]], real: FeatureMoments, *, allow_few: bool | None = None
    ) -> dict[str, Score]:
        """FID, KID, IS, precision and recall of batches of samples, `real` as from `inception_moments`."""
        allow_few = self.is_smoke if allow_few is None else allow_few
        return inception_scores(real, samples, self.inception, allow_few=allow_few)

    def inception_moments(self, images: ImageSet, batch_size: int = 32) -> FeatureMoments:
        """Inception's features of a whole set, as many of them kept as the paper's precision and recall take."""
        return self.moments_of_set(images, "inception", keep=INCEPTION_KEEP, batch_size=batch_size)

    # --- Copies of training pictures ----------------------------------------------------------------------------------

    def memorisation(
        self, train: FeatureMoments, held_out: FeatureMoments, samples: FeatureMoments
    ) -> tuple[Score, Float[Tensor, " n"]]:
        """How much nearer to the training pictures samples lie than held-out pictures do: the score, and every ratio.

        All vectors are needed: `keep` = 0.
        """
        return (memorisation_score(train, held_out, samples),
                nearness_ratio(samples.sample, train.sample, held_out.sample))

    def nearest(self, x: Float[Tensor, "n 3 h w"], train: FeatureMoments, k: int = 1) -> Int[Tensor, "n k"]:
        """Numbers of the k training pictures that are nearest to each picture, in FD-lab's features."""
        return nearest(self.moments(x, batch_size=128, keep=0).sample, train.sample, k)[1]

    # --- Pictures against the true ones -------------------------------------------------------------------------------

    def perceptual_distances(
        self, x: Float[Tensor, "n 3 H W"], x_hat: Float[Tensor, "n 3 H W"]
    ) -> Float[Tensor, " n"]:
        """PD-referee: distance of each pair on the features of the referee, by the formula of PSIM-lab.

        The first stage was not trained on this network, as it was on the perceptual loss.
        """
        return self._distances(self.pair_distance, x, x_hat)

    def _distances(self, loss: PsimLoss | LpipsLoss, x: Tensor, x_hat: Tensor) -> Float[Tensor, " n"]:
        with torch.inference_mode():
            parts = [loss(a.to(self.device), b.to(self.device)).cpu()
                     for a, b in zip(x.split(128), x_hat.split(128), strict=True)]
        return torch.cat(parts)

    def score_pairs(self, x: Float[Tensor, "n 3 H W"], x_hat: Float[Tensor, "n 3 H W"]) -> dict[str, Score]:
        """PSNR, SSIM and PD-referee of pictures against the true ones `x`: means with their intervals.

        `lpips_alex` joins them where its weights are at hand. ValueError where a set seems to lie in [0, 1].
        """
        x_hat = quantize_8bit(x_hat)
        check_range_of_set(x, x_hat)
        lpips = self.lpips
        alex = {} if lpips is None else {"lpips_alex": mean_score(
            self._distances(lpips, x, x_hat), lpips.name, extractor=lpips.name, weights_hash=lpips.weights_hash)}
        return alex | {"psnr": mean_score(psnr(x, x_hat), "PSNR", "dB"), "ssim": mean_score(ssim(x, x_hat), "SSIM"),
                "pd_referee": mean_score(self.perceptual_distances(x, x_hat), "PD-referee")}

    def score_reconstructions(
        self, reconstruct: Callable[[Tensor], Tensor], images: ImageSet, extractor: str = "fd-lab", *,
        batch_size: int = 64, num_resamples: int | None = None, with_lpips: bool = False,
    ) -> dict[str, Score]:
        """`psnr`, `ssim`, `perceptual` and `rfd` of `reconstruct(x) -> x_rec` on a set, however small it is.

        With `with_lpips` also `lpips_alex`, where its weights are at hand.
        """
        return reconstruction_scores(
            reconstruct, images, self.nets[extractor], self.perceptual, lpips=self.lpips if with_lpips else None,
            trained_on=self.trained_on, batch_size=batch_size, device=self.device,
            num_resamples=self.num_resamples if num_resamples is None else num_resamples, allow_few=True)


class RunScorer(Scorer):
    """The scorer of one run's models: samples against its training pictures, reconstructions of its validation set."""

    def __init__(self, spec: StudySpec, pictures: Pictures, device: torch.device):
        is_smoke = spec.budget.is_smoke
        # Models with a condition aligned to the picture have other scores: too few for FD is no reason not to train.
        spatial = isinstance(spec.diffusion.condition, SpatialSpec)
        super().__init__(device, seed=spec.seed, is_smoke=is_smoke, num_resamples=spec.budget.num_resamples,
                         allow_missing_fd=spatial and not is_smoke,
                         perceptual=spec.first_stage.perceptual)
        self.spec, self.pictures, self.plan = spec, pictures, spec.evaluation
        self.trained_on = spec.f > 1
        self._reference: dict[str, FeatureMoments] = {}

    def reference(self, name: str) -> FeatureMoments:
        """Features of the training pictures that samples are compared with."""
        if name not in self._reference:
            train, n = self.pictures.train, self.plan.num_reference
            if 0 < n < len(train):
                train = open_set(self.spec.data, "train", n)
            self._reference[name] = self.moments_of_set(train, name)
        return self._reference[name]

    @property
    def protocol(self) -> dict[str, Any]:
        """What a score of samples has to be compared under."""
        return {
            **self.pictures.train.protocol, "reference": "train", "sampler": "ddim", "num_steps": self.plan.num_steps,
            "eta": 0.0, "guidance_scale": 1.0, "ema": True, "seed": self.spec.seed, "dtype": "float32",
            "quantization": "8 bits", "labels": "equal shares" if self.pictures.train.num_classes else "none",
        }

    @cached_property
    def training_vectors(self) -> FeatureMoments:
        """Every training picture under FD-lab, in order; kept on disk."""
        return self.moments_of_set(self.pictures.train, keep=0)

    def sample(self, model: LatentDiffusion, num: int | None = None, label: str = "samples") -> Tensor:
        """`num` samples under the run's protocol, labels in equal shares."""
        num = num or self.plan.num_samples
        y = sample_conditions(model.conditioner, self.pictures, num)
        with progress(num, label, unit="pictures") as bar:
            return model.sample(y, num_steps=self.plan.num_steps, seed=self.spec.seed, batch_size=self.plan.batch_size,
                                progress=lambda done: bar.update(done - bar.n))

    def score_milestone(self, model: LatentDiffusion, step: int) -> dict[str, float]:
        """The metrics that are taken at milestones, at one step of training."""
        names = [row.key for row in METRICS.values() if row.at_milestones]
        scores = self.score(self.sample(model, label=f"samples at step {step}"), names, intervals=False)
        return {name: score.value for name, score in scores.items()}

    def reconstruction(self, first_stage: TrainedFirstStage) -> dict[str, Score]:
        """psnr, ssim, LPIPS of AlexNet, perceptual distance and rFD-lab of the validation pictures; rFD by the referee.

        Outside the smoke tier an rFD of no more pictures than features is left out.
        """
        model = first_stage.model
        scores: dict[str, Score] = {}

        def reconstruct(x: Tensor) -> Tensor:
            return model.decode(model.most_probable_latent(x)).clamp(-1, 1)

        for name in ("fd-lab", "referee"):
            found = self.score_reconstructions(reconstruct, self.pictures.val, name, with_lpips=name == "fd-lab")
            dim = self.nets[name].dim
            scores |= {key: score for key, score in found.items() if key != "rfd"}
            if self.is_smoke or len(self.pictures.val) > dim:
                scores[f"rfd_{name.removeprefix('fd-')}"] = found["rfd"]
            else:
                few = f"{len(self.pictures.val)} validation pictures for {dim} features"
                print(f"{found['rfd'].name} left out: {few}", flush=True)
        return scores

    def speed(self, model: LatentDiffusion) -> list[list[float | int]]:
        """[DDIM steps, images per second, decode included] for each number of steps: median after a warm-up."""
        n = self.plan.speed_batch
        y = sample_conditions(model.conditioner, self.pictures, n)
        model.sample(y, num_steps=min(self.plan.speed_steps), batch_size=n)

        def rate(steps: int) -> float:
            make = lambda: model.sample(y, num_steps=steps, batch_size=n)  # noqa: E731
            return round(throughput(make, n, warmup=0, repeats=self.plan.speed_repeats), 3)

        return [[steps, rate(steps)] for steps in self.plan.speed_steps]

    def flops(self, model: LatentDiffusion) -> int:
        """Floating-point operations of one denoiser call for one picture, 2 per multiply-accumulate."""
        c, side = model.denoiser_config.out_channels, model.size // model.first_stage.f
        z = torch.zeros(1, c, side, side, device=model.device)
        t = torch.zeros(1, dtype=torch.long, device=model.device)
        eps_model = model.eps_model(model.null_condition(1).to(model.device))
        return count_flops(eps_model, z, t)
