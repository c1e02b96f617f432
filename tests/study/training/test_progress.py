"""Progress in logs and notebooks."""

import pytest

from ldmlab.study.training import progress as module
from ldmlab.study.training.progress import duration, has_front_end, progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_line_says_how_far_how_fast_and_how_long(clock, capsys):
    """One plain line, readable in a cluster's log."""
    bar = progress(1500, "first stage KL-f8", mode="lines")
    clock.now += 150
    bar.update(300, loss=0.12345)
    assert capsys.readouterr().out == (
        "first stage KL-f8   300/1500 steps   20 %  2 steps/s  10 min 0 s left  loss 0.123\n")


def test_lines_are_few_at_any_speed(clock, capsys):
    """Short work gets one closing line, ten minutes a dozen, a slow step none of its own."""
    for seconds, most in ((5, 1), (600, 11), (36_000, 700)):
        with progress(1000, "run", mode="lines") as bar:
            for _ in range(1000):
                clock.now += seconds / 1000
                bar.update(1)
        lines = capsys.readouterr().out.splitlines()
        assert 1 <= len(lines) <= most
        assert lines[-1].startswith("run  1000/1000 steps  100 %") and lines[-1].endswith("done")


def test_a_resumed_run_counts_from_where_it_stood(clock, capsys):
    """Rate and time left come from the work of this process alone."""
    with progress(100, "run", initial=50, mode="lines") as bar:
        clock.now += 10
        bar.update(10)
    first, last = capsys.readouterr().out.splitlines()
    assert "60/100 steps   60 %  1 steps/s  40 s left" in first
    assert last.endswith("10 s, stopped")


def test_close_twice_says_it_once(clock, capsys):
    """Trainers close from a hook and from the context."""
    with progress(1, "run", mode="lines") as bar:
        bar.update()
        bar.close()
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_work_that_was_done_already_is_not_told_of(capsys):
    """A cache that is only opened leaves no line in a log."""
    with progress(5, "run", mode="lines"):
        pass
    assert capsys.readouterr().out == ""


def test_nothing_is_shown_under_pytest_unless_asked(capsys):
    """The suite's output stays readable."""
    with progress(2, "run") as bar:
        bar.update(2)
    assert bar.n == 2 and capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="'loud' is not one of auto, widget, lines, silent"):
        progress(2, "run", mode="loud")


def test_a_front_end_is_a_kernel_that_jupyterlab_started(monkeypatch):
    """papermill's kernels have no session name; a script has no kernel."""
    import IPython

    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not has_front_end()
    shell = type("Shell", (), {"kernel": object(), "user_ns": {}})()
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    assert not has_front_end()
    shell.user_ns["__vsc_ipynb_file__"] = "a.ipynb"
    assert has_front_end()
    shell.user_ns.clear()
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    assert has_front_end()


def test_the_widget_counts_as_lines_do():
    """A bar for JupyterLab, made without one."""
    with progress(10, "run", initial=2, mode="widget") as bar:
        bar.update(3, loss=0.5)
        assert bar.n == bar._bar.n == 5


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (570, "9 min 30 s"), (11_100, "3 h 5 min")])
def test_durations_in_two_units(seconds, words):
    """Nobody reads 570 s."""
    assert duration(seconds) == words
