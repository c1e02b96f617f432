"""Which networks a record's numbers rest on: told from inputs and scores, compared for reuse and in figures."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from ldmlab.figures.index import DRAWINGS
from ldmlab.study.config.paths import PACKAGE
from ldmlab.study.records.compare import check_comparable, comparison_key
from ldmlab.study.records.networks import UNKNOWN, network_of, networks_of, split_inputs
from ldmlab.study.records.record import Record

PARAMS = {"f": 8, "reg": "kl", "data": "scenes", "size": 32, "tier": "laptop", "seed": 0}


def committed() -> list[Record]:
    paths = sorted((PACKAGE.parent / "results").glob("[0-9]*/*.json"))
    return [Record(**json.loads(path.read_text())) for path in paths]


def test_former_names_of_networks_are_understood():
    """"judge" was FD-lab, except in semantic synthesis, where it was the judge of label maps."""
    assert split_inputs({"judge": "a", "judge_of_success": "b", "data": "d"}) == (
        {"fd_extractor": "a", "caption_judge": "b"}, {"data": "d"})
    assert split_inputs({"judge": "a"}, "11_semantic_synthesis")[0] == {"caption_judge": "a"}
    assert split_inputs({"fd-lab": "a", "referee": "b", "inception": "none", "denoiser_vq": "c"})[0] == {
        "fd_extractor": "a", "fd_referee": "b", "denoiser_vq": "c"}


def test_hashes_beside_scores_tell_networks_and_contradictions_do_not():
    """A score's own hash names its network; two hashes of one network, or none at all, leave it unknown."""
    scores = {"fd_referee": {"value": 1.0, "extractor": "referee", "weights_hash": "r"},
              "perceptual": {"value": 1.0, "extractor": "PSIM-lab", "weights_hash": "p"}}
    record = Record("n", "x", PARAMS, scores, inputs={"judge": "f"})
    assert networks_of(record) == {"fd_extractor": "f", "fd_referee": "r", "perceptual": "p"}
    record.inputs["referee"] = "another"
    assert networks_of(record)["fd_referee"] == UNKNOWN
    assert networks_of(Record("n", "x", PARAMS, {"pd_referee_ldm": {"value": 1.0}})) == {"fd_referee": UNKNOWN}
    assert network_of("psnr") is None and network_of("latent_perceptual") == "perceptual"


def test_an_older_record_is_reused_where_its_networks_are_told(tmp_path):
    """Under today's names it is the same measurement; with another hash, or one that cannot be told, it is not."""
    scores = {"fd_lab": {"value": 1.0, "extractor": "fd-lab", "weights_hash": "f"},
              "fd_referee": {"value": 1.0, "extractor": "referee", "weights_hash": "r"}}
    old = Record("n", "x", PARAMS, scores, inputs={"denoiser": "d", "judge": "f"})
    old.save(tmp_path)
    now = {"denoiser": "d", "fd_extractor": "f", "fd_referee": "r"}
    assert Record("n", "x", PARAMS, inputs=now).stored(tmp_path) == old
    for changed in now:
        assert Record("n", "x", PARAMS, inputs=now | {changed: "other"}).stored(tmp_path) is None
    assert Record("n", "x", PARAMS, inputs=now | {"regression": "g"}).stored(tmp_path) is None
    replace(old, metrics={"pd_referee": {"value": 1.0}}).save(tmp_path)
    assert Record("n", "x", PARAMS, inputs=now).stored(tmp_path) is None


def test_records_of_unknown_networks_stand_in_no_figure_with_others():
    """The message says that the networks differ."""
    unknown = Record("n", "x", PARAMS, {"kd_effnet_bicubic": {"value": 1.0}})
    known = replace(unknown, inputs={"score_network": "r" * 64}, params=PARAMS | {"seed": 1})
    assert comparison_key(unknown, "kd_effnet_bicubic")["networks"] == UNKNOWN
    with pytest.raises(ValueError, match="networks unknown / score_network rrrrrrrr"):
        check_comparable([unknown, known], "kd_effnet_bicubic")
    by_scale = Record("n", "x", PARAMS, curves={"fd_lab_by_guidance": [[1.0, 2.0]]}, inputs={"judge": "a" * 64})
    with pytest.raises(ValueError, match="networks: fd_extractor aaaaaaaa / fd_extractor bbbbbbbb"):
        check_comparable([by_scale, replace(by_scale, inputs={"judge": "b" * 64})], "fd_lab_by_guidance")


def test_a_record_of_an_earlier_score_is_refused_by_name():
    """It has no value of the metric, so it can stand in no figure of it: the message says what to run."""
    old = Record("08_class_conditional", "LDM-8", PARAMS, curves={"fd_lab_by_guidance": [[1.0, 2.0]]})
    with pytest.raises(ValueError, match="no kd_effnet_by_guidance in .* Run notebook 08_class_cond"):
        check_comparable([old], "kd_effnet_by_guidance")


def test_networks_of_committed_records():
    """All are told but those that older records never held; and no figure of the committed records is split."""
    records, unknown = committed(), Counter()
    for record in records:
        unknown.update((record.notebook, name) for name, value in networks_of(record).items() if value == UNKNOWN)
    assert set(unknown) == {
        ("11_semantic_synthesis", "fd_referee"), ("12_super_resolution", "fd_referee"),
        ("13_inpainting", "fd_referee"), ("14_image_guiding", "perceptual"), ("16_evaluation", "perceptual")}
    for drawing in DRAWINGS.values():
        keys = [tuple(comparison_key(r, drawing.metric).items()) for r in records if r.notebook == drawing.notebook]
        assert keys and len(set(keys)) == len({tuple(item for item in key if item[0] != "networks") for key in keys})
