"""Which device and which precision a run computes in."""

import torch


def choose_device(name: str = "auto") -> torch.device:
    """The device named, such as "cuda:1"; for "auto" the first that is available of cuda, mps and cpu."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def usable_precision(precision: str, device: torch.device) -> str:
    """bf16 only where the hardware computes in it; elsewhere it would be slower than float32."""
    if "bf16" not in precision:
        return precision
    fast = {"cuda": lambda: torch.cuda.is_bf16_supported(), "cpu": _cpu_has_bf16}.get(device.type, lambda: False)()
    return precision if fast else "32-true"


def _cpu_has_bf16() -> bool:
    try:
        return torch.cpu._is_avx512_bf16_supported()
    except AttributeError:  # a private name, the only one there is
        return False


def as_device(device: torch.device | str) -> torch.device:
    """The device of a name, as `choose_device` takes it; a device as it is."""
    return choose_device(device) if isinstance(device, str) else device
