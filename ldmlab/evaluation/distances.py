"""Distances between two sets of pictures on feature vectors: Fréchet [FID, Eq. 6] and kernel [KID, Sec. 4].

They are named FID and KID only on the features of Inception (see `inception`). On EfficientNet-Lite0 they are FD-EffNet
and KD-EffNet, on ldmlab's own networks FD-lab, KID-lab and so on: names that say their network, since values compare on
one network only. `uncertainty` has their intervals.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.damage import DamagedFile, read_or_set_aside, reading
from ldmlab.perception.lab_networks import FeatureNet
from ldmlab.tensor_files import load_tensors, save_tensors

# Feature networks for scores, with the names of their scores; networks of losses are not among them.
INCEPTION = "inception-v3-compat"  # torch-fidelity's name for the network of FID
UNVERIFIED = "inception-unverified"  # the same layout with other weights
SCORING = {"effnet": "{}-EffNet", "fd-lab": "{}-lab", "referee": "{}-referee", INCEPTION: "{}",
           UNVERIFIED: "{}-unverified"}
KEEP = 2048  # vectors of a set that are kept for the kernel distance


@dataclass(frozen=True)
class Interval:
    """Interval of a number at confidence `level`, and the method that it was computed by."""

    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True)
class Score:
    """A number with its protocol, which is needed to compare it; ValueError for NaN."""

    value: float
    name: str
    unit: str  # "dB", "1" for pure numbers
    n_real: int
    n_fake: int
    extractor: str = ""  # the feature network's name; empty where there is none
    weights_hash: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    interval: Interval | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.value):
            raise ValueError(f"{self.name} is not a number (n_real={self.n_real}, n_fake={self.n_fake})")

    def as_dict(self) -> dict[str, Any]:
        """The entries for a JSON file: infinite values (PSNR of equal pictures) become None; no `interval` if None."""
        entries = asdict(self) | {"value": self.value if math.isfinite(self.value) else None}
        return {key: value for key, value in entries.items() if key != "interval" or value is not None}


def frechet_distance(
    mu1: Float[Tensor, " d"], cov1: Float[Tensor, "d d"], mu2: Float[Tensor, " d"], cov2: Float[Tensor, "d d"]
) -> float:
    """|mu1 - mu2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)), squared, between two Gaussians [FID, Eq. 6].

    The trace of the root is the sum of the roots of the eigenvalues of A cov2 A^T with A^T A = cov1: a symmetric
    problem in float64, exact where cov1 cov2 is near singular and an iterated matrix root is not.

    >>> eye = torch.eye(2)
    >>> frechet_distance(torch.zeros(2), eye, torch.ones(2), 4 * eye)
    4.0
    """
    mu1, cov1, mu2, cov2 = (m.detach().cpu().double() for m in (mu1, cov1, mu2, cov2))
    return frechet_from_root(mu1, covariance_root(cov1), mu2, cov2).item()


def covariance_root(cov: Float[Tensor, "*b d d"]) -> Float[Tensor, "*b d d"]:
    """A matrix A with A^T A = cov: by Cholesky, faster and more accurate, or by eigenvalues where cov is singular."""
    lower, failed = torch.linalg.cholesky_ex(cov)
    if not failed.any():
        return lower.mT
    values, vectors = torch.linalg.eigh(cov)
    return values.clamp(min=0).sqrt()[..., None] * vectors.mT


def frechet_from_root(mu1: Tensor, root1: Tensor, mu2: Float[Tensor, "*b d"], cov2: Float[Tensor, "*b d d"]) -> Tensor:
    """`frechet_distance` from `root1 = covariance_root(cov1)`, batched over the second set."""
    cross = torch.linalg.eigvalsh(root1 @ cov2 @ root1.mT).clamp(min=0).sqrt().sum(-1)
    return _assemble(mu1, root1.square().sum((-2, -1)), mu2, cov2.diagonal(dim1=-2, dim2=-1).sum(-1), cross)


def _assemble(mu1: Tensor, trace1: Tensor, mu2: Tensor, trace2: Tensor, cross: Tensor) -> Tensor:
    # Equal inputs leave a rounding error of either sign; a distance is not negative.
    return ((mu1 - mu2).square().sum(-1) + trace1 + trace2 - 2 * cross).clamp(min=0)


class FeatureMoments:
    """Mean and covariance of feature vectors, accumulated by batch in float64, and a uniform sample of `keep` vectors.

    They do not depend on the size of the batches (moments up to rounding). Up to `keep` vectors, all are in the sample.
    """

    def __init__(self, dim: int, *, keep: int = KEEP, seed: int = 0, extractor: str = "", weights_hash: str = ""):
        self.n, self.keep, self.extractor, self.weights_hash = 0, keep, extractor, weights_hash
        self.key = ""  # of the cache's entry
        self.within: tuple[Tensor, Tensor] | None = None  # kernel sums of the sample, see `uncertainty`
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)  # sum of (v - mean)(v - mean)^T
        self.sample = torch.zeros(0, dim)
        self._keys = np.zeros(0)  # one random number per vector: those with the smallest are kept
        self._rng = np.random.default_rng(seed)

    @property
    def dim(self) -> int:
        """Number of features."""
        return len(self.mean)

    @property
    def cov(self) -> Float[Tensor, "d d"]:
        """Unbiased covariance; ValueError for fewer than two vectors."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 pictures, got {self.n}")
        return self.scatter / (self.n - 1)

    def update(self, features: Float[Tensor, "n d"]) -> "FeatureMoments":
        """Add a batch of vectors; ValueError for another dimension and values that are not finite. Returns self."""
        if features.shape[1] != self.dim:
            raise ValueError(f"expected vectors of {self.dim} entries, got {tuple(features.shape)}")
        if not features.isfinite().all():
            raise ValueError("features have values that are not finite; check the pictures that they come from")
        if len(features) == 0:
            return self
        self.within = None
        rows = features.detach().cpu()
        batch = rows.double()
        total, batch_mean = self.n + len(batch), batch.mean(0)
        shift, centred = batch_mean - self.mean, batch - batch_mean
        # Update of the moments [Chan et al. 1979], without subtracting large sums.
        self.scatter += centred.T @ centred + torch.outer(shift, shift) * (self.n * len(batch) / total)
        self.mean += shift * (len(batch) / total)
        self.n = total
        self._sample(rows.float())
        return self

    def _sample(self, rows: Tensor) -> None:
        keys = np.concatenate([self._keys, self._rng.random(len(rows))])
        chosen = np.sort(np.argsort(keys, kind="stable")[: self.keep])
        self._keys, self.sample = keys[chosen], torch.cat([self.sample, rows])[torch.from_numpy(chosen)]

    @property
    def effective_rank(self) -> float:
        """(sum of eigenvalues)^2 / sum of their squares, of the covariance: d if all are equal, small where few count.

        Features that are constant on these pictures do not change it; 0 where all are.
        """
        squares = self.cov.square().sum().item()
        return self.cov.trace().item() ** 2 / squares if squares else 0.0

    def factor(self) -> Tensor | None:
        """X with X^T X = cov, with no more rows than columns; None where there are more vectors than features."""
        if 2 <= self.n == len(self.sample) <= self.dim:
            return (self.sample.double() - self.mean) / math.sqrt(self.n - 1)
        return None

    def save(self, path: Path) -> None:
        """Write to a safetensors file, atomically; the scatter only where it does not follow from the sample."""
        tensors = {"mean": self.mean, "sample": self.sample}
        if self.n > len(self.sample):
            tensors["scatter"] = self.scatter
        metadata = {"n": str(self.n), "extractor": self.extractor, "weights_hash": self.weights_hash,
                    "key": self.key}
        save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> "FeatureMoments":
        """Read what `save` wrote, for comparison only: further vectors would not be sampled uniformly.

        FileNotFoundError for a missing file, DamagedFile for a damaged one.
        """
        tensors, about = load_tensors(path, ("n", "extractor", "weights_hash"), optional=("key",))
        with reading(path):
            mean, sample, scatter = tensors["mean"], tensors["sample"], tensors.get("scatter")
            if scatter is None:
                if int(about["n"]) != len(sample):
                    raise DamagedFile(path, "it holds a part of the features, and no scatter")
                centred = sample.double() - mean
                scatter = centred.T @ centred
            moments = cls(len(mean), extractor=about["extractor"], weights_hash=about["weights_hash"])
            moments.key = about.get("key", "")
            moments.n, moments.mean, moments.scatter, moments.sample = int(about["n"]), mean, scatter, sample
        return moments


def frechet(real: FeatureMoments, fake: FeatureMoments) -> float:
    """Fréchet distance of two sets of vectors; by singular values where one has no more vectors than features.

    With X^T X = cov, tr (cov1 cov2)^(1/2) is the nuclear norm of X1 X2^T: exact and fast for few vectors, where the
    eigenvalues of a singular covariance are mostly rounding errors.
    """
    x1, x2 = real.factor(), fake.factor()
    if x1 is None and x2 is None:
        return frechet_distance(real.mean, real.cov, fake.mean, fake.cov)
    x1, x2 = (covariance_root(m.cov) if x is None else x for m, x in ((real, x1), (fake, x2)))
    cross = torch.linalg.svdvals(x1 @ x2.T).sum()
    return _assemble(real.mean, x1.square().sum(), fake.mean, x2.square().sum(), cross).item()


def cubic_kernel(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """(a.b / d + 1)^3 for all pairs [KID, Sec. 4]."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def kid(
    real: Float[Tensor, "n d"],
    fake: Float[Tensor, "m d"],
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Squared MMD with the kernel (a.b / d + 1)^3, unbiased [KID, Sec. 4]: (mean, standard deviation) over subsets.

    Subsets have `subset_size` vectors of each set, drawn without replacement, or as many as the smaller set. Where that
    is all of both there is one subset, and the deviation is 0. The estimate of a small distance may be negative. Raises
    ValueError for fewer than 2 vectors.

    >>> features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> mean, std = kid(features, features + 1)
    >>> mean > 0, std
    (True, 0.0)
    """
    size = min(subset_size, len(real), len(fake))
    if size < 2:
        raise ValueError(f"kid needs at least 2 vectors in each set, got {len(real)} and {len(fake)}")
    if size == len(real) == len(fake):
        num_subsets = 1
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(num_subsets):
        a, b = (s[torch.randperm(len(s), generator=generator)[:size]].detach().cpu().double() for s in (real, fake))
        k_aa, k_bb, k_ab = (cubic_kernel(u, v) for u, v in ((a, a), (b, b), (a, b)))
        off_diagonal = k_aa.sum() - k_aa.trace() + k_bb.sum() - k_bb.trace()
        values.append(off_diagonal / (size * (size - 1)) - 2 * k_ab.mean())
    stacked = torch.stack(values)
    return stacked.mean().item(), stacked.std(correction=0).item()


def moments_of(batches: Iterable[Float[Tensor, "_ 3 h w"]], net: FeatureNet, *, keep: int = KEEP) -> FeatureMoments:
    """Moments of the embeddings of pictures in [-1, 1], which are moved to the device of the network."""
    moments = FeatureMoments(net.dim, keep=keep, extractor=net.name, weights_hash=net.weights_hash)
    with torch.inference_mode():
        for x in batches:
            moments.update(net.embed(x.to(net.embed_mean.device)))
    return moments


def reference_moments(
    dataset: Any, net: FeatureNet, cache_dir: Path | str, *, batch_size: int = 128, keep: int = KEEP
) -> FeatureMoments:
    """Moments of a whole `ImageSet`, cached on disk under its fingerprint and the network's hash.

    A damaged file is set aside and computed again; where the cache cannot be written, nothing is kept. Several
    processes may call this at once.
    """
    from ldmlab.data.images import to_float

    # The version changes with the contents of a file and with their computation.
    key = sha256(f"moments-1|{dataset.fingerprint}|{net.name}|{net.weights_hash}|{keep}".encode()).hexdigest()[:24]
    path = Path(cache_dir) / f"moments-{key}.safetensors"

    def load(path: Path) -> FeatureMoments:
        moments = FeatureMoments.load(path)
        found = (moments.extractor, moments.weights_hash, moments.dim, moments.key or key)
        if found != (net.name, net.weights_hash, net.dim, key):
            raise DamagedFile(path, "it holds the features of other pictures, or by another network")
        return moments

    if (known := read_or_set_aside(path, load)) is not None:
        return known
    starts = range(0, len(dataset), batch_size)
    batches = (to_float(dataset.images(range(i, min(i + batch_size, len(dataset))))) for i in starts)
    moments = moments_of(batches, net, keep=keep)
    moments.key = key
    try:
        moments.save(path)
    except OSError as error:
        warnings.warn(f"features of {dataset.name} are not kept: {error}", stacklevel=2)
    return moments


def score_name(kind: str, real: FeatureMoments, fake: FeatureMoments) -> str:
    """Name of a score by its network: FD-lab, FD-referee or FID; ValueError for two networks, or one not for scores."""
    if real.extractor not in SCORING:
        raise ValueError(f"{real.extractor!r} is not a network for scores; accepted are {', '.join(SCORING)}")
    if (real.extractor, real.weights_hash) != (fake.extractor, fake.weights_hash):
        raise ValueError(
            f"the two sets have features of different networks: {real.extractor} {real.weights_hash[:8]} and "
            f"{fake.extractor} {fake.weights_hash[:8]}"
        )
    if real.extractor == INCEPTION:
        kind = kind.replace("FD", "FID")
    elif real.extractor == "effnet":
        kind = kind.replace("KID", "KD")
    return SCORING[real.extractor].format(kind)


def check_enough(dim: int, allow_few: bool = False, **counts: int) -> None:
    """Raise ValueError for a Fréchet distance of n <= d vectors: their covariance is singular, and the bias large.

    Above that the bias falls as 1/n: compare scores at equal n, or extrapolate (`uncertainty.frechet_infinity`).
    """
    if min(counts.values()) <= dim and not allow_few:
        given = " and ".join(f"{n} {what}" for what, n in counts.items())
        raise ValueError(
            f"{given} pictures are too few for {dim} features: a Fréchet distance needs {dim + 1} or more of each; "
            "take more, use the kernel distance (unbiased at any n), or pass allow_few=True for a test run"
        )


def frechet_score(
    real: FeatureMoments, fake: FeatureMoments, protocol: Mapping[str, Any] | None = None, *, allow_few: bool = False
) -> Score:
    """Fréchet distance as `FD-lab`, `FD-referee` or `FID`; ValueError for n <= d vectors unless `allow_few`."""
    name, about = score_name("FD", real, fake), (real.extractor, real.weights_hash)
    check_enough(real.dim, allow_few, real=real.n, generated=fake.n)
    return Score(frechet(real, fake), name, "1", real.n, fake.n, *about, dict(protocol or {}))


def kid_score(
    real: FeatureMoments, fake: FeatureMoments, protocol: Mapping[str, Any] | None = None, **options: int
) -> Score:
    """Kernel distance of the kept samples as `KID-lab`, `KID-referee` or `KID`; n are the sizes of the samples.

    `options` are those of `kid`; they and the deviation over subsets are added to the protocol.
    """
    name, about = score_name("KID", real, fake), (real.extractor, real.weights_hash)
    value, std = kid(real.sample, fake.sample, **options)
    protocol = {**(protocol or {}), **options, "std_over_subsets": std}
    return Score(value, name, "1", len(real.sample), len(fake.sample), *about, protocol)
