"""The losses of a first stage: reconstruction, perceptual, adversarial, regularization [LDM v2, App. G].

Autoencoder and discriminator share one forward pass of the autoencoder. The loss terms on the reconstruction x_rec are
differentiated down to x_rec only. The two gradients there give the adversarial weight lambda, and their weighted sum is
propagated through the autoencoder once. The autoencoder's loss gives the discriminator's parameters no gradient,
and the discriminator's loss gives the autoencoder none.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

PerceptualDistance = Callable[[Tensor, Tensor], Tensor]


class ActNorm(nn.Module):
    """Per-channel shift and scale that make the first training batch zero-mean and unit-variance [Glow, Sec. 3.1]."""

    initialized: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))
        self._initialized = False  # `initialized` was read, which waits for a GPU: once is enough

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if self.training and not self._initialized:
            if not self.initialized:
                with torch.no_grad():
                    self.loc.copy_(-h.mean((0, 2, 3), keepdim=True))
                    self.scale.copy_(1.0 / (h.std((0, 2, 3), keepdim=True) + 1e-6))
                    self.initialized.fill_(1)
            self._initialized = True
        return self.scale * (h + self.loc)


class PatchDiscriminator(nn.Module):
    """One logit for each overlapping patch: real or reconstructed [pix2pix, Sec. 3.2.2; VQGAN, Sec. 3.2]."""

    def __init__(self, num_layers: int = 3, ch: int = 64, norm: str = "batch", in_channels: int = 3):
        """`num_layers` strided convolutions with `ch`, 2 `ch`, ... (8 `ch` at most) channels, and two unstrided.

        `norm` is "batch" or "actnorm"; ValueError for others, and for `num_layers` < 1.
        """
        super().__init__()
        if norm not in ("batch", "actnorm"):
            raise ValueError(f"norm must be 'batch' or 'actnorm', got {norm!r}")
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        make_norm = nn.BatchNorm2d if norm == "batch" else ActNorm
        widths = [ch * min(2**i, 8) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, ch, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, num_layers + 1):
            stride = 1 if i == num_layers else 2
            # BatchNorm subtracts the mean, so that a bias before it would do nothing.
            conv = nn.Conv2d(widths[i - 1], widths[i], 4, stride, padding=1, bias=norm != "batch")
            layers += [conv, make_norm(widths[i]), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.layers.apply(_init_discriminator)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h2 w2"]:
        """Logits, one a patch; high for real pictures."""
        return self.layers(x)


def _init_discriminator(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def hinge_loss(logits_real: Float[Tensor, "..."], logits_fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The discriminator's loss, [mean(1 - real)+ + mean(1 + fake)+] / 2 [VQGAN, released code]."""
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())


def adaptive_weight(nll_grad: Float[Tensor, "..."], g_grad: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """lambda = |grad nll| / (|grad g| + 1e-4), at most 1e4, from gradients at the decoder's last layer [VQGAN, Eq. 7].

    Deviation: the paper writes delta = 1e-6; 1e-4 and the bound are the released code's.
    """
    return (nll_grad.norm() / (g_grad.norm() + 1e-4)).clamp(0.0, 1e4).detach()


class GeneratorTerms(NamedTuple):
    """`loss` is to be differentiated; the other terms, detached and before their weights, are to be logged."""

    loss: Float[Tensor, ""]
    nll: Float[Tensor, ""]  # L_rec: reconstruction and perceptual term together
    l1: Float[Tensor, ""]  # mean over pictures and pixels
    perceptual: Float[Tensor, ""]  # mean over pictures
    adversarial: Float[Tensor, ""]  # -L_adv: minus the mean logit of the reconstructions
    adversarial_weight: Float[Tensor, ""]  # lambda, times disc_weight
    reg: Float[Tensor, ""]  # L_reg


class FirstStageLoss(nn.Module):
    """The losses of autoencoder and discriminator; the discriminator is a submodule."""

    logvar: Tensor

    def __init__(
        self,
        perceptual: PerceptualDistance,
        discriminator: nn.Module,
        *,
        disc_start: int,
        reduction: str,
        reg_weight: float,
        perceptual_weight: float = 1.0,
        disc_weight: float = 1.0,
        logvar: float = 0.0,
    ):
        """The released KL models are trained with `reduction="sum"` (over a picture), the VQ models with "mean".

        `perceptual(x, x_rec)` returns one distance a picture. The adversarial term counts from step `disc_start` on.
        `logvar` is the log-scale of the likelihood, which is 0 in the released models. ValueError for other reductions.
        """
        super().__init__()
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
        self.perceptual, self.discriminator = perceptual, discriminator
        self.disc_start, self.reduction, self.reg_weight = disc_start, reduction, reg_weight
        self.perceptual_weight, self.disc_weight = perceptual_weight, disc_weight
        # A parameter in the released code, but in no optimizer; a buffer says so. Its VQ models have none.
        self.register_buffer("logvar", torch.tensor(float(logvar)), persistent=reduction == "sum")

    def adversary_active(self, step: int) -> bool:
        """Whether the adversarial term counts, and the discriminator learns, at this step of training."""
        return step >= self.disc_start and self.disc_weight > 0

    def reconstruction_terms(
        self, x: Float[Tensor, "b c h w"], x_rec: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """(nll, l1, perceptual): L_rec, and its two parts as means over pictures, before their weights.

        L_rec is (|x - x_rec| + perceptual_weight d) / exp(logvar) + logvar, summed over a picture or averaged over all
        entries. With `reduction="sum"` the one perceptual distance d of a picture counts at each of its c*h*w entries.
        """
        l1 = (x - x_rec).abs()
        distance = self.perceptual(x, x_rec).reshape(-1, 1, 1, 1)
        nll = (l1 + self.perceptual_weight * distance) / self.logvar.exp() + self.logvar
        nll = nll.sum() / len(x) if self.reduction == "sum" else nll.mean()
        return nll, l1.mean(), distance.mean()

    def adversarial_term(self, x_rec: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """-L_adv, for the autoencoder to minimise: minus the mean logit of its reconstructions."""
        return -self.discriminator(x_rec).mean()

    def generator_terms(
        self,
        x: Float[Tensor, "b c h w"],
        x_rec: Float[Tensor, "b c h w"],
        reg_loss: Float[Tensor, ""],
        last_layer: Tensor,
        step: int,
    ) -> GeneratorTerms:
        """The autoencoder's part of min_{E,D} max_psi (L_rec - L_adv + log D_psi + L_reg) [LDM v2, Eq. 25].

        (1) L_rec, (2) -lambda L_adv and (4) reg_weight L_reg, summed. (3), log D_psi, depends on the discriminator
        alone: it is minus `discriminator_loss`. `last_layer` is the decoder's last weight. `.loss.backward()` gives
        gradients to all that `x_rec` and `reg_loss` are computed from, and none to the discriminator. Without a graph
        (validation) lambda is 0.

        Deviation: before `disc_start` the discriminator is not run, which changes only BatchNorm's running averages.
        """
        if not x_rec.requires_grad:
            rec, l1, distance = self.reconstruction_terms(x, x_rec.float())
            zero = rec.new_zeros(())
            return GeneratorTerms(rec + self.reg_weight * reg_loss, rec, l1, distance, zero, zero, reg_loss)

        # (1) L_rec(x, D(E(x))) and its gradient with respect to the reconstruction.
        leaf = x_rec.detach().float().requires_grad_()
        rec, l1, distance = self.reconstruction_terms(x, leaf)
        (gradient,) = torch.autograd.grad(rec, leaf)

        # (2) -L_adv(D(E(x))), weighted by lambda so that both gradients are equally long at the last layer.
        adversarial = weight = rec.new_zeros(())
        if self.adversary_active(step):
            adversarial = self.adversarial_term(leaf)
            (g_gradient,) = torch.autograd.grad(adversarial, leaf)
            at_last_layer = (_at_last_layer(x_rec, last_layer, grad) for grad in (gradient, g_gradient))
            weight = self.disc_weight * adaptive_weight(*at_last_layer)
            gradient = gradient + weight * g_gradient
        on_x_rec = _WithGradient.apply(x_rec, (rec + weight * adversarial).detach(), gradient)

        # (4) L_reg(x; E, D): KL divergence or codebook loss.
        loss = on_x_rec + self.reg_weight * reg_loss
        logged = (term.detach() for term in (rec, l1, distance, adversarial, weight, reg_loss))
        return GeneratorTerms(loss, *logged)

    def discriminator_loss(
        self, x: Float[Tensor, "b c h w"], x_rec: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """(hinge loss, mean real logit, mean fake logit): the first, to be minimised, stands for (3) -log D_psi(x).

        Deviation: with the x_rec of the autoencoder's own pass, the discriminator sees the reconstruction from before
        that update, while the released code makes another one after it, as does `FirstStageModule(exact=True)`.
        """
        real, fake = self.discriminator(x.detach()), self.discriminator(x_rec.detach().float())
        return hinge_loss(real, fake), real.detach().mean(), fake.detach().mean()


def _at_last_layer(x_rec: Tensor, last_layer: Tensor, gradient: Tensor) -> Tensor:
    """The gradient at the last layer that `gradient` at x_rec gives."""
    return torch.autograd.grad(x_rec, last_layer, gradient.to(x_rec.dtype), retain_graph=True)[0].float()


class _WithGradient(torch.autograd.Function):
    """A function of x_rec whose value and gradient are computed already: the latter is used in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_rec: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = x_rec.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        return (grad_output * ctx.saved_tensors[0]).to(ctx.dtype), None, None
