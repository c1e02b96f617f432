"""NaN and infinity stop a run where they arise: nothing is saved, scored or recorded."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from study.training.test_loop import Toy
from study.training.test_loop import run as train_toy
from torch import nn

from ldmlab.checkpoints.files import load_model, load_weights, nonfinite, save_model
from ldmlab.damage import DamagedFile
from ldmlab.data.images import open_dataset, quantize_8bit
from ldmlab.first_stage.autoencoder import AutoencoderConfig, build_autoencoder
from ldmlab.first_stage.latents import encode_dataset, weights_hash
from ldmlab.study.training import callbacks
from ldmlab.study.training.callbacks import NonFiniteLoss
from ldmlab.study.training.state import load_state

NAN = float("nan")


class Spoilt(Toy):
    """Its weights are ruined after a step whose loss was good."""

    def __init__(self, at, value=NAN):
        super().__init__()
        self.at, self.value = at, value

    def on_train_batch_end(self, *_):
        if self.seen == self.at:
            with torch.no_grad():
                self.net[0].weight[0] = self.value


@pytest.mark.parametrize("value", [NAN, math.inf])
@pytest.mark.parametrize("at", [7, 12])
def test_ruined_weights_are_not_saved(tmp_path, monkeypatch, at, value):
    """In the middle and at the last step: the state before is kept, and the message names cures that there are."""
    monkeypatch.setattr(callbacks, "CHECKPOINT_EVERY_S", 0)

    class Late(Spoilt):
        def training_state(self):  # callbacks run before the module's own hook: spoil as the state is taken
            self.on_train_batch_end()
            return super().training_state()

    with pytest.raises(NonFiniteLoss, match=rf"toy: net.0.weight is not finite after step {at}.*last good.*`seed`"):
        train_toy(tmp_path, Late(at, value), steps=12)
    assert load_state(tmp_path)["step"] == at - 1 and not nonfinite(load_state(tmp_path))
    curve, module = train_toy(tmp_path, steps=12)
    assert module.seen == 12 - (at - 1) and np.isfinite(curve["loss"]).all()


@pytest.mark.parametrize("values", [[NAN], [0.0, math.inf], [-math.inf]])
def test_pixels_are_never_made_of_nan(values):
    """A cast would turn them into ordinary pixels, and these into a score."""
    x = torch.zeros(1, 3, 4, 4)
    x.view(-1)[: len(values)] = torch.tensor(values)
    with pytest.raises(ValueError, match="not finite"):
        quantize_8bit(x)
    huge = torch.full((1, 3, 400, 400), 1e38)  # finite, though their sum is not
    assert quantize_8bit(huge).max() == 1


def test_latents_are_checked_while_they_are_encoded(tmp_path):
    """A first stage whose latents overflow float16: the picture is named, and no cache is left."""
    config = AutoencoderConfig(f=4, z_channels=3, reg="kl", ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, resolution=32,
                               norm_groups=4, mid_attn=False)
    first_stage = build_autoencoder(config).eval()
    with torch.no_grad():
        for value in first_stage.to_latent.parameters():
            value.mul_(1e9)
    with pytest.raises(ValueError, match="latents that are not finite in float16, first for picture 0 of scenes"):
        encode_dataset(first_stage, open_dataset("scenes", size=32, num=4), tmp_path)
    assert not list(tmp_path.rglob("moments.npy"))


def test_models_with_such_weights_are_neither_written_nor_loaded(tmp_path):
    """Files of earlier versions may hold them."""
    net, path = nn.Linear(2, 2), tmp_path / "m.safetensors"
    with torch.no_grad():
        net.bias[1] = math.inf
    with pytest.raises(ValueError, match="m.safetensors is not written: bias has values"):
        save_model(path, net.state_dict(), {})
    assert not path.exists()
    save_file(net.state_dict(), path, {"ldmlab": json.dumps({"hash": weights_hash(net)})})
    with pytest.raises(DamagedFile, match="bias has values that are not finite"):
        load_weights(path, nn.Linear(2, 2), *load_model(path))


def test_an_absurd_guidance_scale_gives_an_error_and_no_record(tiny_run, root):
    """`-p guidance_scale 1e308`: what is infinite in float32 ends at the sampler, with its parameters named."""
    run = tiny_run("08_class_conditional", f=4, guidance_scale=1e308)
    model = run.diffusion.model
    message = r"latents from ddim, 2 steps, guidance_scale = 1e\+308 are not finite"
    with pytest.raises(FloatingPointError, match=message):
        model.sample(torch.tensor([1, 2]), num_steps=2, guidance_scale=1e308)
    assert not list(root.glob("results/0*/*.json"))
