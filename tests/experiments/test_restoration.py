"""Super-resolution, inpainting and semantic synthesis as a notebook calls them: what is kept, scored, left out."""

import pytest
import torch

from ldmlab.data.masks import coverage
from ldmlab.experiments import (
    inpainting,
    inpainting_speed,
    restoration,
    semantic_synthesis,
    super_resolution,
)
from ldmlab.experiments import (
    own_pictures as own,
)
from ldmlab.experiments.beyond_training_size import WIDE, wide

HIGHER = ("psnr", "ssim")
SR = {"factor": 4, "degradation": "bicubic"}


def test_scores_know_the_true_pictures_from_spoiled_ones(tiny_run):
    """Every measure is better for the picture itself than for a blur of it."""
    run = tiny_run("12_super_resolution", **SR)
    x = restoration.true_pictures(run)
    y = super_resolution.small_pictures(run, len(x))
    right, blurred = (restoration.restored_scores(run, x, made) for made in (x, super_resolution.enlarge(y, 4)))
    assert set(restoration.MEASURES) - set(right) <= {"lpips_alex", "fd_effnet"}  # no weights here, and few pictures
    for name in right:
        better, worse = right[name].value, blurred[name].value
        assert better > worse if name in HIGHER else better < worse, name


def test_super_resolution_record_has_every_method_and_says_what_is_missing(tiny_run):
    """With BSR there is no guided variant, and the record's events say why; a second look measures nothing again."""
    run = tiny_run("12_super_resolution", factor=4, degradation="bsr")
    record = super_resolution.record_super_resolution(run)
    measured = {name.removeprefix("psnr_") for name in record.metrics if name.startswith("psnr_")}
    assert measured == set(super_resolution.METHODS) - {"guided"}
    assert any("guided left out" in event for event in record.events)
    run.finish(record)
    assert super_resolution.record_super_resolution(tiny_run("12_super_resolution", factor=4, degradation="bsr")
                                                    ).metrics == record.metrics
    with pytest.raises(ValueError, match="needs degradation bicubic"):
        super_resolution.restore(run, torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 32, 32), "guided")


def test_unknown_methods_and_sets_are_refused(tiny_run):
    """By name, with what there is."""
    run = tiny_run("13_inpainting", attention=True)
    x, mask = torch.zeros(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    with pytest.raises(ValueError, match="masked, regression, ldm, reconstructions; got 'lama'"):
        inpainting.restore(run, x, mask, "lama")
    with pytest.raises(ValueError, match="all, hard; got 'easy'"):
        inpainting.masks_of("easy", 3, 32)
    with pytest.raises(ValueError, match="bicubic, regression, pixels, ldm, guided, reconstructions; got 'sr3'"):
        super_resolution.restore(tiny_run("12_super_resolution", **SR), torch.zeros(1, 3, 8, 8), x, "sr3")


@pytest.mark.parametrize("method", inpainting.METHODS)
def test_known_pixels_are_never_changed(tiny_run, method):
    """Whatever fills the hole, outside of it every pixel is that of the picture, bit by bit [LDM v2, Sec. 4.5]."""
    run = tiny_run("13_inpainting", attention=True)
    x = restoration.true_pictures(run)
    mask = inpainting.masks_of("all", len(x), 32)
    known = (mask == 0).expand_as(x)
    assert torch.equal(inpainting.restore(run, x, mask, method)[known], x[known])


def test_hard_masks_hide_40_to_50_percent():
    """As the first columns of Tab. 7; and the mixed set takes the kinds in turn."""
    covered = coverage(inpainting.masks_of("hard", 12, 32))
    assert ((covered >= 0.4) & (covered <= 0.5)).all()
    thin, medium, thick = coverage(inpainting.masks_of("all", 30, 32)).unflatten(0, (-1, 3)).mean(0)
    assert thin < medium < thick


@pytest.mark.long
def test_efficiency_times_every_row_of_tab_6(tiny_run):
    """Throughputs are positive numbers of one run, and LDM-1's speed-up over itself is one."""
    run = tiny_run("13_inpainting", attention=True)
    record = run.new_record()
    inpainting_speed.record_efficiency(run, record)
    for row in inpainting_speed.ROWS:
        for name in inpainting_speed.PASSES:
            assert record.value(f"{name}_per_s_{row}") > 0
            assert (record.value(f"{name}_speedup_{row}") == 1) == (row == "LDM-1")


def test_agreement_is_high_for_the_truth_and_low_for_another_map(tiny_run):
    """The judge finds on true pictures what their maps say, and not what another's says."""
    run = tiny_run("11_semantic_synthesis")
    x, maps = restoration.true_pictures(run), semantic_synthesis.label_maps(run, 12)
    right, wrong = semantic_synthesis.agreement(run, x, maps), semantic_synthesis.agreement(run, x, maps.roll(1, 0))
    assert right["pixels"].value > 0.85 > wrong["pixels"].value
    assert right["miou"].value > 0.5 > wrong["miou"].value


def test_own_pictures_of_any_size(tiny_run, capsys):
    """Sides that the model cannot make are padded and cropped back, and that is said; too small ones are refused."""
    sr, hole = tiny_run("12_super_resolution", **SR), tiny_run("13_inpainting", attention=True)
    rows = own.upscale_own(sr, torch.rand(3, 9, 14) * 2 - 1)
    assert {tuple(r.shape) for r in rows.values()} == {(1, 3, 36, 56)}
    said = capsys.readouterr().out
    assert "cropped back" in said and "in tiles" in said
    x = torch.rand(3, 35, 50) * 2 - 1
    mask = torch.zeros(1, 35, 50)
    mask[:, 5:20, 10:30] = 1
    rows = own.inpaint_own(hole, x, mask)
    assert all(torch.equal(r[0][:, 21:], x[:, 21:]) for r in rows.values())
    assert not torch.equal(rows["filling 1"], rows["filling 2"])
    with pytest.raises(ValueError, match="smaller than the model's stride"):
        own.inpaint_own(hole, x[:, :4], mask[:, :4])
    with pytest.raises(ValueError, match=r"\(35, 50\), \(30, 50\)"):
        own.inpaint_own(hole, x, mask[:, :30])


def test_own_label_maps_name_unknown_labels(tiny_run):
    """A label that the data lacks is an error before any sampling."""
    run = tiny_run("11_semantic_synthesis")
    assert next(iter(own.synthesize_own(run, torch.zeros(40, 33, dtype=torch.long)).values())).shape == (1, 3, 40, 33)
    with pytest.raises(ValueError, match="labels are 0 to 27; got 0 to 99"):
        own.synthesize_own(run, torch.tensor([[0, 99]]).repeat(32, 16))


def test_wide_pictures_are_wide(tiny_run):
    """Conditions side by side give one picture of that shape."""
    for notebook, more in (("11_semantic_synthesis", {}), ("12_super_resolution", SR)):
        parts = wide(tiny_run(notebook, **more), 1)
        assert parts["sample"].shape == (1, 3, 32, 32 * WIDE)
