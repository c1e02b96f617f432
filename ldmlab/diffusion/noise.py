"""Noise of samples, each from a random stream of its own: sample i depends on (seed, i), and on no other sample."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Noise = torch.Generator | Callable[[Tensor], Tensor] | None
NOISE = "Philox, key (seed, sample)"  # how noise is drawn: records state it, and scores of other noise do not compare


class SampleNoise:
    """Standard normal noise for the samples with the numbers `indices` under one seed.

    Sample i draws from a Philox stream with the key (seed, i) [Salmon et al., SC 2011], first the noise that it starts
    from, then that of each step: it is the same in any batch and among any number of samples. Values are drawn in
    float32 on the CPU and then moved, so that they are equal to the bit on every device.

    An instance is a `Noise` of the samplers. ValueError for a tensor of another number of samples than `indices`.

    >>> three = SampleNoise(0, [3])(torch.empty(1, 2, 2))
    >>> torch.equal(three[0], SampleNoise(0, range(8))(torch.empty(8, 2, 2))[3])
    True
    """

    def __init__(self, seed: int, indices: Iterable[int]) -> None:
        self._streams = [np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, i % 2**64], np.uint64)))
                         for i in indices]

    def __call__(self, z: Float[Tensor, "b *dims"]) -> Float[Tensor, "b *dims"]:
        """The next noise of each sample, of the shape, dtype and device of `z`, whose values are not read."""
        if len(z) != len(self._streams):
            raise ValueError(f"noise is for {len(self._streams)} samples, one per index; got {len(z)}")
        return self.draw(tuple(z.shape[1:]), z.device).to(z.dtype)

    def draw(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Float[Tensor, "b *dims"]:
        """The next noise of each sample, of `shape` without the batch, float32."""
        # From pinned memory the copy does not wait for the step that the GPU still computes.
        noise = torch.empty(len(self._streams), *shape, pin_memory=torch.device(device).type == "cuda")
        for stream, row in zip(self._streams, noise.numpy(), strict=True):
            stream.standard_normal(dtype=np.float32, out=row)
        return noise.to(device, non_blocking=True)


def noise_like(z: Tensor, generator: Noise) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `z`; ValueError without a generator.

    A torch.Generator draws one tensor for the whole batch, in float32 on its own device.
    """
    if generator is None:
        raise ValueError("this sampler draws noise, got generator=None; pass SampleNoise or a torch.Generator")
    if not isinstance(generator, torch.Generator):
        return generator(z)
    return torch.randn(z.shape, generator=generator, device=generator.device, dtype=torch.float32).to(z)
