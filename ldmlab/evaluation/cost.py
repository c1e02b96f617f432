"""Cost of a model: floating-point operations, memory, pictures per second, V100-days [LDM v2, Tab. 18, Fig. 17]."""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# "we convert the A100 days to V100 days by assuming a speedup of A100 vs V100" [LDM v2, App. F]: 2.2 times.
V100_PER_A100 = 2.2


def count_flops(model: Callable, *inputs: Any, **keywords: Any) -> int:
    """Floating-point operations of one forward pass, 2 per multiply-accumulate; convolutions and matrix products only.

    Divide by the batch size for the cost per picture.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter has no rule for some fused attention kernels and would count them as 0, but has one for the plain one.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, _Uncounted():
        model(*inputs, **keywords)
    return counter.get_total_flops()


class _Uncounted(TorchFunctionMode):
    """Normalisations and activations return their input: they count as 0, and on the meta device take most time."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func in (F.group_norm, F.layer_norm, F.silu, F.gelu):
            return args[0]
        return func(*args, **(kwargs or {}))


def synchronize() -> None:
    """Wait for the accelerator, if there is one, to finish."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def peak_jobs(device: torch.device | str, dtype: torch.dtype) -> list[tuple[Callable[[], object], int]]:
    """Large matrix products and 3 x 3 convolutions, each with its operations, to measure the peak rate in `dtype`.

    Which is fastest depends on the device's libraries: in float32 on an AMD processor, convolutions were 2.5 times as
    fast.
    """
    device = torch.device(device)
    large = device.type != "cpu"
    jobs: list[tuple[Callable[[], object], int]] = []
    for n in (4096, 8192) if large else (1024, 2048):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        jobs.append((partial(torch.mm, a, b), 2 * n**3))
    for c, side, n in ((512, 64, 16), (1024, 32, 32)) if large else ((256, 32, 4), (128, 64, 8)):
        x, w = torch.randn(n, c, side, side, device=device), torch.randn(c, c, 3, 3, device=device)
        x, w = (a.to(dtype=dtype, memory_format=torch.channels_last) for a in (x, w))
        jobs.append((partial(torch.conv2d, x, w, padding=1), 2 * n * (3 * c * side) ** 2))
    return jobs


def throughput(fn: Callable[[], object], n: int, *, warmup: int = 1, repeats: int = 5) -> float:
    """Images per second of `fn()`, which produces `n` images: median of `repeats` runs after `warmup` untimed ones."""
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


def training_throughput(
    loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, n: int, *, warmup: int = 3, repeats: int = 10
) -> float:
    """Images per second of whole training steps on batches of `n`: `loss()`, its gradient, the update.

    The steps change the optimizer's parameters, so use those of a copy.
    """

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return throughput(step, n, warmup=warmup, repeats=repeats)


def peak_memory(fn: Callable[[], object]) -> tuple[int, str] | None:
    """Peak memory of `fn()` as (bytes, description); None on systems that do not report it.

    On CUDA it is that of tensors. On a CPU it is that of the whole process with its libraries: during this call on
    Linux, since the start of the process elsewhere. The two cannot be compared.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        fn()
        synchronize()
        return torch.cuda.max_memory_allocated(), "tensors on the accelerator"
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak to the current resident memory
    except OSError:
        fn()
        return _peak_since_start()
    fn()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return peak, "resident memory of the process"


def _peak_since_start() -> tuple[int, str] | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, "resident memory of the process since its start"


def v100_days(seconds: float | int, device_name: str, factor: float | int | None = None) -> dict[str, Any]:
    """Wall time in V100-days, as in Fig. 17 and Tab. 18, as an entry of a record with the conversion factor.

    The paper states a factor for the A100 only; for other devices `factor` is their speed in V100s. Raises ValueError
    without a factor.
    """
    if factor is None:
        known = {"V100": 1.0, "A100": V100_PER_A100}
        factor = next((value for name, value in known.items() if name in device_name), None)
    if factor is None or factor <= 0 or seconds < 0:
        raise ValueError(
            f"no conversion of {seconds} s on {device_name!r} with factor {factor}: the paper states {V100_PER_A100} "
            "for an A100 and none for other devices; give factor > 0, the device's speed in V100s"
        )
    return {"value": seconds / 86_400 * factor, "unit": "V100-days", "converted": factor != 1.0,
            "converted_from": device_name, "factor": factor}
