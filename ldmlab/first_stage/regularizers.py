"""Regularizers of the latent space: a diagonal Gaussian posterior (KL) or vector quantizer (VQ) [LDM v2, Sec. 3.1]."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

_MAX_DISTANCES = 2**24  # (position, code) distances computed at a time: 64 MiB in float32


class DiagonalGaussian:
    """The posterior q(z|x) = N(mean, diag(exp(logvar))) of a KL first stage [LDM v2, App. G]."""

    def __init__(self, moments: Float[Tensor, "b c2 h w"]):
        """Split `moments` into mean and log-variance (clamped to [-30, 20]); ValueError for an odd channel count."""
        if moments.shape[1] % 2:
            raise ValueError(f"moments hold mean and logvar, so an even number of channels; got {tuple(moments.shape)}")
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.var = self.logvar.exp()
        self.std = (0.5 * self.logvar).exp()

    @property
    def moments(self) -> Float[Tensor, "b c2 h w"]:
        """Mean and clamped log-variance, concatenated."""
        return torch.cat([self.mean, self.logvar], dim=1)

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b c h w"]:
        """Sample z = mean + std * eps; `generator` may be on any device, None uses the global one."""
        device = self.mean.device if generator is None else generator.device
        eps = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * eps.to(self.mean.device)

    def mode(self) -> Float[Tensor, "b c h w"]:
        """Mode of the posterior: its mean."""
        return self.mean

    def kl_map(self, other: "DiagonalGaussian | None" = None) -> Float[Tensor, "b c h w"]:
        """KL(self || other) of every latent entry, in nats; `other` defaults to the standard normal."""
        if other is None:
            return 0.5 * (self.mean.square() + self.var - 1.0 - self.logvar)
        gap = (self.mean - other.mean).square() / other.var
        return 0.5 * (gap + self.var / other.var - 1.0 - self.logvar + other.logvar)

    def kl(self, other: "DiagonalGaussian | None" = None) -> Float[Tensor, " b"]:
        """KL(self || other) summed over a picture's latent, in nats [LDM v2, Eq. 25, L_reg]."""
        return self.kl_map(other).sum((1, 2, 3))

    def nll(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """-log q(z|x) summed over a picture's latent, in nats."""
        return 0.5 * (math.log(2.0 * math.pi) + self.logvar + (z - self.mean).square() / self.var).sum((1, 2, 3))


class CodebookUsage(NamedTuple):
    """Use of a codebook: `perplexity` = exp(entropy), from 1 to the number of codes; `num_used` codes in use."""

    perplexity: Float[Tensor, ""]
    num_used: Int[Tensor, ""]


def codebook_usage(counts: Float[Tensor, " n"] | Int[Tensor, " n"]) -> CodebookUsage:
    """Perplexity and number of codes in use, from the counts of each code."""
    p = counts / counts.sum().clamp(min=1)
    return CodebookUsage((-(p * (p + 1e-10).log()).sum()).exp(), (counts > 0).sum())


class Quantized(NamedTuple):
    """Output of the quantizer: `z_q` (straight-through gradient), `indices` of codes, `loss`, `counts` per code."""

    z_q: Float[Tensor, "b c h w"]
    indices: Int[Tensor, "b h w"]
    loss: Float[Tensor, ""]
    counts: Int[Tensor, " n"]


class VectorQuantizer(nn.Module):
    """Replaces every latent vector by its nearest code [VQ-VAE, Sec. 3.2; VQGAN, Eq. 2]."""

    counts: Int[Tensor, " n"]

    def __init__(self, num_codes: int, dim: int, commitment: float = 0.25, legacy: bool = False):
        """`commitment` is beta [VQ-VAE, Eq. 3]; with `legacy` it weighs the codebook term, not the commitment term."""
        super().__init__()
        self.commitment, self.legacy = commitment, legacy
        self.codebook = nn.Parameter(torch.empty(num_codes, dim).uniform_(-1.0 / num_codes, 1.0 / num_codes))
        self.register_buffer("counts", torch.zeros(num_codes, dtype=torch.long))  # choices since `reset_usage`
        self.register_load_state_dict_pre_hook(_fill_in_counts)

    @property
    def num_codes(self) -> int:
        """Number of codes."""
        return len(self.codebook)

    def nearest(self, z: Float[Tensor, "b c h w"]) -> Int[Tensor, "b h w"]:
        """Index of the code nearest to each latent vector."""
        flat = z.detach().movedim(1, -1).reshape(-1, z.shape[1])  # (b*h*w, c)
        codes = self.codebook.detach().to(flat.dtype)
        norms = codes.square().sum(1)
        # |z - e|^2 = |z|^2 + |e|^2 - 2 z.e, and |z|^2 is the same for every code.
        slices = flat.split(max(1, _MAX_DISTANCES // len(codes)))
        nearest = [torch.addmm(norms, part, codes.T, alpha=-2.0).argmin(1) for part in slices]
        return torch.cat(nearest).view(z.shape[0], *z.shape[2:])

    def embed(self, indices: Int[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
        """The codes with these `indices`, channels second."""
        return F.embedding(indices, self.codebook).movedim(-1, 1)

    def forward(self, z: Float[Tensor, "b c h w"]) -> Quantized:
        """Quantize z, with the codebook and commitment loss and a straight-through gradient [VQ-VAE, Eq. 3].

        Deviation: the released models were trained with `legacy=True`, which puts beta on the codebook term; the value
        of the loss is the same, its gradients differ. The default is VQ-VAE's: beta on the commitment term.
        """
        indices = self.nearest(z)
        chosen = indices.flatten()
        counts = torch.zeros_like(self.counts).index_add_(0, chosen, torch.ones_like(chosen))
        if self.training:
            self.counts += counts
        codes = self.embed(indices)
        commit, follow = F.mse_loss(z, codes.detach()), F.mse_loss(codes, z.detach())
        loss = commit + self.commitment * follow if self.legacy else self.commitment * commit + follow
        return Quantized(z + (codes - z).detach(), indices, loss, counts)

    def usage(self) -> CodebookUsage:
        """Use of the codebook in training steps since `reset_usage`."""
        return codebook_usage(self.counts)

    def reset_usage(self) -> None:
        """Set the counts of codes to zero."""
        self.counts.zero_()

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "b c h w"], generator: torch.Generator | None = None) -> None:
        """Deviation: set every code to a random latent vector of a batch; in the paper codes start near zero."""
        self._replace(torch.ones(self.num_codes, dtype=torch.bool, device=z.device), z, generator)

    @torch.no_grad()
    def revive_dead_codes(self, z: Float[Tensor, "b c h w"], generator: torch.Generator | None = None) -> int:
        """Deviation: set codes unused since `reset_usage` to random latent vectors; returns their number."""
        dead = (self.counts == 0) & (self.counts.sum() > 0)  # without any counts no code is known to be unused
        self._replace(dead, z, generator)
        return int(dead.sum())

    def _replace(
        self, which: Bool[Tensor, " n"], z: Float[Tensor, "b c h w"], generator: torch.Generator | None
    ) -> None:
        flat = z.detach().movedim(1, -1).reshape(-1, z.shape[1])
        if flat.shape[1] != self.codebook.shape[1]:
            raise ValueError(f"codes have {self.codebook.shape[1]} channels, latents {flat.shape[1]}")
        device = flat.device if generator is None else generator.device
        rank = torch.rand(max(self.num_codes, len(flat)), generator=generator, device=device).argsort().to(flat.device)
        chosen = flat[rank[: self.num_codes] % len(flat)]  # no vector is taken twice before each was taken once
        self.codebook[which] = chosen[which].to(self.codebook.dtype)


def _fill_in_counts(module: nn.Module, state: dict, prefix: str, *_: Any) -> None:
    """Add zero counts to a state dict without counts, such as those of released weights."""
    state.setdefault(f"{prefix}counts", torch.zeros_like(module.get_buffer("counts")))
