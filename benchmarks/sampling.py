"""Sampling: DDIM with 50 steps and decoding, and guided by a text-sized condition: ours, diffusers, the original.

`python benchmarks/sampling.py [--original FOLDERS] [--no-compile] [--rounds N] [--only WORK] [--out FILE]`. Equal
weights, equal noise, eta = 0; the pictures, or latents, of all exact ways are compared first, of the others it is
reported how far they are off. Peers as shipped and under bf16 autocast, ours in inference mode with keys and values of
the condition made once, and on request compiled, with weights packed, and in bf16. Compilation is paid once and stands
apart, with the number of calls after which it has paid.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from harness import Goal, Way, Work, agree, parse, run_table
from original import NAME as ORIGINAL
from original import FirstStage, add_option, ddim_sampler, find_original, unet
from original import ddim as original_ddim
from peers import call_diffusers, diffusers_twin, filled
from torch import Tensor, nn
from training import config

from ldmlab.checkpoints.diffusers_format.configs import schedule_to_theirs
from ldmlab.diffusion.guidance import classifier_free
from ldmlab.diffusion.samplers import ddim
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.unet.acceleration import accelerate
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.study.training.device import choose_device

SIDE, SCALE = 32, 3.0


@torch.no_grad()
def diffusers_ddim(model: nn.Module, schedule, z: Tensor, num_steps: int, both: Tensor | None = None) -> Tensor:
    """diffusers' scheduler and its pipelines' loop; with conditions [null, c] guided by SCALE."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(schedule_to_theirs(schedule))
    scheduler.set_timesteps(num_steps, device=z.device)
    for t in scheduler.timesteps:
        if both is None:
            eps = call_diffusers(model, z, t)
        else:
            null, told = call_diffusers(model, torch.cat([z, z]), t, both).chunk(2)
            eps = null + SCALE * (told - null)
        z = scheduler.step(eps, t, z, eta=0.0).prev_sample
    return z


def autocast(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The same under bf16 autocast."""
    def run_in_bf16() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return run()
    return run_in_bf16


def with_preparation(name: str, run: Callable[[], Tensor], note: str) -> Way:
    """Runs it once now, and tells how long that took: compilation and one call."""
    began = time.perf_counter()
    run()
    return Way(name, run, exact=False, note=note, prepare_s=time.perf_counter() - began)


def finish(name: str, ways: list[Way], goals: list[Goal], n: int) -> Work:
    """Compares what the ways give: exact ones must agree, of the others it is noted how far they are off."""
    first, agreement = ways[0].run(), {}
    for way in ways[1:]:
        agreement |= agree(f"result, {way.name}", way.run().float(), first, 2e-3 if way.exact else 1.0)
    return Work(name, ways, goals, n=n, unit="pictures", agreement=agreement)


def unguided(name: str, args, b: int, num_steps: int) -> Work:
    device = choose_device()
    torch.manual_seed(0)
    model = filled(UNet(config())).to(device).eval()
    first_stage = build_autoencoder(AutoencoderConfig(4, 3, "kl", ch=64, ch_mult=(1, 2, 4))).to(device).eval()
    schedule, z_T = scaled_linear().to(device), torch.randn(b, 3, SIDE, SIDE, device=device)

    def ours(model: nn.Module, decode: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode():
                return decode(ddim(model, z_T, schedule, num_steps))
        return run

    twin, twin_stage = diffusers_twin(model, SIDE).eval(), diffusers_twin(first_stage).eval()

    @torch.no_grad()
    def diffusers() -> Tensor:
        return twin_stage.decode(diffusers_ddim(twin, schedule, z_T, num_steps)).sample

    ways = [Way("ours", ours(model, first_stage.decode)), Way("diffusers", diffusers, "peer", note="its loop")]
    peers = ["diffusers"]
    if args.original:
        sampler, decoder = ddim_sampler(unet(model).eval(), schedule), FirstStage(first_stage).eval()

        @torch.no_grad()
        def original() -> Tensor:
            return decoder.decode(original_ddim(sampler, z_T, num_steps))

        ways.append(Way(ORIGINAL, original, "peer", note="its DDIMSampler"))
        peers.append(ORIGINAL)
    for way in [way for way in ways if way.kind == "peer"]:
        ways.append(Way(f"{way.name}, bf16", autocast(way.run, device), "peer", False, "autocast"))
    goals = []
    if device.type == "cuda":
        goals = [Goal("ours", peer, 1.2) for peer in peers]
        graphs = accelerate(model, dtype=torch.bfloat16, cuda_graphs=True)
        narrow = accelerate(first_stage.decoder, dtype=torch.bfloat16)
        decode = partial(_decode, first_stage, narrow)
        ways.append(with_preparation("ours, bf16, CUDA graphs", ours(graphs, decode), "bf16 weights"))
    if not args.no_compile:
        for label, dtype in (("ours, compiled", None), ("ours, bf16, compiled", torch.bfloat16)):
            fast = accelerate(model, dtype=dtype, compile=True)
            decode = partial(_decode, first_stage, accelerate(first_stage.decoder, dtype=dtype, compile=True))
            ways.append(with_preparation(label, ours(fast, decode), "weights packed" + (", bf16" if dtype else "")))
        if device.type == "cpu":
            goals = [Goal("ours, compiled", peer, 1.15) for peer in peers]
            goals += [Goal("ours, bf16, compiled", peer, 1.65) for peer in peers]
            goals += [Goal("ours, bf16, compiled", f"{peer}, bf16", 1.35) for peer in peers]
    return finish(name, ways, goals, b)


def _decode(first_stage: nn.Module, decoder: nn.Module, z: Tensor) -> Tensor:
    """`first_stage.decode` with another decoder."""
    return decoder(first_stage.from_latent(z))


def guided(name: str, args, b: int, num_steps: int, tokens: int) -> Work:
    device, dim = choose_device(), 128
    torch.manual_seed(0)
    model = filled(UNet(config(dim))).to(device).eval()
    schedule, z_T = scaled_linear().to(device), torch.randn(b, 3, SIDE, SIDE, device=device)
    context, null = torch.randn(b, tokens, dim, device=device), torch.randn(1, tokens, dim, device=device)
    both = torch.cat([null.expand_as(context), context])

    def ours(model: nn.Module) -> Tensor:
        with torch.inference_mode():
            return ddim(classifier_free(model, context, null, SCALE), z_T, schedule, num_steps)

    def without_sharing() -> Tensor:
        with torch.inference_mode():
            plain = classifier_free(lambda z, t, c: model(z, t, c), context, null, SCALE)
            return ddim(plain, z_T, schedule, num_steps)

    twin = diffusers_twin(model, SIDE).eval()
    ways = [Way("ours", partial(ours, model)),
            Way("ours, keys and values each step", without_sharing, note="the same without what is shared"),
            Way("diffusers", lambda: diffusers_ddim(twin, schedule, z_T, num_steps, both), "peer", note="its loop")]
    if args.original:
        sampler, told = ddim_sampler(unet(model).eval(), schedule), (context, null.expand_as(context), SCALE)
        ways.append(Way(ORIGINAL, lambda: original_ddim(sampler, z_T, num_steps, *told), "peer",
                        note="its DDIMSampler"))
    for way in [way for way in ways if way.kind == "peer"]:
        ways.append(Way(f"{way.name}, bf16", autocast(way.run, device), "peer", False, "autocast"))
    narrow = accelerate(model, dtype=torch.bfloat16)
    ways.append(Way("ours, bf16", partial(ours, narrow), exact=False, note="bf16 weights, not compiled"))
    goals = [Goal("ours", ORIGINAL, 1.2 if device.type == "cuda" else 1.1)] if args.original else []
    return finish(name, ways, goals, b)


def add_options(parser) -> None:
    add_option(parser)
    parser.add_argument("--no-compile", action="store_true", help="leave out what takes minutes to prepare")


def main() -> None:
    args = parse(__doc__, "sampling", add_options)
    about = find_original(args.original)
    b = 64 if torch.cuda.is_available() else 2
    works = {f"DDIM-50 and decode, batch {b}": (unguided, b, 50),
             f"guided, 77 tokens, DDIM-20, batch {b}": (guided, b, 20, 77),
             f"guided, one token, DDIM-20, batch {b}": (guided, b, 20, 1)}
    if torch.cuda.is_available():
        works["DDIM-50 and decode, batch 1"] = (unguided, 1, 50)
    run_table("sampling", [(name, partial(build, name, args, *settings)) for name, (build, *settings) in
                           works.items()], args, **about)


if __name__ == "__main__":
    main()
