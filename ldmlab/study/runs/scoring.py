"""Scores of one run: reconstructions against validation pictures, samples against training pictures, speed."""

from dataclasses import replace

import torch
from torch import Tensor

from ldmlab.data.images import open_dataset, to_float, to_uint8
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.evaluation.cost import count_flops, throughput
from ldmlab.evaluation.distances import FeatureMoments, Score, frechet_score, kid_score, moments_of, reference_moments
from ldmlab.evaluation.reconstruction import reconstruction_scores
from ldmlab.evaluation.uncertainty import frechet_infinity, frechet_interval, kid_interval
from ldmlab.perception import feature_net, perceptual_loss
from ldmlab.study.config.paths import runs_dir
from ldmlab.study.config.specs import SpatialSpec, StudySpec
from ldmlab.study.runs.conditioners import sample_conditions
from ldmlab.study.runs.first_stage import TrainedFirstStage
from ldmlab.study.runs.pictures import Pictures
from ldmlab.study.training.progress import progress


class Scorer:
    """Extractors and reference statistics of one run's pictures.

    `fd-lab` scores; `referee`, independent of it, says whether the order of the f's depends on the extractor.
    """

    def __init__(self, spec: StudySpec, pictures: Pictures, device: torch.device):
        self.spec, self.pictures, self.device, self.plan = spec, pictures, device, spec.evaluation
        self.nets = {name: feature_net(name).to(device) for name in ("fd-lab", "referee")}
        self._reference: dict[str, FeatureMoments] = {}
        self.is_smoke = spec.budget.is_smoke
        # Pictures told place by place have other scores: there too few for FD is no reason not to train.
        self.allow_missing_fd = isinstance(spec.diffusion.condition, SpatialSpec) and not self.is_smoke
        self.num_resamples = spec.budget.num_resamples

    def reference(self, name: str) -> FeatureMoments:
        """Moments of the training pictures that samples are compared with."""
        if name not in self._reference:
            data, n = self.spec.data, self.plan.num_reference
            train = self.pictures.train
            if 0 < n < len(train):
                train = open_dataset(data.name, size=data.size, split="train", num=n, seed=0)
            self._reference[name] = reference_moments(train, self.nets[name], runs_dir() / "moments")
        return self._reference[name]

    @property
    def protocol(self) -> dict:
        """What a score of samples has to be compared under."""
        return {
            **self.pictures.train.protocol, "reference": "train", "sampler": "ddim", "num_steps": self.plan.num_steps,
            "eta": 0.0, "guidance_scale": 1.0, "ema": True, "seed": self.spec.seed, "dtype": "float32",
            "quantization": "8 bits", "labels": "equal shares" if self.pictures.train.num_classes else "none",
        }

    def score(
        self, samples: Tensor, names: tuple[str, ...] = ("fd-lab", "referee"), intervals: bool = True
    ) -> dict[str, Score]:
        """FD and KID of samples in [-1, 1] under each extractor: fd_lab, kid_lab, fd_referee, ...

        Without FD where pictures are too few for it and the model is told place by place; a ValueError elsewhere.
        With `intervals`, over the samples at this reference; and FD∞ where the samples suffice, as fd_lab_infinity.
        """
        samples = to_float(to_uint8(samples))  # as they would be saved
        scores = {}
        for name in names:
            fake, real = moments_of(samples.split(256), self.nets[name]), self.reference(name)
            short = name.removeprefix("fd-")
            if not self.allow_missing_fd or min(real.n, fake.n) > fake.dim:
                scores[f"fd_{short}"] = frechet_score(real, fake, self.protocol, allow_few=self.is_smoke)
            if short == "lab":
                scores["kid_lab"] = kid_score(real, fake, self.protocol, subset_size=min(500, fake.n, real.n))
            if intervals:
                options = {"num_resamples": self.num_resamples, "seed": self.spec.seed}
                for key, interval in (("fd_" + short, frechet_interval), ("kid_" + short, kid_interval)):
                    if key in scores:
                        scores[key] = replace(scores[key], interval=interval(real, fake, **options))
                if len(fake.sample) >= 4 * fake.dim:
                    scores[f"fd_{short}_infinity"] = frechet_infinity(real, fake, self.protocol)
        return scores

    def sample(self, model: LatentDiffusion, num: int | None = None, label: str = "samples") -> Tensor:
        """`num` samples under the run's protocol, labels in equal shares."""
        num = num or self.plan.num_samples
        y = sample_conditions(model.conditioner, self.pictures, num)
        with progress(num, label, unit="pictures") as bar:
            return model.sample(y, num_steps=self.plan.num_steps, seed=self.spec.seed, batch_size=self.plan.batch_size,
                                progress=lambda done: bar.update(done - bar.n))

    def score_milestone(self, model: LatentDiffusion, step: int) -> dict[str, float]:
        """FD-lab and KID-lab at one step of training."""
        scores = self.score(self.sample(model, label=f"samples at step {step}"), ("fd-lab",), intervals=False)
        return {name: score.value for name, score in scores.items()}

    def reconstruction(self, first_stage: TrainedFirstStage) -> dict[str, Score]:
        """psnr, ssim, perceptual distance and rFD-lab of the validation pictures; also rFD by the referee.

        Outside the smoke tier an rFD of no more pictures than features is left out.
        """
        model = first_stage.model

        def reconstruct(x: Tensor) -> Tensor:
            latent = model.encode(x)
            return model.decode(latent.mode() if model.reg == "kl" else latent).clamp(-1, 1)

        perceptual, scores = perceptual_loss(self.spec.first_stage.perceptual), {}
        for name, net in self.nets.items():
            judged = reconstruction_scores(reconstruct, self.pictures.val, net, perceptual, device=self.device,
                                           num_resamples=self.num_resamples, allow_few=True)
            scores |= {key: judged[key] for key in ("psnr", "ssim", "perceptual")}
            if self.is_smoke or len(self.pictures.val) > net.dim:
                scores[f"rfd_{name.removeprefix('fd-')}"] = judged["rfd"]
            else:
                few = f"{len(self.pictures.val)} validation pictures for {net.dim} features"
                print(f"{judged['rfd'].name} left out: {few}", flush=True)
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
        c, side = model.denoiser.config.out_channels, model.size // model.first_stage.f
        z = torch.zeros(1, c, side, side, device=model.device)
        t = torch.zeros(1, dtype=torch.long, device=model.device)
        eps_model = model.eps_model(model.null_condition(1).to(model.device))
        return count_flops(eps_model, z, t)
