"""One training step of a first stage with perceptual loss and discriminator: ours in both schedules, the original.

`python benchmarks/first_stage.py --original FOLDERS [--rounds N] [--only WORK] [--out FILE]`. VQ-f4 at its released
width on pictures of 64 pixels, batch 2, and of its own 256 pixels, batch 1; LPIPS with a VGG16 of random weights, the
same on both sides and held in eval mode, which the released code forgets. The original's step is that of its
autoencoders under the Lightning of its day: for each optimizer a forward pass of its own, the other's parameters
frozen. Mode "released" updates in its order; "reuse" shows the discriminator the reconstruction that the autoencoder
has just learnt from, which is another trajectory. Without --original only ours are timed.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
from harness import Goal, Way, Work, agree, parse, run_table
from original import NAME as ORIGINAL
from original import FirstStage, add_option, find_original, vq_loss
from torch import Tensor, nn

from ldmlab.checkpoints.compvis import DISCRIMINATOR_RULES, to_compvis
from ldmlab.checkpoints.released import released_row
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.losses import FirstStageLoss, PatchDiscriminator
from ldmlab.first_stage.training import FirstStageModule
from ldmlab.perception.losses import LpipsLoss
from ldmlab.study.training.device import choose_device
from ldmlab.tensor_files import save_tensors

LR = 4.5e-6


class Ours:
    """The module's own training step, with plain optimizers in place of Lightning's wrappers."""

    def __init__(self, autoencoder: nn.Module, perceptual: LpipsLoss, active: bool, exact: bool, pictures: Tensor):
        torch.manual_seed(1)
        loss = FirstStageLoss(perceptual, PatchDiscriminator(), disc_start=0 if active else 10**9, reduction="mean",
                              reg_weight=1.0, disc_weight=0.75)
        self.module = FirstStageModule(autoencoder, loss, lr=LR, num_steps=10**9, exact=exact).to(pictures.device)
        self.module.step = 1  # codes are set anew at step 0
        optimizers = self.module.configure_optimizers()
        self.module.optimizers = lambda: optimizers
        self.module.manual_backward = lambda value: value.backward()
        self.batch = {"image": pictures}

    def __call__(self) -> None:
        self.module.training_step(self.batch, 0)

    def gradients(self) -> list[Tensor]:
        autoencoder = self.module.autoencoder
        return [autoencoder.encoder.conv_in.weight.grad, autoencoder.decoder.conv_out.weight.grad,
                autoencoder.quantizer.codebook.grad]


class Original:
    """The released step: for each of two Adams a forward pass and a backward one, the other's parameters frozen."""

    def __init__(self, ours: Ours, perceptual: LpipsLoss, trunk: dict, active: bool, pictures: Tensor):
        self.autoencoder = FirstStage(ours.module.autoencoder)
        lins = {key: value for key, value in perceptual.model.state_dict().items() if key.startswith("lin")}
        self.loss = vq_loss(trunk, lins, disc_start=0 if active else 10**9, disc_weight=0.75).to(pictures.device)
        self.loss.discriminator.load_state_dict(to_compvis(ours.module.loss.discriminator.state_dict(),
                                                           DISCRIMINATOR_RULES))
        self.parts = [self.autoencoder, self.loss.discriminator]
        self.optimizers = [torch.optim.Adam(part.parameters(), lr=LR, betas=(0.5, 0.9)) for part in self.parts]
        self.x = pictures.float() / 127.5 - 1

    def __call__(self) -> None:
        for i, optimizer in enumerate(self.optimizers):
            self.parts[i].requires_grad_(True)
            self.parts[1 - i].requires_grad_(False)
            x_rec, codebook_loss = self.autoencoder(self.x)
            last = self.autoencoder.decoder.conv_out.weight
            loss, _ = self.loss(codebook_loss, self.x, x_rec, i, 1, last_layer=last)
            optimizer.zero_grad()
            if loss.requires_grad:
                loss.backward()
            optimizer.step()

    def gradients(self) -> list[Tensor]:
        autoencoder = self.autoencoder
        return [autoencoder.encoder.conv_in.weight.grad, autoencoder.decoder.conv_out.weight.grad,
                autoencoder.quantize.embedding.weight.grad]


def work(name: str, args, active: bool, side: int, batch: int) -> Work:
    from torchvision.models import vgg16

    device = choose_device()
    torch.manual_seed(0)
    trunk = vgg16(weights=None).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        features = {name: value for name, value in trunk.items() if name.startswith("features")}
        perceptual = LpipsLoss(trunk=save_tensors(Path(folder) / "vgg16.safetensors", features, {})).to(device)
    pictures = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    config = released_row("vq-f4").config

    def autoencoder() -> nn.Module:
        torch.manual_seed(2)
        return build_autoencoder(config).to(device)

    reuse = Ours(autoencoder(), perceptual, active, False, pictures)
    steps = {"ours, reuse" if active else "ours": reuse}
    if active:
        steps["ours, released schedule"] = Ours(autoencoder(), perceptual, active, True, pictures)
    if args.original:
        steps[ORIGINAL] = Original(reuse, perceptual, trunk, active, pictures)
    for step in steps.values():
        step()
    agreement = {}
    for way, step in steps.items():
        agreement |= agree(f"gradients of the autoencoder, {way}", step.gradients(), reuse.gradients(), 1e-2)
    notes = {"ours, reuse": "the discriminator sees the reconstruction before the autoencoder's update",
             "ours": "the discriminator is not run; only its BatchNorm's running averages differ"}
    ways = [Way(way, step, "peer" if way == ORIGINAL else "ours", way != "ours, reuse", notes.get(way, ""))
            for way, step in steps.items()]
    least = {"ours, reuse": 1.35, "ours, released schedule": 1.0, "ours": 1.35}
    goals = [Goal(way, ORIGINAL, least[way]) for way in steps if way in least] if args.original else []
    return Work(name, ways, goals, n=batch, unit="pictures", agreement=agreement)


def main() -> None:
    args = parse(__doc__, "first_stage", add_option)
    about = find_original(args.original)
    works = {
        "first-stage step, discriminator active": (True, 64, 2),
        "first-stage step, before the discriminator": (False, 64, 2),
        "first-stage step, 256 px, discriminator active": (True, 256, 1),
    }
    run_table("first_stage", [(name, partial(work, name, args, *settings)) for name, settings in works.items()], args,
              **about)


if __name__ == "__main__":
    main()
