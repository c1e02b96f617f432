"""The transformer tau_theta over the tokens of a caption or of boxes [LDM v2, App. E.2.1, Tab. 17]."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldmlab.diffusion.unet.attention import CrossAttention, Linear


class Residual(nn.Module):
    """x + inner(LayerNorm(x)): a sub-layer, normalised at its input and added to it."""

    def __init__(self, dim: int, inner: nn.Module):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(dim), inner

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        return x + self.inner(self.norm(x))


class TokenTransformer(nn.Module):
    """Token ids (b, n), n <= `max_length` -> (b, n, `dim`): embeddings, `num_layers` of attention and MLP, LayerNorm.

    Attention is not masked, so padding takes part, as released. Deviation: the paper's Tab. 17 does not state the
    heads; these are those of the released code.
    """

    def __init__(
        self, vocab_size: int, max_length: int, dim: int, num_layers: int, num_heads: int = 8, head_dim: int = 64
    ):
        super().__init__()
        if min(vocab_size, max_length, dim, num_layers, num_heads, head_dim) < 1:
            raise ValueError(f"a transformer needs positive sizes, got {vocab_size=}, {max_length=}, {dim=}, "
                             f"{num_layers=}, {num_heads=}, {head_dim=}")
        self.vocab_size, self.max_length, self.dim = vocab_size, max_length, dim
        self.token_embedding, self.position_embedding = nn.Embedding(vocab_size, dim), nn.Embedding(max_length, dim)
        for embedding in (self.token_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=0.02)
        layers: list[nn.Module] = []
        for _ in range(num_layers):
            mlp = nn.Sequential(Linear(dim, 4 * dim), nn.GELU(), Linear(4 * dim, dim))
            # LayerNorm [LDM v2, Eq. 19], then self-attention and its input [LDM v2, Eq. 20].
            layers.append(Residual(dim, CrossAttention(dim, dim, num_heads, head_dim)))
            # LayerNorm [LDM v2, Eq. 21], then the MLP and its input [LDM v2, Eq. 22].
            layers.append(Residual(dim, mlp))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n dim"]:
        """The output tokens of token ids in [0, vocab_size); ValueError for more than `max_length` of them."""
        if ids.shape[1] > self.max_length:
            raise ValueError(f"this transformer takes up to {self.max_length} tokens, got {ids.shape[1]}")
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(positions)  # [LDM v2, Eq. 18]
        return self.norm(self.layers(x))  # [LDM v2, Eq. 23]
