"""Records: what a run measured, written whole, read back, and none of it lost to another run."""

import json
from dataclasses import replace

import pytest

from ldmlab.study.records.record import Record, environment, load_records

PARAMS = {"f": 8, "reg": "kl", "data": "scenes", "size": 32, "tier": "smoke", "seed": 0}


def test_a_record_comes_back_as_it_was(tmp_path):
    """Saved and loaded, a record is the same, and its file shows one metric a line."""
    record = Record("04_tradeoff", "LDM-8", PARAMS, metrics={"psnr": {"value": 20.5}, "ssim": {"value": 0.5}},
                    curves={"loss": [[1, 2.0], [2, 1.0]]}, env=environment("cpu"))
    path = record.save(tmp_path)
    assert path.name == "f8_kl_scenes_32px_smoke_s0.json"
    assert load_records("04_tradeoff", tmp_path) == [record]
    lines = path.read_text().splitlines()
    assert sum('"psnr"' in line or '"ssim"' in line for line in lines) == 2
    *keys, checksum = json.loads(path.read_text())
    assert keys == sorted(keys) and checksum == "crc32"


def test_runs_that_differ_never_share_a_file(tmp_path):
    """Each of the parameters that tell runs apart changes the name; the same run replaces its own record."""
    others = [{}, {"f": 4}, {"reg": "vq"}, {"data": "cifar10"}, {"size": 64}, {"tier": "laptop"}, {"seed": 1},
              {"num_steps": 20}, {"num_steps": 50}, {}]
    for change in others:
        Record("n", "x", PARAMS | change).save(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(others) - 1
    assert [r.params["f"] for r in load_records("n", tmp_path, f=4)] == [4]


def test_only_a_record_of_the_same_inputs_is_taken_for_this_run(tmp_path):
    """A repeated run loads what it measured; other weights, an empty or a damaged record are measured again."""
    record = Record("n", "x", PARAMS, metrics={"psnr": {"value": 1.0}}, inputs={"denoiser": "a"})
    assert record.stored(tmp_path) is None
    path = record.save(tmp_path)
    fresh = Record("n", "x", PARAMS, inputs={"denoiser": "a"})
    assert fresh.stored(tmp_path) == record
    assert Record("n", "x", PARAMS, inputs={"denoiser": "b"}).stored(tmp_path) is None
    for drawn in ("noise", "subset"):  # of records that state it: earlier versions drew otherwise, and did not say how
        assert replace(fresh, protocol={drawn: "anew"}).stored(tmp_path) is None
    path.write_text("{")
    assert fresh.stored(tmp_path) is None


@pytest.mark.parametrize("content", ['{"schema": 1, "colour": "red"}', "", "[" * 100_000, "[]", '{"params": 3}',
                                     '{"notebook": "n", "name": "x", "params": {}, "metrics": {"psnr": 3}}'])
def test_a_file_that_is_no_record_is_passed_over_and_named(tmp_path, capsys, content):
    """A damaged or foreign file in the folder stops no run, and stays where it is."""
    record = Record("n", "x", PARAMS, metrics={"psnr": {"value": 1.0}})
    record.save(tmp_path)
    (tmp_path / "odd.json").write_text(content)
    assert load_records("n", tmp_path) == [record]
    assert "odd.json is damaged" in capsys.readouterr().out and (tmp_path / "odd.json").exists()


def test_a_record_that_was_changed_is_measured_again(tmp_path, capsys):
    """One digit of a number: the checksum tells, the file is set aside, and no figure takes the number."""
    record = Record("n", "x", PARAMS, metrics={"psnr": {"value": 21.5}})
    path = record.save(tmp_path)
    path.write_text(path.read_text().replace("21.5", "29.5"))
    assert load_records("n", tmp_path) == []
    assert Record("n", "x", PARAMS).stored(tmp_path) is None
    assert "checksum" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == [f"{path.name}.damaged-1"]
    path = record.save(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # as git checks it out on Windows
    assert load_records("n", tmp_path) == [record]


def test_a_number_that_is_not_finite_is_not_recorded(tmp_path):
    """NaN in a record would be a gap in a figure, or worse, a bar."""
    with pytest.raises(ValueError, match="its metric psnr is nan"):
        Record("n", "x", PARAMS, metrics={"psnr": {"value": float("nan")}}).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_environment_says_what_ran(tmp_path):
    """Versions, device and git state are in every record."""
    env = environment("cpu")
    assert env["device"] == "cpu" and env["torch"] and set(env["git"]) == {"commit", "dirty"}


def test_only_an_unusual_loss_is_in_the_name():
    """Records keep the names that they had before a loss could be chosen; one with another loss replaces none."""
    names = {loss: Record("x", "LDM-8", {**PARAMS, "perceptual": loss}).file_name for loss in ("student", "lpips")}
    assert names["student"] == Record("x", "LDM-8", PARAMS).file_name
    assert names["lpips"] == names["student"].replace(".json", "_perceptual-lpips.json")
