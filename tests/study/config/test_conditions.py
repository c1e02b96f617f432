"""A kind of condition is one class and one row; channels, options and specs of all kinds fit what is built."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldmlab.diffusion.conditioning.spatial import SpatialConditioner
from ldmlab.diffusion.conditioning.tokens import Conditioner
from ldmlab.experiments.compute.flops import workbench_models
from ldmlab.study.config.budgets import TIERS
from ldmlab.study.config.conditions import KINDS, ConditionKind, condition_kind
from ldmlab.study.config.presets import study_spec
from ldmlab.study.runs.conditioners import build_conditioner, sample_conditions


class Grey(SpatialConditioner):
    """The picture without its colours, squares of f x f pixels as channels."""

    kind = "grey"

    def __init__(self, f: int):
        super().__init__(f, f**2)

    def condition(self, batch, generator=None):
        return batch["image"].float().mean(1, keepdim=True) / 127.5 - 1

    def picture_size(self, y):
        return y.shape[2], y.shape[3]

    def encode(self, y):
        return F.pixel_unshuffle(y, self.f)


class Count(Conditioner):
    """How many boxes a picture has, a token."""

    kind = "count"

    def __init__(self, dim: int, p_drop: float):
        super().__init__(torch.tensor(9), p_drop)
        self.embedding = nn.Embedding(10, dim)

    def read(self, annotations):
        return torch.tensor([min(8, len(a.boxes)) for a in annotations])

    def encode(self, y):
        return self.embedding(y)[:, None]


ROWS = {
    "grey": ConditionKind(Grey, lambda of: Grey(of.first_stage.f), channels=lambda f, c, spec: f**2),
    "count": ConditionKind(Count, lambda of: Count(of.plan.condition.dim, of.plan.p_uncond), reads="boxes",
                           laptop=dict(dim=32, num_layers=1, num_heads=1, head_dim=32, max_length=1)),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_kind_is_one_row(tiny_run, monkeypatch, name):
    """With the row alone it has a spec at every tier, is built, trained and sampled, and its costs are counted."""
    monkeypatch.setitem(KINDS, name, ROWS[name])
    run = tiny_run("04_tradeoff")
    plan = study_spec(8, tier="smoke", condition=name).diffusion
    run.spec = replace(run.spec, diffusion=replace(plan, num_steps=1, batch_size=4, milestones=()))
    model = run.diffusion.model
    assert model.conditioner.kind == name and isinstance(model.conditioner, ROWS[name].conditioner)
    y = sample_conditions(model.conditioner, run.pictures, 4)
    assert model.sample(y, num_steps=2).isfinite().all()
    for tier in TIERS:
        assert study_spec(4, tier=tier, condition=name).diffusion.condition.kind == name
    assert f"LDM-4, {name}" in [model.name for model in workbench_models("smoke")]


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.injected_as == "channels"])
@pytest.mark.parametrize("f", [1, 8, 32])
def test_the_denoiser_has_room_for_the_channels(tiny_run, name, f):
    """What a row says of channels is what the class makes of them."""
    spec = study_spec(f, tier="smoke", condition=name)
    run = tiny_run("04_tradeoff", f=f)
    conditioner = build_conditioner(spec.diffusion, run.pictures, run.first_stage)
    denoiser = spec.diffusion.denoiser
    assert denoiser.in_channels == denoiser.out_channels + conditioner.channels


def test_options_are_the_papers_unless_given():
    """Super-resolution by 4 of bicubic pictures; of another kind's options the error says what there is."""
    spec = study_spec(8, condition="low_resolution").diffusion.condition
    assert (spec.factor, spec.degradation) == (4, "bicubic")
    spec = study_spec(8, condition="low_resolution", condition_options={"factor": 2}).diffusion.condition
    assert (spec.factor, spec.degradation) == (2, "bicubic")
    with pytest.raises(ValueError, match="kind low_resolution has the options factor, degradation; got strength"):
        study_spec(8, condition="low_resolution", condition_options={"strength": 2})
    with pytest.raises(ValueError, match="kind mask has the options none; got factor"):
        study_spec(8, condition="mask", condition_options={"factor": 2})


def test_what_a_row_lacks_is_named():
    """An unknown kind, with those there are; channels without a number."""
    with pytest.raises(ValueError, match=f"{', '.join(KINDS)}; got 'sound'"):
        condition_kind("sound")
    with pytest.raises(ValueError, match="kind grey enters by channels: `channels` has to say by how many"):
        ConditionKind(Grey, lambda of: Grey(8))
