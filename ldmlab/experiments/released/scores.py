"""Scores of a released model for its rows in the paper's tables: of reconstructions and of samples."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.data.images import quantize_8bit, to_float
from ldmlab.diffusion.unet.unet import count_params
from ldmlab.evaluation.distances import Score
from ldmlab.evaluation.inception import InceptionNet
from ldmlab.evaluation.reconstruction import psnr, ssim
from ldmlab.evaluation.uncertainty import mean_score
from ldmlab.experiments.released.run import ReleasedRun
from ldmlab.first_stage.reconstruct import reconstruct
from ldmlab.study.records.record import Record, as_metrics
from ldmlab.study.runs.scoring import Scorer
from ldmlab.study.training.progress import progress

BATCH = 8  # pictures of 256 px per batch of a first stage


def record_released(run: ReleasedRun) -> Record:
    """Measure all scores of the model that the paper's tables have; loaded if they were measured before."""
    record = run.new_record()
    scorer = Scorer(run.device, seed=run.seed, is_smoke=run.budget.is_smoke,
                    num_resamples=run.budget.num_resamples)
    record.inputs |= scorer.inputs("fd_lab", perceptual=True)
    inception = _inception(scorer, record)
    if inception:
        record.inputs["inception"] = inception.weights_hash
    if (known := record.stored()) is not None:
        print(f"{record.name}: measured {known.started}, loaded", flush=True)
        return known
    measure_reconstruction(run, record, scorer, inception)
    if run.samples_pictures:
        record.metrics["num_params"] = {"value": count_params(run.model.denoiser), "unit": "1"}
        measure_samples(run, record, scorer, inception)
    return record


def _inception(scorer: Scorer, record: Record) -> InceptionNet | None:
    try:
        return scorer.inception
    except FileNotFoundError as error:
        record.events.append(str(error))
        return None


def _enough(run: ReleasedRun, record: Record, dim: int, what: str, **counts: int) -> bool:
    """Whether the pictures suffice for a Fréchet distance, else an event is recorded; the paper's 2048 are accepted."""
    own = run.target is not None and run.target.num_samples == counts.get("samples") == 2048
    if own or run.budget.is_smoke or min(counts.values()) > dim:
        return True
    given = ", ".join(f"{n} {name}" for name, n in counts.items())
    record.events.append(f"{what} left out: {given} for {dim} features")
    return False


def measure_reconstruction(
    run: ReleasedRun, record: Record, scorer: Scorer, inception: InceptionNet | None
) -> None:
    """Add PSNR [dB], SSIM, perceptual distance, rFD-lab and, if possible, rFID and r-IS to a record [Tab. 8]."""
    model, n = run.model.first_stage, len(run.val)
    with progress(n, f"{run.stage_row.name}, reconstructions", unit="pictures") as bar:
        def rebuilt(x: Tensor) -> Tensor:
            bar.update(len(x))
            return reconstruct(model, x).to(x.device)

        scores = scorer.score_reconstructions(rebuilt, run.val, batch_size=BATCH, with_lpips=True)
    record.events += scorer.missing
    found = {"r_psnr": scores["psnr"], "r_ssim": scores["ssim"], "r_psim": scores["perceptual"]}
    found |= {"r_lpips_alex": scores["lpips_alex"]} if "lpips_alex" in scores else {}
    if _enough(run, record, scorer.nets["fd-lab"].dim, "rFD-lab", pictures=n):
        found["rfd_lab"] = scores["rfd"]
    if inception and _enough(run, record, inception.dim, "Inception's rFID", pictures=n):
        starts = (range(i, min(i + BATCH, n)) for i in range(0, n, BATCH))
        batches = (quantize_8bit(reconstruct(model, to_float(run.val.images(rows)))) for rows in starts)
        taken = scorer.inception_scores(batches, scorer.inception_moments(run.val))
        found |= {"r_fid": replace(taken["fid"], name=f"r{taken['fid'].name}"), "r_is": taken["inception_score"]}
    record.metrics |= as_metrics(found)


def measure_samples(run: ReleasedRun, record: Record, scorer: Scorer, inception: InceptionNet | None) -> None:
    """Add FD-lab and KID-lab of the run's samples to a record.

    With Inception also FID, IS, precision and recall; for restoration also PSNR and SSIM.
    """
    n, whole = run.num_samples, len(run.reference)
    record.protocol |= {
        "sampler": "ddim", "num_steps": run.num_steps, "eta": run.eta, "ema": run.row.ema,
        "guidance_scale": run.params["guidance_scale"], "seed": run.seed, "quantization": "8 bits",
        "reference": run.reference.split, "reference_whole": run.reference.protocol["num"] is None,
        "reference_n": whole}
    real, fake = scorer.moments_of_set(run.reference, batch_size=32), scorer.moments(run.sampled())
    enough = _enough(run, record, scorer.nets["fd-lab"].dim, "FD-lab", samples=n, reference=whole)
    found = scorer.score(fake, ("fd_lab", "kid_lab") if enough else ("kid_lab",), reference=real)
    if inception and _enough(run, record, inception.dim, "Inception's FID", samples=n, reference=whole):
        taken = scorer.inception_scores(run.sampled(), scorer.inception_moments(run.reference),
                                        allow_few=run.budget.is_smoke or n == 2048)
        found |= {key: taken[key] for key in ("fid", "inception_score", "precision", "recall")}
    record.metrics |= as_metrics(found)
    if run.model.conditioner is not None and run.model.conditioner.kind in ("low_resolution", "mask"):
        record.metrics |= as_metrics(paired(run, run.sampled()))


def paired(run: ReleasedRun, samples: Iterable[Float[Tensor, "_ 3 H W"]]) -> dict[str, Score]:
    """PSNR [dB] and SSIM of samples against the pictures of their conditions."""
    values: dict[str, list[Tensor]] = {"psnr": [], "ssim": []}
    done = 0
    for x_hat in samples:
        x = to_float(run.val.images([i % len(run.val) for i in range(done, done + len(x_hat))]))
        values["psnr"].append(psnr(x, x_hat))
        values["ssim"].append(ssim(x, x_hat))
        done += len(x_hat)
    return {key: mean_score(torch.cat(values[key]), key.upper(), unit) for key, unit in (("psnr", "dB"), ("ssim", "1"))}
