"""A GPU day's bookkeeping: limits, what a cut part leaves, the page; nothing is timed here."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """A module of `benchmarks/gpu`, found as the script finds it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"gpu.{name}")


def fake(part, file, deadline) -> list[str]:
    """A process that saves a number, and then ends, fails, or stays for too long, as the part's title says."""
    after = {"ends": "", "fails": "; raise SystemExit(3)", "stays": "; import time; time.sleep(60)"}[part.title]
    code = f"import pathlib; pathlib.Path({str(file)!r}).write_text('{{\"found\": {part.number}}}'){after}"
    return [sys.executable, "-c", code]


def test_a_cut_part_leaves_what_it_had_and_the_others(load, tmp_path):
    """One part fails, one is killed at its limit; both keep their results, and those before and after are there."""
    parts = load("parts")
    plan = [parts.Part(n, title, "", "", 2.0) for n, title in enumerate(("ends", "fails", "stays", "ends"), 1)]
    result = parts.run_parts(plan, {"parts": {"9": {"title": "of an earlier call"}}}, tmp_path, fake)
    stored = json.loads((tmp_path / "gpu_day.json").read_text())
    assert stored == parts.rounded(result)
    assert [stored["parts"][str(n)]["result"]["found"] for n in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert [stored["parts"][str(n)]["cut"] for n in (1, 2, 3, 4)] == [
        "", "ended with exit status 3", "cut after 2 s", ""]
    assert stored["parts"]["9"] == {"title": "of an earlier call"} and stored["wall_s"] < 30


@pytest.mark.parametrize("elapsed, number, expected", [
    (0, 1, 75),     # its own
    (40, 3, 351),   # what part 1 and 2 left over is part 3's: 540 - 12 - 40 - 60 - 62 - 15
    (500, 4, 0),    # nothing is left beside parts 5 and 6
    (460, 5, 53),   # what is left but for part 6
    (530, 6, 0),
])
def test_limits_keep_the_whole_within_nine_minutes(load, elapsed, number, expected):
    """A part gets its stated seconds, less where earlier ones took theirs, and never those of the parts to come."""
    parts = load("parts")
    i = number - 1
    assert parts.limit_of(parts.PARTS[i], parts.PARTS[i + 1 :], elapsed) == expected
    assert sum(part.seconds for part in parts.PARTS) + parts.PAGE_S <= parts.TOTAL_S == 540


def test_parts_name_functions_that_are_there(load):
    """Each part's module has its function."""
    for part in load("parts").PARTS:
        assert callable(getattr(load(part.module), part.function))


def test_json_has_five_digits_and_no_infinities(load):
    """As strict readers of JSON take it."""
    assert load("parts").rounded({1: (1.23456789, float("inf")), "a": {"b": float("nan")}}) == {
        "1": [1.2346, None], "a": {"b": None}}


def test_kernels_are_sorted_into_kinds(load):
    """Shares of the span by kind, overlaps counted once, and gaps as idle."""
    profile = load("profile")
    found = profile.summary([("sm90_xmma_fprop_implicit_gemm_bf16", 0, 40), ("triton_poi_fused_convolution", 40, 20),
                             ("flash_fwd_kernel", 50, 20), ("multi_tensor_apply_kernel<FusedAdam>", 90, 10)], 2)
    expected = {"convolution": 0.4, "norm, activation (compiled)": 0.2, "attention": 0.1, "optimizer, EMA": 0.1,
                "idle": 0.2}
    assert found["shares"] == pytest.approx(expected)
    assert found["step_s"] == pytest.approx(50e-6) and found["kernels_a_step"] == 2


STORED = {
    "table": "gpu_day", "made": "2026-01-01T00:00:00Z", "rehearsal": False, "commit": "abc", "wall_s": 300.0, "parts": {
        "1": {"title": "", "result": {"environment": {"device_name": "a GPU"}, "samplers": {"ddim": {
            "float32": 1e-6, "bfloat16 weights": 1e-2}}, "accelerated": {"graphs": 0.0, "compiled": {"error": "x"}},
            "golden, float32": {"groups": {"UNetModel": {"max_error": 1e-6}}, "not_run": {}, "cases": 1}}},
        "2": {"title": "", "result": {"tests": [{"name": "a", "outcome": "passed", "message": ""},
                                                {"name": "b", "outcome": "failure", "message": "off"}]}},
        "3": {"title": "throughput", "cut": "cut after 240 s", "result": {
            "goals": {"share": 0.45}, "peak": {"flops_per_s": 8e14, "datasheet": 9.89e14, "bytes_per_s": 4e12},
            "rows": [{"work": "training LDM-4", "variant": "bf16", "kind": "ours", "batch": 48, "per_s": 500.0,
                      "flops_per_s": 3e14, "share_of_peak": 0.375, "share_of_datasheet": 0.303},
                     {"work": "training LDM-4", "variant": "compiled", "kind": "ours", "batch": 48, "error": "none"}],
            "profiles": {"bf16": {"shares": {"convolution": 0.6, "idle": 0.4}}, "other": {"error": "none"}}}},
    }}


def test_the_page_shows_what_there_is(load):
    """From a stored day with a cut part, a failed row and parts that never ran; the goal's verdict is in words."""
    page = load("page")
    fig = page.page(STORED)
    assert len(fig.axes) == 5
    told = " ".join(page.sentences(STORED))
    assert "45 % of the measured peak" in told and "37.5 %" in told and "missed" in told
    assert "1 passed, 1 failure; b: off" in told and "Part 3, throughput: cut after 240 s." in told
    assert page.page({"parts": {}}).axes
