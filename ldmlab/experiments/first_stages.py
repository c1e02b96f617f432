"""Taking a trained model apart: its latents, its reconstructions, noise put in, the sampler's way from noise."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.diffusion.schedules import Schedule
from ldmlab.first_stage.autoencoder import AutoencoderKL, AutoencoderVQ, FirstStage
from ldmlab.first_stage.latents import LatentStats
from ldmlab.first_stage.reconstruct import device_of, latents_of
from ldmlab.first_stage.regularizers import codebook_usage
from ldmlab.study.runs.run import Run


def sampled_latents(run: Run, num: int, seed: int = 0) -> Float[Tensor, "n c h w"]:
    """z of `num` training pictures, as `ImageSet.subset` draws them, from their cached posteriors, not yet scaled."""
    moments = run.latents.__getitems__(run.pictures.train.subset(num))["moments"]
    return run.first_stage.model.sample_latent(moments, torch.Generator().manual_seed(seed))


@torch.inference_mode()
def regularizer_report(first_stage: FirstStage, x: Float[Tensor, "n 3 H W"]) -> dict[str, float]:
    """What the regularizer did to the latents of `x`: width of the posterior and KL, or how many codes are used."""
    moments = first_stage.moments(x.to(device_of(first_stage)))
    if isinstance(first_stage, AutoencoderKL):
        posterior = first_stage.encode(x.to(device_of(first_stage)))
        return {"latent std": float(posterior.mean.std()), "posterior std (mean)": float(posterior.std.mean()),
                "KL [nats per picture]": float(posterior.kl().mean())}
    if isinstance(first_stage, AutoencoderVQ):
        codes = first_stage.quantizer.nearest(moments).flatten()
        usage = codebook_usage(torch.bincount(codes, minlength=first_stage.quantizer.num_codes))
        return {"latent std": float(moments.std()), "codes": first_stage.quantizer.num_codes,
                "codes used": int(usage.num_used), "perplexity": float(usage.perplexity)}
    return {"latent std": float(moments.std())}


@torch.inference_mode()
def noised(
    first_stage: FirstStage, stats: LatentStats, schedule: Schedule, x: Float[Tensor, "1 3 H W"], ts: Sequence[int],
    seed: int = 0,
) -> Float[Tensor, "n 3 H W"]:
    """One picture's z_t at several t, all with the same noise, as the decoder sees them."""
    z0 = stats.scale(latents_of(first_stage, x)).expand(len(ts), -1, -1, -1)
    eps = torch.randn(z0.shape[1:], generator=torch.Generator().manual_seed(seed)).expand_as(z0)
    z_t = schedule.to("cpu").q_sample(z0, torch.tensor(list(ts)), eps)
    return first_stage.decode(stats.unscale(z_t).to(device_of(first_stage))).clamp(-1, 1).cpu()




