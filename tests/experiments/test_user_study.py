"""Questions, answers on disk, a rater's session, results: the same way for people and for simulated raters."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldmlab.evaluation.preference import SimulatedRater, known_share, simulated_class
from ldmlab.experiments.user_study import simulated
from ldmlab.experiments.user_study.answers import append_answer, read_answers
from ldmlab.experiments.user_study.questions import SPOILED, TRUTH, Comparison, plan_questions
from ldmlab.experiments.user_study.session import Session, as_table, results
from ldmlab.figures.user_study import fig_questions_needed, fig_user_study, tab4
from ldmlab.study.config.budgets import BUDGETS


def made(methods=("a", "b", "c"), n=12, seed=0) -> Comparison:
    """A comparison of random pictures."""
    x = torch.rand(len(methods) + 1, n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Comparison("test", "Which?", x[0], dict(zip(methods, x[1:], strict=True)), x[0][..., ::4, ::4], "small")


@pytest.fixture(scope="module")
def comparison():
    return made()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.csv"


class Clock:
    """Time that passes when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def answer_all(session: Session, choose=lambda question: "left", most: int = 10**6) -> None:
    """Answer up to `most` questions."""
    while session.current is not None and most > 0:
        session.shown()
        session.answer(choose(session.current))
        most -= 1


# --- Questions


def test_each_five_questions_hold_both_tasks_and_a_check(comparison):
    """The paper's two tasks in equal shares, methods in turn, no question twice, no picture before all were seen."""
    plan = plan_questions(comparison, "anna", 0, 30)
    for first in range(0, 30, 5):
        tasks = [question.task for question in plan[first : first + 5]]
        assert [tasks.count(task) for task in ("truth", "methods", "check")] == [2, 2, 1]
    assert len({question.id for question in plan}) == 30
    assert {q.item for q in plan[:12]} == set(range(12))
    against = [({q.left, q.right} - {TRUTH}).pop() for q in plan if q.task == "truth"]
    assert {against.count(name) for name in "abc"} == {4}
    assert all({q.left, q.right} == {TRUTH, SPOILED} for q in plan if q.task == "check")


def test_sides_are_drawn_and_plans_are_the_rater_s_own(comparison):
    """The real picture is left about half of the time; seed and name fix a plan, and a longer one goes on from it."""
    sides = [q.left == TRUTH for rater in "abcdefgh" for q in plan_questions(comparison, rater, 0, 40)
             if q.task != "methods"]
    assert 0.4 < np.mean(sides) < 0.6
    plan = plan_questions(comparison, "anna", 0, 10)
    assert plan_questions(comparison, "anna", 0, 20)[:10] == plan
    assert plan_questions(comparison, "bert", 0, 10) != plan != plan_questions(comparison, "anna", 1, 10)


def test_what_cannot_be_asked_is_refused(comparison):
    """More questions than there are, pictures that do not fit, names that are taken."""
    with pytest.raises(ValueError, match=r"has \d+ questions for a rater, got num = 999"):
        plan_questions(comparison, "anna", 0, 999)
    with pytest.raises(ValueError, match="got num = 0"):
        plan_questions(comparison, "anna", 0, 0)
    x = comparison.truth
    with pytest.raises(ValueError, match=r"pictures of shape \(12, 3, 16, 16\); got 'a' with \(11, 3, 16, 16\)"):
        Comparison("test", "Which?", x, {"a": x[1:]})
    with pytest.raises(ValueError, match="got 'real picture'"):
        Comparison("test", "Which?", x, {TRUTH: x})
    with pytest.raises(ValueError, match="12 pictures, but 11 conditions"):
        Comparison("test", "Which?", x, {"a": x}, x[1:])
    assert {q.task for q in plan_questions(Comparison("test", "Which?", x, {"a": x}), "anna", 0, 10)} == {
        "truth", "check"}


# --- Answers


def test_a_rater_goes_on_where_they_stopped(comparison, path):
    """Each answer is on disk at once; a new session of the same name asks only what is left."""
    first = Session(comparison, path, "anna", 10)
    answer_all(first, most=4)
    again = Session(comparison, path, "anna", 10)
    assert again.current == first.current and len(again.answers) == 4
    answer_all(again)
    assert Session(comparison, path, "anna", 10).current is None
    assert Session(comparison, path, "anna", 12).current == plan_questions(comparison, "anna", 0, 12)[10]
    assert len(Session(comparison, path, "bert", 10).answers) == 0
    assert len(read_answers(path)[0]) == 10


def test_an_answer_says_what_was_seen_and_for_how_long(comparison, path):
    """Sides, versions of both pictures, seconds from sight to answer, seconds in sight; and nothing of the person."""
    clock = Clock()
    session = Session(comparison, path, num_questions=5, clock=clock)
    question = session.current
    session.shown()
    clock.now += 3.0
    session.hidden()
    clock.now += 1.25
    session.answer("right")
    (answer,), problems = read_answers(path)
    assert problems == [] and (answer.seconds, answer.exposure_s) == (4.25, 3.0)
    assert (answer.winner, answer.loser) == (question.right, question.left)
    assert answer.left_hash == comparison.hashes[question.left][question.item]
    assert answer.rater == session.rater and answer.rater.startswith("rater-")
    assert Session(comparison, path, num_questions=5).rater != session.rater
    with pytest.raises(RuntimeError, match="no pictures were shown"):
        session.answer("left")


def test_a_row_cut_short_by_a_crash_costs_that_row_only(comparison, path):
    """The next answer starts on a line of its own; what is bad is named with its line, and its question comes again."""
    session = Session(comparison, path, "anna", 10)
    answer_all(session, most=3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    again = Session(comparison, path, "anna", 10)
    assert len(again.answers) == 2 and "answers.csv, line 4, is left out: right_hash" in again.problems[0]
    answer_all(again)
    answers, problems = read_answers(path)
    assert len(answers) == 10 and len(problems) == 1


@pytest.mark.parametrize("old, new, said", [
    (",left,", ",middle,", "answer = 'middle'"), (",anna,", ",anna and bert,", "rater = 'anna and bert'"),
    ("truth,", "treuth,", "task = 'treuth'"), (",0,", ",0,0,", "14 cells instead of 13"),
    ("\n", "\n\n", "0 cells")])
def test_bad_rows_are_named_and_the_others_count(comparison, path, old, new, said):
    """Somebody opened the file in a spreadsheet: the message says which line and what about it."""
    answer_all(Session(comparison, path, "anna", 5))
    lines = path.read_text().splitlines(keepends=True)
    wrong = next(i for i, line in enumerate(lines) if i and old in line and (old != "truth," or ",truth," in line))
    lines[wrong] = new.join(lines[wrong].rsplit(old, 1))
    path.write_text("".join(lines))
    answers, problems = read_answers(path)
    assert len(answers) == (5 if old == "\n" else 4)
    assert len(problems) == 1 and f"line {wrong + 1 + (old == chr(10))}, is left out: " in problems[0]
    assert said in problems[0]


def test_a_file_that_holds_something_else_is_refused(path):
    """No other table is taken for answers, and none is appended to unseen."""
    path.write_text("name,age\nanna,7\n")
    with pytest.raises(ValueError, match="its first line must be time,rater,question"):
        read_answers(path)


def test_raters_who_write_at_the_same_time_lose_nothing(comparison, path):
    """Eight writers, one file: every row is whole."""
    (answer,) = one(comparison, path)
    rows = [[_with(answer, f"r{i}", k) for k in range(10)] for i in range(8)]
    threads = [threading.Thread(target=lambda mine=mine: [append_answer(path, a) for a in mine]) for mine in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers, problems = read_answers(path)
    assert len(answers) == 81 and problems == []


def one(comparison, path):
    answer_all(Session(comparison, path, "anna", 5), most=1)
    return read_answers(path)[0]


def _with(answer, rater, k):
    return type(answer)(**{**answer.__dict__, "rater": rater, "question": f"truth/{k}/a/b"})


def test_a_question_answered_twice_counts_once(comparison, path):
    """Two tabs of one rater: the first answer stands."""
    (answer,) = one(comparison, path)
    append_answer(path, _with(answer, "anna", 1))
    append_answer(path, answer)
    answers, problems = read_answers(path)
    assert len(answers) == 2 and "line 4, is left out: answered in line 2 already" in problems[0]


def test_answers_to_pictures_that_have_changed_do_not_count(comparison, path):
    """A model trained anew: its pictures are judged anew, and the old answers stay on disk."""
    answer_all(Session(comparison, path, "anna", 10))
    other = made(seed=1)
    assert len(Session(other, path, "anna", 10).answers) == 0
    found = results(other, read_answers(path)[0])
    assert found.raters == [] and "10 answers refer to other versions of the pictures" in found.notes


# --- Results


def quality(comparison) -> dict[str, np.ndarray]:
    """A utility by method, the same for all pictures."""
    values = {TRUTH: 0.0, "a": -0.5, "b": -1.0, "c": -2.0, SPOILED: -9.0}
    return {name: np.full(len(comparison.truth), values[name]) for name in comparison.pictures}


def test_the_known_preference_of_simulated_raters_is_recovered(comparison, path):
    """The whole way, file and all: shares of both tasks and the order of the strengths, within their intervals."""
    utility = quality(comparison)
    raters = simulated_class(12, list(comparison.pictures), taste_sd=0.4, seed=3)
    simulated.simulate(comparison, path, [*raters, SimulatedRater("blind", lapse=1.0)], utility, 40)
    found = results(comparison, read_answers(path)[0])
    assert found.excluded == ["blind"] and len(found.raters) == 12
    assert any("failed attention checks: 1" in note for note in found.notes)
    for p in (*found.vs_truth.values(), *found.between.values()):
        assert p.interval.low <= known_share(utility[p.first] - utility[p.second], taste_sd=0.4) <= p.interval.high
    assert len(found.between) == 3 and list(found.vs_truth) == ["a", "b", "c"]
    assert as_table(found).loc["a over b", "answers"] == found.between["a", "b"].n and len(as_table(found)) == 6
    strengths = dict(zip(found.strengths.methods, found.strengths.values, strict=True))
    assert sorted(strengths, key=strengths.get) == ["c", "b", "a", TRUTH]
    assert sum(p.n for p in found.vs_truth.values()) == 12 * 16  # without the checks, without the blind rater


def test_results_say_what_is_missing(comparison, path):
    """No answers, and a rater who always took the real picture: no strengths, and why."""
    assert as_table(results(comparison, [])).empty
    assert results(comparison, []).notes == ["strengths need votes between two methods or more, got 0 votes"]
    prefer = lambda q: "left" if q.left == TRUTH or q.right != TRUTH and q.left < q.right else "right"  # noqa: E731
    session = Session(comparison, path, "anna", 20)
    answer_all(session, prefer)
    found = results(comparison, read_answers(path)[0])
    assert found.strengths is None and any("won every comparison" in note for note in found.notes)
    assert found.vs_truth["a"].share == 0 and "attention checks right: 4 of 4" in session.summary()


@pytest.mark.long
def test_a_run_is_recorded_once_and_again_when_people_have_answered(tiny_run, monkeypatch, capsys):
    """Simulated raters are marked; people's answers join the record without names; figures stand at any stage."""
    monkeypatch.setitem(BUDGETS, "smoke", replace(BUDGETS["smoke"], num_simulated=3))
    run = tiny_run("17_user_study")
    comparison = simulated.super_resolution(run)
    assert comparison.hashes == simulated.super_resolution(tiny_run("17_user_study")).hashes
    record = simulated.record_user_study(run, comparison)
    assert "no human answers yet: all raters are simulated" in record.events
    assert {"vs_truth_bicubic_simulated", "coverage_clustered"} <= record.metrics.keys()
    assert not any(name.endswith("_human") for name in record.metrics)
    run.finish(record)
    assert simulated.record_user_study(tiny_run("17_user_study"), comparison).metrics == record.metrics
    assert "loaded" in capsys.readouterr().out
    path = simulated.answers_path(run)
    answer_all(Session(comparison, path, "anna", 10))
    again = simulated.record_user_study(tiny_run("17_user_study"), comparison)
    assert again.protocol["raters_human"] + again.protocol["excluded_human"] == 1 and "anna" not in str(again)
    for fig in (fig_user_study(record), fig_user_study(again), fig_questions_needed(record)):
        text = " ".join(t.get_text() for t in fig.findobj(lambda artist: hasattr(artist, "get_text")))
        assert "testing only" in text


def test_the_paper_s_table_is_read_as_shares():
    """Tab. 4: task 2 sums to one within each of its two studies."""
    rows = tab4()
    assert rows["super-resolution / LDM-4"] == (0.304, 0.706)
    assert rows["inpainting / LaMa"][1] + rows["inpainting / LDM-4"][1] == pytest.approx(1)
