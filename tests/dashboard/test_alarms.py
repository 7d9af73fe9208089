from __future__ import annotations

from localdpo.dashboard.state import RunState
from localdpo.dashboard.widgets.notices import alarms, distinct, notice_key, unacknowledged
from localdpo.records.events import Event, Notice


def event(type: str, step: int | None = None, time: float = 0.0, **data: object) -> Event:
    return Event(v=1, time=time, type=type, step=step, data=data)


def running(*more: Event) -> RunState:
    state = RunState("r")
    started = event("run.started", total_steps=50, memory_limit_gb=16.0)
    steps = [
        event("step", step, time=float(step), metrics={"step_seconds": 1.0, "peak_memory_gb": 10.0})
        for step in range(1, 11)
    ]
    state.feed([started, *steps, *more])
    return state


def names(state: RunState, alive: bool, now: float) -> list[str]:
    return [alarm.name for alarm in alarms(state, alive, now)]


def test_a_healthy_run_raises_none():
    assert names(running(), True, 12.0) == []
    assert names(RunState("r"), False, 12.0) == []
    finished = running(event("run.finished", 10, 11.0))
    assert names(finished, False, 1e6) == []


def test_a_damaged_log_is_told_in_the_words_of_its_reader():
    state = running()
    assert not state.feed([])
    assert state.feed([], "events.jsonl: 1 damaged line is skipped (line 3)")
    (alarm,) = alarms(state, True, 12.0)
    assert (alarm.name, alarm.level) == ("damaged-log", "warning")
    assert alarm.message == "events.jsonl: 1 damaged line is skipped (line 3)"


def test_silence_of_a_living_worker_is_told_with_its_length():
    (alarm,) = alarms(running(), True, 10.0 + 95)
    assert (alarm.name, alarm.level, alarm.step) == ("silence", "warning", 10)
    assert "1m 35s" in alarm.message
    assert alarm.why
    assert alarm.advice
    assert names(running(), True, 10.0 + 29) == []


def test_a_dead_worker_is_critical_with_the_words_of_its_supervisor():
    (alarm,) = alarms(running(), False, 20.0)
    assert (alarm.name, alarm.level) == ("crashed", "critical")
    assert "last step was 10" in alarm.message
    told = running(
        event("run.crashed", 10, 11.0, signal="SIGKILL", lines=["killed by SIGKILL", "resume with: x"])
    )
    (alarm,) = alarms(told, False, 20.0)
    assert (alarm.message, alarm.advice) == ("killed by SIGKILL", "resume with: x")


def test_what_was_said_twice_is_shown_once_and_notes_are_acknowledged_one_by_one():
    first = Notice(1.0, 0, "info", "note", "memory: 1 GB")
    other = Notice(2.0, 0, "info", "note", "padding: 2%")
    again = Notice(9.0, 5, "info", "note", "memory: 1 GB")
    assert distinct([first, other, again]) == [again, other]
    assert notice_key(first) == notice_key(again)
    assert unacknowledged([again, other], {notice_key(first)}) == [other]
