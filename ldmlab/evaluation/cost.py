"""What a model costs: floating-point operations, pictures per second [LDM v2, Tab. 18]."""

import statistics
import time
from collections.abc import Callable

import torch


def count_flops(model: Callable, *inputs, **keywords) -> int:
    """Floating-point operations of one forward pass, 2 per multiply-accumulate; convolutions and matrix products only.

    Divide by the batch size for the cost of a picture.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter has no rule for some fused attention kernels and would count them as free; the plain one it knows.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs, **keywords)
    return counter.get_total_flops()


def synchronize() -> None:
    """Wait until the accelerator, if there is one, has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def throughput(fn: Callable[[], object], n: int, *, warmup: int = 1, repeats: int = 5) -> float:
    """Images per second of `fn()`, which makes `n` of them: median of `repeats` runs after `warmup` untimed ones."""
    if n < 1 or repeats < 1 or warmup < 0:
        raise ValueError(f"need n >= 1, repeats >= 1, warmup >= 0; got n={n}, repeats={repeats}, warmup={warmup}")
    for _ in range(warmup):
        fn()
    seconds = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        fn()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return n / statistics.median(seconds)
