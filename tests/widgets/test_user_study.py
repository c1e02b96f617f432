"""The panel of the user study: what a rater sees, when it is hidden, and what a click does."""

import io

import pytest
import torch
from PIL import Image

from ldmlab.data.images import to_uint8
from ldmlab.experiments.user_study.answers import read_answers
from ldmlab.experiments.user_study.questions import Comparison
from ldmlab.experiments.user_study.session import Session
from ldmlab.widgets import user_study
from ldmlab.widgets.user_study import Panel, ask


class Later:
    """A clock that strikes when told: the calls that wait, with their seconds."""

    def __init__(self):
        self.waiting = []

    def __call__(self, seconds, call):
        self.waiting.append((seconds, call))

    def strike(self) -> float:
        """Make the oldest call; returns the seconds after which it was due."""
        seconds, call = self.waiting.pop(0)
        call()
        return seconds


@pytest.fixture
def session(tmp_path):
    """Five questions on random pictures."""
    x = torch.rand(3, 8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    comparison = Comparison("test", "Which is <better>?", x[0], {"a": x[1], "b": x[2]}, x[0][..., ::4, ::4], "1/4")
    return Session(comparison, tmp_path / "answers.csv", "anna", 5)


def seen(image) -> int:
    """How many colours an image widget shows."""
    return len(Image.open(io.BytesIO(image.value)).getcolors(2**16))


def hidden(panel: Panel) -> bool:
    """Whether all three places are plain grey."""
    return all(seen(image) == 1 for image in (panel.left, panel.middle, panel.right))


def disabled(panel: Panel) -> bool:
    """Whether neither button can be pressed."""
    return all(button.disabled for button in panel.buttons.values())


def test_pictures_are_shown_hidden_after_three_seconds_and_then_answered(session):
    """The protocol of the paper: three pictures, 3 s, then a choice; the next question comes by itself."""
    later = Later()
    panel = Panel(session, later=later)
    assert hidden(panel) and disabled(panel) and "anna" in panel.message.value
    question = session.current
    panel.start.click()
    assert not hidden(panel) and disabled(panel) and panel.progress.value == "question 1 of 5"
    left = session.comparison.pictures[question.left][question.item]
    assert Image.open(io.BytesIO(panel.left.value)).size == (256, 256)  # 16 px, each pixel 16 times
    assert seen(panel.left) == len(to_uint8(left).flatten(1).T.unique(dim=0))
    assert later.strike() == 3.0
    assert hidden(panel) and not disabled(panel)
    panel.buttons["right"].click()
    assert hidden(panel) and disabled(panel) and read_answers(session.path)[0][0].answer == "right"
    assert panel.bar.value == 1 and panel.progress.value == "question 2 of 5"
    later.strike()
    assert not hidden(panel) and later.waiting[0][0] == 3.0


def test_the_last_answer_is_thanked_for_and_a_second_panel_says_so_at_once(session):
    """Five clicks, five rows, the result so far; nothing is left to click."""
    later = Later()
    panel = Panel(session, later=later)
    panel.start.click()
    for _ in range(5):
        later.strike()
        panel.buttons["left"].click()
        later.strike()
    assert "Thank you, anna" in panel.message.value and "attention checks right" in panel.message.value
    assert panel.progress.value == "5 of 5" and later.waiting == [] and panel.start.layout.display == "none"
    assert len(read_answers(session.path)[0]) == 5
    again = Panel(Session(session.comparison, session.path, "anna", 5), later=later)
    assert "Thank you" in again.message.value


def test_a_double_click_and_a_late_timer_change_nothing(session):
    """A second click on its way is no answer to the next question; an old timer does not hide the new pictures."""
    later = Later()
    panel = Panel(session, 0, later=later)  # no limit: the pictures stay, and can be answered at once
    panel.start.click()
    assert not hidden(panel) and not disabled(panel)
    panel.answer("left")
    panel.answer("left")
    assert len(read_answers(session.path)[0]) == 1
    timed = Panel(session, 3, later=later)
    later.waiting.clear()
    timed.show()
    timed.show()
    later.strike()
    assert not hidden(timed) and disabled(timed)


def test_an_answer_that_cannot_be_written_is_said_and_can_be_given_again(session, monkeypatch):
    """A full disk loses no answer: the buttons come back."""
    later = Later()
    panel = Panel(session, 0, later=later)
    panel.start.click()
    with monkeypatch.context() as patch:
        patch.setattr("ldmlab.experiments.user_study.session.append_answer",
                      lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        panel.buttons["left"].click()
        assert "disk full" in panel.message.value and not disabled(panel) and panel.bar.value == 0
    panel.buttons["left"].click()
    assert panel.bar.value == 1


def test_a_panel_that_is_reopened_goes_on(session):
    """Running the cell again after a restart: the count goes on from what is on disk."""
    session.shown()
    session.answer("left")
    panel = Panel(Session(session.comparison, session.path, "anna", 5), later=Later())
    assert panel.progress.value == "question 2 of 5" and "answered before: 1" in panel.message.value


def test_the_question_is_no_markup(session):
    """Text of a comparison is shown as it is."""
    assert "&lt;better&gt;" in Panel(session, later=Later()).widget.children[0].value


def test_without_a_front_end_a_question_is_a_still_picture(session, monkeypatch):
    """papermill's output shows what would be asked, and says where it can be answered; no widget, no answer."""
    still = ask(session)
    text = " ".join(t.get_text() for t in still.findobj(lambda artist: hasattr(artist, "get_text")))
    assert "JupyterLab" in text and {"left", "1/4", "right"} <= {ax.get_title(loc="center") for ax in still.axes}
    monkeypatch.setattr(user_study, "has_front_end", lambda: True)
    assert hasattr(ask(session), "children")
    with pytest.raises(ValueError, match="got -1"):
        ask(session, -1)
