"""What a score costs beside torch-fidelity and scipy: Fréchet distance, Inception features.

`python benchmarks/evaluation.py [--device cuda] [--rounds N] [--only WORK] [--out FILE]`. The Fréchet distances are of
covariances with common eigenvectors, whose distance is known; how far each way is from it stands in `agreement`.
Inception has random weights of the right layout, the same file for all. With `--device cuda` only Inception is timed,
without TF32, and written to a file whose name ends in "_cuda": the rest runs on the CPU everywhere. About six minutes.
"""

import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from harness import Goal, Way, Work, agree, parse, run_table
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_statistics_to_metric

from ldmlab.data.images import to_float
from ldmlab.evaluation.distances import FeatureMoments, frechet, frechet_distance
from ldmlab.evaluation.inception import InceptionNet

FIDELITY, SCIPY = "torch-fidelity", "scipy.linalg.sqrtm"
LAYERS = ["2048", "logits_unbiased"]


def by_torch_fidelity(mu1: Tensor, cov1: Tensor, mu2: Tensor, cov2: Tensor) -> float:
    stats = ({"mu": mu.numpy(), "sigma": cov.numpy()} for mu, cov in ((mu1, cov1), (mu2, cov2)))
    return fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]


def by_scipy(mu1: Tensor, cov1: Tensor, mu2: Tensor, cov2: Tensor) -> float:
    """As the first scripts of the field have it."""
    root = scipy.linalg.sqrtm(cov1.numpy() @ cov2.numpy())
    return float((mu1 - mu2).square().sum() + cov1.trace() + cov2.trace() - 2 * np.trace(root).real)


def spectra(n: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two falling spectra of n entries in d dimensions and their common eigenvectors (d, n)."""
    i = torch.arange(n, dtype=torch.float64)
    vectors = torch.linalg.qr(torch.randn(d, n, dtype=torch.float64)).Q
    return (-6 * i / n).exp(), (-6 * i / n).exp() * (1 + 0.5 * torch.sin(i)), vectors


def relative_errors(truth: float, ways: list[Way], **accepted: float) -> dict[str, float]:
    """Of each way, by its name; AssertionError where more is off than is accepted."""
    off = {f"{way.name}, relative error": abs(way.run() - truth) / truth for way in ways}
    for name, most in accepted.items():
        if not off[f"{name}, relative error"] <= most:
            raise AssertionError(f"the Fréchet distance of {name} is off by more than {most:g}: {off}")
    return off


def full_rank(name: str, d: int = 2048) -> Work:
    """From moments of more vectors than dimensions."""
    torch.manual_seed(0)
    a, b, vectors = spectra(d, d)
    mu1, mu2 = 0.02 * torch.randn(2, d, dtype=torch.float64)
    given = (mu1, (vectors * a) @ vectors.T, mu2, (vectors * b) @ vectors.T)
    ways = [Way(FIDELITY, partial(by_torch_fidelity, *given), "peer"), Way(SCIPY, partial(by_scipy, *given), "peer"),
            Way("ours", partial(frechet_distance, *given), note="Cholesky, eigvalsh")]
    truth = float((mu1 - mu2).square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    return Work(name, ways, [Goal("ours", SCIPY, 5), Goal("ours", FIDELITY, 1.4)], unit="distances",
                agreement=relative_errors(truth, ways, ours=1e-12))


def few_vectors(name: str, n: int = 500, d: int = 2048) -> Work:
    """From moments of fewer vectors than dimensions: the peers see singular covariances."""
    torch.manual_seed(0)
    a, b, vectors = spectra(n - 1, d)
    ones = torch.ones(n, 1, dtype=torch.float64)
    moments = []
    for values in (a, b):
        # Rows of mean zero, with the given eigenvalues as their covariance's.
        rows = torch.linalg.qr(torch.cat([ones, torch.randn(n, n - 1, dtype=torch.float64)], 1)).Q[:, 1:]
        x = 0.02 * torch.randn(d, dtype=torch.float64) + ((n - 1) * values).sqrt() * rows @ vectors.T
        moments.append(FeatureMoments(d).update(x.float()))
    real, fake = moments
    given = (real.mean, real.cov, fake.mean, fake.cov)
    ways = [Way(FIDELITY, partial(by_torch_fidelity, *given), "peer"), Way(SCIPY, partial(by_scipy, *given), "peer"),
            Way("ours", partial(frechet, real, fake), note="SVD of the features")]
    truth = float((real.mean - fake.mean).square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    return Work(name, ways, [Goal("ours", SCIPY, 100)], unit="distances",
                agreement=relative_errors(truth, ways, ours=1e-6))


def random_inception(path: Path) -> None:
    """Weights of the right layout, scaled so that features neither vanish nor overflow."""

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            pass

    torch.save({}, path)
    model = Blank("inception-v3-compat", LAYERS, feature_extractor_weights_path=str(path))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), path)


def inception_features(name: str, device: torch.device, n: int = 32, side: int = 256) -> Work:
    """Features and logits of pictures as a sampler gives them; the peer is handed its bytes."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        random_inception(path)
        shipped, tuned = (FeatureExtractorInceptionV3("inception-v3-compat", LAYERS,
                                                      feature_extractor_weights_path=str(path)) for _ in range(2))
        net = InceptionNet(path).to(device)
    shipped, tuned = shipped.to(device), tuned.to(device, memory_format=torch.channels_last)
    x_bytes = torch.randint(256, (n, 3, side, side), dtype=torch.uint8).to(device)
    x, x_last = to_float(x_bytes), x_bytes.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def theirs(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        return model(x)

    @torch.inference_mode()
    def ours(bf16: bool = False) -> tuple[Tensor, ...]:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return net.features(x)

    expected, tuned_name = theirs(shipped, x_bytes), f"{FIDELITY} with channels_last"
    ways = [Way(FIDELITY, lambda: theirs(shipped, x_bytes), "peer"),
            Way(tuned_name, lambda: theirs(tuned, x_last), "peer"),
            Way("ours", ours, note="channels_last, BatchNorms folded"),
            Way("ours, bf16", lambda: ours(True), exact=False, note="never for reported FID")]
    agreement = agree(tuned_name, theirs(tuned, x_last), expected, 1e-5) | agree("ours", ours(), expected, 1e-5)
    agreement |= agree("ours, bf16", ours(True), expected, 0.1)
    goals = [Goal("ours", FIDELITY, 1.5 if device.type == "cuda" else 1.25), Goal("ours", tuned_name, 1)]
    return Work(name, ways, goals, n, "pictures", agreement=agreement)


def add_options(parser) -> None:
    parser.set_defaults(rounds=6)  # a call of sqrtm takes ten seconds
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def main() -> None:
    args = parse(__doc__, "evaluation", add_options)
    features = "Inception features, 32 pictures of 256 px, fp32"
    if args.device == "cuda":
        args.out = args.out.with_stem(f"{args.out.stem}_cuda")
        torch.backends.cudnn.allow_tf32 = False
        works = {f"{features}, GPU": partial(inception_features, device=torch.device("cuda"))}
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or the harness would make as many calls as a GPU needs
        works = {
            "Fréchet distance from moments, d = 2048": full_rank,
            "Fréchet distance of 500 vectors, d = 2048": few_vectors,
            features: partial(inception_features, device=torch.device("cpu")),
        }
    run_table("evaluation", [(name, partial(build, name)) for name, build in works.items()], args)


if __name__ == "__main__":
    main()
