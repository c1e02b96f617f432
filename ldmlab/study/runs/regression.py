"""The regression network that stands beside a run's model of pictures from pictures: trained once, found again."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ldmlab.checkpoints.files import load_model, load_weights, save_model
from ldmlab.data.images import quantize_8bit
from ldmlab.diffusion.conditioning.spatial import SpatialConditioner
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.training import RegressionModule, regress
from ldmlab.diffusion.unet.unet import UNet, count_params
from ldmlab.first_stage.latents import MirroredImages, weights_hash
from ldmlab.study.config.paths import runs_dir
from ldmlab.study.config.presets import regression_spec
from ldmlab.study.config.specs import content_key, denoiser_config
from ldmlab.study.runs.conditioners import as_spatial
from ldmlab.study.runs.run import Run
from ldmlab.study.training.loop import fit
from ldmlab.study.training.state import check_meta, find_or_train


@dataclass
class TrainedRegression:
    """y -> x_hat in one pass."""

    net: UNet
    conditioner: SpatialConditioner
    hash: str
    num_params: int

    @torch.inference_mode()
    def __call__(
        self, y: Shaped[Tensor, "n ..."], batch_size: int = 64, progress: Callable[[int], None] | None = None
    ) -> Float[Tensor, "n 3 H W"]:
        """Pictures as they would be saved, on the CPU."""
        device, parts = next(self.net.parameters()).device, []
        for part in y.split(batch_size):
            parts.append(quantize_8bit(regress(self.net, self.conditioner, part.to(device)).clamp(-1, 1)).cpu())
            if progress is not None:
                progress(sum(map(len, parts)))
        return torch.cat(parts)


def train_regression(run: Run) -> TrainedRegression:
    """Train the regression of `run`, an LDM-1 with a condition of pictures, or load it: of the same size and data."""
    conditioner, pictures, plan = as_spatial(run.conditioner), run.pictures, regression_spec(run.spec)
    config = denoiser_config(plan, pictures.train.num_classes)
    folder = pictures.train.find(
        lambda fingerprint: runs_dir() / f"regression-{content_key(plan, asdict(config), fingerprint, run.spec.seed)}")
    path, name = folder / "regression.safetensors", f"regression of pixels, {conditioner.kind}"

    def train() -> None:
        torch.manual_seed(run.spec.seed)
        module = RegressionModule(
            UNet(config), conditioner, scaled_linear(plan.T, *plan.beta), lr=plan.lr, warmup_steps=plan.warmup_steps,
            weight_decay=plan.weight_decay, ema_decay=plan.ema_decay)
        curve = fit(module, MirroredImages(pictures.train), num_steps=plan.num_steps,
                    batch_size=min(plan.batch_size, len(pictures.train)), seed=run.spec.seed, run_dir=folder,
                    label=name, device=run.device, precision=plan.precision)
        with module.ema.applied_to(module.trained):
            tensors = {key: value.clone() for key, value in module.net.state_dict().items()}
            about = {"kind": "regression", "folder": folder.name, "denoiser": asdict(config),
                     "hash": weights_hash(module.net), "curve": curve.values, "events": curve.events,
                     "seed": run.spec.seed}
        save_model(path, tensors, about)

    def load(path: Path) -> TrainedRegression:
        tensors, meta = load_model(path)
        check_meta(path, meta, {"kind": "regression", "folder": folder.name, "seed": run.spec.seed})
        net = UNet(config)
        load_weights(path, net, tensors, meta)
        net.eval().requires_grad_(False).to(run.device)
        return TrainedRegression(net, conditioner.to(run.device), meta["hash"], count_params(net))

    return find_or_train(path, name, train, load)
