"""What only a GPU can show: it computes what the CPU does, resumes exactly, and takes the fast paths.

Skipped without CUDA. Bit-equal resumption is asked under `torch.use_deterministic_algorithms` with cuBLAS's workspaces
fixed; other comparisons are made without TF32, which torch allows in convolutions by default.
"""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS is first used

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldmlab.diffusion.conditioning.tokens import ClassEmbedder
from ldmlab.diffusion.ema import EMA
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.training import DiffusionModule
from ldmlab.diffusion.unet.acceleration import accelerate
from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet
from ldmlab.evaluation.cost import throughput
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import Latents
from ldmlab.first_stage.losses import FirstStageLoss, PatchDiscriminator
from ldmlab.first_stage.networks import Attention, AutoencoderConfig
from ldmlab.first_stage.training import FirstStageModule
from ldmlab.study.training.loop import fit

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
CUDA = "cuda"
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
KINDS = ("kl", "vq", "diffusion")


@pytest.fixture(autouse=True)
def _float32():
    """Convolutions and products in float32 where nothing else is said."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def same_noise(monkeypatch):
    """All that a training step draws comes from the CPU's generator, on every device."""
    randint = torch.randint

    def on_cpu(*args, device=None, **options):
        return randint(*args, **options).to(device or "cpu")

    monkeypatch.setattr(torch, "randn_like", lambda a, **_: torch.randn(a.shape).to(a.device, a.dtype))
    monkeypatch.setattr(torch, "randint", on_cpu)


class Pictures(torch.utils.data.Dataset):
    """Sixteen smooth random pictures and their mirror images."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        small = torch.rand(16, 3, 4, 4, generator=g)
        x = nn.functional.interpolate(small, size=32, mode="bilinear")
        self.x = (torch.cat([x, x.flip(3)]) * 255).byte()

    def __len__(self):
        return 32

    def __getitems__(self, indices):
        return {"image": self.x[indices]}


def unet(width: int = 32) -> UNet:
    """Small, with attention and a class as context; no layer is zero."""
    torch.manual_seed(0)
    model = UNet(DenoiserConfig(3, 3, (width, 2 * width), num_res_blocks=1, attention_at=(1, 2), num_heads=2,
                                context_dim=16))
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model


def module_and_data(kind: str):
    """A module to train, with its data; first stages with their adversary from the first step on."""
    torch.manual_seed(0)
    if kind == "diffusion":
        moments = np.random.default_rng(0).standard_normal((32, 6, 8, 8), np.float32)
        module = DiffusionModule(unet(), scaled_linear(), ClassEmbedder(4, 16, 0.0), lr=1e-3, channels_last=True)
        return module, Latents(moments, np.arange(16) % 4, "random")
    config = AutoencoderConfig(f=4, z_channels=3, reg=kind, ch=32, ch_mult=(1, 1), patch=2, num_res_blocks=1,
                               resolution=32, num_codes=32)
    loss = FirstStageLoss(lambda x, y: (x - y).square().mean((1, 2, 3)), PatchDiscriminator(1, 8), disc_start=0,
                          reduction="sum" if kind == "kl" else "mean", reg_weight=1e-6 if kind == "kl" else 1.0)
    return FirstStageModule(build_autoencoder(config), loss, lr=1e-3, num_steps=100), Pictures()


def train(kind: str, folder, device: str, steps: int, **options):
    """The module trained by the project's loop, and its curve."""
    module, data = module_and_data(kind)
    curve = fit(module, data, num_steps=steps, batch_size=8, seed=0, run_dir=folder, label=kind,
                device=torch.device(device), log_every=1, **options)
    return module, curve


def parameters(module) -> torch.Tensor:
    return torch.cat([p.detach().double().cpu().flatten() for p in module.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_training_steps_are_the_cpus(kind, tmp_path, same_noise):
    """Logged values of two steps agree, and so does where the weights went."""
    start = parameters(module_and_data(kind)[0])
    (here, curve_here), (there, curve_there) = (train(kind, tmp_path / d, d, 2) for d in ("cpu", CUDA))
    for name in set(curve_here.values) - {"train_s"}:
        assert curve_there[name][0] == pytest.approx(curve_here[name][0], rel=2e-3, abs=1e-4), name
    moved_here, moved_there = parameters(here) - start, parameters(there) - start
    # Adam's first steps have the sign of a gradient: where that is all rounding error, the two may part.
    assert (moved_there - moved_here).norm() < 0.25 * moved_here.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_on_cuda_it_is_the_uninterrupted_run(kind, tmp_path):
    """Bit for bit, with deterministic algorithms; as a checkpoint holds all that a run needs."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    whole, _ = train(kind, tmp_path / "whole", CUDA, 4)
    train(kind, tmp_path / "parts", CUDA, 2)
    continued, _ = train(kind, tmp_path / "parts", CUDA, 4)
    assert torch.equal(parameters(continued), parameters(whole))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_cuda_goes_on_on_the_cpu(kind, tmp_path):
    """Its checkpoint is of no device: the CPU starts from its weights, and takes about the step that CUDA takes."""
    before, _ = train(kind, tmp_path, CUDA, 2)
    state = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)
    loaded, _ = module_and_data(kind)
    loaded.load_training_state(state["module"])
    assert torch.equal(parameters(loaded), parameters(before))
    after, curve = train(kind, tmp_path, "cpu", 3)
    assert curve.steps("loss").tolist() == [1, 2, 3] and np.isfinite(curve["loss"]).all()
    assert not torch.equal(parameters(after), parameters(before))


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_training_stays_finite(kind, tmp_path):
    """Under autocast: finite losses near those of float32, weights that stay float32."""
    module, curve = train(kind, tmp_path / "bf16", CUDA, 4, precision="bf16-mixed")
    _, exact = train(kind, tmp_path / "fp32", CUDA, 4)
    assert np.isfinite(curve["loss"]).all() and parameters(module).isfinite().all()
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert curve["loss"][0] == pytest.approx(exact["loss"][0], rel=0.05, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_takes_a_fused_kernel(dtype):
    """Of the denoiser and of a first stage as wide as the released: with the plain kernel forbidden, both run."""
    model, z = accelerate(unet(64).cuda(), dtype=dtype), torch.randn(2, 3, 16, 16, device=CUDA)
    wide = Attention(512).to(CUDA, dtype)
    with sdpa_kernel(FUSED), torch.no_grad():
        out = model(z, torch.tensor([3, 700], device=CUDA), torch.randn(2, 4, 16, device=CUDA))
        assert out.isfinite().all()
        assert wide(torch.randn(2, 512, 16, 16, device=CUDA, dtype=dtype)).isfinite().all()


def test_throughput_waits_for_the_device():
    """Work that is launched in no time is timed by its end: the clock agrees with CUDA's events."""
    a, spans = torch.randn(4096, 4096, device=CUDA), []

    def work():
        spans.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
        spans[-1][0].record()
        for _ in range(20):
            a @ a
        spans[-1][1].record()

    seconds = 1 / throughput(work, 1, repeats=3)
    torch.cuda.synchronize()
    assert seconds > 0.9 * min(start.elapsed_time(end) for start, end in spans) / 1e3


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_twenty_replays_are_twenty_eager_calls(dtype):
    """Nothing that changes from call to call was frozen in the recorded graph."""
    model = unet().cuda().eval()
    eager, graphs = accelerate(model, dtype=dtype), accelerate(model, dtype=dtype, cuda_graphs=True)
    outputs = []
    with torch.inference_mode():
        for step in range(20):
            z, t = torch.randn(2, 3, 8, 8, device=CUDA), torch.full((2,), 999 - 50 * step, device=CUDA)
            context = torch.randn(2, 1, 16, device=CUDA)
            replayed, alone = graphs(z, t, context), eager(z, t, context)
            torch.testing.assert_close(replayed, alone, rtol=1e-5, atol=1e-5 if dtype is None else 1e-2)
            outputs.append(replayed)
    assert all(not torch.equal(a, b) for a, b in zip(outputs, outputs[1:], strict=False))


def test_optimizer_and_averages_do_not_wait_for_the_device():
    """Twenty updates without a synchronization, and the averages are those of a loop."""
    model = unet().cuda()
    averages = EMA(model)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    averages.update(model)
    for name, p in model.named_parameters():
        expected[name].lerp_(p.detach(), 1 - 2 / 11)
    for name, shadow in averages.shadow.items():
        torch.testing.assert_close(shadow, expected[name])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            optimizer.step()
            averages.update(model)
    finally:
        torch.cuda.set_sync_debug_mode("default")
