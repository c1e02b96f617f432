"""What all feature networks share: a chain of stages, and an embedding pooled from their maps."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldmlab.perception.pictures import check_pictures


class FeatureNet(nn.Module):
    """Base class of feature networks: a chain of `stages`, each with a feature map, and an embedding pooled from them.

    The shipped networks are frozen, with their BatchNorms folded into the convolutions; `weights_hash` is the sha256 of
    the weights file.
    """

    name = "feature-net"
    mean_of: tuple[int, ...] = ()  # stages whose spatial mean is part of the embedding
    std_of: tuple[int, ...] = ()  # stages whose spatial standard deviation is part of the embedding

    embed_mean: Tensor
    embed_std: Tensor
    weights_hash: str

    def __init__(self, widths: tuple[int, ...], stages: Sequence[nn.Module]):
        super().__init__()
        self.widths, self.stages = widths, nn.ModuleList(stages)
        self.dim = sum(widths[i] for i in (*self.mean_of, *self.std_of))
        # They standardise each entry of an embedding over the training pictures, so that no stage dominates.
        self.register_buffer("embed_mean", torch.zeros(self.dim))
        self.register_buffer("embed_std", torch.ones(self.dim))
        self.weights_hash = ""

    def stage_maps(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Feature maps of all stages, without checking the input."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def maps(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Feature maps of all stages, fine to coarse, of pictures in [-1, 1]."""
        check_pictures(x)
        return self.stage_maps(x)

    def weights_by_stage(self) -> list[Tensor]:
        """Weights of the channels of each stage in the distance of `PsimLoss`: all alike."""
        return [self.embed_mean.new_full((c,), 1 / len(self.widths)) for c in self.widths]

    def pool(self, maps: list[Tensor]) -> Float[Tensor, "n d"]:
        """The embedding before standardisation: spatial means of `mean_of` stages, deviations of `std_of` stages."""
        means = [maps[i].mean((2, 3)) for i in self.mean_of]
        # The small constant keeps the gradient finite where a map is flat.
        stds = [(maps[i].var((2, 3), correction=0) + 1e-6).sqrt() for i in self.std_of]
        return torch.cat(means + stds, 1)

    def embed(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Standardised embeddings, in float32, of pictures in [-1, 1] of any size from 16 px."""
        check_pictures(x)
        with torch.autocast(x.device.type, enabled=False):
            return (self.pool(self.stage_maps(x.float())) - self.embed_mean) / self.embed_std
