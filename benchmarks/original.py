"""The authors' released code as a peer, from folders on this machine: nothing of it is in the project.

`--original FOLDER[:FOLDER]` names folders that hold the packages `ldm` (CompVis/latent-diffusion, or a descendant) and,
for training first stages, `taming`; what they import must be installed. Weights are copied from our models through
`ldmlab.checkpoints`, so that both do the same work.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from ldmlab.checkpoints.compvis import FIRST_STAGE_RULES, UNET_RULES, to_compvis
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.unet.unet import UNet

NAME = "original"


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--original", default=os.environ.get("LDMLAB_ORIGINAL", ""),
                        help=f"folders with the released code's packages, separated by {os.pathsep!r}; "
                             "default: the variable LDMLAB_ORIGINAL")


def find_original(folders: str) -> dict[str, str]:
    """Puts the folders where Python looks, and says what they are: {} without any, SystemExit where one is wrong."""
    if not folders:
        print("no --original: the released code is left out")
        return {}
    paths = [Path(part).expanduser().resolve() for part in folders.split(os.pathsep)]
    for path in paths:
        if not any((path / package).is_dir() for package in ("ldm", "taming")):
            raise SystemExit(f"--original: {path} has no folder 'ldm' or 'taming'")
    sys.path[:0] = map(str, paths)
    try:
        import ldm.modules.diffusionmodules.openaimodel  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"--original: {error}; install what the released code imports") from error
    return {"original": "; ".join(map(_describe, paths))}


def _describe(folder: Path) -> str:
    """Commit or package version where there is one, and a hash over the code."""
    packages = [folder / name for name in ("ldm", "taming") if (folder / name).is_dir()]
    files = sorted(file for package in packages for file in package.rglob("*.py"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    about = [path.name.removesuffix(".dist-info") for path in folder.glob("*.dist-info")]
    if (folder / ".git").exists():
        git = ["git", "-C", str(folder), "log", "-1", "--format=%H"]
        about = [subprocess.run(git, capture_output=True, text=True).stdout.strip()]
    return f"{' '.join(package.name for package in packages)} of {' '.join(about) or 'a folder'}, sha256 {digest}"


def unet(ours: UNet) -> nn.Module:
    """The released UNet with the weights of ours; attention is checkpointed there whatever the settings."""
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = ours.config
    width = config.widths[0]
    heads = {"num_heads": config.num_heads} if config.num_heads else {"num_head_channels": config.num_head_channels}
    cross = {} if config.context_dim is None else {
        "use_spatial_transformer": True, "transformer_depth": config.transformer_depth,
        "context_dim": config.context_dim, "legacy": False}
    theirs = UNetModel(
        image_size=32, in_channels=config.in_channels, model_channels=width, out_channels=config.out_channels,
        num_res_blocks=config.num_res_blocks, attention_resolutions=list(config.attention_at),
        channel_mult=[w // width for w in config.widths], use_scale_shift_norm=config.use_scale_shift_norm,
        resblock_updown=config.resblock_updown, **heads, **cross)
    theirs.load_state_dict(to_compvis(ours.state_dict(), UNET_RULES))
    return theirs.to(next(ours.parameters()).device)


def ema(model: nn.Module) -> nn.Module:
    from ldm.modules.ema import LitEma

    return LitEma(model)


def ddim_sampler(model: nn.Module, schedule: Schedule):
    """The released sampler over a UNet; `model(z_t, t, context=c)` is what it calls."""
    from ldm.models.diffusion.ddim import DDIMSampler

    alpha_bar = schedule.alpha_bar.float()
    device = next(model.parameters()).device
    before = torch.cat([torch.ones(1), alpha_bar[:-1].cpu()])
    stand_in = SimpleNamespace(
        num_timesteps=schedule.T, betas=schedule.beta.float().to(device), alphas_cumprod=alpha_bar.to(device),
        alphas_cumprod_prev=before.to(device), device=device, parameterization="eps",
        apply_model=lambda z, t, c: model(z, t, context=c))
    return DDIMSampler(stand_in)


def ddim(sampler, z_T: Tensor, num_steps: int, context: Tensor | None = None, null: Tensor | None = None,
         scale: float = 1.0) -> Tensor:
    """Its DDIM from given noise, eta = 0, without its printing and progress bar."""
    import ldm.models.diffusion.ddim as module

    module.tqdm, module.print = (lambda iterator, **_: iterator), lambda *_: None
    return sampler.sample(num_steps, len(z_T), tuple(z_T.shape[1:]), conditioning=context, eta=0.0, x_T=z_T,
                          verbose=False, unconditional_guidance_scale=scale, unconditional_conditioning=null)[0]


class FirstStage(nn.Module):
    """The released encoder, decoder and, for VQ, quantizer, put together as its autoencoders do."""

    def __init__(self, ours: nn.Module):
        from ldm.modules.diffusionmodules.model import Decoder, Encoder

        super().__init__()
        config = ours.config
        self.reg, kl = config.reg, config.reg == "kl"
        common = {"ch": config.ch, "ch_mult": tuple(config.ch_mult), "num_res_blocks": config.num_res_blocks,
                  "attn_resolutions": list(config.attn_resolutions), "in_channels": config.in_channels,
                  "out_ch": config.in_channels, "resolution": config.resolution, "z_channels": config.z_channels,
                  "double_z": kl, "attn_type": "vanilla" if config.mid_attn else "none"}
        self.encoder, self.decoder = Encoder(**common), Decoder(**common)
        c, z = config.latent_channels, config.z_channels
        self.quant_conv, self.post_quant_conv = nn.Conv2d((1 + kl) * z, (1 + kl) * c, 1), nn.Conv2d(c, z, 1)
        if not kl:
            from taming.modules.vqvae.quantize import VectorQuantizer2

            self.quantize = VectorQuantizer2(config.num_codes, c, beta=config.commitment, legacy=config.vq_legacy)
        state = to_compvis(ours.state_dict(), FIRST_STAGE_RULES)
        self.load_state_dict({key: value for key, value in state.items() if key in self.state_dict()})
        self.to(next(ours.parameters()).device)

    def moments(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(reconstruction, regularizer) of a VQ model."""
        z, loss, _ = self.quantize(self.moments(x))
        return self.decode(z), loss


def vq_loss(trunk_state: dict[str, Tensor], lin_state: dict[str, Tensor], **options) -> nn.Module:
    """The released VQ loss, with given weights of LPIPS in place of its download; LPIPS stays in eval mode."""
    import taming.modules.losses.lpips as lpips
    from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator

    lpips.models = SimpleNamespace(vgg16=lambda pretrained: _vgg16(trunk_state))
    lpips.LPIPS.load_from_pretrained = lambda self, name="": self.load_state_dict(lin_state, strict=False)
    with np.errstate(all="ignore"):
        return VQLPIPSWithDiscriminator(**options)


def _vgg16(state: dict[str, Tensor]) -> nn.Module:
    from torchvision.models import vgg16

    model = vgg16(weights=None)
    model.load_state_dict(state)
    return model
