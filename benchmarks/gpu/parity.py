"""Part 1: the machine, the recorded cases of the original on it, and the samplers against the CPU in float32."""

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu.parts import Context, Save, attempt
from ldmlab.checkpoints.files import load_model
from ldmlab.diffusion.samplers import SAMPLERS
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.unet.acceleration import accelerate
from ldmlab.diffusion.unet.config import DenoiserConfig
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.study.config.paths import PACKAGE
from ldmlab.study.records.record import environment
from ldmlab.study.training.device import choose_device

QUERY = ("name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,"
         "persistence_mode,mig.mode.current")


def run(context: Context, save: Save) -> None:
    device, result = choose_device(), {}
    result["environment"] = describe(device)
    save(result)
    exact_float32()
    for name, bf16, keep_s in (("float32", False, 38), ("bfloat16", True, 24)):
        until = context.deadline - keep_s  # what comes after takes about so long
        result[f"golden, {name}"] = attempt(partial(golden, device, bf16, until, 5 if context.rehearse else None))
        save(result)
    num_steps = 3 if context.rehearse else 20
    result["samplers"] = attempt(partial(samplers, device, num_steps))
    save(result)
    result["accelerated"] = {}
    for name, error in accelerated(device, "eager" if context.rehearse else "inductor", num_steps).items():
        # Compiling takes half a minute, and what was done is saved before.
        result["accelerated"][name] = attempt(error) if context.left > 12 else {"error": "left out: no time was left"}
        save(result)


def exact_float32() -> None:
    """Without TF32, which torch allows in convolutions by default."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def describe(device: torch.device) -> dict[str, Any]:
    """Versions, device, driver, clocks and power as found."""
    found: dict[str, Any] = environment(device)
    found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "gpus": torch.cuda.device_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"capability": f"{properties.major}.{properties.minor}", "multiprocessors":
                  properties.multi_processor_count, "memory_gb": properties.total_memory / 1e9}
        found["nvidia_smi"] = attempt(nvidia_smi)
        found["triton"] = attempt(lambda: __import__("triton").__version__)
    return found


def nvidia_smi() -> dict[str, str]:
    done = subprocess.run(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"], capture_output=True,
                          text=True, timeout=20, check=True)
    return dict(zip(QUERY.split(","), map(str.strip, done.stdout.splitlines()[0].split(",")), strict=False))


# --- The recorded cases
def golden(device: torch.device, bf16: bool, until: float, limit: int | None = None) -> dict[str, Any]:
    """The largest error of each group of recorded cases, relative to its largest entry, by replaying them on `device`.

    Replays build their modules on the default device. Some compute on the CPU by their nature (schedules as Python
    numbers, data), and those that cannot be moved are listed with the reason. None is begun after time.time() `until`.
    """
    tests = Path(PACKAGE).parent / "tests"
    sys.path.insert(0, str(tests))
    import pytest
    from replays import REPLAYS
    from replays.case import Case

    class OnDevice(Case):
        """Inputs on the device, and errors noted instead of asserted."""

        errors: dict[str, float] = {}

        def tensor(self, key: str) -> Tensor:
            return super().tensor(key).to(device)

        def compare(self, key: str, got: Any, tol: float | None = None) -> None:
            want, got = torch.from_numpy(self.arrays[key]), torch.as_tensor(got).detach().cpu()
            self.checked.add(key)
            if got.shape != want.shape:
                raise AssertionError(f"{key}: shape {tuple(got.shape)}, recorded {tuple(want.shape)}")
            if want.numel():
                off = (got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-30)
                self.errors[key] = float(off) if got.isfinite().all() else float("inf")

    root = tests / "golden"
    index = json.loads((root / "index.json").read_text())["cases"]
    groups: dict[str, dict[str, Any]] = defaultdict(lambda: {"cases": 0, "max_error": 0.0, "tolerance": 0.0})
    skipped, not_run = {}, {}
    for name in sorted(index)[:limit]:
        if time.time() > until:
            not_run[name] = "left out: no time was left"
            continue
        entry = index[name]
        case = OnDevice.load(root, name, entry)
        OnDevice.errors = {}
        cast = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
        torch.manual_seed(0)
        try:
            with torch.device(device), cast:
                REPLAYS[entry["module"]](case)
        except pytest.skip.Exception as reason:
            skipped[name] = str(reason)[:160]
        except Exception as error:
            not_run[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        if OnDevice.errors:
            group = groups[entry["module"]]
            group["cases"] += 1
            group["tolerance"] = max(group["tolerance"], case.tol)
            worst = max(OnDevice.errors, key=OnDevice.errors.__getitem__)
            if OnDevice.errors[worst] >= group["max_error"]:
                group |= {"max_error": OnDevice.errors[worst], "worst": f"{name} {worst}"}
                groups[entry["module"]] = group
    return {"groups": dict(groups), "skipped": skipped, "not_run": not_run, "cases": len(index)}


# --- Samplers on the embedded UNet
def tiny_unet() -> UNet:
    """The denoiser that ships with the package, trained."""
    tensors, meta = load_model(PACKAGE / "weights" / "tour-diffusion.safetensors")
    model = UNet(DenoiserConfig(**meta["denoiser"]))
    prefix = "denoiser."
    model.load_state_dict({name.removeprefix(prefix): a for name, a in tensors.items() if name.startswith(prefix)})
    return model.eval().requires_grad_(False)


def inputs(model: UNet, b: int = 4) -> tuple[Tensor, Tensor | None]:
    """z_T and a context, from a fixed seed, on the CPU."""
    g, config = torch.Generator().manual_seed(0), model.config
    context = None if config.context_dim is None else torch.randn(b, 1, config.context_dim, generator=g)
    return torch.randn(b, config.in_channels, 8, 8, generator=g), context


def sample(model: Callable, name: str, z_T: Tensor, context: Tensor | None, num_steps: int) -> Tensor:
    """By one sampler, with the same noise on every device."""
    g = torch.Generator().manual_seed(1)
    given = None if context is None else context.to(z_T.device)
    with torch.inference_mode():
        return SAMPLERS[name].draw(
            lambda z, t: model(z, t, given), z_T, scaled_linear().to(z_T.device), num_steps,
            generator=lambda a: torch.randn(a.shape, generator=g).to(a)).float().cpu()


def off(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|"""
    return float((a.double() - b.double()).norm() / b.double().norm())


def samplers(device: torch.device, num_steps: int) -> dict[str, Any]:
    """Relative errors of whole samples against float32 on the CPU."""
    model = tiny_unet()
    z_T, context = inputs(model)
    there = tiny_unet().to(device)
    narrow = accelerate(there, dtype=torch.bfloat16)
    found = {}
    for name in SAMPLERS:
        reference = sample(model, name, z_T, context, num_steps)
        found[name] = {"float32": off(sample(there, name, z_T.to(device), context, num_steps), reference),
                       "bfloat16 weights": off(sample(narrow, name, z_T.to(device), context, num_steps), reference)}
    return found


def accelerated(device: torch.device, backend: str, num_steps: int) -> dict[str, Callable[[], float]]:
    """Give relative errors of accelerated copies against the eager model, same device and dtype: samples by DDIM."""
    model = tiny_unet().to(device)
    z_T, context = inputs(model)
    z_T = z_T.to(device)
    eager = {dtype: sample(accelerate(model, dtype=dtype), "ddim", z_T, context, num_steps)
             for dtype in (None, torch.bfloat16)}
    rows = {"CUDA graphs": dict(cuda_graphs=True), "CUDA graphs, bf16": dict(cuda_graphs=True, dtype=torch.bfloat16),
            "compiled": dict(compile=True, backend=backend),
            "compiled, CUDA graphs": dict(compile=True, backend=backend, cuda_graphs=True)}

    def error(options: dict[str, Any]) -> float:
        fast = accelerate(model, **options)
        return off(sample(fast, "ddim", z_T, context, num_steps), eager[options.get("dtype")])

    return {name: partial(error, options) for name, options in rows.items()}
