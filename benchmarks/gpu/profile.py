"""Where the time of a step goes on the device: kernels by kind, by torch's profiler."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ldmlab.evaluation.cost import synchronize

# In this order: the first whose part is in the kernel's name, lower case.
KINDS: dict[str, tuple[str, ...]] = {
    "norm, activation (compiled)": ("triton",),  # such names list all that was fused
    "attention": ("flash", "fmha", "attention", "softmax", "sdpa"),
    "optimizer, EMA": ("adam", "multi_tensor", "foreach", "lerp"),
    "layout, copies": ("nchwtonhwc", "nhwctonchw", "memcpy", "memset", "transpose", "copy", "catarray"),
    "convolution": ("conv", "fprop", "dgrad", "wgrad", "xmma", "implicit", "winograd", "cudnn"),
    "matrix product": ("gemm", "cublas", "splitk", "nvjet", "cutlass"),
    "norm, activation": ("group_norm", "groupnorm", "rowwisemoments", "layer_norm", "norm", "moments", "silu",
                         "elementwise", "reduce", "fused", "upsample"),
}


def kind_of(kernel: str) -> str:
    """The entry of KINDS for a kernel's name, or "other"."""
    name = kernel.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")


def shares(step: Callable[[], object], device: torch.device, num_steps: int = 3) -> dict[str, Any]:
    """{"shares": of the time from the first kernel to the last by kind, "idle" among them, "top": longest kernels}."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] if device.type == "cpu" else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=kinds) as profiler:
        for _ in range(num_steps):
            step()
        synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    wanted = ("cpu_op",) if device.type == "cpu" else ("kernel", "gpu_memcpy", "gpu_memset")
    kernels = [(e["name"], float(e["ts"]), float(e["dur"])) for e in events if e.get("cat") in wanted and "dur" in e]
    return summary(kernels, num_steps)


def summary(kernels: list[tuple[str, float, float]], num_steps: int) -> dict[str, Any]:
    """From (name, start, microseconds) of kernels; where two overlap, the later one counts from the other's end."""
    if not kernels:
        raise ValueError("the profiler saw no kernels")
    spent: Counter[str] = Counter()
    by_name: Counter[str] = Counter()
    kernels = sorted(kernels, key=lambda kernel: kernel[1])
    first = busy_until = kernels[0][1]
    for name, start, length in kernels:
        own = max(0.0, start + length - max(start, busy_until))
        busy_until = max(busy_until, start + length)
        spent[kind_of(name)] += own
        by_name[name] += own
    span = busy_until - first
    found = {kind: us / span for kind, us in spent.most_common()}
    found["idle"] = max(0.0, 1 - sum(found.values()))
    top = [{"kernel": name[:110], "kind": kind_of(name), "share": us / span} for name, us in by_name.most_common(12)]
    return {"shares": found, "top": top, "step_s": span / num_steps / 1e6, "kernels_a_step": len(kernels) / num_steps}
