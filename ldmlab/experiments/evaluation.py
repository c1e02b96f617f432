"""What scores say and what they do not, measured: number of pictures, resize, extractor, copies, a solvable world.

All of it goes into one record, which `figures_evaluation` draws. Curves of degradations run over their strength, those
of the solvable world over DDIM steps, those of neighbours over quantiles.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from ldmlab.data.images import open_dataset, quantize_8bit, to_float
from ldmlab.diffusion.samplers import ddim
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.solvable import Gaussian, random_field, sampled_law
from ldmlab.evaluation.distances import (
    FeatureMoments,
    Score,
    frechet,
    frechet_distance,
    frechet_score,
    kid,
    moments_of,
    reference_moments,
)
from ldmlab.evaluation.distortions import degradation_curves, degrade
from ldmlab.evaluation.inception import InceptionNet
from ldmlab.evaluation.neighbours import memorisation_score, nearest, nearness_ratio
from ldmlab.evaluation.reconstruction import psnr
from ldmlab.evaluation.uncertainty import frechet_estimate, frechet_infinity, frechet_interval
from ldmlab.perception import FeatureNet, PsimLoss, feature_net
from ldmlab.study.config.paths import runs_dir
from ldmlab.study.records.compare import Series, grouped, study_records
from ldmlab.study.records.record import Record, as_metrics
from ldmlab.study.runs.run import Run

NETS = ("fd-lab", "referee")
MOST = 512  # pictures that resizing and degradations are tried on
MOST_FID = 128  # of those, for Inception on a CPU, which takes seconds for ten
LARGE = 4  # pictures to be resized are so many times larger
LADDERS = {"blur": (0.5, 1.0, 2.0), "noise": (0.05, 0.2, 0.8), "jpeg": (80.0, 25.0, 5.0), "shuffle": (2.0, 4.0, 8.0)}
GAME_PICTURES, GAME_STEPS = 128, (0, 2, 5, 10, 20, 30)
FIELD, DRAWS, CODE = 8, 2000, 24  # the solvable world: side, what its model has learned from, numbers in a latent
WORLD_STEPS = (2, 5, 10, 20, 50, 100, 200, 500)


def short(net: FeatureNet | str) -> str:
    """fd-lab -> fd_lab, referee -> fd_referee, as records call their scores; fid for Inception."""
    name = net if isinstance(net, str) else net.name
    return {"fd-lab": "fd_lab", "referee": "fd_referee"}.get(name, "fid")


def record_evaluation(run: Run) -> Record:
    """Measure all five; loaded where that was done before, with the same models and networks."""
    nets = run.scorer.nets
    record = run.new_record()
    record.inputs |= {"denoiser": run.diffusion.hash} | {name: net.weights_hash for name, net in nets.items()}
    if (known := run.measured_before(record)) is not None:
        return known
    record.protocol |= run.scorer.protocol
    samples = quantize_8bit(run.scorer.sample(run.diffusion.model, len(run.pictures.val)))
    measure_number(run, record, samples)
    measure_resize(run, record)
    measure_extractors(run, record)
    measure_game(run, record)
    measure_copies(run, record, samples)
    measure_world(record)
    return record


def pictures(run: Run, split: str, num: int) -> Float[Tensor, "n 3 h w"]:
    """The first `num` training or validation pictures, in [-1, 1]."""
    images = getattr(run.pictures, split)
    return to_float(images.images(range(min(num, len(images)))))


def look(x: Float[Tensor, "n 3 h w"], net: FeatureNet, keep: int = 0) -> FeatureMoments:
    """Moments of pictures, with all of their vectors."""
    return moments_of(x.split(128), net, keep=keep or len(x))


def part_of(moments: FeatureMoments, rows: Float[Tensor, "n d"]) -> FeatureMoments:
    """Moments of some of the vectors."""
    about = {"extractor": moments.extractor, "weights_hash": moments.weights_hash}
    return FeatureMoments(moments.dim, keep=len(rows), **about).update(rows)


def _estimate(run: Run, real: FeatureMoments, fake: FeatureMoments) -> Score:
    """Fréchet distance and interval as this run's scorer takes them."""
    scorer = run.scorer
    return frechet_estimate(real, fake, allow_few=scorer.is_smoke, num_resamples=scorer.num_resamples)


# --- 1. How many pictures ---------------------------------------------------------------------------------------------


def measure_number(run: Run, record: Record, samples: Float[Tensor, "n 3 h w"]) -> None:
    """FD-lab and KID-lab of real pictures and of samples against training pictures, for N, N/2, N/4 and N/8 of them."""
    net, real = run.scorer.nets["fd-lab"], run.scorer.reference("fd-lab")
    for key, x in (("real", pictures(run, "val", len(run.pictures.val))), ("samples", samples)):
        fake = look(x, net)
        record.metrics |= as_metrics({f"fd_lab_{key}": _estimate(run, real, fake)})
        least = 1 if run.scorer.is_smoke else net.dim
        record.curves |= by_number(real, fake, least, run.scorer.num_resamples, f"_{key}", run.spec.seed)
        if fake.n >= 4 * net.dim:
            record.metrics |= as_metrics({f"fd_lab_infinity_{key}": frechet_infinity(real, fake)})


def by_number(real: FeatureMoments, fake: FeatureMoments, least: int, num_resamples: int, key: str = "",
              seed: int = 0) -> dict[str, list[list[float | int]]]:
    """Curves over the number of pictures, halved up to three times and above `least`: means over disjoint parts.

    `fd_lab_by_n` and `kid_lab_by_n`; `fd_lab_part` has every part, `fd_lab_reach` half the 95 % interval of one part.
    """
    rows = fake.sample[torch.from_numpy(np.random.default_rng(seed).permutation(len(fake.sample)))]
    curves = {f"{name}{key}": [] for name in ("fd_lab_by_n", "fd_lab_part", "fd_lab_reach", "kid_lab_by_n")}
    for n in (len(rows) // 2**i for i in range(4)):
        if n <= max(1, least) and n < len(rows):
            break
        parts = [part_of(fake, part) for part in rows.split(n) if len(part) == n]
        values = [frechet(real, part) for part in parts]
        interval = frechet_interval(real, parts[0], num_resamples=num_resamples)
        kids = [kid(real.sample, part.sample, num_subsets=4, subset_size=n)[0] for part in parts]
        curves[f"fd_lab_by_n{key}"].append([n, float(np.mean(values))])
        curves[f"fd_lab_part{key}"] += [[n, value] for value in values]
        curves[f"fd_lab_reach{key}"].append([n, interval.high - values[0]])
        curves[f"kid_lab_by_n{key}"].append([n, float(np.mean(kids))])
    return curves


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
    images = open_dataset(data.name, size=LARGE * data.size, split="validation", num=num, seed=0)
    return to_float(images.images(range(len(images))))


def measure_resize(run: Run, record: Record) -> None:
    """Fréchet distance between pictures made small by one kernel and the same pictures made small by another."""
    few, size = run.scorer.is_smoke, run.spec.data.size
    made = resized(large_pictures(run, min(MOST, run.spec.evaluation.num_samples)), size)
    nets = dict(run.scorer.nets)
    try:
        nets["inception"] = InceptionNet().to(run.device)
        record.events.append("FID of resized pictures: fewer pictures than features: compare them among themselves")
    except FileNotFoundError as error:
        record.events.append(f"no FID of resized pictures: {error}")
    record.protocol["resized_from"] = LARGE * size
    for net in nets.values():
        most = MOST_FID if short(net) == "fid" and run.device.type == "cpu" else MOST
        seen = {name: look(x[:most], net) for name, x in made.items()}
        first = next(iter(seen.values()))
        for name, moments in list(seen.items())[1:]:
            # Of the same pictures, so that most of the bias cancels: Inception has more features than pictures here.
            score = frechet_score(first, moments, allow_few=few or short(net) == "fid")
            if short(net) != "fid":
                score = replace(score, interval=frechet_interval(
                    first, moments, over="pairs", num_resamples=run.scorer.num_resamples))
            record.metrics |= as_metrics({f"{short(net)}_resize {name}": score})


# --- 3. Who looks -----------------------------------------------------------------------------------------------------


def measure_extractors(run: Run, record: Record) -> None:
    """Each network's distance to training pictures of spoiled ones, and how alike the two networks order them."""
    x, reference = pictures(run, "val", MOST), pictures(run, "train", MOST)
    orders = []
    for name in NETS:
        found = degradation_curves(x, reference, run.scorer.nets[name], LADDERS)
        for kind, (floor, *values) in found.items():
            record.curves[f"{short(name)}_{kind}"] = [list(p) for p in zip(LADDERS[kind], values, strict=True)]
            record.metrics[f"{short(name)}_floor"] = {"value": floor, "unit": "1", "n_fake": len(x),
                                                      "n_real": len(reference), "extractor": name}
        orders.append([value for _, *values in found.values() for value in values])
    record.metrics["rank_correlation"] = {"value": float(spearmanr(*orders).statistic), "unit": "1",
                                          "n": len(orders[0]), "name": "Spearman, FD-lab and FD-referee"}


def scored_by_both(data: str, tier: str, size: int = 0) -> list[Series]:
    """The runs of 04_tradeoff that compare and that both scoring networks have judged."""
    records, _ = study_records(data, tier, size)
    return grouped([r for r in records if {"fd_lab", "fd_referee"} <= set(r.metrics)])


def measure_game(run: Run, record: Record) -> None:
    """Pictures changed step by step to please the network of the loss, and what the others say along the way."""
    x = pictures(run, "val", GAME_PICTURES)
    loss, net = PsimLoss(feature_net("psim-lab")).to(run.device), run.scorer.nets["fd-lab"]
    real, curves = look(x, net), {"game_loss": [], "game_fd_lab": [], "game_psnr": []}
    for step, y in optimize_pixels(loss, x, degrade(x, "noise", 0.4, run.spec.seed)).items():
        with torch.no_grad():
            curves["game_loss"].append([step, loss(x.to(run.device), y.to(run.device)).mean().item()])
        curves["game_fd_lab"].append([step, frechet(real, look(quantize_8bit(y), net))])
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


def training_vectors(run: Run) -> FeatureMoments:
    """Every training picture as FD-lab sees it, in order; kept on disk."""
    train = run.pictures.train
    return reference_moments(train, run.scorer.nets["fd-lab"], runs_dir() / "moments", keep=len(train))


def mock_generators(run: Run, samples: Float[Tensor, "n 3 h w"], num: int) -> dict[str, Float[Tensor, "num 3 h w"]]:
    """Four generators: the model, one that hands out training pictures, half and half, and one that is perfect."""
    rng, half = np.random.default_rng(run.spec.seed), num // 2
    copies = to_float(run.pictures.train.images(rng.choice(len(run.pictures.train), num, replace=False)))
    shuffled = samples[torch.from_numpy(rng.permutation(len(samples))[:num])]
    unseen = to_float(run.pictures.val.images(range(num, 2 * num)))
    return {"model": shuffled, "copier": copies, "half": torch.cat([shuffled[:half], copies[half:]]), "unseen": unseen}


def measure_copies(run: Run, record: Record, samples: Float[Tensor, "n 3 h w"]) -> None:
    """FD-lab and memorisation of `mock_generators`, at equal numbers, against the same held-out pictures."""
    num = len(run.pictures.val) // 2
    net, train, real = run.scorer.nets["fd-lab"], training_vectors(run), run.scorer.reference("fd-lab")
    held_out = look(pictures(run, "val", num), net)
    for name, x in mock_generators(run, samples, num).items():
        seen = look(x, net)
        fd = _estimate(run, real, seen)
        score = memorisation_score(train, held_out, seen)
        record.metrics |= as_metrics({f"planted_fd_lab_{name}": fd, f"memorisation_{name}": score})
        record.metrics[f"memorisation_{name}"] |= {key: score.protocol[key] for key in ("copies", "p_value")}
        ratio, steps = nearness_ratio(seen.sample, train.sample, held_out.sample), torch.linspace(0, 1, 41)
        record.curves[f"nearness_{name}"] = [[q, v] for q, v in zip(
            steps.tolist(), ratio.quantile(steps).tolist(), strict=True)]


def neighbours(run: Run, x: Float[Tensor, "n 3 h w"], k: int = 3) -> dict[str, Float[Tensor, "n 3 h w"]]:
    """Rows of a grid: pictures over their k nearest training pictures in FD-lab's features [LDM v2, Fig. 32-34]."""
    _, found = nearest(look(x, run.scorer.nets["fd-lab"]).sample, training_vectors(run).sample, k)
    return {f"neighbour {i + 1}": to_float(run.pictures.train.images(found[:, i].tolist())) for i in range(k)}


# --- 5. A world with a known answer -----------------------------------------------------------------------------------


def gaussian_distance(a: Gaussian, b: Gaussian) -> float:
    """Fréchet distance of two known laws: no samples, no bias."""
    return frechet_distance(a.mean.flatten(), a.covariance, b.mean.flatten(), b.covariance)


def measure_world(record: Record) -> None:
    """Sampler, model and first stage, each wrong in a known way, and the Fréchet distance of the exact laws.

    The model is the best one could be after `DRAWS` pictures: it believes their mean and covariance. The first stage
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
