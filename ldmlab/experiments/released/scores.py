"""A released model's row of the paper's tables, measured: its first stage's reconstructions and its samples."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.data.images import to_float, to_uint8
from ldmlab.diffusion.unet.unet import count_params
from ldmlab.evaluation.distances import frechet_score, kid_score, moments_of, reference_moments
from ldmlab.evaluation.inception import KEEP, InceptionNet, inception_scores
from ldmlab.evaluation.reconstruction import psnr, reconstruction_scores, ssim
from ldmlab.evaluation.uncertainty import frechet_interval, kid_interval, mean_interval
from ldmlab.experiments.released.run import ReleasedRun
from ldmlab.first_stage.reconstruct import reconstruct
from ldmlab.perception import feature_net, perceptual_loss
from ldmlab.study.config.paths import runs_dir
from ldmlab.study.records.record import Record, as_metrics
from ldmlab.study.training.progress import progress

BATCH = 8  # pictures of 256 px that a first stage takes at once on any machine


def record_released(run: ReleasedRun) -> Record:
    """Everything the paper's tables have of the model that can be measured here; loaded where that was done before."""
    record = run.new_record()
    net = feature_net("fd-lab").to(run.device)
    record.inputs["judge"] = net.weights_hash
    inception = _inception(run, record)
    record.inputs["inception"] = inception.weights_hash if inception else "none"
    if (known := record.stored()) is not None:
        print(f"{record.name}: measured {known.started}, loaded", flush=True)
        return known
    measure_reconstruction(run, record, net, inception)
    if run.samples_pictures:
        record.metrics["num_params"] = {"value": count_params(run.model.denoiser), "unit": "1"}
        measure_samples(run, record, net, inception)
    return record


def _inception(run: ReleasedRun, record: Record) -> InceptionNet | None:
    try:
        return InceptionNet().to(run.device)
    except FileNotFoundError as error:
        record.events.append(str(error))
        return None


def _enough(run: ReleasedRun, record: Record, dim: int, what: str, **counts: int) -> bool:
    """Whether a Fréchet distance means something; else an event. The paper's own 2048 samples are admitted."""
    own = run.target is not None and run.target.num_samples == counts.get("samples") == 2048
    if own or run.budget.is_smoke or min(counts.values()) > dim:
        return True
    given = ", ".join(f"{n} {name}" for name, n in counts.items())
    record.events.append(f"{what} left out: {given} for {dim} features")
    return False


def measure_reconstruction(run: ReleasedRun, record: Record, net, inception: InceptionNet | None) -> None:
    """PSNR, SSIM, perceptual distance, rFD-lab, and where possible rFID and r-IS, of validation pictures [Tab. 8]."""
    model, n = run.model.first_stage, len(run.val)
    few, resamples = run.budget.is_smoke, run.budget.num_resamples
    with progress(n, f"{run.stage_row.name}, reconstructions", unit="pictures") as bar:
        def rebuilt(x: Tensor) -> Tensor:
            bar.update(len(x))
            return reconstruct(model, x).to(x.device)

        scores = reconstruction_scores(rebuilt, run.val, net, perceptual_loss("auto"), batch_size=BATCH,
                                       device=run.device, num_resamples=resamples, allow_few=True)
    found = {"r_psnr": scores["psnr"], "r_ssim": scores["ssim"], "r_psim": scores["perceptual"]}
    if _enough(run, record, net.dim, "rFD-lab", pictures=n):
        found["rfd_lab"] = scores["rfd"]
    if inception and _enough(run, record, inception.dim, "Inception's rFID", pictures=n):
        real = reference_moments(run.val, inception, runs_dir() / "moments", keep=KEEP, batch_size=32)
        starts = (range(i, min(i + BATCH, n)) for i in range(0, n, BATCH))
        batches = (to_float(to_uint8(reconstruct(model, to_float(run.val.images(rows))))) for rows in starts)
        taken = inception_scores(real, batches, inception, allow_few=few)
        found |= {"r_fid": replace(taken["fid"], name=f"r{taken['fid'].name}"), "r_is": taken["inception_score"]}
    record.metrics |= as_metrics(found)


def measure_samples(run: ReleasedRun, record: Record, net, inception: InceptionNet | None) -> None:
    """FD-lab and KID-lab of the run's samples; with Inception FID, IS, precision, recall; of pairs PSNR and SSIM."""
    n, whole = run.num_samples, len(run.reference)
    few, resamples = run.budget.is_smoke, run.budget.num_resamples
    record.protocol |= {
        "sampler": "ddim", "num_steps": run.num_steps, "eta": run.eta, "ema": run.row.ema,
        "guidance_scale": run.params["guidance_scale"], "seed": run.seed, "quantization": "8 bits",
        "reference": run.reference.split, "reference_whole": run.reference.protocol["num"] is None,
        "reference_n": whole}
    real = reference_moments(run.reference, net, runs_dir() / "moments", batch_size=32)
    fake = moments_of(run.sampled(), net)
    found, options = {}, {"num_resamples": resamples, "seed": run.seed}
    if _enough(run, record, net.dim, "FD-lab", samples=n, reference=whole):
        found["fd_lab"] = replace(frechet_score(real, fake, allow_few=few), interval=frechet_interval(
            real, fake, **options))
    kid = kid_score(real, fake, subset_size=min(500, len(fake.sample), len(real.sample)))
    found["kid_lab"] = replace(kid, interval=kid_interval(real, fake, **options))
    if inception and _enough(run, record, inception.dim, "Inception's FID", samples=n, reference=whole):
        real = reference_moments(run.reference, inception, runs_dir() / "moments", keep=KEEP, batch_size=32)
        taken = inception_scores(real, run.sampled(), inception, allow_few=few or n == 2048)
        found |= {key: taken[key] for key in ("fid", "inception_score", "precision", "recall")}
    record.metrics |= as_metrics(found)
    if run.model.conditioner is not None and run.model.conditioner.kind in ("low_resolution", "mask"):
        record.metrics |= paired(run, run.sampled())


def paired(run: ReleasedRun, samples: Iterable[Float[Tensor, "_ 3 H W"]]) -> dict[str, dict]:
    """PSNR and SSIM of samples against the pictures that they were told of, as metrics."""
    values: dict[str, list[Tensor]] = {"psnr": [], "ssim": []}
    done = 0
    for x_hat in samples:
        x = to_float(run.val.images([i % len(run.val) for i in range(done, done + len(x_hat))]))
        values["psnr"].append(psnr(x, x_hat))
        values["ssim"].append(ssim(x, x_hat))
        done += len(x_hat)
    found = {}
    for key, unit in (("psnr", "dB"), ("ssim", "1")):
        v = torch.cat(values[key])
        interval = mean_interval(v)
        found[key] = {"value": v.mean().item(), "name": key.upper(), "unit": unit, "n_fake": done, "n_real": done,
                      "interval": {"low": interval.low, "high": interval.high, "level": interval.level,
                                   "method": interval.method}}
    return found
