"""The scores of one run's models: samples against its training pictures, and what its first stage loses."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.data.images import ImageSet, quantize_8bit, to_float
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.samplers import NOISE
from ldmlab.evaluation.cost import count_flops, throughput
from ldmlab.evaluation.distances import FeatureMoments, Score
from ldmlab.evaluation.metrics import METRICS, SCORE_NETWORK
from ldmlab.evaluation.reconstruction import reconstruction_scores
from ldmlab.study.config.specs import SpatialSpec, StudySpec
from ldmlab.study.runs.conditioners import sample_conditions
from ldmlab.study.runs.first_stage import TrainedFirstStage
from ldmlab.study.runs.pictures import Pictures, open_set
from ldmlab.study.runs.scoring import Scorer
from ldmlab.study.training.progress import progress

ETAS = ((0.0, ""), (1.0, "_eta1"))  # samplers that models are scored under, with the suffix of their scores


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
        self._reconstructed: dict[str, FeatureMoments] = {}  # by the first stage's hash

    @cached_property
    def reference_set(self) -> ImageSet:
        """The training pictures that samples are compared with."""
        train, n = self.pictures.train, self.plan.num_reference
        return open_set(self.spec.data, "train", n) if 0 < n < len(train) else train

    def reference(self, name: str) -> FeatureMoments:
        """Features of the training pictures that samples are compared with."""
        if name not in self._reference:
            self._reference[name] = self.moments_of_set(self.reference_set, name)
        return self._reference[name]

    @property
    def protocol(self) -> dict[str, Any]:
        """What a score of samples has to be compared under."""
        return {
            **self.pictures.train.protocol, "reference": "train", "sampler": "ddim", "num_steps": self.plan.num_steps,
            "eta": 0.0, "guidance_scale": 1.0, "ema": True, "noise": NOISE, "seed": self.spec.seed, "dtype": "float32",
            "quantization": "8 bits", "labels": "equal shares" if self.pictures.train.num_classes else "none",
        }

    @cached_property
    def reference_vectors(self) -> FeatureMoments:
        """Every picture of `reference_set` under the network of the main score, in order; kept on disk."""
        return self.moments_of_set(self.reference_set, SCORE_NETWORK, keep=0)

    def sample(self, model: LatentDiffusion, num: int | None = None, label: str = "samples", *,
               num_steps: int | None = None, eta: float | int = 0.0) -> Tensor:
        """`num` samples under the run's protocol, labels in equal shares."""
        num = num or self.plan.num_samples
        y = sample_conditions(model.conditioner, self.pictures, num)
        with progress(num, label, unit="pictures") as bar:
            return model.sample(y, num_steps=num_steps or self.plan.num_steps, eta=eta, seed=self.spec.seed,
                                batch_size=self.plan.batch_size, progress=lambda done: bar.update(done - bar.n))

    def score_milestone(self, model: LatentDiffusion, step: int) -> dict[str, float]:
        """The metrics that are taken at milestones, at one step of training."""
        names = [row.key for row in METRICS.values() if row.at_milestones]
        scores = self.score(self.sample(model, label=f"samples at step {step}"), names, intervals=False)
        found = {name: score.value for name, score in scores.items()}
        if step in self.plan.both_at:
            samples = self.sample(model, label=f"samples at step {step}, eta = 1", num_steps=self.plan.final_steps,
                                  eta=1.0)
            scores = self.score(samples, names, intervals=False)
            found |= {f"{name}_eta1": score.value for name, score in scores.items()}
        return found

    def score_model(self, model: LatentDiffusion, first_stage: TrainedFirstStage) -> dict[str, Score]:
        """The standard metrics of a trained model's samples, and what of its distance is the denoiser's own.

        Two samplers, DDIM with eta = 0 and, under `_eta1`, eta = 1: `kd_effnet` to true training pictures, and
        `kd_effnet_to_reconstructions` to the same pictures reconstructed, for which a denoiser that has learned its
        latents has distance 0. FID and KID beside, where Inception and pictures enough are at hand.
        """
        kernel = METRICS["kd_effnet"]
        scores: dict[str, Score] = {}
        for eta, suffix in ETAS:
            steps = self.plan.final_steps
            about: dict[str, Any] = {"num_steps": steps, "eta": eta}
            samples = self.sample(model, label=f"samples, eta = {eta:g}", num_steps=steps, eta=eta)
            features: dict[str, FeatureMoments] = {}
            found = self.score(samples, () if eta == 0 else (kernel.key,), protocol=about, features=features)
            scores |= {f"{name}{suffix}": score for name, score in found.items()}
            if (real := self.reconstructed(first_stage)) is not None:
                about = {**self.protocol, **about, "reference": "reconstructed train"}
                scores[f"{kernel.key}_to_reconstructions{suffix}"] = kernel(real, features[kernel.extractor], about)
            if eta == 0 and self.takes_inception:
                inception = self.inception_scores(quantize_8bit(samples).split(64),
                                                  self.inception_moments(self.reference_set))
                scores |= {name: inception[name] for name in ("fid", "kid")}
        return scores

    @cached_property
    def takes_inception(self) -> bool:
        """Whether FID is taken: Inception's weights are at hand, and more pictures than it has features."""
        if min(self.plan.num_samples, len(self.reference_set)) <= 2048:
            return False
        try:
            return bool(self.inception)
        except FileNotFoundError:
            return False

    def reconstructed(self, first_stage: TrainedFirstStage) -> FeatureMoments | None:
        """Features of the reference pictures as the first stage reconstructs them; None in pixels."""
        if self.spec.f == 1:
            return None
        if first_stage.hash not in self._reconstructed:
            images, n = self.reference_set, len(self.reference_set)
            rebuild = reconstruction_of(first_stage, self.device)
            parts = (range(i, min(i + 64, n)) for i in range(0, n, 64))
            self._reconstructed[first_stage.hash] = self.moments(
                quantize_8bit(rebuild(to_float(images.images(part)))) for part in parts)
        return self._reconstructed[first_stage.hash]

    def reconstruction(self, first_stage: TrainedFirstStage) -> dict[str, Score]:
        """psnr, ssim, perceptual distance, LPIPS of AlexNet and rKD-EffNet of the validation pictures.

        rKD-EffNet is their distance to true training pictures; that of the validation pictures themselves is near 0.
        """
        scores = reconstruction_scores(
            reconstruction_of(first_stage, self.device), self.pictures.val, self.net(SCORE_NETWORK), self.perceptual,
            device=self.device, reference=self.reference(SCORE_NETWORK), lpips=self.lpips, trained_on=self.trained_on)
        return {("rkd_effnet" if name == "rkd" else name): score for name, score in scores.items()}

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


def reconstruction_of(
    first_stage: TrainedFirstStage, device: torch.device
) -> Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n 3 h w"]]:
    """Pictures through a first stage and back, at their most probable latents, clamped to [-1, 1]."""
    model = first_stage.model

    def reconstruct(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return model.decode(model.most_probable_latent(x.to(device))).clamp(-1, 1)

    return reconstruct
