"""What `cache list` says of results/runs, and that `prune` removes only what nothing refers to."""

import hashlib
import json
import os

import pytest
import torch
from filelock import FileLock

from ldmlab.checkpoints.files import save_model
from ldmlab.evaluation.distances import FeatureMoments
from ldmlab.study.config.paths import PACKAGE
from ldmlab.study.runs.storage import named_entries, remove_entry, stored_entries

FINGERPRINT = "f" * 64


def fake_model(folder, kind, **meta):
    save_model(folder / f"{kind}.safetensors", {"w": torch.ones(2)}, {"kind": kind, "seed": 0, **meta})
    (folder / ".lock").touch()
    return folder


def fake_latents(runs, identity, fingerprint=FINGERPRINT, **known):
    key = hashlib.sha256(f"{identity} {fingerprint}".encode()).hexdigest()[:16]
    folder = runs / f"latents-{key}"
    folder.mkdir(parents=True)
    (folder / "moments.npy").write_bytes(b"0" * 100)
    (folder / "done.json").write_text(json.dumps({"done": 4, **known}))
    return folder


@pytest.fixture
def runs(lab_root):
    """A first stage, a model on it that a record names, and its latents as version 0.1 left them."""
    runs = lab_root / "results" / "runs"
    fake_model(runs / "first_stage-KL-f8-aaaaaaaaaaaa", "first_stage", name="KL-f8", hash="1" * 64,
               data={"name": "scenes", "fingerprint": FINGERPRINT})
    fake_model(runs / "diffusion-LDM-8-bbbbbbbbbbbb", "diffusion", name="LDM-8", hash="2" * 64, first_stage="1" * 64)
    fake_latents(runs, "1" * 64)
    record = lab_root / "results" / "04_tradeoff" / "f8.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"notebook": "04_tradeoff", "inputs": {"denoiser": "2" * 64}}))
    return runs


def unused():
    return {entry.name for entry in stored_entries() if entry.unused}


def test_models_say_what_they_belong_to(runs):
    """Name, seed and data from the file, the first stage by its hash, the notebook from the records."""
    about = {entry.family: entry.about for entry in stored_entries()}
    assert about["first_stage"] == "KL-f8, seed 0, scenes"
    assert about["diffusion"] == "LDM-8, seed 0, on first_stage-KL-f8-aaaaaaaaaaaa, in records of 04_tradeoff"
    assert about["latents"] == "of first_stage-KL-f8-aaaaaaaaaaaa"
    assert unused() == set()


def test_latents_whose_first_stage_is_gone_are_unused(runs):
    """As far as it can be told: those that do not name it, and that no known model and data explain, stay."""
    gone = fake_latents(runs, "3" * 64, first_stage="3" * 64)
    untold = fake_latents(runs, "4" * 64)
    assert unused() == {gone.name}
    assert "unknown" in next(entry.about for entry in stored_entries() if entry.name == untold.name)


def test_moments_of_other_weights_are_unused(runs):
    """A network of the package that was trained anew; one that is not in the package may be anywhere."""
    card = json.loads((PACKAGE / "weights" / "fd-lab.json").read_text())
    for name, extractor, digest in (("now", "fd-lab", card["sha256"]), ("before", "fd-lab", "0" * 64),
                                    ("elsewhere", "inception", "0" * 64)):
        moments = FeatureMoments(2, extractor=extractor, weights_hash=digest)
        moments.update(torch.randn(5, 2))
        moments.save(runs / "moments" / f"moments-{name}.safetensors")
    assert unused() == {"moments/moments-before.safetensors"}


def test_leftovers_of_trainings_and_killed_writers_are_unused(runs):
    """state.pt counts only beside a finished model, a part of a file only when old; and what was set aside."""
    (runs / "diffusion-LDM-8-bbbbbbbbbbbb" / "state.pt").write_bytes(b"0")
    (runs / "diffusion-LDM-4-cccccccccccc").mkdir()
    (runs / "diffusion-LDM-4-cccccccccccc" / "state.pt").write_bytes(b"0")
    for name, age in ((".a.npy.1.part", 2 * 86400), (".b.npy.1.part", 0), ("c.npy.damaged-1", 0)):
        part = runs / "data" / name
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(b"0")
        os.utime(part, (part.stat().st_mtime - age,) * 2)
    assert unused() == {"diffusion-LDM-8-bbbbbbbbbbbb/state.pt", "data/.a.npy.1.part",
                        "data/c.npy.damaged-1"}


def test_decoded_pictures_are_one_entry_with_what_describes_them(runs):
    """Array, description and lock go together; an array alone is half of a cache."""
    data = runs / "data"
    data.mkdir()
    for name in ("scenes-train-32px-0.npy", "scenes-train-32px-0.json", "scenes-train-32px-0.lock", "half.npy"):
        (data / name).write_bytes(b"{}")
    entries = {entry.name: entry for entry in stored_entries() if entry.family == "data"}
    assert set(entries) == {"data/scenes-train-32px-0", "data/half"} and unused() == {"data/half"}
    assert remove_entry(entries["data/scenes-train-32px-0"]) and [p.name for p in data.iterdir()] == ["half.npy"]


def test_what_a_process_holds_is_skipped(runs):
    """The lock of a training, held elsewhere: the entry is in use, and is not removed."""
    folder = runs / "first_stage-KL-f8-aaaaaaaaaaaa"
    (entry,) = named_entries([folder.name])
    with FileLock(folder / ".lock"):
        assert entry.in_use and not remove_entry(entry) and folder.exists()
    assert not entry.in_use and remove_entry(entry) and not folder.exists()
    assert unused() == set()  # its latents do not name it; whose they are cannot be told any more


def test_only_what_is_listed_can_be_named(runs):
    """No path outside of results/runs is ever removed."""
    for name in ("..", "../04_tradeoff", "/tmp", ".", ""):
        with pytest.raises(ValueError, match="nothing under"):
            named_entries([name])


def test_an_empty_folder_holds_nothing(lab_root):
    """Before the first run there is no results/runs."""
    assert stored_entries() == []
