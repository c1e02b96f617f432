"""Levers of sampling: keys and values of a condition computed once, and narrower, compiled copies of a model."""

from collections import Counter
from dataclasses import replace

import jaxtyping
import pytest
import torch
from torch import nn

from ldmlab.diffusion.conditioning.tokens import ClassEmbedder
from ldmlab.diffusion.guidance import classifier_free, classifier_guided, image_guided
from ldmlab.diffusion.guiders import gaussian_guider
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.samplers import ddim, dpm_solver_pp
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.unet.acceleration import accelerate
from ldmlab.diffusion.unet.attention import CrossAttention
from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet, with_context
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import LatentStats
from ldmlab.first_stage.networks import AutoencoderConfig

CONFIG = DenoiserConfig(
    in_channels=3, out_channels=3, widths=(8, 16), num_res_blocks=1, attention_at=(2,), num_heads=2, norm_groups=4,
    context_dim=6, transformer_depth=2,
)
NUM_CROSS = 2 * (1 + 1 + 2)  # of that config: depth 2, one block down, one in the middle, two up
SCHEDULE = scaled_linear()


def awake(model: nn.Module) -> nn.Module:
    """The model with its zero-initialised layers as any other layer starts."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            module.reset_parameters()
    return model.eval()


def unet(config: DenoiserConfig = CONFIG) -> UNet:
    return awake(UNet(config))


def contexts(num_tokens: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """A condition of two items, and the null one of a batch."""
    return torch.randn(2, num_tokens, 6), torch.randn(1, num_tokens, 6)


def latents() -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def plain(model: UNet):
    """The same denoiser as a function, of which nobody knows that it can project."""
    return lambda z_t, t, context: model(z_t, t, context)


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * b.abs().max().item())


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_shared_keys_and_values_give_the_same_samples(scale, num_tokens):
    """With and without guidance, for words and for the one token of a class: the lever is exact."""
    model, (context, null) = unet(), contexts(num_tokens)
    shared, alone = (
        ddim(classifier_free(denoiser, context, null, scale), latents(), SCHEDULE, 5)
        for denoiser in (model, plain(model))
    )
    assert_same(shared, alone)
    other = ddim(classifier_free(model, context.flip(0), null, scale), latents(), SCHEDULE, 5)
    assert error(other, alone) > 1e-3  # the condition is heard


def test_shared_keys_and_values_follow_autocast():
    """One function called with, without and again with autocast answers each time as the plain denoiser does."""
    model, (context, _) = unet(), contexts()
    shared, alone = with_context(model, context), with_context(plain(model), context)
    with torch.no_grad():
        for enabled in (True, False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                t = torch.tensor([10, 700])
                assert torch.equal(shared(latents(), t), alone(latents(), t))


def small_model() -> LatentDiffusion:
    """A class-conditional model with a KL first stage, untrained."""
    config = AutoencoderConfig(f=2, ch=8, ch_mult=(1, 1), num_res_blocks=1, z_channels=3, resolution=8, norm_groups=4,
                               reg="kl")
    stats = LatentStats("kl", (0.0,) * 3, (1.0,) * 3, (0.0,) * 3, 0)
    return LatentDiffusion(awake(build_autoencoder(config)), stats, unet(), SCHEDULE, ClassEmbedder(4, 6).eval(), 8,
                           torch.device("cpu"))


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_a_condition_is_projected_once_a_sample(scale, num_tokens):
    """Five steps, one call of to_v in each cross-attention, and of to_k where there is a softmax at all."""
    model, (context, null), calls = unet(), contexts(num_tokens), Counter()
    for name, module in model.named_modules():
        if isinstance(module, CrossAttention) and name.endswith("cross_attention"):
            module.to_k.register_forward_hook(lambda *_, key=("k", name): calls.update([key]))
            module.to_v.register_forward_hook(lambda *_, key=("v", name): calls.update([key]))
    ddim(classifier_free(model, context, null, scale), latents(), SCHEDULE, 5)
    assert set(calls.values()) == {1}
    assert len([which for which, _ in calls if which == "v"]) == NUM_CROSS
    assert len([which for which, _ in calls if which == "k"]) == (NUM_CROSS if num_tokens > 1 else 0)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_guides_still_get_their_gradients(scale):
    """Guidance by a classifier and by a picture, made without gradients, differentiates the conditional denoiser."""
    model, (context, null), z_t, t = unet(), contexts(), latents(), torch.tensor([10, 700])
    guider, y = gaussian_guider(lambda z: z, torch.zeros(1, 3, 4, 4)), torch.tensor([0, 1])

    def answers(denoiser):
        eps_model = classifier_free(denoiser, context, null, scale)
        by_class = classifier_guided(eps_model, lambda z, t: eps_model(z, t).mean((2, 3)), y, SCHEDULE, 2.0)
        by_image = image_guided(eps_model, guider, SCHEDULE, 2.0)
        return torch.stack([eps_model(z_t, t), by_class(z_t, t), by_image(z_t, t)])

    with torch.no_grad():
        shared, alone = answers(model), answers(plain(model))
    assert_same(shared, alone)
    assert error(shared[1], shared[0]) > 1e-3 and error(shared[2], shared[0]) > 1e-3


def test_the_parameters_of_a_condition_still_learn():
    """With gradients the function is the plain one: the loss reaches context and projections."""
    model, (context, _) = unet(), contexts()
    context.requires_grad_()
    with_context(model, context)(latents(), torch.tensor([10, 700])).square().mean().backward()
    weights = [module.to_k.weight for module in model.modules() if isinstance(module, CrossAttention)]
    assert context.grad.any() and all(weight.grad.any() for weight in weights)


def test_keys_and_values_that_do_not_fit_are_refused():
    """Of another batch, and of a denoiser that has no context."""
    model, (context, _) = unet(), contexts()
    with pytest.raises(ValueError, match="a batch of 2, got 1 latents"):
        model(latents()[:1], torch.tensor([10]), model.project(context))
    with pytest.raises(ValueError, match="context_dim=None"):
        unet(replace(CONFIG, context_dim=None)).project(context)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: a.clone() for name, a in module.state_dict().items()}


def assert_untouched(module: nn.Module, before: dict[str, torch.Tensor]) -> None:
    now = module.state_dict()
    assert now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("change", [{}, {"num_classes": 5}, {"context_dim": None, "use_scale_shift_norm": True}])
def test_bf16_weights_are_near_and_leave_the_original_alone(change):
    """Every kind of denoiser runs in bf16 to its precision, answers in the latent's dtype, and is a copy."""
    config = replace(CONFIG, **change)
    model = unet(config)
    before, fast = state(model), accelerate(model, dtype=torch.bfloat16)
    context = None if config.context_dim is None else contexts()[0]
    y = None if config.num_classes is None else torch.tensor([0, 3])
    with torch.inference_mode():
        for t in (torch.tensor([10, 700]), torch.tensor([0.5, 431.7])):
            exact, near = (denoiser(latents(), t, context, y) for denoiser in (model, fast))
            assert near.dtype == torch.float32 and 0 < error(near, exact) < 2e-2
            with torch.autocast("cpu", torch.float16):  # has no say
                assert torch.equal(fast(latents(), t, context, y), near)
    assert_untouched(model, before)


@pytest.fixture
def compilations():
    """The graphs that were compiled, by a backend that runs them as they are; shape checks would be compiled too."""
    graphs, checks = [], not jaxtyping.config.jaxtyping_disable

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    jaxtyping.config.update("jaxtyping_disable", True)
    yield graphs, backend
    jaxtyping.config.update("jaxtyping_disable", not checks)
    torch.compiler.reset()


def test_a_compiled_denoiser_is_compiled_once(compilations):
    """Not a step at a time, and not again for a sampler with fractional t, or for another condition of the shape."""
    graphs, backend = compilations
    model, (context, null) = unet(replace(CONFIG, widths=(8,), attention_at=())), contexts()
    fast = accelerate(model, compile=True, backend=backend)
    for c, sampler in ((context, ddim), (context, dpm_solver_pp), (context.flip(0), ddim)):
        near, exact = (
            sampler(classifier_free(d, c, null, 3.0), latents(), SCHEDULE, 3) for d in (fast, plain(model))
        )
        torch.testing.assert_close(near, exact)
    assert len(graphs) == 1


def test_guides_get_gradients_of_an_accelerated_denoiser():
    """Near those of the original, through bf16."""
    model, (context, _), z_t, t = unet(), contexts(), latents(), torch.tensor([10, 700])
    guider = gaussian_guider(lambda z: z, torch.zeros(1, 3, 4, 4))
    exact, near = (
        image_guided(with_context(denoiser, context), guider, SCHEDULE, 1.0)(z_t, t)
        for denoiser in (model, accelerate(model, dtype=torch.bfloat16))
    )
    assert error(near, exact) < 5e-2


def test_an_accelerated_model_samples_and_is_a_copy():
    """Pictures near those of the original, whose denoiser and first stage keep their weights to the bit."""
    model = small_model()
    before = [state(model.denoiser), state(model.first_stage)]
    fast = model.accelerated(dtype=torch.bfloat16)
    y, told = torch.tensor([0, 1, 2]), {"num_steps": 5, "guidance_scale": 2.0, "batch_size": 2}
    exact, near = (each.sample(y, **told) for each in (model, fast))
    assert 0 < error(near, exact) < 5e-2 and near.dtype == torch.float32
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(fast.first_stage.moments(x), model.first_stage.moments(x))
    for module, weights in zip((model.denoiser, model.first_stage), before, strict=True):
        assert_untouched(module, weights)


@pytest.mark.parametrize("options, message", [
    (dict(cuda_graphs=True), "CUDA device; this one is on cpu"),
    (dict(dtype=torch.int8), "got torch.int8"),
])
def test_what_cannot_be_accelerated_is_refused(options, message):
    """At once, not at the first step of a sample."""
    with pytest.raises(ValueError, match=message):
        small_model().accelerated(**options)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_cuda_graphs_replay_what_they_recorded(mode):
    """New latents, steps and conditions reach the recorded kernels, in whatever mode each call is made."""
    model, (context, null) = unet().cuda(), (c.cuda() for c in contexts())
    fast = accelerate(model, cuda_graphs=True)
    for c in (context, context.flip(0)):
        for each in (mode, torch.no_grad):
            with each():
                replayed, alone = (
                    ddim(classifier_free(d, c, null, 3.0), latents().cuda(), SCHEDULE, 5) for d in (fast, model)
                )
            torch.testing.assert_close(replayed, alone, rtol=1e-4, atol=1e-4)
