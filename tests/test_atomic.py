"""Files that are there whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from ldmlab.atomic import DiskFull, atomic_write, part_of


def left_over(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


def test_bytes_and_functions_arrive_and_leave_nothing_else(tmp_path):
    """Both ways to write, into a folder that does not exist yet."""
    path = atomic_write(tmp_path / "new" / "a", b"one")
    assert path.read_bytes() == b"one"
    atomic_write(path, lambda part: part.write_bytes(b"two"))
    assert path.read_bytes() == b"two" and left_over(path.parent) == []


def test_a_failed_write_keeps_the_old_file(tmp_path):
    """An error of the writer's own passes through as it is."""
    path = atomic_write(tmp_path / "a", b"old")

    def half(part):
        part.write_bytes(b"ne")
        raise KeyError("no such weight")

    with pytest.raises(KeyError):
        atomic_write(path, half)
    assert path.read_bytes() == b"old" and left_over(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("I/O error: No space left on device")])
def test_a_full_disk_is_reported_and_corrupts_nothing(tmp_path, error):
    """The message has the path, what was needed and what is free; some libraries hide the error's number."""
    path = atomic_write(tmp_path / "state.pt", b"old")

    def fill(part):
        part.write_bytes(bytes(2_000_000))
        raise error

    with pytest.raises(DiskFull, match=r"state\.pt needs more than [\d.]+ MB, [\d.]+ MB are free.*kept"):
        atomic_write(path, fill)
    assert path.read_bytes() == b"old" and left_over(tmp_path) == []


def test_a_killed_writer_leaves_the_old_file_and_is_tidied_up_later(tmp_path):
    """SIGKILL in the middle of a write: the next writer removes the remains, and what a living process writes stays."""
    path = atomic_write(tmp_path / "a", b"old")
    code = ("import os, signal, sys; from ldmlab.atomic import atomic_write\n"
            "def die(part): part.write_bytes(b'ne'); os.kill(os.getpid(), signal.SIGKILL)\n"
            "atomic_write(sys.argv[1], die)")
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL
    assert len(left_over(tmp_path)) == 1 and path.read_bytes() == b"old"
    living = part_of(path)
    living.write_bytes(b"half")
    os.utime(living, (0, 0))  # as by a clock that is decades behind
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new" and left_over(tmp_path) == [living.name]


@pytest.mark.parametrize(("age_h", "left"), [(2, 1), (48, 0)])
def test_partial_files_of_other_machines_are_judged_by_the_clock_of_the_disk(tmp_path, monkeypatch, age_h, left):
    """A day without a write, as the file system sees it; our own clock may be days ahead."""
    other = tmp_path / f".a.{'0' * 8}-1-1-abcd.part"
    other.write_bytes(b"half")
    os.utime(other, (time.time() - age_h * 3600,) * 2)
    monkeypatch.setattr(time, "time", lambda: 1e11)
    atomic_write(tmp_path / "a", b"new")
    assert len(left_over(tmp_path)) == left
