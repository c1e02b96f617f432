"""The scorer: its table of metrics reaches records, and a record is keyed on every network behind its numbers."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmlab.evaluation import judge
from ldmlab.evaluation.metrics import METRICS, Metric
from ldmlab.experiments import guidance, inpainting, super_resolution, tradeoff
from ldmlab.perception import lab_networks
from ldmlab.perception.files import WEIGHTS, file_hash
from ldmlab.study.records.record import Record
from ldmlab.study.runs.run import Run

SHIPPED = {"effnet": "score_network", "psim-lab": "perceptual", "judge": "caption_judge"}


class Asked(Exception):
    """Ends an experiment where it asks whether it was measured before."""


@pytest.fixture
def asked(tiny_run, monkeypatch):
    """A function from an experiment to the empty record that it looks for: nothing is measured."""

    def stop(self: Run, record: Record) -> None:
        raise Asked(record)

    monkeypatch.setattr(Run, "measured_before", stop)

    def ask(experiment, notebook: str, change=lambda run: None, **more) -> Record:
        run = tiny_run(notebook, **more)
        change(run)
        with pytest.raises(Asked) as found:
            experiment(run)
        return found.value.args[0]

    return ask


def another_weight(folder, name: str) -> None:
    """Change one weight of a shipped network in `folder`, and its card with it."""
    path = folder / f"{name}.safetensors"
    tensors = load_file(path)
    key = next(key for key, value in tensors.items() if value.is_floating_point() and value.ndim > 1)
    tensors[key].view(-1)[0] += 0.25
    save_file(tensors, path)
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | {"sha256": file_hash(path)}))


CASES = {
    "tradeoff": (tradeoff.record_tradeoff, "04_tradeoff", {"compile": False}, ("effnet", "psim-lab")),
    "guidance": (guidance.record_guidance, "08_class_conditional", {}, ("judge",)),
    "restoration": (inpainting.record_inpainting, "13_inpainting", {"attention": True}, ("effnet",)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_record_is_measured_again_when_a_weight_of_a_scoring_network_changes(asked, case, tmp_path, monkeypatch):
    """Of the score network, the perceptual loss and the judge of captions, one weight is enough."""
    experiment, notebook, params, networks = CASES[case]
    record = asked(experiment, notebook, **params)
    assert {SHIPPED[name] for name in networks} <= record.inputs.keys()
    replace(record, metrics={"psnr": {"value": 1.0}}).save(tmp_path)
    assert record.stored(tmp_path) is not None
    for name in networks:
        folder = tmp_path / name
        folder.mkdir()
        for path in (*WEIGHTS.glob("*.safetensors"), *WEIGHTS.glob("*.json")):
            shutil.copy(path, folder)
        another_weight(folder, name)
        with monkeypatch.context() as patch:
            patch.setattr(lab_networks, "WEIGHTS", folder)
            patch.setattr(judge, "WEIGHTS", folder)
            changed = asked(experiment, notebook, **params)
        assert changed.inputs[SHIPPED[name]] != record.inputs[SHIPPED[name]]
        assert changed.stored(tmp_path) is None


def other(trained):
    """A trained network as it would be found with other weights."""
    return replace(trained, hash="0" * 64)


@pytest.mark.parametrize("network", ["first_stage", "denoiser", "classifier", *(
    pytest.param(name, marks=pytest.mark.long) for name in ("regression", "denoiser_pixels"))])
def test_a_record_is_measured_again_when_a_trained_network_changes(asked, network, tmp_path, monkeypatch):
    """First stage, denoiser, classifier, regression, and the model in pixels that super-resolution compares with."""
    restored = network in ("regression", "denoiser_pixels")
    case = ((super_resolution.record_super_resolution, "12_super_resolution") if restored
            else (guidance.record_guidance, "08_class_conditional"))
    more = {"factor": 4, "degradation": "bsr"} if restored else {}
    record = asked(*case, **more)
    replace(record, metrics={"psnr": {"value": 1.0}}).save(tmp_path)
    assert record.stored(tmp_path) is not None and network in record.inputs
    for module, name in ((guidance, "train_classifier"), (super_resolution, "train_regression")):
        if name.endswith(network):
            train = getattr(module, name)
            monkeypatch.setattr(module, name, lambda run, train=train: other(train(run)))
    if network == "denoiser_pixels":
        pixels = super_resolution.in_pixels

        def changed_pixels(run):
            made = pixels(run)
            made.diffusion = other(made.diffusion)
            return made

        monkeypatch.setattr(super_resolution, "in_pixels", changed_pixels)

    def change(run):
        if network == "denoiser":
            run.diffusion = other(run.diffusion)
        if network == "first_stage":
            _ = run.diffusion
            run.first_stage = other(run.first_stage)

    changed = asked(*case, change=change, **more)
    assert changed.inputs[network] != record.inputs[network] and changed.stored(tmp_path) is None


def test_one_row_adds_a_metric_to_a_record(tiny_run, monkeypatch):
    """With its value, its name and its network, and over training if the row says so."""
    row = Metric("shift", "shift of the mean", "1", "fd-lab", at_milestones=True,
                 measure=lambda real, fake, protocol: (real.mean - fake.mean).norm().item())
    monkeypatch.setitem(METRICS, row.key, row)
    run = tiny_run("04_tradeoff", f=16, compile=False)
    record = tradeoff.record_tradeoff(run)
    entry = record.metrics["shift"]
    assert entry["value"] > 0 and entry["name"] == "shift of the mean" and entry["extractor"] == "fd-lab"
    assert record.curves["shift"][-1][1] > 0


def test_too_few_pictures_are_refused_or_left_out(tiny_run):
    """A Fréchet distance of a dozen pictures: taken at smoke, else a ValueError, or left out where that is allowed."""
    scorer = tiny_run("04_tradeoff", compile=False).scorer
    x = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert {"fd_lab", "kid_lab"} == scorer.score(x, ("fd_lab", "kid_lab"), intervals=False).keys()
    with pytest.raises(ValueError, match="too few for 128 features"):
        scorer.score(x, ("fd_lab",), allow_few=False)
    scorer.allow_missing_fd = True
    assert scorer.score(x, ("fd_lab", "kid_lab"), allow_few=False).keys() == {"kid_lab"}
