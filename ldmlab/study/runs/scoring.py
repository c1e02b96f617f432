"""Pictures to numbers: everything that a record holds of samples, reconstructions and restored pictures.

The metrics of samples are the rows of `evaluation.metrics.METRICS`; a further row is in every record that names none.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldmlab.data.images import ImageSet, quantize_8bit
from ldmlab.evaluation.distances import KEEP, FeatureMoments, Score, check_enough, moments_of, reference_moments
from ldmlab.evaluation.inception import KEEP as INCEPTION_KEEP
from ldmlab.evaluation.inception import InceptionNet, inception_scores
from ldmlab.evaluation.metrics import METRICS, SCORE_NETWORK
from ldmlab.evaluation.neighbours import memorisation_score, nearest, nearness_ratio
from ldmlab.evaluation.reconstruction import psnr, reconstruction_scores, ssim
from ldmlab.evaluation.uncertainty import mean_score
from ldmlab.perception.lab_networks import FeatureNet, feature_net
from ldmlab.perception.losses import LpipsLoss, PsimLoss, perceptual_loss
from ldmlab.perception.pictures import check_range_of_set
from ldmlab.study.config.paths import runs_dir
from ldmlab.study.records.networks import EXTRACTORS


class Scorer:
    """The networks that score, and how: seed, number of resamples, and what is done where pictures are too few.

    EfficientNet-Lite0 scores; each network is loaded when a metric first asks for it.
    """

    def __init__(self, device: torch.device | str, *, seed: int = 0, is_smoke: bool = False, num_resamples: int = 200,
                 allow_missing_fd: bool = False, perceptual: str = "student"):
        """At smoke, few pictures are scored all the same; `allow_missing_fd` leaves a distance out for which they are
        too few, where otherwise a ValueError refuses it. `perceptual` as `perceptual_loss` takes it."""
        self.device, self.seed, self.is_smoke = torch.device(device), seed, is_smoke
        self.allow_missing_fd = allow_missing_fd
        self._nets: dict[str, FeatureNet] = {}
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
    def inception(self) -> InceptionNet:
        """Inception on this device; FileNotFoundError where its weights are not at hand."""
        return InceptionNet().to(self.device)

    def net(self, extractor: str) -> FeatureNet:
        """The network of this name on this device: "inception", or one that `feature_net` knows."""
        if extractor == "inception":
            return self.inception
        if extractor not in self._nets:
            self._nets[extractor] = feature_net(extractor).to(self.device)
        return self._nets[extractor]

    def inputs(self, *metrics: str, perceptual: bool = False) -> dict[str, str]:
        """Hashes of the networks behind the named metrics, as a record's inputs; of all that `score` takes by itself.

        "lpips_alex" is among the names, besides the rows of METRICS; it is added where its weights are at hand.
        `perceptual` adds the perceptual loss, and LPIPS of AlexNet with it.
        """
        metrics = metrics or tuple(row.key for row in METRICS.values() if row.standard)
        extractors = [METRICS[name].extractor for name in metrics if name != "lpips_alex"]
        found = {EXTRACTORS[name]: self.net(name).weights_hash for name in extractors}
        if (perceptual or "lpips_alex" in metrics) and self.lpips is not None:
            found["lpips_alex"] = self.lpips.weights_hash
        return found | ({"perceptual": self.perceptual.weights_hash} if perceptual else {})

    # --- Samples against a reference set ------------------------------------------------------------------------------

    def moments(
        self, pictures: Tensor | Iterable[Float[Tensor, "_ 3 h w"]], extractor: str = SCORE_NETWORK, *,
        batch_size: int = 256, keep: int = KEEP,
    ) -> FeatureMoments:
        """Features of pictures in [-1, 1], taken as they are; `keep` = 0 keeps all vectors of a tensor of pictures."""
        if isinstance(pictures, Tensor):
            keep, pictures = keep or len(pictures), pictures.split(batch_size)
        return moments_of(pictures, self.net(extractor), keep=keep)

    def moments_of_set(
        self, images: ImageSet, extractor: str = SCORE_NETWORK, *, keep: int = KEEP, batch_size: int = 128
    ) -> FeatureMoments:
        """Features of a whole set of pictures, kept on disk; `keep` = 0 keeps all vectors. "inception" is one, too."""
        return reference_moments(images, self.net(extractor), runs_dir() / "moments", keep=keep or len(images),
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
        protocol: Mapping[str, Any] | None = None, features: dict[str, FeatureMoments] | None = None,
    ) -> dict[str, Score]:
        """The named metrics of samples in [-1, 1], rounded to 8 bits as they would be saved; by default the standard.

        `samples` that are `moments` already, and a `reference` other than the scorer's own, are those of the one
        extractor that the named metrics share. With `intervals`, over the samples at this reference. A distance of
        fewer pictures than it needs is taken if `allow_few` (default: at smoke), left out if `allow_missing_fd`, and
        a ValueError otherwise. `protocol` adds to the scorer's own; `features` is filled with what samples were
        embedded as, by extractor.
        """
        rows = [METRICS[name] for name in metrics] or [row for row in METRICS.values() if row.standard]
        if isinstance(samples, Tensor):
            samples = quantize_8bit(samples)
        allow_few = self.is_smoke if allow_few is None else allow_few
        options = {"num_resamples": num_resamples or self.num_resamples, "seed": self.seed if seed is None else seed}
        features = {} if features is None else features
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
            score = row(real, fake, {**self.protocol, **(protocol or {})})
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
        """Numbers of the k vectors of `train` that are nearest to each picture, in the features of their network."""
        return nearest(self.moments(x, train.extractor, batch_size=128, keep=0).sample, train.sample, k)[1]

    # --- Pictures against the true ones -------------------------------------------------------------------------------

    def pair_values(
        self, x: Float[Tensor, "n 3 H W"], x_hat: Float[Tensor, "n 3 H W"]
    ) -> dict[str, Float[Tensor, " n"]]:
        """`psnr` [dB], `ssim` and, where its weights are at hand, `lpips_alex` of each pair of pictures.

        None of them trains a model. A ValueError where a set seems to lie in [0, 1].
        """
        check_range_of_set(x, x_hat)
        values = {"psnr": psnr(x, x_hat), "ssim": ssim(x, x_hat)}
        if (lpips := self.lpips) is not None:
            with torch.inference_mode():
                values["lpips_alex"] = torch.cat([lpips(a.to(self.device), b.to(self.device)).cpu()
                                                  for a, b in zip(x.split(128), x_hat.split(128), strict=True)])
        return values

    def mean_of_pairs(self, measure: str, values: Float[Tensor, " n"]) -> Score:
        """The mean, with its interval, of one of the measures of `pair_values`."""
        if measure == "lpips_alex" and self.lpips is not None:
            return mean_score(values, self.lpips.name, extractor=self.lpips.name,
                              weights_hash=self.lpips.weights_hash)
        return mean_score(values, measure.upper(), "dB" if measure == "psnr" else "1")

    def score_pairs(self, x: Float[Tensor, "n 3 H W"], x_hat: Float[Tensor, "n 3 H W"]) -> dict[str, Score]:
        """`pair_values` of pictures, rounded to 8 bits, against the true ones `x`: means with their intervals."""
        return {name: self.mean_of_pairs(name, values)
                for name, values in self.pair_values(x, quantize_8bit(x_hat)).items()}

    def score_reconstructions(
        self, reconstruct: Callable[[Tensor], Tensor], images: ImageSet, extractor: str = "fd-lab", *,
        batch_size: int = 64, num_resamples: int | None = None, with_lpips: bool = False,
        reference: FeatureMoments | None = None,
    ) -> dict[str, Score]:
        """`psnr`, `ssim`, `perceptual` and `rfd` of `reconstruct(x) -> x_rec` on a set, however small it is.

        With `with_lpips` also `lpips_alex`, where its weights are at hand. With a `reference`, features of other
        pictures, `rkd` stands for `rfd`.
        """
        return reconstruction_scores(
            reconstruct, images, self.net(extractor), self.perceptual, lpips=self.lpips if with_lpips else None,
            trained_on=self.trained_on, batch_size=batch_size, device=self.device, reference=reference,
            num_resamples=self.num_resamples if num_resamples is None else num_resamples, allow_few=True)
