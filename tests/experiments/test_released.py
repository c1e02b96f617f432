"""Released models in a notebook: found, wrapped, sampled, scored; and held against the paper without pretending."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from ldmlab.checkpoints import released_sampling
from ldmlab.checkpoints.diffusers_format import configs
from ldmlab.checkpoints.diffusers_format.folders import read_pipeline
from ldmlab.checkpoints.released import FIRST_STAGES, LDMS, ROWS, released_row, scaled_down
from ldmlab.checkpoints.released_model import build
from ldmlab.diffusion.conditioning.captions import SCENES_VOCABULARY
from ldmlab.experiments.released.run import ReleasedRun, sample_rows
from ldmlab.experiments.released.scores import record_released
from ldmlab.experiments.released.targets import NO_ROW, TARGETS, compare, reconstruction_target, sampling_target
from ldmlab.figures.released_models import fig_released, table
from ldmlab.paper import numbers as paper
from ldmlab.study.config.budgets import TIERS
from ldmlab.study.config.notebooks import RELEASED
from ldmlab.study.config.specs import denoiser_config
from ldmlab.study.records.record import Record
from ldmlab.study.runs.export import export, exportable_run

PARAMS = {"model": "kl-f8", "file": "", "data": "scenes", "size": 0, "tier": "smoke", "seed": 0, "num_steps": 0,
          "guidance_scale": 1.0, "caption": ""}
SMALL = {"txt2img-1p4B-eval": 64, "layout2img-openimages256": 32, "semantic_synthesis256": 32, "bsr_sr": 32,
         "inpainting_big": 32}


def run(**changes) -> ReleasedRun:
    return ReleasedRun("19_released_models", {**PARAMS, **changes}, "cpu", quiet=True)


# --- The paper's rows -------------------------------------------------------------------------------------------------
def test_the_notebook_accepts_every_released_model():
    """The list that is checked without torch is the list of rows."""
    assert set(RELEASED) == set(ROWS) and len(RELEASED) == len(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_every_released_model_has_its_numbers_or_a_reason_for_none(name):
    """Each metric that a target names stands in the paper's table, under its row."""
    targets = [reconstruction_target(name), *TARGETS.get(name, ())]
    for target in targets:
        assert set(target.values) == set(target.metrics)
    assert name in FIRST_STAGES or (name in TARGETS) != (name in NO_ROW)


def test_steps_agree_with_the_paper_or_a_caveat_says_so():
    """Where the README and the paper's table have other numbers of steps, a reader is told."""
    for name in LDMS:
        for target in TARGETS.get(name, ()):
            steps = paper.table(target.table)[target.row].get("sampling_steps", target.num_steps)
            assert steps == target.num_steps or any(str(steps) in caveat for caveat in target.caveats), name


def test_the_guidance_scale_chooses_the_row():
    """cin256-v2 is three rows of Tab. 3 and 10."""
    rows = [sampling_target("cin256-v2", scale).values["fid"] for scale in (1.0, 1.25, 1.5)]
    assert rows == [10.56, 3.95, 3.60]
    assert sampling_target("text2img256") is None


# --- Judging ----------------------------------------------------------------------------------------------------------
def record(fid: float = 3.62, params=(), protocol=(), **entry) -> Record:
    """What a run of cin256-v2 by the paper's protocol would have left."""
    return Record(
        "19_released_models", "cin256-v2",
        {**PARAMS, "model": "cin256-v2", "data": "imagenet", "size": 256, "guidance_scale": 1.5, **dict(params)},
        metrics={"fid": {"value": fid, "name": "FID", "n_fake": 50_000, "n_real": 1_281_167, **entry}},
        protocol={"weights": "file", "num_steps": 250, "eta": 0.0, "guidance_scale": 1.5, "reference_whole": True,
                  **dict(protocol)})


def judged(record: Record):
    (fid,) = [c for c in compare(record) if c.metric == "fid"]
    return fid


@pytest.mark.parametrize(("fid", "verdict"), [(3.60, "within"), (3.55, "within"), (3.8, "off"), (3.4, "off")])
def test_a_comparable_number_is_within_or_off(fid, verdict):
    """2 % is what two pipelines differ by; 3.8 is 5.6 % more."""
    found = judged(record(fid))
    assert found.verdict == verdict
    if fid == 3.8:
        assert "off by +0.2 (+5.6 %)" in found.why


def test_an_interval_that_holds_the_papers_number_is_within():
    """A wide interval, and nothing to be concluded."""
    assert judged(record(4.4, interval={"low": 3.5, "high": 5.3})).verdict == "within"


def test_half_a_decibel_is_off():
    """2 % of 24 dB would let everything pass: means over the same pictures have to agree more closely."""
    verdicts = []
    for value in (24.25, 24.6):
        entry = {"value": value, "name": "PSNR", "n_fake": 50_000, "n_real": 50_000}
        of_kl8 = replace(record(params={"model": "kl-f8", "guidance_scale": 1.0}), metrics={"r_psnr": entry})
        verdicts += [c.verdict for c in compare(of_kl8) if c.metric == "r_psnr"]
    assert verdicts == ["within", "off"]


@pytest.mark.parametrize(("changes", "why"), [
    ({"params": {"data": "scenes"}}, "data scenes instead of ImageNet"),
    ({"params": {"data": "imagenette"}}, "data imagenette instead of ImageNet"),
    ({"params": {"size": 128}}, "128 px instead of 256"),
    ({"protocol": {"weights": "random"}}, "the weights are random"),
    ({"protocol": {"num_steps": 20}}, "num_steps = 20 instead of 250"),
    ({"protocol": {"eta": 1.0}}, "eta = 1 instead of 0"),
    ({"protocol": {"guidance_scale": 3.0}}, "guidance_scale = 3 instead of 1.5"),
    ({"protocol": {"reference_whole": False}}, "a part of the split train"),
    ({"n_fake": 5000}, "5000 pictures instead of 50,000"),
    ({"name": "FD-lab"}, "the score is FD-lab instead of FID"),
    ({"name": "FD-unverified"}, "the score is FD-unverified instead of FID"),
])
def test_any_difference_of_protocol_makes_a_number_not_comparable(changes, why):
    """However near the value: one entry is changed, and the reason names it."""
    found = judged(record(3.60, **changes))
    assert found.verdict == "not comparable" and why in found.why


def test_a_model_trained_for_something_else_is_never_compared():
    """The released super-resolution model is not the one of Tab. 5, whatever it scores."""
    fake = record(2.8, params={"model": "bsr_sr", "guidance_scale": 1.0},
                  protocol={"num_steps": 100, "guidance_scale": 1.0})
    assert judged(fake).why.startswith(TARGETS["bsr_sr"][0].never)


def test_as_many_pictures_are_compared_with_as_in_the_paper():
    """Tab. 9 has 2048 layouts against 2048 pictures."""
    of_layouts = {"params": {"model": "layout2img-openimages256", "data": "OpenImages", "guidance_scale": 1.0},
                  "protocol": {"num_steps": 200, "guidance_scale": 1.0}, "n_fake": 2048}
    assert judged(record(32.02, **of_layouts, n_real=2048)).verdict == "within"
    assert "5000 reference pictures instead of 2,048" in judged(record(32.02, **of_layouts, n_real=5000)).why


def test_what_is_missing_is_said():
    """Without Inception's weights there is no FID, and no number stands in for it."""
    without = replace(record(), metrics={}, events=["Inception's weights are missing: weights-x.pth (95.6 MB)"])
    found = judged(without)
    assert (found.ours, found.verdict, found.why) == (None, "not measured", "Inception's weights are missing")


# --- Wrapped ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SMALL)
def test_every_kind_of_condition_is_wrapped_and_sampled(name, lab_root):
    """Words, boxes, label maps, small and masked pictures: each enters as the sampler wants it; classes see below."""
    r = run(model=name, num_steps=1)
    assert r.size == SMALL[name]
    x = r.sample(r.conditions(range(2)))
    assert x.shape == (2, 3, r.size, r.size) and x.isfinite().all()
    assert r.model.conditioner.kind == r.row.condition.kind


def test_the_released_rescaler_reads_label_maps():
    """LabelMap makes one of its own; the released weights must take its place."""
    model = build(scaled_down(released_row("semantic_synthesis256")))
    wrapped = released_sampling.latent_diffusion(model, 32)
    assert wrapped.conditioner.rescaler is model.conditioner
    assert wrapped.latent_shape(torch.zeros(1, 32, 32, dtype=torch.long)) == (3, 8, 8)


def test_the_scale_factor_reaches_the_decoder():
    """z_0 of txt2img is divided by 0.18215 before it is decoded; of VQ models nothing is done."""
    model = build(scaled_down(released_row("txt2img-1p4B-eval")))
    stats = released_sampling.latent_diffusion(model, 64, SCENES_VOCABULARY).stats
    torch.testing.assert_close(stats.unscale(torch.full((1, 4, 1, 1), 0.18215)), torch.ones(1, 4, 1, 1))


def test_a_model_without_no_class_refuses_guidance(lab_root):
    """cin256 has 1000 tokens for 1000 classes: its last one is no "nothing", and the run says so before any work."""
    with pytest.raises(ValueError, match="always trained with its class .* guidance_scale = 1.5"):
        run(model="cin256", guidance_scale=1.5)
    assert not (lab_root / "results").exists()
    model = released_sampling.latent_diffusion(build(scaled_down(released_row("cin256"))), 32)
    with pytest.raises(ValueError, match="no unconditional prediction for guidance"):
        model.eps_model(torch.tensor([1]), 1.5)
    with pytest.raises(ValueError, match="no unconditional prediction for guidance"):
        model.null_condition(1)
    assert run(model="cin256-v2", guidance_scale=1.5, num_steps=1).model.null_condition(1).item() == 1000


def test_models_without_a_condition_refuse_guidance(lab_root):
    """Neither an unconditional model nor a first stage is guided."""
    for name in ("celeba256", "kl-f8"):
        with pytest.raises(ValueError, match="unconditional and needs guidance_scale = 1"):
            run(model=name, guidance_scale=2.0)
    with pytest.raises(ValueError, match="needs a multiple of 128"):
        run(model="lsun_churches256", size=64)


def test_captions_want_berts_vocabulary(monkeypatch):
    """Word pieces of another vocabulary are other words to the transformer; none is made up."""
    monkeypatch.setattr(released_sampling, "find_bert", lambda: None)
    model = build(scaled_down(released_row("txt2img-1p4B-eval")))
    with pytest.raises(FileNotFoundError, match="vocab.txt of bert-base-uncased .* LDMLAB_BERT"):
        released_sampling.latent_diffusion(model, 64)


# --- Found ------------------------------------------------------------------------------------------------------------
def test_without_a_file_the_run_stops_and_says_how_to_get_it(lab_root, tmp_path, monkeypatch):
    """The command, the address, the size; nothing is downloaded, nothing left behind."""
    monkeypatch.setenv("LDMLAB_CHECKPOINTS", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError) as error:
        run(model="vq-f4", tier="laptop")
    for words in ("ldmlab fetch vq-f4", "ommer-lab.com/files/latent-diffusion/vq-f4.zip", "756", "-p file"):
        assert words in str(error.value)
    assert not (lab_root / "results").exists()


def test_a_file_that_was_fetched_is_found(lab_root, tmp_path, monkeypatch):
    """Under any name of the manifest that gives the model: inpainting_big has two."""
    monkeypatch.setenv("LDMLAB_CHECKPOINTS", str(tmp_path))
    (tmp_path / "inpainting_big-last.ckpt").touch()
    assert released_sampling.find_checkpoint("inpainting_big") == tmp_path / "inpainting_big-last.ckpt"


# --- The whole way ----------------------------------------------------------------------------------------------------
def test_a_run_with_random_weights_measures_all_and_claims_nothing(lab_root, monkeypatch):
    """Record, table and figure; every verdict is a refusal; a second run loads the record, and no sample is drawn."""
    r = run(model="cin256-v2", num_steps=1)
    rec = record_released(r)
    assert {"r_psnr", "r_ssim", "r_psim", "rkd_effnet", "kd_effnet", "num_params"} <= set(rec.metrics)
    assert rec.protocol["weights"] == "random" and rec.protocol["num_steps"] == 1
    assert {c.verdict for c in compare(rec)} <= {"not comparable", "not measured"}
    assert len(table(rec)) == len(compare(rec)) == 9
    assert len(fig_released([rec]).axes) == 1
    r.finish(rec)
    monkeypatch.setattr(ReleasedRun, "sample", None)
    assert len(torch.cat(list(r.sampled()))) == r.num_samples
    assert record_released(run(model="cin256-v2", num_steps=1)).metrics == rec.metrics


def test_a_first_stage_alone_is_measured_and_samples_nothing(lab_root):
    """Tab. 8 is its table; there is no row of samples."""
    r = run(model="kl-f8")
    assert sample_rows(r) == {}
    assert {c.table for c in compare(record_released(r))} == {"Tab. 8"}
    with pytest.raises(ValueError, match="is a first stage, which cannot sample"):
        released_sampling.latent_diffusion(build(r.row), 32)


def test_export_writes_what_diffusers_can_run_and_says_what_it_cannot(lab_root, tmp_path):
    """An unconditional model leaves as a pipeline and comes back the same; class tokens have none."""
    r = run(model="celeba256", num_steps=1)
    assert export(r.model, tmp_path / "a").startswith("LDMPipeline")
    y = torch.zeros(1, dtype=torch.long)
    back = read_pipeline(tmp_path / "a")
    torch.testing.assert_close(back.sample(y, num_steps=2), r.model.sample(y, num_steps=2), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"widths \(32, 64, 96, 128\), which is no celeba256"):
        run(model="celeba256", file=str(tmp_path / "a")).model  # noqa: B018
    said = export(run(model="cin256-v2").model, tmp_path / "b")
    assert said.startswith("not expressible") and "class" in said and not (tmp_path / "b").exists()


@pytest.mark.parametrize("tier", TIERS)
def test_the_recipe_for_diffusers_holds_at_every_tier(lab_root, tmp_path, tier):
    """Whatever a tier changes, diffusers has classes for first stage and denoiser, with captions and without."""
    for i in range(24):
        Image.new("RGB", (40, 40), (10 * i, 90, 200)).save(tmp_path / f"{i}.png")
    told = exportable_run(tier=tier, perceptual="student")  # LPIPS's weights may not be at hand
    assert (told.spec.f, told.spec.diffusion.condition.max_length) == (8, 77)
    for r in (told, exportable_run(str(tmp_path), tier, text=False, perceptual="student")):
        first_stage = configs.autoencoder_to_theirs(r.spec.first_stage.autoencoder, 1.0)
        denoiser = configs.denoiser_to_theirs(denoiser_config(r.spec.diffusion, 0), 4)
        assert first_stage["_class_name"] == "AutoencoderKL"
        assert denoiser["_class_name"] == ("UNet2DConditionModel" if r is told else "UNet2DModel")


def test_the_recipe_for_diffusers_speaks_before_it_trains(lab_root, capsys):
    """Classes have no pipeline, which a user should know before an hour of training; parameters are checked."""
    exportable_run(tier="smoke", text=False)
    assert "scenes has 12 classes, and diffusers no pipeline" in capsys.readouterr().out
    with pytest.raises(ValueError, match="tier = 'big'"):
        exportable_run(tier="big")
    assert not list(lab_root.rglob("first_stage-*"))
