"""Conditions tau_theta(y): what turns labels into the tokens that the denoiser attends to [LDM v2, Sec. 3.3]."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class ClassEmbedder(nn.Module):
    """A learned token per class, and one more, index `num_classes`, for "no class" [LDM v2, App. E.2.1].

    While training, each label becomes "no class" with probability `p_drop`, which classifier-free guidance needs.
    """

    def __init__(self, num_classes: int, dim: int, p_drop: float = 0.0):
        super().__init__()
        if num_classes < 1 or dim < 1 or not 0 <= p_drop <= 1:
            raise ValueError(
                f"need num_classes >= 1, dim >= 1 and 0 <= p_drop <= 1, "
                f"got num_classes={num_classes}, dim={dim}, p_drop={p_drop}"
            )
        self.num_classes, self.p_drop = num_classes, p_drop
        self.embedding = nn.Embedding(num_classes + 1, dim)

    def forward(self, y: Int[Tensor, " b"]) -> Float[Tensor, "b 1 dim"]:
        """Labels in [0, num_classes] -> one token each; negative labels mean "no class", as in data without them."""
        dropped = y < 0
        if self.training and self.p_drop > 0:
            dropped = dropped | (torch.rand(y.shape, device=y.device) < self.p_drop)
        return self.embedding(torch.where(dropped, self.num_classes, y))[:, None]

    def null(self, b: int) -> Float[Tensor, "b 1 dim"]:
        """The token of "no class", `b` times."""
        return self.embedding.weight[-1].expand(b, 1, -1)
