"""Runs small enough for a test: every code path, and numbers that mean nothing."""

from dataclasses import replace

import pytest

from ldmlab.study.presets import study_spec
from ldmlab.study.session import Run
from ldmlab.study.specs import StudySpec


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project folder that the tests of a module share, so that they train a model once."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture
def in_root(root, monkeypatch):
    monkeypatch.setenv("LDMLAB_ROOT", str(root))


def _tiny(spec: StudySpec) -> StudySpec:
    steps = min(3, spec.first_stage.num_steps)
    return replace(
        spec, data=replace(spec.data, num_train=64, num_val=12),
        first_stage=replace(spec.first_stage, num_steps=steps, batch_size=4, val_every=2),
        diffusion=replace(spec.diffusion, num_steps=3, batch_size=4, milestones=()),
        evaluation=replace(spec.evaluation, num_samples=12, num_reference=24, batch_size=8))


@pytest.fixture
def tiny_run(in_root):
    """A maker of tiny runs: `tiny_run("07_sampling", f=16)`."""

    def make(notebook: str, f: int = 8, reg: str = "kl", **more) -> Run:
        params = {"f": f, "reg": reg, "data": "scenes", "size": 0, "tier": "smoke", "seed": 0, **more}
        run = Run(notebook, params, "cpu", quiet=True)
        run.spec = _tiny(run.spec)
        return run

    return make


@pytest.fixture(scope="module")
def tiny_spec():
    return _tiny(study_spec(8, tier="smoke"))
