"""First stages, x <-> z downsampled by f: KL, VQ, and the identity at f = 1 [LDM v2, Sec. 3.1, App. G]."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldmlab.first_stage.networks import AutoencoderConfig, Decoder, Encoder
from ldmlab.first_stage.regularizers import DiagonalGaussian, VectorQuantizer, codebook_usage


class ReconstructionOutput(NamedTuple):
    """Output of a training pass: reconstruction, z, the regularizer's loss (mean over pictures), values to log."""

    x_rec: Float[Tensor, "b c_x H W"]
    z: Float[Tensor, "b c h w"]
    reg_loss: Float[Tensor, ""]
    info: dict[str, Tensor]


class FirstStage(nn.Module):
    """Base class of first stages: encode pictures (b, c_x, H, W) to z (b, z_channels, H/f, W/f), and decode z."""

    f: int  # downsampling factor
    reg: str  # "kl", "vq" or "none"
    z_channels: int  # of z

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.f, self.reg, self.z_channels = config.f, config.reg, config.latent_channels

    def encode(self, x: Float[Tensor, "b c_x H W"]) -> "DiagonalGaussian | Float[Tensor, 'b c h w']":
        """Encode pictures in [-1, 1]: to the posterior over z (KL), or to z."""
        raise NotImplementedError

    def moments(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c_m h w"]:
        """What `sample_latent` needs and the latent cache stores: mean and log-variance (KL), or z."""
        raise NotImplementedError

    def sample_latent(
        self, moments: Float[Tensor, "b c_m h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Draw z from `moments`."""
        raise NotImplementedError

    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_x H W"]:
        """Decode z to x_rec, near [-1, 1] but not clamped."""
        raise NotImplementedError

    def check_pictures(self, x: Tensor, check_range: bool = True) -> None:
        """Raise ValueError unless `x` is float (b, c, H, W), with sides divisible by f and values in [-1, 1]."""
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise ValueError(f"pictures must be (b, {self.config.in_channels}, H, W), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"pictures must be float in [-1, 1], got {x.dtype}")
        if x.shape[2] % self.f or x.shape[3] % self.f:
            raise ValueError(f"both sides must be divisible by f = {self.f}, got {x.shape[2]} x {x.shape[3]}")
        # With a tolerance: antialiased resizing in floats may overshoot by rounding.
        if check_range and not -1.01 <= x.min() <= x.max() <= 1.01:
            raise ValueError(f"pictures must lie in [-1, 1], got values in [{x.min():.3g}, {x.max():.3g}]")

    def most_probable_latent(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c h w"]:
        """The z that reconstructions and conditions are made from: the posterior's mode (KL), or z as it is."""
        z = self.encode(x)
        return z.mode() if isinstance(z, DiagonalGaussian) else z

    def check_latents(self, z: Tensor) -> None:
        """Raise ValueError unless `z` is (b, z_channels, h, w)."""
        if z.ndim != 4 or z.shape[1] != self.z_channels:
            raise ValueError(f"latents must be (b, {self.z_channels}, h, w), got shape {tuple(z.shape)}")


class _WithNetworks(FirstStage):
    """A first stage with encoder, decoder, and the 1x1 convolutions between them and z."""

    encoder: Encoder
    decoder: Decoder
    to_latent: nn.Conv2d
    from_latent: nn.Conv2d

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, at which the adversarial weight is computed [VQGAN, Eq. 7]."""
        weight = self.decoder.conv_out.weight
        assert isinstance(weight, nn.Parameter)
        return weight


class AutoencoderKL(_WithNetworks):
    """First stage with a slight KL penalty towards a standard normal latent [LDM v2, App. G]."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.to_latent = nn.Conv2d(2 * config.z_channels, 2 * self.z_channels, 1)
        self.from_latent = nn.Conv2d(self.z_channels, config.z_channels, 1)

    def encode(self, x: Float[Tensor, "b c_x H W"]) -> DiagonalGaussian:
        """The posterior over z, for pictures in [-1, 1]; ValueError for others."""
        self.check_pictures(x)
        return DiagonalGaussian(self.to_latent(self.encoder(x)))

    def moments(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c2 h w"]:
        """Mean and log-variance of z, concatenated: (b, 2 * z_channels, h, w)."""
        return self.encode(x).moments

    def most_probable_latent(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c h w"]:
        """The mode of the posterior over z."""
        return self.encode(x).mode()

    def sample_latent(self, moments: Float[Tensor, "b c2 h w"], generator: torch.Generator | None = None) -> Tensor:
        """Sample z (b, z_channels, h, w) from the posterior with these `moments`."""
        return DiagonalGaussian(moments).sample(generator)

    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_x H W"]:
        """Decode z to x_rec, near [-1, 1] but not clamped."""
        self.check_latents(z)
        return self.decoder(self.from_latent(z))

    def forward(self, x: Float[Tensor, "b c_x H W"], generator: torch.Generator | None = None) -> ReconstructionOutput:
        """One training pass: sample z and decode it; `reg_loss` is the KL divergence in nats per picture."""
        self.check_pictures(x, check_range=False)  # reading values would synchronise a GPU at every step
        posterior = DiagonalGaussian(self.to_latent(self.encoder(x)).float())  # float32 also under bf16 autocast
        z = posterior.sample(generator)
        kl = posterior.kl().mean()
        info = {"kl": kl.detach(), "posterior_std": posterior.std.detach().mean()}
        return ReconstructionOutput(self.decode(z), z, kl, info)


class AutoencoderVQ(_WithNetworks):
    """First stage whose quantizer is part of the decoder: z is the encoder's output [LDM v2, App. G]."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.to_latent = nn.Conv2d(config.z_channels, self.z_channels, 1)
        self.from_latent = nn.Conv2d(self.z_channels, config.z_channels, 1)
        self.quantizer = VectorQuantizer(config.num_codes, self.z_channels, config.commitment, config.vq_legacy)

    def encode(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c h w"]:
        """z before quantization, for pictures in [-1, 1]; ValueError for others."""
        self.check_pictures(x)
        return self.to_latent(self.encoder(x))

    def moments(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c h w"]:
        """z: the encoder is deterministic."""
        return self.encode(x)

    def sample_latent(self, moments: Float[Tensor, "b c h w"], generator: torch.Generator | None = None) -> Tensor:
        """`moments`, unchanged."""
        return moments

    def decode(self, z: Float[Tensor, "b c h w"], quantize: bool = True) -> Float[Tensor, "b c_x H W"]:
        """Decode z to x_rec, near [-1, 1] but not clamped; `quantize` replaces z by its nearest codes first."""
        self.check_latents(z)
        z = self.quantizer.embed(self.quantizer.nearest(z)) if quantize else z
        return self.decoder(self.from_latent(z))

    def forward(self, x: Float[Tensor, "b c_x H W"], generator: torch.Generator | None = None) -> ReconstructionOutput:
        """One training pass with straight-through quantization; `z` is the latent before it."""
        self.check_pictures(x, check_range=False)  # reading values would synchronise a GPU at every step
        z = self.to_latent(self.encoder(x))
        quantized = self.quantizer(z)
        usage = codebook_usage(quantized.counts)
        info = {"vq_loss": quantized.loss.detach(), "perplexity": usage.perplexity, "codes_used": usage.num_used}
        return ReconstructionOutput(self.decode(quantized.z_q, quantize=False), z, quantized.loss, info)


class IdentityAutoencoder(FirstStage):
    """f = 1: z is the picture, and LDM-1 is a diffusion model of pixels [LDM v2, Sec. 4.1]."""

    def encode(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        """x itself."""
        self.check_pictures(x)
        return x

    def moments(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        """x itself."""
        return self.encode(x)

    def sample_latent(self, moments: Float[Tensor, "b c h w"], generator: torch.Generator | None = None) -> Tensor:
        """`moments`, unchanged."""
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
    """Build the first stage of `config.reg`, with random weights.

    >>> config = AutoencoderConfig(f=4, z_channels=3, reg="vq", ch=32, ch_mult=(1, 1, 1), num_codes=64)
    >>> first_stage = build_autoencoder(config)
    >>> z = first_stage.encode(torch.zeros(1, 3, 32, 32))
    >>> z.shape, first_stage.decode(z).shape
    (torch.Size([1, 3, 8, 8]), torch.Size([1, 3, 32, 32]))
    """
    if config.reg == "kl":
        return AutoencoderKL(config)
    return AutoencoderVQ(config) if config.reg == "vq" else IdentityAutoencoder(config)
