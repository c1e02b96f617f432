"""How scores depend on number of pictures, resizing and extractor, on copies, and on sampler, model and first stage.

All of it goes into one record, which `figures.evaluation` and `figures.ranking` draw. Curves of the solvable world run
over DDIM steps, those of neighbours over quantiles.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ldmlab.data.images import quantize_8bit, to_float
from ldmlab.diffusion.samplers import ddim
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.solvable import Gaussian, random_field, sampled_law
from ldmlab.evaluation.distances import FeatureMoments, frechet, frechet_distance
from ldmlab.evaluation.distortions import degrade
from ldmlab.evaluation.reconstruction import psnr
from ldmlab.evaluation.uncertainty import frechet_interval, kernel_score
from ldmlab.experiments.metric_ranking import measure_ranking, measure_structure
from ldmlab.perception.lab_networks import feature_net
from ldmlab.perception.losses import PsimLoss
from ldmlab.study.records.record import Record, as_metrics
from ldmlab.study.runs.pictures import open_set
from ldmlab.study.runs.run import Run

NET = "effnet"
MOST = 512  # pictures that resizing is tried on
MOST_INCEPTION = 128  # of those, for Inception on a CPU, which takes seconds for ten
LARGE = 4  # pictures to be resized are so many times larger
GAME_PICTURES, GAME_STEPS = 128, (0, 2, 5, 10, 20, 30)
FIELD, DRAWS, CODE = 8, 2000, 24  # the solvable world: side, what its model has learned from, numbers in a latent
WORLD_STEPS = (2, 5, 10, 20, 50, 100, 200, 500)


def record_evaluation(run: Run) -> Record:
    """Measure all of it; loaded where that was done before, with the same models and networks."""
    record, loss = run.new_record(), feature_net("psim-lab")
    record.inputs |= {"denoiser": run.diffusion.hash, "perceptual": loss.weights_hash}
    record.inputs |= run.scorer.inputs("kd_effnet", "fd_lab", "fd_referee")
    try:
        record.inputs["inception"] = run.scorer.inception.weights_hash
    except FileNotFoundError:
        pass  # said in the events
    if (known := run.measured_before(record)) is not None:
        return known
    record.protocol |= run.scorer.protocol
    samples = quantize_8bit(run.scorer.sample(run.diffusion.model, len(run.pictures.val)))
    measure_number(run, record, samples)
    measure_resize(run, record)
    measure_ranking(run, record)
    measure_structure(run, record, samples)
    measure_game(run, record, PsimLoss(loss).to(run.device))
    measure_copies(run, record, samples)
    measure_world(record)
    return record


def pictures(run: Run, split: str, num: int) -> Float[Tensor, "n 3 h w"]:
    """`num` training or validation pictures, as `ImageSet.subset` draws them, in [-1, 1]."""
    images = getattr(run.pictures, split)
    return to_float(images.images(images.subset(num)))


def features(run: Run, x: Float[Tensor, "n 3 h w"], extractor: str = NET) -> FeatureMoments:
    """All feature vectors of pictures, and their moments."""
    return run.scorer.moments(x, extractor, batch_size=128, keep=0)


def part_of(moments: FeatureMoments, rows: Float[Tensor, "n d"]) -> FeatureMoments:
    """Moments of some of the vectors."""
    return FeatureMoments(moments.dim, keep=len(rows), extractor=moments.extractor,
                          weights_hash=moments.weights_hash).update(rows)


# --- 1. How many pictures ---------------------------------------------------------------------------------------------


def measure_number(run: Run, record: Record, samples: Float[Tensor, "n 3 h w"]) -> None:
    """FD-lab and KD-EffNet of real pictures and of samples against training ones, for N, N/2, N/4 and N/8 of them.

    FD-lab stands for every Fréchet distance: its few features leave room to halve N.
    """
    for key, x in (("real", pictures(run, "val", len(run.pictures.val))), ("samples", samples)):
        kept: dict[str, FeatureMoments] = {}
        scores = run.scorer.score(x, ("fd_lab", "fd_lab_infinity", "kd_effnet"), seed=0, features=kept)
        for name, score in scores.items():
            record.metrics |= as_metrics({f"{name}_{key}": score})
        least = 1 if run.scorer.is_smoke else run.scorer.net("fd-lab").dim
        for name, curve in by_number(run.scorer.reference("fd-lab"), kept["fd-lab"], least, run.scorer.num_resamples,
                                     run.spec.seed).items():
            record.curves[f"fd_lab_{name}_{key}"] = curve
        record.curves[f"kd_effnet_by_n_{key}"] = kernel_by_number(run.scorer.reference(NET), kept[NET], run.spec.seed)


def _shuffled_rows(moments: FeatureMoments, seed: int) -> Float[Tensor, "n d"]:
    return moments.sample[torch.from_numpy(np.random.default_rng(seed).permutation(len(moments.sample)))]


def by_number(real: FeatureMoments, fake: FeatureMoments, least: int, num_resamples: int,
              seed: int = 0) -> dict[str, list[list[float | int]]]:
    """Fréchet distance over the number of pictures, halved up to three times and above `least`: "by_n" of disjoint
    parts, the mean; "part" has every part, "reach" half the 95 % interval of one part.
    """
    rows = _shuffled_rows(fake, seed)
    curves: dict[str, list[list[float | int]]] = {name: [] for name in ("by_n", "part", "reach")}
    for n in (len(rows) // 2**i for i in range(4)):
        if n <= max(1, least) and n < len(rows):
            break
        parts = [part_of(fake, part) for part in rows.split(n) if len(part) == n]
        values = [frechet(real, part) for part in parts]
        interval = frechet_interval(real, parts[0], num_resamples=num_resamples)
        curves["by_n"].append([n, float(np.mean(values))])
        curves["part"] += [[n, value] for value in values]
        curves["reach"].append([n, interval.high - values[0]])
    return curves


def kernel_by_number(real: FeatureMoments, fake: FeatureMoments, seed: int = 0) -> list[list[float | int]]:
    """Kernel distance times 1000 over the number of pictures, halved up to three times: means over disjoint parts."""
    rows = _shuffled_rows(fake, seed)
    curve: list[list[float | int]] = []
    for n in (len(rows) // 2**i for i in range(4)):
        if n >= 5:
            parts = [part_of(fake, part) for part in rows.split(n) if len(part) == n]
            curve.append([n, float(np.mean([kernel_score(real, part, times=1000).value for part in parts]))])
    return curve


# --- 2. Resize --------------------------------------------------------------------------------------------------------


def _interpolated(mode: str, antialias: bool) -> Callable[[Tensor, int], Tensor]:
    return lambda x, size: F.interpolate(x, (size, size), mode=mode, antialias=antialias)


# The first is what the lab's own data go through.
KERNELS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "bicubic": _interpolated("bicubic", True),
    "bilinear": _interpolated("bilinear", True),
    "box": F.adaptive_avg_pool2d,
    "bicubic, not antialiased": _interpolated("bicubic", False),
    "bilinear, not antialiased": _interpolated("bilinear", False),
    "nearest": lambda x, size: F.interpolate(x, (size, size), mode="nearest-exact"),
}
JPEG = "bicubic, then JPEG 90"


def resized(x: Float[Tensor, "n 3 H W"], size: int) -> dict[str, Float[Tensor, "n 3 h w"]]:
    """The same pictures made small by each of `KERNELS`, in 8 bits; and by the first, saved as JPEG."""
    made = {name: quantize_8bit(kernel(x, size).clamp(-1, 1)) for name, kernel in KERNELS.items()}
    return made | {JPEG: degrade(next(iter(made.values())), "jpeg", 90)}


def large_pictures(run: Run, num: int) -> Float[Tensor, "n 3 H W"]:
    """Validation pictures of `LARGE` times the run's size."""
    data = run.spec.data
    images = open_set(data, "validation", num, size=LARGE * data.size)
    return to_float(images.images(range(len(images))))


def measure_resize(run: Run, record: Record) -> None:
    """Kernel distance between pictures made small by one kernel and the same pictures made small by another."""
    size = run.spec.data.size
    made = resized(large_pictures(run, min(MOST, run.spec.evaluation.num_samples)), size)
    extractors = {NET: "kd_effnet"}
    try:
        run.scorer.net("inception")
        extractors["inception"] = "kid"
    except FileNotFoundError as error:
        record.events.append(f"no KID of resized pictures: {error}")
    record.protocol["resized_from"] = LARGE * size
    for extractor, key in extractors.items():
        most = MOST_INCEPTION if key == "kid" and run.device.type == "cpu" else MOST
        resized_by = {name: features(run, x[:most], extractor) for name, x in made.items()}
        first = next(iter(resized_by.values()))
        for name, moments in list(resized_by.items())[1:]:
            record.metrics |= as_metrics({f"{key}_resize {name}": kernel_score(first, moments, times=1000)})


# --- 3. A network that trains ---------------------------------------------------------------------------------------


def measure_game(run: Run, record: Record, loss: PsimLoss) -> None:
    """Pictures changed step by step down the loss, and what PSNR and KD-EffNet say along the way."""
    x = pictures(run, "val", GAME_PICTURES)
    real = features(run, x)
    curves: dict[str, list[list[float | int]]] = {"game_loss": [], "game_kd_effnet": [], "game_psnr": []}
    for step, y in optimize_pixels(loss, x, degrade(x, "noise", 0.4, run.spec.seed)).items():
        with torch.no_grad():
            curves["game_loss"].append([step, loss(x.to(run.device), y.to(run.device)).mean().item()])
        score = kernel_score(real, features(run, quantize_8bit(y)), times=1000)
        curves["game_kd_effnet"].append([step, score.value])
        curves["game_psnr"].append([step, psnr(x, y).mean().item()])
    record.curves |= curves
    record.protocol["game_n"] = len(x)


def optimize_pixels(
    loss: PsimLoss, x: Float[Tensor, "n 3 h w"], start: Float[Tensor, "n 3 h w"], lr: float = 0.03
) -> dict[int, Float[Tensor, "n 3 h w"]]:
    """Gradient steps on the pixels of `start` down the loss to `x`; the pictures after each of `GAME_STEPS`."""
    device = next(loss.parameters()).device
    y, x, kept = start.clone().to(device).requires_grad_(), x.to(device), {}
    optimizer = torch.optim.Adam([y], lr)
    for step in range(GAME_STEPS[-1] + 1):
        if step in GAME_STEPS:
            kept[step] = y.detach().clamp(-1, 1).cpu()
        optimizer.zero_grad()
        loss(x, y).sum().backward()
        optimizer.step()
    return kept


# --- 4. Copies --------------------------------------------------------------------------------------------------------


def mock_generators(run: Run, samples: Float[Tensor, "n 3 h w"], num: int) -> dict[str, Float[Tensor, "num 3 h w"]]:
    """Four generators: the model, one that hands out training pictures, half and half, and one that is perfect."""
    rng, half, train = np.random.default_rng(run.spec.seed), num // 2, run.scorer.reference_set
    copies = to_float(train.images(rng.choice(len(train), num, replace=False).tolist()))
    shuffled = samples[torch.from_numpy(rng.permutation(len(samples))[:num])]
    unseen = pictures(run, "val", 2 * num)[num:]
    return {"model": shuffled, "copier": copies, "half": torch.cat([shuffled[:half], copies[half:]]), "unseen": unseen}


def measure_copies(run: Run, record: Record, samples: Float[Tensor, "n 3 h w"]) -> None:
    """KD-EffNet and memorisation of `mock_generators`, at equal numbers, against the same held-out pictures."""
    num = min(len(run.pictures.val) // 2, len(run.scorer.reference_set))
    train, held_out = run.scorer.reference_vectors, features(run, pictures(run, "val", num))
    for name, x in mock_generators(run, samples, num).items():
        fake = features(run, x)
        kd = run.scorer.score(fake, ("kd_effnet",))["kd_effnet"]
        score, ratio = run.scorer.memorisation(train, held_out, fake)
        record.metrics |= as_metrics({f"planted_kd_effnet_{name}": kd, f"memorisation_{name}": score})
        record.metrics[f"memorisation_{name}"] |= {key: score.protocol[key] for key in ("copies", "p_value")}
        steps = torch.linspace(0, 1, 41)
        record.curves[f"nearness_{name}"] = [[q, v] for q, v in zip(
            steps.tolist(), ratio.quantile(steps).tolist(), strict=True)]


def neighbours(run: Run, x: Float[Tensor, "n 3 h w"], k: int = 3) -> dict[str, Float[Tensor, "n 3 h w"]]:
    """Rows of a grid: pictures over their k nearest of the reference pictures, in EffNet's features [LDM v2, Fig. 32].
    """
    found = run.scorer.nearest(x, run.scorer.reference_vectors, k)
    return {f"neighbour {i + 1}": to_float(run.scorer.reference_set.images(found[:, i].tolist())) for i in range(k)}


# --- 5. A solvable distribution ---------------------------------------------------------------------------------------


def gaussian_distance(a: Gaussian, b: Gaussian) -> float:
    """Exact Fréchet distance of two Gaussians: no samples, no bias."""
    return frechet_distance(a.mean.flatten(), a.covariance, b.mean.flatten(), b.covariance)


def measure_world(record: Record) -> None:
    """Sampler, model and first stage, each with an error of known size, and the exact Fréchet distance that follows.

    The model is the best one could be after `DRAWS` pictures: it has their mean and covariance. The first stage
    keeps the `CODE` strongest of the model's waves: what is sampled of the others does not reach the picture.
    """
    world, schedule = random_field(FIELD), scaled_linear()
    rows = world.sample(DRAWS, torch.Generator().manual_seed(0))
    learned = Gaussian.from_covariance(rows.mean(0), torch.cov(rows.flatten(1).T))
    laws = {"sampler": (world, FIELD**2), "model": (learned, FIELD**2), "first_stage": (learned, CODE)}
    for name, (law, kept) in laws.items():
        record.curves[f"world_{name}"] = [
            [steps, gaussian_distance(sampled_law(ddim, law, schedule, steps).principal(kept), world)]
            for steps in WORLD_STEPS]
        record.metrics[f"world_{name}"] = {"value": gaussian_distance(law.principal(kept), world), "unit": "1",
                                           "name": "Fréchet distance of the law without a sampler"}
