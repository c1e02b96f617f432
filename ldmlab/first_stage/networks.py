"""Encoder and decoder networks: f = patch * 2**m, what a first stage is built from [LDM v2, Sec. 3.1]."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.first_stage.factors import FS


@dataclass(frozen=True)
class AutoencoderConfig:
    """Everything that fixes the architecture of a first stage; defaults are the released models' [LDM v2, Tab. 8].

    `ch` times `ch_mult[i]` channels at level i, which works at 1/(patch * 2**i) of the picture's size. Attention
    follows each residual block of a level whose side is in `attn_resolutions` for pictures of `resolution` pixels.
    `z_channels` leave the encoder; z itself has `embed_dim` (default: as many). `patch` and `linear_shortcut` are for
    small machines, see `Encoder`.
    """

    f: int
    z_channels: int
    reg: str = "kl"  # "kl" or "vq"; "none" at f = 1
    ch: int = 128
    ch_mult: Sequence[int] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_resolutions: Sequence[int] = ()
    resolution: int = 256
    embed_dim: int | None = None
    in_channels: int = 3
    patch: int = 1
    linear_shortcut: bool = False
    norm_groups: int = 32
    dropout: float = 0.0
    mid_attn: bool = True
    num_codes: int = 8192
    commitment: float = 0.25
    vq_legacy: bool = False

    def __post_init__(self):
        for name in ("ch_mult", "attn_resolutions"):  # they come from JSON files as lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.f not in FS:
            raise ValueError(f"f must be one of {FS}, got {self.f}")
        if self.reg not in ("kl", "vq", "none"):
            raise ValueError(f"reg must be 'kl', 'vq' or 'none', got {self.reg!r}")
        if (self.reg == "none") != (self.f == 1):
            raise ValueError(f"f = 1 is the identity and goes with reg='none', only; got f={self.f}, reg={self.reg!r}")
        if self.reg == "none":
            if self.latent_channels != self.in_channels:
                raise ValueError(f"at f = 1 z_channels must be in_channels={self.in_channels}, got {self.z_channels}")
            return
        if self.patch * 2 ** (len(self.ch_mult) - 1) != self.f:
            raise ValueError(
                f"f = patch * 2**(len(ch_mult) - 1), but f={self.f}, patch={self.patch}, ch_mult={self.ch_mult}"
            )
        if self.resolution % self.f:
            raise ValueError(f"resolution must be divisible by f; got resolution={self.resolution}, f={self.f}")
        widths = [self.ch * mult for mult in self.ch_mult]
        if any(width % self.norm_groups for width in widths):
            raise ValueError(f"every width must be divisible by norm_groups={self.norm_groups}, got widths {widths}")

    @property
    def latent_channels(self) -> int:
        """Channels of z."""
        return self.embed_dim or self.z_channels


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Two times norm, SiLU, 3x3 convolution, around a shortcut."""

    def __init__(self, c_in: int, c_out: int, norm_groups: int = 32, dropout: float = 0.0):
        super().__init__()
        self.norm1 = _norm(c_in, norm_groups)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = _norm(c_out, norm_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.shortcut(x) + h


class Attention(nn.Module):
    """Single-head self-attention over all n = h * w positions, with a residual connection."""

    def __init__(self, channels: int, norm_groups: int = 32):
        super().__init__()
        self.norm = _norm(channels, norm_groups)
        self.q, self.k, self.v, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).mT.unsqueeze(1) for conv in (self.q, self.k, self.v))  # (b, 1, h*w, c)
        # Fused kernels, which never hold the n x n weights, want the channels of a position side by side. On a CPU they
        # pay where positions are many: from n = 8 c on, a tenth or more of a forward pass.
        if x.is_cuda or q.shape[2] >= 8 * q.shape[3]:
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.squeeze(1).mT.reshape(x.shape))


class LinearAttention(nn.Module):
    """Attention at a cost linear in the positions, an option of the released code; no norm, no residual connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.to_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        q, k, v = self.to_qkv(x).flatten(2).chunk(3, dim=1)  # (b, c, h*w)
        summary = k.softmax(dim=-1) @ v.mT  # (b, c, c)
        return self.to_out((summary.mT @ q).reshape(x.shape))


class Downsample(nn.Module):
    """Halve both sides: strided convolution over a picture padded on the right and below only, or 2x2 means."""

    def __init__(self, channels: int, with_conv: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if with_conv else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double both sides: nearest neighbour, then a convolution (or not)."""

    def __init__(self, channels: int, with_conv: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if with_conv else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, each with its attention or none, and the way to the next resolution."""

    def __init__(self, blocks: list[ResBlock], attentions: list[nn.Module], resample: nn.Module):
        super().__init__()
        self.blocks, self.attentions, self.resample = nn.ModuleList(blocks), nn.ModuleList(attentions), resample

    def forward(self, h: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h2 w2"]:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = attention(block(h))
        return self.resample(h)


@dataclass(frozen=True)
class Options:
    """Choices that the released code has and no released model uses."""

    resample_with_conv: bool = True
    linear_attention: bool = False
    tanh_out: bool = False


class _Pyramid(nn.Module):
    """What encoder and decoder share: how a config becomes levels and a middle; `levels[0]` is the finest in both."""

    def __init__(self, config: AutoencoderConfig, options: Options):
        super().__init__()
        self.config, self.options = config, options
        self.widths = [config.ch * mult for mult in config.ch_mult]

    def block(self, c_in: int, c_out: int) -> ResBlock:
        return ResBlock(c_in, c_out, self.config.norm_groups, self.config.dropout)

    def attention(self, channels: int, present: bool) -> nn.Module:
        if not present:
            return nn.Identity()
        linear = self.options.linear_attention
        return LinearAttention(channels) if linear else Attention(channels, self.config.norm_groups)

    def level(self, i: int, c_in: int, num_blocks: int, resample: nn.Module) -> Level:
        # The configured resolution decides, not the size of the picture that comes: weights fit any size.
        attend = self.config.resolution // self.config.patch // 2**i in self.config.attn_resolutions
        width = self.widths[i]
        blocks = [self.block(c_in if j == 0 else width, width) for j in range(num_blocks)]
        return Level(blocks, [self.attention(width, attend) for _ in blocks], resample)

    def middle(self) -> nn.Sequential:
        """The coarsest resolution's two blocks with attention between them."""
        width = self.widths[-1]
        parts = {"block_1": self.block(width, width), "attention": self.attention(width, self.config.mid_attn)}
        return nn.Sequential(OrderedDict(parts, block_2=self.block(width, width)))


class Encoder(_Pyramid):
    """x -> maps at 1/f of the size, 2 * z_channels for KL, z_channels for VQ [LDM v2, Sec. 3.1]."""

    def __init__(self, config: AutoencoderConfig, options: Options = Options()):  # noqa: B008 (frozen)
        super().__init__(config, options)
        widths, last = self.widths, len(self.widths) - 1
        # Deviation: at patch > 1 the finest levels give way to one space-to-depth step, for small machines.
        self.to_depth = nn.PixelUnshuffle(config.patch) if config.patch > 1 else nn.Identity()
        self.conv_in = nn.Conv2d(config.in_channels * config.patch**2, config.ch, 3, padding=1)
        self.levels = nn.ModuleList()
        for i, width in enumerate(widths):
            resample = nn.Identity() if i == last else Downsample(width, options.resample_with_conv)
            self.levels.append(self.level(i, widths[i - 1] if i else config.ch, config.num_res_blocks, resample))
        self.mid = self.middle()
        self.norm_out = _norm(widths[-1], config.norm_groups)
        c_out = config.z_channels * (2 if config.reg == "kl" else 1)
        self.conv_out = nn.Conv2d(widths[-1], c_out, 3, padding=1)
        # Deviation: a linear map of each f x f block beside the network. Training starts near a PCA of blocks and the
        # network learns the rest, which saves a small machine most of its steps (cf. DC-AE, arXiv 2410.10733).
        self.shortcut = None
        if config.linear_shortcut:
            linear = nn.Conv2d(config.in_channels * config.f**2, c_out, 1)
            self.shortcut = nn.Sequential(nn.PixelUnshuffle(config.f), linear)

    def forward(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c_h h w"]:
        h = self.conv_in(self.to_depth(x))
        for level in self.levels:
            h = level(h)
        h = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return h if self.shortcut is None else h + self.shortcut(x)


class Decoder(_Pyramid):
    """z -> x_rec at f times the size [LDM v2, Sec. 3.1]."""

    def __init__(self, config: AutoencoderConfig, options: Options = Options()):  # noqa: B008 (frozen)
        super().__init__(config, options)
        widths, last = self.widths, len(self.widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = self.middle()
        self.levels = nn.ModuleList()
        for i, width in enumerate(widths):
            resample = Upsample(width, options.resample_with_conv) if i else nn.Identity()
            self.levels.append(self.level(i, widths[min(i + 1, last)], config.num_res_blocks + 1, resample))
        self.norm_out = _norm(widths[0], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels * config.patch**2, 3, padding=1)
        self.to_space = nn.PixelShuffle(config.patch) if config.patch > 1 else nn.Identity()
        self.shortcut = None
        if config.linear_shortcut:  # as in the encoder
            linear = nn.Conv2d(config.z_channels, config.in_channels * config.f**2, 1)
            self.shortcut = nn.Sequential(linear, nn.PixelShuffle(config.f))

    def features(self, z: Float[Tensor, "b c_h h w"]) -> Float[Tensor, "b c H W"]:
        """All but the head: the maps before the last norm."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.levels):
            h = level(h)
        return h

    def forward(self, z: Float[Tensor, "b c_h h w"]) -> Float[Tensor, "b c_x H W"]:
        x_rec = self.to_space(self.conv_out(F.silu(self.norm_out(self.features(z)))))
        x_rec = x_rec if self.shortcut is None else x_rec + self.shortcut(z)
        return x_rec.tanh() if self.options.tanh_out else x_rec
