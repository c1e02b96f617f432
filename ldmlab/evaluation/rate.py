"""Bit rates of latents and image files, in bits per pixel of the picture.

Code lengths are those of an ideal arithmetic coder with probabilities learned on training latents, for a decoder that
has the tables. Entropies are those of the measured latents themselves.
"""

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from ldmlab.data.images import check_range, to_float, to_uint8
from ldmlab.first_stage.autoencoder import AutoencoderKL, AutoencoderVQ, FirstStage
from ldmlab.first_stage.regularizers import DiagonalGaussian

CODECS = ("jpeg", "webp")
FULL_CHROMA = 90  # the quality from which JPEG keeps colour at full size, as common encoders do; lossy WebP never does
WEBP_CONTAINER = 30  # bytes before the first coded bit: RIFF 12, chunk 8, frame tag, start code and size 10


class Coded(NamedTuple):
    """Decoded pictures, and the bits of each."""

    x_rec: Float[Tensor, "n 3 h w"]
    bits: Float[Tensor, " n"]
    file_bits: Float[Tensor, " n"]  # with headers, where there is a file; else the same


class Entropy(NamedTuple):
    """Entropy in bits per symbol; `bias` estimates how far it is too low for lack of data [Miller 1955]."""

    bits: float
    bias: float


def entropy(counts: Int[Tensor, "*groups k"]) -> Entropy:
    """Empirical entropy of symbols in bits, the mean over groups if there are several (positions); at most log2(k).

    As an estimate of the source's entropy it is too low, by about (k_used - 1) / (2 n) nats; a code length under tables
    learned on other data is too high. Raises ValueError for a group without symbols.
    """
    if counts.numel() == 0 or int(counts.sum(-1).min()) == 0:
        raise ValueError(f"an entropy needs at least one symbol a group, got counts of shape {tuple(counts.shape)}")
    counts = counts.double()
    n = counts.sum(-1)
    p = counts / n[..., None]
    bits = torch.special.entr(p).sum(-1) / math.log(2)
    bias = ((counts > 0).sum(-1) - 1) / (2 * n * math.log(2))
    return Entropy(bits.mean().item(), bias.mean().item())


def count_symbols(batches: Iterable[Int[Tensor, "_ c p"]], num_symbols: int) -> Int[Tensor, "c p k"]:
    """Counts of each symbol 0..num_symbols - 1 by channel and position; ValueError for others and for no batches."""
    counts = None
    for symbols in batches:
        if symbols.min() < 0 or symbols.max() >= num_symbols:
            raise ValueError(f"symbols are 0 to {num_symbols - 1}, got {symbols.min()} to {symbols.max()}")
        if counts is None:
            counts = torch.zeros(*symbols.shape[1:], num_symbols, dtype=torch.long)
        place = torch.arange(counts[..., 0].numel()).view(1, *counts.shape[:2])
        counts.view(-1).index_add_(0, (place * num_symbols + symbols.cpu()).flatten(),
                                   torch.ones(symbols.numel(), dtype=torch.long))
    if counts is None:
        raise ValueError("no symbols to count")
    return counts


@dataclass(frozen=True)
class SymbolCode:
    """An ideal arithmetic code with fixed probabilities: -log2 p of each symbol, by channel and position."""

    cost: Float[Tensor, "c p k"]

    @classmethod
    def learn(cls, counts: Int[Tensor, "c p k"], by_place: bool) -> "SymbolCode":
        """From counts of training symbols: one table per channel, or one per channel and position.

        A channel's table adds half a count to every symbol [Krichevsky & Trofimov 1981], so that no probability is 0.
        The prior of a position's table is its channel's, with the weight of one observation per symbol in use.
        """
        counts, k = counts.double(), counts.shape[-1]
        whole = counts.sum(1, keepdim=True)
        p = (whole + 0.5) / (whole.sum(-1, keepdim=True) + k / 2)
        if by_place:
            in_use = torch.special.entr(p).sum(-1, keepdim=True).exp()
            p = (counts + in_use * p) / (counts.sum(-1, keepdim=True) + in_use)
        return cls(-p.log2().expand_as(counts))

    def bits(self, symbols: Int[Tensor, "n c p"]) -> Float[Tensor, " n"]:
        """Code length of each picture's symbols, in bits; not rounded up to bytes."""
        c, p, _ = self.cost.shape
        cost = self.cost.expand(len(symbols), -1, -1, -1)
        return cost.gather(3, symbols.cpu().view(-1, c, p, 1)).sum((1, 2, 3))


@dataclass(frozen=True)
class UniformQuantizer:
    """Quantizes z to integers: z / step, rounded and clamped to the range of training latents."""

    step: Float[Tensor, " c"]
    low: Int[Tensor, " c"]
    num_symbols: int

    @classmethod
    def learn(cls, batches: Iterable[Float[Tensor, "_ c h w"]], step: Float[Tensor, " c"]) -> "UniformQuantizer":
        """A quantizer with the range of the training latents in `batches`; ValueError unless all steps are positive."""
        if not (step > 0).all():
            raise ValueError(f"steps are positive, got {step.tolist()}")
        lows, highs = zip(*(z.movedim(1, 0).flatten(1).aminmax(dim=1) for z in batches), strict=True)
        ends = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
        low, high = ((end / step).round().long() for end in ends)
        return cls(step, low, int((high - low).max()) + 1)

    def symbols(self, z: Float[Tensor, "n c h w"]) -> Int[Tensor, "n c p"]:
        """Symbols 0..num_symbols - 1 of each entry, positions flattened."""
        whole = (z.flatten(2) / self.step[:, None]).round().long() - self.low[:, None]
        return whole.clamp(0, self.num_symbols - 1)

    def values(self, symbols: Int[Tensor, "n c p"], side: int) -> Float[Tensor, "n c h w"]:
        """The latents of symbols: the middle of each interval."""
        return ((symbols + self.low[:, None]) * self.step[:, None]).unflatten(2, (side, -1)).float()


class PosteriorStats(NamedTuple):
    """Of a KL first stage, by channel: mean and variance of the posteriors' means, and mean of their variances."""

    mean: Float[Tensor, " c"]
    var: Float[Tensor, " c"]
    noise: Float[Tensor, " c"]

    @property
    def step(self) -> Float[Tensor, " c"]:
        """The step with a rounding error as large as the posterior's noise: sqrt(12) times its std."""
        return (12 * self.noise).sqrt()

    @property
    def prior(self) -> DiagonalGaussian:
        """The Gaussian fitted to the sampled latents, by channel."""
        return DiagonalGaussian(torch.cat([self.mean, (self.var + self.noise).log()]).float()[None, :, None, None])


def posterior_stats(batches: Iterable[Float[Tensor, "_ c2 h w"]]) -> PosteriorStats:
    """Statistics of batches of cached moments (mean and log-variance)."""
    n, sums = 0, torch.zeros(())
    for moments in batches:
        posterior = DiagonalGaussian(moments.double())
        parts = torch.stack([posterior.mean, posterior.mean.square(), posterior.var])
        n, sums = n + parts[0, :, 0].numel(), sums + parts.sum((1, 3, 4))
    mean, square, noise = sums / n
    return PosteriorStats(mean, square - mean.square(), noise)


def latent_symbols(
    first_stage: FirstStage, quantizer: UniformQuantizer | None, moments: Float[Tensor, "n c2 h w"]
) -> Int[Tensor, "n c p"]:
    """Symbols of encoded pictures, on the CPU; VQ, which needs no `quantizer`, has one channel of symbols."""
    if quantizer is None:
        assert isinstance(first_stage, AutoencoderVQ)
        codes = first_stage.quantizer
        return codes.nearest(moments.to(codes.codebook.device)).flatten(1)[:, None].cpu()
    return quantizer.symbols(DiagonalGaussian(moments).mean.cpu())


@dataclass(frozen=True)
class LatentCoder:
    """x -> z -> symbols -> bits, and back to x_rec: a first stage with its code tables.

    Symbols of VQ are indices of codes; those of KL are the posterior's mean, rounded by `quantizer`.
    """

    first_stage: FirstStage
    quantizer: UniformQuantizer | None
    by_place: SymbolCode
    by_channel: SymbolCode

    @classmethod
    def learn(
        cls, first_stage: FirstStage, batches: Callable[[], Iterable[Tensor]], step: Float[Tensor, " c"] | None = None
    ) -> "LatentCoder":
        """Tables from `batches()`, the moments of training pictures; KL needs the `step` of each channel."""
        if (step is None) == (first_stage.reg == "kl"):
            raise ValueError(f"a step is for KL latents, and they need one; got reg {first_stage.reg!r}, step {step}")
        quantizer = None
        num_symbols = first_stage.quantizer.num_codes if isinstance(first_stage, AutoencoderVQ) else 0
        if step is not None:
            quantizer = UniformQuantizer.learn((DiagonalGaussian(m).mean.cpu() for m in batches()), step.cpu().float())
            num_symbols = quantizer.num_symbols
        counts = count_symbols((latent_symbols(first_stage, quantizer, m) for m in batches()), num_symbols)
        return cls(first_stage, quantizer, SymbolCode.learn(counts, True), SymbolCode.learn(counts, False))

    @property
    def num_symbols(self) -> int:
        """Number of symbols."""
        return self.by_place.cost.shape[-1]

    def symbols(self, x: Float[Tensor, "n 3 H W"]) -> Int[Tensor, "n c p"]:
        """Symbols of pictures in [-1, 1]."""
        return latent_symbols(self.first_stage, self.quantizer, self.first_stage.moments(x))

    def decode(self, symbols: Int[Tensor, "n c p"], side: int) -> Float[Tensor, "n 3 H W"]:
        """Decode symbols to pictures, clamped to [-1, 1]; `side` is that of the latent."""
        device = next(self.first_stage.parameters()).device
        if self.quantizer is None:
            assert isinstance(self.first_stage, AutoencoderVQ)
            z_q = self.first_stage.quantizer.embed(symbols[:, 0].unflatten(1, (side, -1)).to(device))
            return self.first_stage.decode(z_q, quantize=False).clamp(-1, 1)
        return self.first_stage.decode(self.quantizer.values(symbols, side).to(device)).clamp(-1, 1)

    @torch.inference_mode()
    def __call__(self, x: Float[Tensor, "n 3 H W"]) -> Coded:
        """Encode and decode pictures in [-1, 1]; bits are those under the tables by position."""
        symbols = self.symbols(x)
        bits = self.by_place.bits(symbols)
        return Coded(self.decode(symbols, x.shape[2] // self.first_stage.f), bits, bits)


@dataclass(frozen=True)
class PosteriorCoder:
    """Codes a sample of a KL first stage's posterior, at the KL divergence of the training loss [LDM v2, App. G].

    Relative entropy coding needs no less on average; known schemes need up to log2(KL + 1) + 5 bits per picture more
    [Li & El Gamal 2018, Theorem 1].
    """

    first_stage: AutoencoderKL
    prior: DiagonalGaussian | None  # None is the standard normal
    generator: torch.Generator

    @torch.inference_mode()
    def __call__(self, x: Float[Tensor, "n 3 H W"]) -> Coded:
        """Encode and decode pictures in [-1, 1]; bits are KL(q(z|x) || prior)."""
        posterior = self.first_stage.encode(x)
        prior = None if self.prior is None else DiagonalGaussian(self.prior.moments.to(x.device))
        bits = posterior.kl(prior).double().cpu() / math.log(2)
        return Coded(self.first_stage.decode(posterior.sample(self.generator)).clamp(-1, 1), bits, bits)


def file_codec(x: Float[Tensor, "n 3 h w"], codec: str, quality: int) -> Coded:
    """Code pictures in [-1, 1] by Pillow's JPEG or WebP at quality 0 to 100; chroma is halved (JPEG: below 90).

    `bits` leave out what does not depend on the picture, which a decoder of many small pictures would have. JPEG: they
    are those of the entropy-coded scan with the standard Huffman tables, as in the standard's abbreviated format. WebP:
    all but container and frame header; some 25 bytes ahead of its blocks are included. `file_bits` are those of the
    whole file; for JPEG with optimized Huffman tables, which are smaller. Raises ValueError for other codecs and
    qualities.
    """
    if codec not in CODECS:
        raise ValueError(f"codec is one of {', '.join(CODECS)}; got {codec!r}")
    if not 0 <= quality <= 100:
        raise ValueError(f"quality is 0 to 100, got {quality}")
    pictures, bits, file_bits = [], [], []
    for picture in to_uint8(check_range(x)).cpu():
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        if codec == "jpeg":
            options = {"quality": quality, "subsampling": "4:4:4" if quality >= FULL_CHROMA else "4:2:0"}
            data, whole = _saved(image, "JPEG", **options), _saved(image, "JPEG", optimize=True, **options)
            payload = jpeg_scan(data)
        else:
            data = whole = _saved(image, "WEBP", quality=quality, method=6)
            payload = webp_payload(data)
        pictures.append(torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))))
        bits.append(8 * payload)
        file_bits.append(8 * len(whole))
    x_rec = to_float(torch.stack(pictures).movedim(3, 1))
    return Coded(x_rec, torch.tensor(bits, dtype=torch.double), torch.tensor(file_bits, dtype=torch.double))


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_scan(data: bytes) -> int:
    """Bytes of entropy-coded data in a baseline JPEG file: from the end of its scan header to the end marker."""
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        raise ValueError("not a JPEG file: it lacks the start or the end marker")
    at = 2
    while data[at + 1] != 0xDA:  # start of scan; segments before it state their length
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data) - 2 - (at + 2 + int.from_bytes(data[at + 2 : at + 4], "big"))


def webp_payload(data: bytes) -> int:
    """Bytes of a lossy WebP file after its container and frame header, without the padding to even length."""
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8 ":
        raise ValueError("not a lossy WebP file of one picture")
    return int.from_bytes(data[16:20], "little") - (WEBP_CONTAINER - 20)


def at_rate(points: Sequence[Sequence[float | int]], bpp: float | int) -> float | None:
    """Interpolate [bpp, value] points at a rate, linearly in log(bpp); None outside of their range."""
    points = sorted((float(x), float(y)) for x, y in points if x > 0)
    if not points or not points[0][0] <= bpp <= points[-1][0]:
        return None
    x, y = np.array(points).T
    return float(np.interp(math.log(bpp), np.log(x), y))
