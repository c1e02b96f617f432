"""Disks that are full, read-only or shared without locks."""

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ldmlab import atomic
from ldmlab.atomic import DiskFull, allocate, atomic_write, check_free_space, lock_file
from ldmlab.data.images import open_dataset
from ldmlab.first_stage import latents, rows_file
from ldmlab.first_stage.autoencoder import AutoencoderConfig, build_autoencoder
from ldmlab.first_stage.latents import cached_latents, encode_dataset
from ldmlab.study import start_run


@pytest.fixture(scope="module")
def first_stage():
    torch.manual_seed(0)
    config = AutoencoderConfig(f=4, z_channels=3, reg="kl", ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, resolution=32,
                               norm_groups=4, mid_attn=False)
    return build_autoencoder(config).eval()


@pytest.fixture(scope="module")
def images():
    return open_dataset("scenes", size=32, num=12).in_memory()


@pytest.fixture
def blocks_of_8(monkeypatch):
    monkeypatch.setattr(rows_file, "BLOCK", 8)


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_space_for_latents_is_taken_before_any_work(first_stage, images, tmp_path, monkeypatch):
    """A full disk is an error with both numbers, and nothing is left; with space, the same call succeeds."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", no_space)
        with pytest.raises(DiskFull, match=r"moments\.npy\..* needs 0\.0 MB, [\d.]+ MB are free"):
            encode_dataset(first_stage, images, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(encode_dataset(first_stage, images, tmp_path)) == 24


@pytest.mark.parametrize("lacking", ["function", "file system"])
def test_where_space_cannot_be_reserved_zeros_are_written(tmp_path, monkeypatch, lacking):
    """macOS and Windows have no posix_fallocate; some file systems refuse it."""
    if lacking == "function":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        def refuse(*_):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    allocate(tmp_path / "a", 3_000_000)
    assert (tmp_path / "a").read_bytes() == bytes(3_000_000)
    assert (tmp_path / "a").stat().st_blocks * 512 >= 3_000_000


def test_a_limit_on_the_size_of_files_is_an_error_and_no_signal(tmp_path):
    """As a full disk does: a message with the numbers, the old file kept. In a process of its own, which it limits."""
    code = ("import resource, signal, sys; from pathlib import Path; from ldmlab.atomic import *\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
            "try: allocate(Path(sys.argv[1]), 10**7)\n"
            "except DiskFull as error: print(error)\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True)
    assert "a needs 10.0 MB" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_training_will_write_is_compared_with_the_disk(tmp_path, monkeypatch):
    """Both numbers, and two cures."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 50_000_000))
    with pytest.raises(DiskFull, match="the latents of KL-f8 will take 80.0 MB in .*, and 50.0 MB are free.*prune.*"
                                       "LDMLAB_ROOT"):
        check_free_space(tmp_path / "not" / "there", 80_000_000, "the latents of KL-f8")
    check_free_space(tmp_path, 40_000_000, "the latents of KL-f8")


def test_two_hosts_without_locks_lose_time_and_never_rows(first_stage, images, tmp_path, monkeypatch, blocks_of_8):
    """The second starts while the first encodes; each writes a file of its own, and both have all rows."""
    expected = np.array(encode_dataset(first_stage, images, tmp_path / "alone").moments)
    host, found = ["one"], {}
    monkeypatch.setattr(atomic, "_machine", lambda: f"host-{host[0]}"[-8:].replace("-", "_"))

    def second(done, total):
        if done == 8 and "two" not in found:
            found["two"] = None
            host[0] = "two"
            found["two"] = encode_dataset(first_stage, images, tmp_path / "both", batch_size=8).moments
            host[0] = "one"

    found["one"] = encode_dataset(first_stage, images, tmp_path / "both", batch_size=8, progress=second).moments
    for moments in found.values():
        np.testing.assert_array_equal(moments, expected)
    np.testing.assert_array_equal(cached_latents(first_stage, images, tmp_path / "both").moments, expected)
    assert not list(tmp_path.rglob("*.part"))


def test_what_another_has_encoded_is_copied_and_its_file_left_alone(first_stage, images, tmp_path, monkeypatch,
                                                                    blocks_of_8):
    """Rows of a process on another machine, which may be alive, are read and checked, and not written."""
    with monkeypatch.context() as patch:
        patch.setattr(latents, "move_into_place", no_space)
        patch.setattr(latents, "release_part", lambda part: part.rename(part.with_name(
            f".moments.npy.{'0' * 8}-1-1-abcd.part")))
        with pytest.raises(OSError):
            encode_dataset(first_stage, images, tmp_path, progress=None)
            pytest.fail("not stopped")
    for part in tmp_path.rglob("*.part"):
        part.rename(part.with_name(f".moments.npy.{'0' * 8}-1-1-abcd.part"))
    (theirs,) = tmp_path.rglob("*.part")
    before = theirs.read_bytes()
    real, encoded = type(first_stage).moments, []
    monkeypatch.setattr(type(first_stage), "moments", lambda self, x: encoded.append(len(x)) or real(self, x))
    encode_dataset(first_stage, images, tmp_path)
    assert encoded == [1], "one picture, for the shape"
    assert theirs.read_bytes() == before


def test_a_planted_link_is_not_written_through(first_stage, images, tmp_path):
    """moments.npy -> a file elsewhere: replaced as a name, and that file is as it was."""
    encode_dataset(first_stage, images, tmp_path)
    (file,) = tmp_path.rglob("moments.npy")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    file.unlink()
    file.symlink_to(victim)
    assert len(encode_dataset(first_stage, images, tmp_path)) == 24
    assert victim.read_text() == "precious" and not file.is_symlink()


@contextmanager
def read_only(folder: Path):
    """The folder on a mount that cannot be written; root is stopped by nothing else."""
    bind = ["mount", "--bind", str(folder), str(folder)]
    if os.geteuid() == 0 and subprocess.run(bind, capture_output=True).returncode == 0:
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    elif os.geteuid() != 0:
        folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        for path in folders:
            path.chmod(0o555)
        try:
            yield
        finally:
            for path in folders:
                path.chmod(0o755)
    else:
        pytest.skip("root without the right to mount")


def test_trained_models_load_from_a_read_only_folder(tiny_run, root, monkeypatch):
    """Pictures, first stage, latents, diffusion model and reference features, all without a lock or a file."""
    run = tiny_run("07_sampling")
    wanted = run.diffusion.hash, np.array(run.latents.moments), run.scorer.reference("fd-lab").n
    with read_only(root):
        again = tiny_run("07_sampling")
        assert again.diffusion.hash == wanted[0] and again.scorer.reference("fd-lab").n == wanted[2]
        np.testing.assert_array_equal(again.latents.moments, wanted[1])
        other = tiny_run("07_sampling", seed=1)
        with pytest.raises(OSError, match=rf"nothing can be written to {root}.*LDMLAB_ROOT, which is {root}"):
            _ = other.first_stage
        with pytest.raises(OSError, match="change its permissions, or name another folder"):
            atomic_write(root / "results" / "a.json", b"{}")


@pytest.mark.parametrize("made", [False, True])
def test_a_run_whose_results_cannot_be_kept_does_not_start(tmp_path, monkeypatch, made):
    """Its numbers would be lost at the end."""
    monkeypatch.setenv("LDMLAB_ROOT", str(tmp_path))
    if made:
        (tmp_path / "results").mkdir()
    params = {"f": 8, "reg": "kl", "data": "scenes", "size": 0, "tier": "smoke", "seed": 0, "perceptual": ""}
    message = f"nothing can be written to {tmp_path}/results.*LDMLAB_ROOT"
    with read_only(tmp_path), pytest.raises(OSError, match=message):
        start_run("07_sampling", params)


def test_a_lock_that_is_no_file_is_set_aside(tmp_path):
    """A folder of its name stopped every run."""
    (tmp_path / ".lock").mkdir()
    with lock_file(tmp_path / ".lock", "waiting"):
        assert (tmp_path / ".lock").is_file()
    assert (tmp_path / ".lock.damaged-1").is_dir()


def test_a_pipe_in_a_files_place_does_not_hang(tmp_path):
    """What is no file is not opened."""
    from ldmlab.study.records.record import Record, load_records

    record = Record("n", "x", {"f": 8}, metrics={"psnr": {"value": 1.0}})
    os.mkfifo(tmp_path / "f8.json")
    assert load_records("n", tmp_path) == [] and record.stored(tmp_path) is None
    assert json.loads(record.save(tmp_path).read_text())["name"] == "x"
