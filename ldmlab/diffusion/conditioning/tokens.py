"""Conditions tau_theta(y): what turns labels, words and boxes into the tokens that the denoiser attends to [Sec. 3.3].

A kind of condition is one class here and one row of `study.config.conditions.KINDS`. Each says how it reads the
annotations of a picture, how it encodes them, and the null condition, which classifier-free
guidance needs [E.2.1].
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.data import Dataset

from ldmlab.data.annotations.annotation import Annotation
from ldmlab.diffusion.conditioning.boxes import BoxTokenizer
from ldmlab.diffusion.conditioning.captions import CaptionTokenizer
from ldmlab.diffusion.conditioning.spatial import SpatialConditioner
from ldmlab.diffusion.conditioning.transformer import TokenTransformer
from ldmlab.diffusion.unet.unet import with_context


class Conditioner(nn.Module, ABC):
    """tau_theta: integers that say what to show -> tokens (b, n, d) for cross-attention.

    While training, each item is replaced by `null_condition` with probability `p_drop`.
    """

    kind: str
    enters = "tokens"  # by cross-attention; see `spatial_conditioning` for "channels"

    def __init__(self, null_condition: Int[Tensor, "..."], p_drop: float = 0.0):
        super().__init__()
        if not 0 <= p_drop <= 1:
            raise ValueError(f"p_drop must be in [0, 1], got {p_drop}")
        self.p_drop = p_drop
        self.register_buffer("null_condition", null_condition, persistent=False)

    @abstractmethod
    def read(self, annotations: Sequence[Annotation]) -> Int[Tensor, "n ..."]:
        """What this takes as input, from what is known of pictures."""

    def condition(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Int[Tensor, "b ..."]:
        """y of a training batch: what `read` found, or the class."""
        return batch["y"] if "y" in batch else batch["label"]

    def check(self, y: Int[Tensor, "n ..."]) -> None:
        """ValueError for input that this cannot encode; called once a batch of samples, not in training."""
        if y.shape[1:] != self.null_condition.shape:
            raise ValueError(f"a condition of kind {self.kind} has n items of shape "
                             f"{tuple(self.null_condition.shape)}, got {tuple(y.shape)}")

    @abstractmethod
    def encode(self, y: Int[Tensor, "b ..."]) -> Float[Tensor, "b n d"]:
        """The tokens of each item, none dropped."""

    def forward(self, y: Int[Tensor, "b ..."]) -> Float[Tensor, "b n d"]:
        """The tokens; while training, some items' are those of `null_condition`."""
        if self.training and self.p_drop > 0:
            dropped = torch.rand(len(y), device=y.device) < self.p_drop
            y = torch.where(dropped.view(-1, *[1] * self.null_condition.ndim), self.null_condition, y)
        return self.encode(y)

    def null(self, b: int) -> Float[Tensor, "b n d"]:
        """The tokens of `null_condition`, `b` times."""
        return self.encode(self.null_condition[None]).expand(b, -1, -1)


class ClassEmbedder(Conditioner):
    """A learned token per class, and one more, index `num_classes`, for "no class" [LDM v2, App. E.2.1]."""

    kind = "class"

    def __init__(self, num_classes: int, dim: int, p_drop: float = 0.0):
        if num_classes < 1 or dim < 1:
            raise ValueError(f"need num_classes >= 1 and dim >= 1, got num_classes={num_classes}, dim={dim}")
        super().__init__(torch.tensor(num_classes), p_drop)
        self.num_classes = num_classes
        self.embedding = nn.Embedding(num_classes + 1, dim)

    def read(self, annotations: Sequence[Annotation]) -> Int[Tensor, " n"]:
        """The class of each picture, -1 where there is none."""
        return torch.tensor([annotation.label for annotation in annotations], dtype=torch.long)

    def check(self, y: Int[Tensor, "n ..."]) -> None:
        super().check(y)
        if len(y) and y.max() > self.num_classes:
            raise ValueError(f"classes are 0 to {self.num_classes - 1}, and {self.num_classes} or less than 0 is no "
                             f"class; got {y.max().item()}")

    def encode(self, y: Int[Tensor, " b"]) -> Float[Tensor, "b 1 dim"]:
        """Labels in [0, num_classes] -> one token each; negative labels mean "no class", as in data without them."""
        return self.embedding(torch.where(y < 0, self.num_classes, y))[:, None]


class TextEmbedder(Conditioner):
    """A caption's word pieces through a transformer that is trained with the denoiser [LDM v2, App. E.2.1, Tab. 17].

    Nothing is said by the empty caption, as released: start, end, padding.
    """

    kind = "text"

    def __init__(self, tokenizer: CaptionTokenizer, transformer: TokenTransformer, p_drop: float = 0.0):
        super().__init__(tokenizer([""])[0], p_drop)
        if transformer.vocab_size < len(tokenizer) or transformer.max_length < tokenizer.max_length:
            raise ValueError(f"a transformer for {transformer.vocab_size} tokens, {transformer.max_length} at once, is "
                             f"too small for a tokenizer of {len(tokenizer)}, {tokenizer.max_length} at once")
        self.tokenizer, self.transformer = tokenizer, transformer

    def read(self, annotations: Sequence[Annotation]) -> Int[Tensor, "n length"]:
        """The word pieces of each picture's caption."""
        return self.tokenizer([annotation.caption for annotation in annotations])

    def encode(self, y: Int[Tensor, "b length"]) -> Float[Tensor, "b length dim"]:
        """Word pieces -> a token each; padding takes part, as released."""
        return self.transformer(y)


class LayoutEmbedder(Conditioner):
    """Boxes as tokens (l, b, c) through a transformer [LDM v2, App. D.3, E.2.1, Tab. 17]; nothing is all padding.

    Deviation: boxes come in the order of the data; the released code shuffles them whenever a picture is read.
    """

    kind = "layout"

    def __init__(self, tokenizer: BoxTokenizer, transformer: TokenTransformer, p_drop: float = 0.0):
        super().__init__(tokenizer.null, p_drop)
        if transformer.vocab_size < tokenizer.num_tokens or transformer.max_length < tokenizer.length:
            raise ValueError(f"a transformer for {transformer.vocab_size} tokens, {transformer.max_length} at once, is "
                             f"too small for {tokenizer.num_tokens} box tokens, {tokenizer.length} at once")
        self.tokenizer, self.transformer = tokenizer, transformer

    def read(self, annotations: Sequence[Annotation]) -> Int[Tensor, "n length"]:
        """The boxes of each picture, and its crop."""
        return torch.stack([self.tokenizer.encode(a.boxes, a.crop) for a in annotations])

    def encode(self, y: Int[Tensor, "b length"]) -> Float[Tensor, "b length dim"]:
        """Box tokens -> as many of the transformer's."""
        return self.transformer(y)


def conditioned(
    denoiser: nn.Module, conditioner: Conditioner | SpatialConditioner | None, y: Shaped[Tensor, "b ..."] | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """eps_hat(z_t, t) given y: tau(y) enters by cross-attention, or beside the channels of z_t [LDM v2, Sec. 3.3]."""
    if conditioner is None:
        return denoiser
    c = conditioner(y)
    if conditioner.enters == "tokens":
        return with_context(denoiser, c)
    return lambda z_t, t: denoiser(torch.cat([z_t, c.to(z_t)], 1), t)


class Conditioned(Dataset):
    """Latents with what a conditioner read of each: batches gain `y`; index i + n is the mirror image of picture i."""

    def __init__(self, latents: Dataset, y: Int[Tensor, "n2 ..."]):
        if len(y) != len(latents):
            raise ValueError(f"{len(latents)} latents, mirror images included, need as many conditions, got {len(y)}")
        self.latents, self.y, self.first_stage, self.is_kept = latents, y, latents.first_stage, latents.is_kept

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return self.latents.__getitems__(indices) | {"y": self.y[torch.as_tensor(indices)]}
