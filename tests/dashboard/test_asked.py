from __future__ import annotations

from localdpo.dashboard.asked import Answer, Asked
from localdpo.records.control import Acknowledgement


def answer(id: str, ok: bool = True) -> Acknowledgement:
    return Acknowledgement(id, "pause", ok, "paused after step 3" if ok else "nothing to pause")


def test_what_waits_is_said_until_it_is_answered():
    asked = Asked()
    assert asked.status(0.0) == ""
    asked.add("a", "pause", 10.0)
    assert asked.status(13.2) == "asked: pause, 3s"
    asked.add("b", "evaluate", 11.0)
    assert asked.status(13.2) == "asked: pause +1, 3s"
    assert asked.settle([answer("other"), answer("a")], alive=True) == [
        Answer("pause", True, "paused after step 3")
    ]
    assert asked.status(13.2) == "asked: evaluate, 2s"
    assert asked.settle([answer("a")], alive=True) == []


def test_a_refusal_is_an_answer():
    asked = Asked()
    asked.add("a", "pause", 0.0)
    assert asked.settle([answer("a", ok=False)], alive=True) == [Answer("pause", False, "nothing to pause")]


def test_a_worker_that_is_gone_answers_no_more_and_a_stop_is_answered_by_the_end():
    asked = Asked()
    asked.add("a", "checkpoint", 0.0)
    asked.add("b", "stop", 0.0)
    (left,) = asked.settle([], alive=False)
    assert (left.command, left.ok) == ("checkpoint", False)
    assert asked.status(1.0) == ""


def test_the_latest_of_some_commands():
    asked = Asked()
    assert asked.latest("pause", "resume") is None
    asked.add("a", "pause", 0.0)
    asked.add("b", "evaluate", 0.0)
    assert asked.latest("pause", "resume") == "pause"
    asked.add("c", "resume", 0.0)
    assert asked.latest("pause", "resume") == "resume"
