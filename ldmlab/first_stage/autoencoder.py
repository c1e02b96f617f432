"""First stages, x <-> z at 1/f of the size: KL, VQ, and the identity at f = 1 [LDM v2, Sec. 3.1, App. G]."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldmlab.first_stage.networks import AutoencoderConfig, Decoder, Encoder
from ldmlab.first_stage.regularizers import DiagonalGaussian, VectorQuantizer, codebook_usage


class ReconstructionOutput(NamedTuple):
    """One training pass: the reconstruction, its z, the regularizer's loss (mean over pictures), numbers to log."""

    x_rec: Float[Tensor, "b c_x H W"]
    z: Float[Tensor, "b c h w"]
    reg_loss: Float[Tensor, ""]
    info: dict[str, Tensor]


class _Autoencoder(nn.Module):
    """The common face of the first stages: `f`, `z_channels` (of z), `reg`; pictures and latents are checked here."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.f, self.reg, self.z_channels = config.f, config.reg, config.latent_channels

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, on which the adversarial weight is measured [VQGAN, Eq. 7]."""
        return self.decoder.conv_out.weight

    def check_pictures(self, x: Tensor, check_range: bool = True) -> None:
        """ValueError unless `x` is (b, c, H, W), float, sides divisible by f, values in [-1, 1] if asked."""
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise ValueError(f"pictures are (b, {self.config.in_channels}, H, W), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"pictures are floats in [-1, 1], got {x.dtype}")
        if x.shape[2] % self.f or x.shape[3] % self.f:
            raise ValueError(f"both sides must be divisible by f = {self.f}, got {x.shape[2]} x {x.shape[3]}")
        # A little slack: antialiased resizing in floats may overshoot by rounding.
        if check_range and not -1.01 <= x.min() <= x.max() <= 1.01:
            raise ValueError(f"pictures are in [-1, 1], got values in [{x.min():.3g}, {x.max():.3g}]")

    def most_probable_latent(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c h w"]:
        """The z that reconstructions and conditions are made from: the posterior's mode (KL), or z as it is."""
        return self.encode(x)

    def check_latents(self, z: Tensor) -> None:
        """ValueError unless `z` is (b, z_channels, h, w)."""
        if z.ndim != 4 or z.shape[1] != self.z_channels:
            raise ValueError(f"latents are (b, {self.z_channels}, h, w), got shape {tuple(z.shape)}")


class AutoencoderKL(_Autoencoder):
    """First stage with a slight KL penalty towards a standard normal latent [LDM v2, App. G]."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.to_latent = nn.Conv2d(2 * config.z_channels, 2 * self.z_channels, 1)
        self.from_latent = nn.Conv2d(self.z_channels, config.z_channels, 1)

    def encode(self, x: Float[Tensor, "b c_x H W"]) -> DiagonalGaussian:
        """The posterior over z."""
        self.check_pictures(x)
        return DiagonalGaussian(self.to_latent(self.encoder(x)))

    def moments(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c2 h w"]:
        """Mean and log-variance of z side by side, (b, 2 * z_channels, h, w)."""
        return self.encode(x).moments

    def most_probable_latent(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c h w"]:
        """The mode of the posterior over z."""
        return self.encode(x).mode()

    def sample_latent(self, moments: Float[Tensor, "b c2 h w"], generator: torch.Generator | None = None) -> Tensor:
        """A fresh z (b, z_channels, h, w) from `moments`."""
        return DiagonalGaussian(moments).sample(generator)

    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_x H W"]:
        """x_rec, near [-1, 1] but not clamped."""
        self.check_latents(z)
        return self.decoder(self.from_latent(z))

    def forward(self, x: Float[Tensor, "b c_x H W"], generator: torch.Generator | None = None) -> ReconstructionOutput:
        """One training pass: sample z and decode it; `reg_loss` is the KL divergence in nats a picture."""
        self.check_pictures(x, check_range=False)  # looking at values would make a GPU wait, at every step
        posterior = DiagonalGaussian(self.to_latent(self.encoder(x)).float())  # float32 also under bf16 autocast
        z = posterior.sample(generator)
        kl = posterior.kl().mean()
        info = {"kl": kl.detach(), "posterior_std": posterior.std.detach().mean()}
        return ReconstructionOutput(self.decode(z), z, kl, info)


class AutoencoderVQ(_Autoencoder):
    """First stage whose decoder absorbs the quantizer: its z is the encoder's output as it comes [LDM v2, App. G]."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.to_latent = nn.Conv2d(config.z_channels, self.z_channels, 1)
        self.from_latent = nn.Conv2d(self.z_channels, config.z_channels, 1)
        self.quantizer = VectorQuantizer(config.num_codes, self.z_channels, config.commitment, config.vq_legacy)

    def encode(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c h w"]:
        """z, not yet quantized."""
        self.check_pictures(x)
        return self.to_latent(self.encoder(x))

    def moments(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c h w"]:
        """z: there is nothing random in it."""
        return self.encode(x)

    def sample_latent(self, moments: Float[Tensor, "b c h w"], generator: torch.Generator | None = None) -> Tensor:
        """`moments` as they are."""
        return moments

    def decode(self, z: Float[Tensor, "b c h w"], quantize: bool = True) -> Float[Tensor, "b c_x H W"]:
        """x_rec, near [-1, 1] but not clamped; z goes to its nearest codes first, unless it is quantized already."""
        self.check_latents(z)
        z = self.quantizer.embed(self.quantizer.nearest(z)) if quantize else z
        return self.decoder(self.from_latent(z))

    def forward(self, x: Float[Tensor, "b c_x H W"], generator: torch.Generator | None = None) -> ReconstructionOutput:
        """One training pass, straight through the quantizer; `z` is the unquantized latent."""
        self.check_pictures(x, check_range=False)  # looking at values would make a GPU wait, at every step
        z = self.to_latent(self.encoder(x))
        quantized = self.quantizer(z)
        usage = codebook_usage(quantized.counts)
        info = {"vq_loss": quantized.loss.detach(), "perplexity": usage.perplexity, "codes_used": usage.num_used}
        return ReconstructionOutput(self.decode(quantized.z_q, quantize=False), z, quantized.loss, info)


class IdentityAutoencoder(_Autoencoder):
    """f = 1: z is the picture, and LDM-1 is a diffusion model of pixels [LDM v2, Sec. 4.1]."""

    def encode(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        """x itself."""
        self.check_pictures(x)
        return x

    def moments(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        """x itself."""
        return self.encode(x)

    def sample_latent(self, moments: Float[Tensor, "b c h w"], generator: torch.Generator | None = None) -> Tensor:
        """`moments` as they are."""
        return moments

    def decode(self, z: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        """z itself."""
        self.check_latents(z)
        return z

    def forward(self, x: Float[Tensor, "b c H W"], generator: torch.Generator | None = None) -> ReconstructionOutput:
        """Nothing to learn: x_rec is x."""
        self.check_pictures(x, check_range=False)
        return ReconstructionOutput(x, x, x.new_zeros(()), {})


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL | AutoencoderVQ | IdentityAutoencoder:
    """The first stage that `config.reg` names."""
    return {"kl": AutoencoderKL, "vq": AutoencoderVQ, "none": IdentityAutoencoder}[config.reg](config)
