"""Files that are there whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from ldmlab.atomic import DiskFull, atomic_write


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
    """SIGKILL in the middle of a write: the next writer removes the remains, once they are surely nobody's."""
    path = atomic_write(tmp_path / "a", b"old")
    code = ("import os, signal, sys; from ldmlab.atomic import atomic_write\n"
            "def die(part): part.write_bytes(b'ne'); os.kill(os.getpid(), signal.SIGKILL)\n"
            "atomic_write(sys.argv[1], die)")
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL
    (part,) = left_over(tmp_path)
    assert path.read_bytes() == b"old"
    atomic_write(path, b"new")
    assert left_over(tmp_path) == [part]  # another process may still be writing it
    os.utime(tmp_path / part, (time.time() - 7200,) * 2)
    atomic_write(path, b"newer")
    assert path.read_bytes() == b"newer" and left_over(tmp_path) == []
