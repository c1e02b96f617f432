"""Figures of super-resolution, inpainting and semantic synthesis, drawn from the committed records."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from ldmlab.experiments import inpainting_speed, semantic_synthesis, super_resolution
from ldmlab.figures.paper_tables import blank_missing, fig_guidance
from ldmlab.figures.restoration import fig_beyond, fig_inpainting, fig_semantic, fig_super_resolution
from ldmlab.paper import numbers as paper
from ldmlab.study.records.record import load_records

RESULTS = Path(__file__).resolve().parents[2] / "results"


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def records(notebook: str, **params):
    """Committed records on `scenes`; at least one."""
    found = load_records(notebook, RESULTS / notebook, data="scenes", **params)
    assert found
    return found


def as_scored_now(record):
    """A committed record under today's names: what FD-lab and PD-referee gave stands as KD-EffNet and LPIPS."""
    names = {"fd_lab": "kd_effnet", "pd_referee": "lpips_alex"}

    def renamed(entries):
        return {next((name.replace(old, new, 1) for old, new in names.items() if name.startswith(old)), name): entry
                for name, entry in entries.items()}

    record = deepcopy(record)
    metrics = {name: {key: value for key, value in entry.items() if key not in ("extractor", "weights_hash")}
               for name, entry in renamed(record.metrics).items()}
    return replace(record, metrics=metrics, curves=renamed(record.curves), inputs={"score_network": "s" * 64})


def words(fig) -> str:
    """All text of a figure."""
    texts = fig.findobj(lambda artist: hasattr(artist, "get_text"))
    return " ".join(text.get_text() for text in texts).replace("\n", " ")


def points(ax) -> list[tuple[float, float]]:
    """Where something is marked."""
    return [tuple(xy) for line in ax.lines for xy in np.column_stack(line.get_data())]


def test_super_resolution_shows_measured_and_published_values():
    """Each method stands at its PSNR and distance, the paper's at those of Tab. 5."""
    found = [as_scored_now(record) for record in records("12_super_resolution")]
    fig = fig_super_resolution(found)
    plane, _, theirs = fig.axes
    for method in ("bicubic", "regression", "ldm", "guided"):
        assert (found[0].value(f"psnr_{method}"), found[0].value(f"kd_effnet_{method}")) in points(plane)
    for row in (paper.table("Tab. 5")[name] for name in super_resolution.PAPER.values()):
        assert (row["psnr"], row.get("fid", row.get("fid_val"))) in points(theirs)
    assert "tier laptop" in words(fig) and found[0].name in words(fig)


def test_a_method_far_below_bicubic_is_named_in_words():
    """It would squeeze all others together: it leaves both panels and is stated in the small print."""
    record = as_scored_now(records("12_super_resolution")[0])
    record.metrics["psnr_regression"]["value"] = record.value("psnr_bicubic") - 6
    fig = fig_super_resolution([record])
    assert "Outside the range of (a) and (b): regression at" in words(fig)
    assert all(record.value("psnr_regression") not in dict(points(ax)) for ax in fig.axes[:2])


def test_without_lpips_the_axis_says_ssim():
    """Where one record lacks LPIPS, whose weights are fetched, all are drawn by SSIM."""
    record = as_scored_now(records("12_super_resolution")[0])
    assert "LPIPS" in fig_super_resolution([record]).axes[1].get_ylabel()
    less = {name: entry for name, entry in record.metrics.items() if not name.startswith("lpips_alex")}
    less = replace(record, metrics=less, params=record.params | {"seed": 1})
    assert "SSIM  (higher" in fig_super_resolution([record, less]).axes[1].get_ylabel()


def test_a_distance_below_zero_makes_its_axis_linear():
    """An unbiased distance can be negative: no point is dropped from a logarithmic axis."""
    record = as_scored_now(records("12_super_resolution")[0])
    assert fig_super_resolution([record]).axes[0].get_yscale() == "log"
    record.metrics["kd_effnet_ldm"] |= {"value": -0.5, "interval": {"low": -1.0, "high": 0.1}}
    fig = fig_super_resolution([record])
    assert fig.axes[0].get_yscale() == "linear" and (record.value("psnr_ldm"), -0.5) in points(fig.axes[0])


@pytest.mark.parametrize(("notebook", "draw"), [("12_super_resolution", fig_super_resolution),
                                                ("13_inpainting", fig_inpainting)])
def test_a_record_of_the_former_score_is_refused(notebook, draw):
    """FD-lab and KD-EffNet stand in no figure together, and the former alone in none."""
    old = records(notebook)[0]
    for found in ([old], [as_scored_now(old), old]):
        with pytest.raises(ValueError, match=f"Run notebook {notebook} again"):
            draw(found)


def test_inpainting_shows_speed_beside_tab_6():
    """Every row of Tab. 6 has our ratio and the paper's; each record has its row of distances."""
    found = [as_scored_now(record) for record in records("13_inpainting", reg="kl")]
    fig = fig_inpainting(found)
    speed = fig.axes[2]
    xs = {x for x, _ in points(speed)}
    theirs = paper.table("Tab. 6")
    for row in inpainting_speed.ROWS:
        if row != "LDM-1":
            assert found[0].value(f"train_speedup_{row}") in xs
            assert theirs[row]["train_images_per_s"] / theirs["LDM-1"]["train_images_per_s"] in xs
    assert f"{found[0].name} KL, seed 0" in words(fig)


def test_semantic_synthesis_shows_every_method_of_every_measure():
    """Bars as long as the values; without any measure the record is refused by its name."""
    (record,) = records("11_semantic_synthesis")
    fig = fig_semantic(record)
    for ax, measure in zip(fig.axes, semantic_synthesis.MEASURES, strict=True):
        widths = [bar.get_width() for bar in ax.patches]
        assert widths == [record.value(f"{measure}_{method}") for method in semantic_synthesis.METHODS]
    bare = deepcopy(record)
    bare.metrics = {}
    with pytest.raises(ValueError, match=f"{record.file_name} has no measure of agreement with label maps"):
        fig_semantic(bare)


def test_beyond_training_size_is_drawn_over_the_side_of_the_picture():
    """Each task's distances at the sizes that were measured."""
    (record,) = records("15_beyond_training_size")
    if "kd_effnet_by_size_real" not in record.curves:
        with pytest.raises(ValueError, match="no kd_effnet_by_size_real in this record"):
            fig_beyond(record)
        record = replace(record, curves={name.replace("fd_lab", "kd_effnet"): c for name, c in record.curves.items()})
    ax = fig_beyond(record).axes[0]
    assert ax.get_yscale() == "log"
    lowest = [[x, -0.1] for x, _ in record.curves["kd_effnet_by_size_real"]]
    below = replace(record, curves=record.curves | {"kd_effnet_by_size_real": lowest})
    assert fig_beyond(below).axes[0].get_yscale() == "linear"
    for name, curve in record.curves.items():
        if name.startswith("kd_effnet_by_size_") and not name.endswith(("_low", "_high")):
            assert {tuple(map(float, xy)) for xy in curve} <= set(points(ax)), name


def test_guidance_is_drawn_beside_tab_10():
    """The paper's FID at its scales, our KD-EffNet at ours."""
    (found,) = records("08_class_conditional")
    curves = {"kd_effnet_by_guidance": [[1.0, 700.0], [2.0, 650.0]]}
    found = [replace(found, curves=found.curves | curves, inputs=found.inputs | {"score_network": "s" * 64})]
    theirs, ours = fig_guidance(found).axes
    assert {(scale, fid) for scale, fid, _ in paper.TAB10_GUIDANCE} <= set(points(theirs))
    assert {tuple(map(float, xy)) for xy in curves["kd_effnet_by_guidance"]} <= set(points(ours))


def test_blanks_replace_what_is_missing_alone():
    """Numbers stay numbers; None and NaN become empty cells."""
    shown = blank_missing(pd.DataFrame({"a": [1.5, None], "b": ["x", None]}))
    assert shown.values.tolist() == [[1.5, "x"], ["", ""]]
