from __future__ import annotations

from localdpo.dashboard.feed import PendingCommands
from localdpo.records.control import Acknowledgement


def answer(id: str, ok: bool = True) -> Acknowledgement:
    return Acknowledgement(id, "pause", ok, "paused after step 3" if ok else "nothing to pause")


def test_what_waits_is_said_until_it_is_answered():
    pending = PendingCommands()
    assert pending.status(0.0) == ""
    pending.add("a", "pause", 10.0)
    assert pending.status(13.2) == "sent: pause, 3s (X cancels)"
    pending.add("b", "evaluate", 11.0)
    assert pending.status(13.2) == "sent: pause, evaluate, 3s (X cancels)"
    assert pending.settle([answer("other"), answer("a")], alive=True) == [answer("a")]
    assert pending.status(13.2) == "sent: evaluate, 2s (X cancels)"
    assert pending.settle([answer("a")], alive=True) == []


def test_a_refusal_is_an_answer():
    pending = PendingCommands()
    pending.add("a", "pause", 0.0)
    assert pending.settle([answer("a", ok=False)], alive=True) == [answer("a", ok=False)]


def test_a_worker_that_is_gone_answers_no_more_and_a_stop_is_answered_by_the_end():
    pending = PendingCommands()
    pending.add("a", "checkpoint", 0.0)
    pending.add("b", "stop", 0.0)
    (left,) = pending.settle([], alive=False)
    assert (left.command, left.ok) == ("checkpoint", False)
    assert pending.status(1.0) == ""


def test_the_latest_of_some_commands():
    pending = PendingCommands()
    assert pending.latest("pause", "resume") is None
    pending.add("a", "pause", 0.0)
    pending.add("b", "evaluate", 0.0)
    assert pending.latest("pause", "resume") == "pause"
    pending.add("c", "resume", 0.0)
    assert pending.latest("pause", "resume") == "resume"
