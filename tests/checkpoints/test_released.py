"""The released models' rows: architecture, names, key maps, and files of their layout, written and read."""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ldmlab.checkpoints.compvis import IGNORED
from ldmlab.checkpoints.learning_rate import Cycle, LearningRate
from ldmlab.checkpoints.opening import open_weights
from ldmlab.checkpoints.released import FIRST_STAGES, LDMS, ROWS, released_row, scaled_down
from ldmlab.checkpoints.released_model import build, from_compvis_state, load_compvis, save_compvis
from ldmlab.checkpoints.state import averaged_keys, fit, reason_ignored, schedule_tables
from ldmlab.diffusion.unet.width_matching import count_params

# Of each released file: hash of its sorted (key, shape, dtype) less the entries that no model of ours makes again
# (LPIPS, the losses' constant, logits over words), how many these are, and the parameters of each part.
RECORDED = json.loads((Path(__file__).parent / "released_keys.json").read_text())
GOLDENS = Path(__file__).parents[1] / "golden" / "goldens"
REFERENCE = os.environ.get("LDMLAB_REFERENCE")  # a folder with keys/<name>.json, the whole lists, where there is one
LEFT_OUT = re.compile(r"loss\.perceptual_loss\..*|loss\.logvar|cond_stage_model\.transformer\.to_logits\..*")


def layout(state):
    """(key, shape, dtype) of each entry, sorted."""
    return sorted([key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items())


@pytest.mark.parametrize("name", RECORDED)
def test_exported_keys_are_those_of_the_released_file(name):
    """Every key, shape and dtype of a released file comes out of our model, and no other; so do the parameters."""
    model, recorded = build(released_row(name), "meta"), RECORDED[name]
    exported = layout(model.to_compvis_state())
    assert hashlib.sha256(json.dumps(exported).encode()).hexdigest() == recorded["sha256"]
    assert len(exported) + recorded["num_left_out"] == recorded["num_keys"]
    counted = {part: count_params(module) for part, module in model.modules.items()}
    tau = getattr(model.row, "condition", None)
    if tau and tau.num_layers:  # the recorded numbers count the logits over words, with bias
        counted["conditioner"] += (tau.channels + 1) * tau.num_items
    assert counted == {part: count for part, count in recorded["num_params"].items() if count}


@pytest.mark.skipif(REFERENCE is None, reason="LDMLAB_REFERENCE names no folder with the released files' key lists")
@pytest.mark.parametrize("name", RECORDED)
def test_whole_key_lists(name):
    """Each entry of a released file belongs to a module, to its average, or to the table of what is ignored and why."""
    listed = json.loads(Path(REFERENCE, "keys", f"{name}.json").read_text())
    row = released_row(name)
    found = fit({key: tuple(shape) for key, shape, _ in listed}, row)
    assert found.fits, found.differences()
    exported = layout(build(row, "meta").to_compvis_state())
    ignored = [entry for entry in listed if LEFT_OUT.fullmatch(entry[0])]
    assert sorted(exported + ignored) == sorted(listed)
    assert all(reason_ignored(key, row) for key, _, _ in ignored)


def test_names_of_both_worlds():
    """A row is found by CompVis's name and by the paper's; a wrong name is answered with the right ones."""
    assert released_row("KL-f8 c4") is released_row("kl-f8") is released_row("autoencoder_kl_32x32x4")
    assert released_row("txt2img-1p4B") is LDMS["txt2img-1p4B-eval"]
    names = [name.lower() for row in ROWS.values() for name in (row.name, row.paper, *row.other_names)]
    assert len(set(names)) == len(names) and len(FIRST_STAGES) == 9 and len(LDMS) == 13
    with pytest.raises(ValueError, match="no released model 'kl-f2'; accepted are kl-f4, .*inpainting_big"):
        released_row("kl-f2")


def test_channels_of_each_part_fit_together():
    """A denoiser takes z and what is concatenated to it, gives z, and attends to what the conditioner gives."""
    for row in LDMS.values():
        unet, c, z = row.denoiser, row.condition, row.first_stage.config.latent_channels
        beside = c.channels if c and c.enters == "channels" else 0
        tokens = c.channels if c and c.enters == "tokens" else None
        assert (unet.in_channels, unet.out_channels, unet.context_dim) == (z + beside, z, tokens), row.name


def filled(row, seed=0):
    """A small model whose weights are all drawn anew, zeros included, so that no two entries agree by chance."""
    model, generator = build(scaled_down(row)), torch.Generator().manual_seed(seed)
    for module in model.modules.values():
        for value in module.parameters():
            value.data.normal_(0, 0.1, generator=generator)
    return model


def trained(model):
    """A state dict as training leaves it: averages behind the weights, and entries that no model of ours has."""
    state = dict(model.to_compvis_state())
    for key, name in averaged_keys(state).items():
        if name in state:
            state[name] = 0.9 * state[key]
    if "model_ema.num_updates" in state:
        state["model_ema.num_updates"] = torch.tensor(340_000, dtype=torch.int32)
    if "scale_factor" in state:
        state["scale_factor"] = torch.tensor(0.22765929)
    if model.denoiser is None:
        state |= {"loss.perceptual_loss.lin0.model.1.weight": torch.rand(1, 64, 1, 1), "loss.logvar": torch.tensor(0.0)}
    elif model.row.condition and model.row.condition.num_layers:
        state["cond_stage_model.transformer.to_logits.bias"] = torch.rand(8)
    return state


@pytest.mark.parametrize("name", ["vq-f4-noattn", "lsun_churches256", "txt2img-1p4B-eval", "semantic_synthesis256",
                                  "inpainting_big"])
def test_a_state_dict_is_given_back_as_it_was(name):
    """Taken in and given back, a file's entries are the same to the bit, whichever weights the model took from it."""
    model = filled(released_row(name))
    state = trained(model)
    for ema in (True, False):
        read = from_compvis_state(state, model.row, ema=ema)
        again = read.to_compvis_state()
        assert again.keys() == state.keys()
        assert all(again[key].dtype == state[key].dtype and torch.equal(again[key], state[key]) for key in state)
        assert read.averaged == (ema and model.denoiser is not None and model.row.ema)
        if model.denoiser:
            key = "model.diffusion_model.out.2.weight"
            taken = averaged_keys({key: 0})[key] if read.averaged else key
            assert torch.equal(read.denoiser.head_conv.weight, state[taken])


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_file_is_written_back_as_it_was(tmp_path, suffix):
    """The same through files, where entries share memory: the inpainting model has its first stage twice."""
    model = filled(released_row("inpainting_big"))
    state = trained(model)
    torch.save({"state_dict": state, "global_step": 5, "epoch": 1}, tmp_path / "model.ckpt")
    again = tmp_path / f"again.{suffix}"
    save_compvis(load_compvis(tmp_path / "model.ckpt", model.row), again)
    tensors = open_weights(again).tensors
    assert tensors.keys() == state.keys() and all(torch.equal(tensors[key], state[key]) for key in state)


def test_a_loaded_model_computes_what_was_saved(tmp_path):
    """The same pictures of a class come out of a model before and after: no weight or buffer is left empty."""
    model = filled(released_row("cin256-v2"))
    save_compvis(model, tmp_path / "model.safetensors")
    read = load_compvis(tmp_path / "model.safetensors", model.row)
    z_t, t, y = torch.randn(2, 3, 8, 8), torch.tensor([3, 900]), torch.tensor([1, -1])
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        for a, b in ((model.denoiser(z_t, t, model.conditioner(y)), read.denoiser(z_t, t, read.conditioner(y))),
                     (model.first_stage(x).x_rec, read.first_stage(x).x_rec),
                     (model.conditioner.null(1), read.conditioner.null(1))):
            torch.testing.assert_close(a, b)  # mapped memory is aligned otherwise, and sums are rounded otherwise
    assert not any(module.training for module in read.modules.values())


def test_settings_in_a_file_win(tmp_path):
    """A file that was trained on with another schedule or scale is sampled with these, as the released code does."""
    model = filled(released_row("lsun_churches256"))
    state = trained(model)
    assert from_compvis_state(state, model.row).scale_factor == pytest.approx(0.22765929)
    assert torch.equal(from_compvis_state(state, model.row).schedule.beta, model.row.schedule.beta)
    other = {**state, "betas": state["betas"] / 2}
    assert torch.allclose(from_compvis_state(other, model.row).schedule.beta, model.row.schedule.beta / 2)
    del state["scale_factor"]
    torch.save(state, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="does not fit lsun_churches256 small: 1 missing: scale_factor"):
        load_compvis(tmp_path / "model.ckpt", model.row)


def test_tables_of_the_schedule_are_recomputed_to_the_bit():
    """The twelve tables that released files carry follow from two numbers: a model need not keep them."""
    recorded = np.load(GOLDENS / "sched_linear_ldm_a.npz")
    for name, table in schedule_tables(LDMS["celeba256"].schedule).items():
        assert np.array_equal(table.numpy(), recorded[f"out.{name}"]), name


def test_half_precision_files_are_read_in_float32(tmp_path):
    """Pruned files of others hold float16; the modules compute in float32 with these values, and none is lost."""
    model = filled(released_row("vq-f8-n256"))
    half = {key: value.half() if value.is_floating_point() else value
            for key, value in model.to_compvis_state().items()}
    read = from_compvis_state(half, model.row)
    assert read.first_stage.decoder.conv_out.weight.dtype == torch.float32
    assert torch.equal(read.first_stage.decoder.conv_out.weight, half["decoder.conv_out.weight"].float())
    assert all(torch.equal(read.to_compvis_state()[key], value) for key, value in half.items())


def test_a_first_stage_without_its_discriminator():
    """Files that others pruned have no losses: the model comes without a discriminator, not with one of its own."""
    model = filled(released_row("kl-f4"))
    state = {key: value for key, value in model.to_compvis_state().items() if not key.startswith("loss.")}
    assert fit({key: tuple(value.shape) for key, value in state.items()}, model.row).fits
    read = from_compvis_state(state, model.row)
    assert read.discriminator is None and read.to_compvis_state().keys() == state.keys()


def test_another_architecture_is_named():
    """What is missing, unexpected or of another shape is said, key by key; half an average is not taken."""
    row = scaled_down(LDMS["celeba256"])
    shapes = {key: tuple(value.shape) for key, value in build(row, "meta").to_compvis_state().items()}
    average = "model_ema.diffusion_modeltime_embed0weight"
    changed = {key: shape for key, shape in shapes.items() if key != average} | {"model.other": (1,), "betas": (10,)}
    changed["model.diffusion_model.out.2.bias"] = (4,)
    found = fit(changed, row)
    assert (found.missing, found.unexpected) == ([average], ["model.other"])
    assert found.reshaped == ["model.diffusion_model.out.2.bias: (4,) in the file, (3,) in celeba256 small"]
    assert fit(shapes, row).fits


def test_every_ignored_key_has_a_reason():
    """The table of what is left out says why, and hides no weight of the denoiser."""
    assert all(len(entry.reason) > 15 for entry in IGNORED)
    assert reason_ignored("betas", LDMS["cin256"]) and not reason_ignored("betas2", LDMS["cin256"])
    assert not reason_ignored("model.diffusion_model.time_embed.0.weight", LDMS["cin256"])
    key = "cond_stage_model.encoder.conv_in.weight"  # the first stage again, in an inpainting file alone
    assert reason_ignored(key, LDMS["inpainting_big"]) and not reason_ignored(key, LDMS["bsr_sr"])


def test_learning_rates_refuse_nonsense():
    """An unknown decay, a warm-up longer than its cycle, a step before the first: errors, no silent rate."""
    with pytest.raises(ValueError, match="linear, cosine"):
        LearningRate("exponential", (Cycle(10, 1, 0.0, 1.0, 0.0),))
    with pytest.raises(ValueError, match="0 <= warmup <= length"):
        LearningRate("linear", (Cycle(10, 11, 0.0, 1.0, 0.0),))
    with pytest.raises(ValueError, match="counted from 0"):
        LDMS["inpainting_big"].learning_rate.factor(-1)
