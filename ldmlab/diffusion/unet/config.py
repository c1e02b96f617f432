"""The configuration of a denoiser, and the plan of its blocks."""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import nn

from ldmlab.diffusion.unet.attention import SelfAttention, SpatialTransformer
from ldmlab.diffusion.unet.blocks import Downsample, GroupNorm, ResBlock, Upsample, zeroed


@dataclass(frozen=True)
class DenoiserConfig:
    """Shape of a UNet; ValueError for numbers that contradict each other.

    `widths` are the channels per level, level i at 1 / 2**i of the latent's side; `attention_at` the factors 2**i at
    which blocks attend (the middle block always does), with `num_heads` heads or `num_head_channels` channels a head.
    With a `context_dim`, attention blocks are transformers that also attend to a context of that many channels;
    `num_classes` adds a class embedding to the time embedding.
    """

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    num_res_blocks: int = 2
    attention_at: tuple[int, ...] = ()
    num_heads: int | None = None
    num_head_channels: int | None = None
    context_dim: int | None = None
    transformer_depth: int = 1
    num_classes: int | None = None
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    dropout: float = 0.0
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1 or min(self.in_channels, self.out_channels, self.num_res_blocks) < 1:
            raise ValueError(f"a UNet needs positive channels, widths and num_res_blocks, got {self}")
        if (self.num_heads is None) == (self.num_head_channels is None):
            raise ValueError(f"give either num_heads or num_head_channels, got {self.num_heads=}, "
                             f"{self.num_head_channels=}")
        if not set(self.attention_at) <= set(self.factors):
            raise ValueError(f"{len(self.widths)} levels are at the factors {self.factors}; attention_at can only name "
                             f"these, got {self.attention_at}")
        for level, width in enumerate(self.widths):
            if width % self.norm_groups:
                raise ValueError(f"every width must be divisible by norm_groups={self.norm_groups}, got {self.widths}")
            per_head = self.num_heads or self.num_head_channels or 1
            if (self.attends(level) or level == len(self.widths) - 1) and width % per_head:
                name = "num_heads" if self.num_heads else "num_head_channels"
                raise ValueError(f"widths that attend must be divisible by {name}={per_head}, got {width}")

    @property
    def factors(self) -> tuple[int, ...]:
        """The downsampling factors of the levels."""
        return tuple(2**level for level in range(len(self.widths)))

    def attends(self, level: int) -> bool:
        """Whether the blocks of a level attend; the middle block, at the last level's width, always does."""
        return self.factors[level] in self.attention_at

    def heads(self, width: int) -> int:
        """The number of attention heads at a level of `width` channels."""
        return self.num_heads or width // cast(int, self.num_head_channels)

    @classmethod
    def from_released(cls, unet: dict[str, Any]) -> "DenoiserConfig":
        """The config of a released model's `unet_config`; ValueError for options that no released model uses."""
        ignored = {"class", "image_size", "use_checkpoint", "legacy", "use_fp16", "dims"}  # no effect on the result
        known = {
            "in_channels", "out_channels", "model_channels", "channel_mult", "num_res_blocks", "attention_resolutions",
            "num_heads", "num_head_channels", "use_spatial_transformer", "context_dim", "transformer_depth",
            "num_classes", "use_scale_shift_norm", "resblock_updown", "dropout",
        }
        if unknown := sorted(unet.keys() - known - ignored):
            raise ValueError(f"no released UNet has the options {unknown}; known are {sorted(known)}")
        mult = unet.get("channel_mult", (1, 2, 4, 8))
        if mult[0] != 1:
            raise ValueError(f"the first entry of channel_mult must be 1, got {mult}")
        per_head = unet.get("num_head_channels", -1)
        transformer = unet.get("use_spatial_transformer", False)
        same = ("num_classes", "use_scale_shift_norm", "resblock_updown", "dropout")
        return cls(
            in_channels=unet["in_channels"],
            out_channels=unet["out_channels"],
            widths=tuple(unet["model_channels"] * m for m in mult),
            num_res_blocks=unet["num_res_blocks"],
            # Despite the name these are downsampling factors; some configurations name levels that they lack.
            attention_at=tuple(ds for ds in unet["attention_resolutions"] if ds in [2**i for i in range(len(mult))]),
            num_heads=unet["num_heads"] if per_head == -1 else None,
            num_head_channels=None if per_head == -1 else per_head,
            context_dim=unet["context_dim"] if transformer else None,
            transformer_depth=unet.get("transformer_depth", 1) if transformer else 1,
            **{name: unet[name] for name in same if name in unet},
        )


class Block(NamedTuple):
    """One block of the UNet: its kind, "conv", "res", "attend", "down" or "up", and its channels."""

    kind: str
    c_in: int
    c_out: int

    def build(self, config: DenoiserConfig) -> nn.Module:
        """The module of this block."""
        groups, emb_dim, (c_in, c_out) = config.norm_groups, 4 * config.widths[0], self[1:]
        match self.kind:
            case "conv":
                return nn.Conv2d(c_in, c_out, 3, padding=1)
            case "attend" if config.context_dim is not None:
                heads, depth = config.heads(c_in), config.transformer_depth
                return SpatialTransformer(c_in, config.context_dim, heads, c_in // heads, depth, groups)
            case "attend":
                return SelfAttention(c_in, config.heads(c_in), groups)
            case "down" if not config.resblock_updown:
                return Downsample(c_in)
            case "up" if not config.resblock_updown:
                return Upsample(c_in)
        return ResBlock(
            c_in, c_out, emb_dim, norm_groups=groups, dropout=config.dropout, scale_shift=config.use_scale_shift_norm,
            resample=None if self.kind == "res" else self.kind,
        )


class Plan(NamedTuple):
    """The blocks of a UNet, stage by stage; the output of each down stage is a skip connection to one up stage."""

    down: list[list[Block]]
    middle: list[Block]
    up: list[list[Block]]


def plan(config: DenoiserConfig) -> Plan:
    """The blocks of the UNet, as released [ADM, App. A]."""
    num_levels = len(config.widths)
    c = config.widths[0]
    down: list[list[Block]] = [[Block("conv", config.in_channels, c)]]
    up: list[list[Block]] = []
    attention = [[Block("attend", w, w)] if config.attends(level) else [] for level, w in enumerate(config.widths)]
    for level, width in enumerate(config.widths):
        for _ in range(config.num_res_blocks):
            down.append([Block("res", c, width), *attention[level]])
            c = width
        if level < num_levels - 1:
            down.append([Block("down", c, c)])
    middle = [Block("res", c, c), Block("attend", c, c), Block("res", c, c)]
    skips = [stage[-1].c_out for stage in down]
    for level, width in reversed(list(enumerate(config.widths))):
        for i in range(config.num_res_blocks + 1):
            stage = [Block("res", c + skips.pop(), width), *attention[level]]
            c = width
            if level and i == config.num_res_blocks:
                stage.append(Block("up", c, c))
            up.append(stage)
    return Plan(down, middle, up)


def build_ends(config: DenoiserConfig) -> tuple[nn.Module, nn.Module | None, nn.Module, nn.Module]:
    """The modules before and after the stages: time and label embedding, last normalisation and convolution."""
    width, emb_dim = config.widths[0], 4 * config.widths[0]
    time_embed = nn.Sequential(nn.Linear(width, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
    label_embed = None if config.num_classes is None else nn.Embedding(config.num_classes, emb_dim)
    head_conv = zeroed(nn.Conv2d(width, config.out_channels, 3, padding=1))
    return time_embed, label_embed, GroupNorm(config.norm_groups, width), head_conv
