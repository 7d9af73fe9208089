from __future__ import annotations

import math

import pytest
from logged import RECIPE, event, started, step

from localdpo.records.events import Event
from localdpo.records.progress import Progress, advance, event_age, phase_count, progress_of, silent_for


def phase(name: str, at: int, **counts: int) -> Event:
    return event("phase", at, phase=name, **counts)


def test_rows_that_later_steps_score_under_the_reference_take_time() -> None:
    def step(number: int, **scored: float) -> Event:
        return event("step", number, metrics={"step_seconds": 2.0}, **scored)

    first = step(1, reference_seconds=3.0, reference_rows=6, reference_left=10)
    plain = progress_of([started(), step(1)]).eta
    assert plain is not None
    assert progress_of([started(), first]).eta == pytest.approx(plain + 10 * 0.5)
    known = step(2, reference_seconds=0.0, reference_rows=0, reference_left=10)
    assert progress_of([started(), first, known]).eta == pytest.approx(plain - 2.0 + 10 * 0.5)
    assert progress_of([started(), first, step(2)]).eta == pytest.approx(plain - 2.0)


def test_the_phases_of_a_run_in_order():
    log = [
        started(),
        event("reference", done=0, total=8),
        event("reference", done=8, total=8),
        phase("sampling", 0, done=0, total=2),
        phase("evaluating", 0, done=0, total=8),
        event("eval", 0, seconds=3.0),
        step(1),
        step(4),
        phase("evaluating", 4, done=8, total=8),
        event("eval", 4, seconds=3.0),
        phase("saving", 4),
        event("checkpoint", 4, seconds=1.0),
        event("run.finished", 10),
    ]
    phases, progress = [], Progress()
    assert progress.phase == "starting"
    counts = []
    for one in log:
        progress = advance(progress, one)
        phases.append(progress.phase)
        counts.append(phase_count(progress))
    assert phases == [
        "loading",
        "reference",
        "training",
        "sampling",
        "evaluating",
        "training",
        "training",
        "training",
        "evaluating",
        "training",
        "saving",
        "training",
        "finished",
    ]
    assert progress.step == progress.total == 10
    assert list(filter(None, counts)) == ["0/8 rows", "0/2 answers", "0/8 rows", "8/8 rows"]
    assert phase_count(progress_of([event("data", rows=1200)])) == "1,200 rows"


def test_the_time_left_counts_steps_evaluations_and_checkpoints():
    log = [started(), event("eval", 0, seconds=3.0), step(1), event("checkpoint", 1, seconds=0.5)]
    # 9 steps of 2 s; evaluations at 4, 8 and 10; checkpoints at 5 and 10.
    assert progress_of(log).eta == pytest.approx(9 * 2.0 + 3 * 3.0 + 2 * 0.5)
    # The evaluation at 4 is going on, those at 8 and 10 are to come.
    assert progress_of([*log, step(4), phase("sampling", 4)]).eta == pytest.approx(
        6 * 2.0 + 3 * 3.0 + 2 * 0.5
    )
    assert progress_of([*log, step(4), event("eval", 4, seconds=3.0)]).eta == pytest.approx(12 + 6 + 1)
    assert progress_of([*log, step(10), phase("evaluating", 10)]).eta == pytest.approx(3.0)
    # Without held-out rows the answers are the evaluation.
    assert progress_of([*log, event("samples", 1, seconds=5.0)]).eta == pytest.approx(18 + 3 * 5.0 + 1)


def test_the_time_left_is_unknown_before_a_step_is_measured():
    assert progress_of([started(), event("eval", 0, seconds=3.0)]).eta is None
    assert progress_of([started(), step(1, None)]).eta is None
    assert progress_of([step(1)]).eta is None
    assert progress_of([started(), step(1), event("run.stopped")]).eta is None


def test_one_slow_step_does_not_move_the_time_left():
    slow = [started(100), *(step(n) for n in range(1, 4)), step(5, 60.0)]
    assert progress_of(slow).eta == pytest.approx(95 * 2.0, abs=60)


def test_the_reference_pass_has_its_own_time_left():
    log = [started(), event("reference", done=100, total=400, time=10.0)]
    assert progress_of(log).reference_eta is None
    progress = progress_of([*log, event("reference", done=200, total=400, time=30.0)])
    assert progress.reference_eta == pytest.approx(40.0)
    assert progress.eta is None
    # The second pass, over the held-out rows, has a pace of its own.
    second = [
        event("reference", done=16, total=32, time=90.0),
        event("reference", done=24, total=32, time=98.0),
    ]
    for one in second:
        progress = advance(progress, one)
    assert progress.reference_eta == pytest.approx(8.0)


def test_a_resume_goes_on_from_its_step():
    log = [started(), step(7), event("run.resumed", 5)]
    assert progress_of(log).step == 5
    assert progress_of(log).phase == "loading"
    assert progress_of([*log, event("reference", done=8, total=8)]).phase == "training"
    paused = [started(), step(7), event("run.paused", 7)]
    assert progress_of(paused).phase == "paused"
    assert progress_of([*paused, event("run.resumed", 7)]).phase == "loading"


@pytest.mark.parametrize(
    "odd",
    [
        event("run.started"),
        event("run.started", recipe=None, total_steps="many"),
        event("run.started", recipe={"eval": {"every": 0}, "save": 3}),
        event("reference"),
        event("reference", done="x", total=None),
        event("step", 1),
        event("step", 1, metrics=None),
        event("step", 1, metrics={"step_seconds": None}),
        event("eval", 1, seconds="long"),
        event("checkpoint", 1),
        event("something.new"),
        event("phase", 1, phase="dancing"),
        event("phase", 1, phase="sampling", done="x"),
    ],
)
def test_events_that_lack_something_break_nothing(odd: Event):
    progress = progress_of([started(), odd, step(2)])
    assert progress.step == 2
    assert progress.eta is None or math.isfinite(progress.eta)


def test_a_pause_is_no_time_left_and_goes_back_to_what_it_interrupted():
    log = [started(), event("eval", 0, seconds=3.0), step(1)]
    before = progress_of(log)
    paused = advance(before, event("run.paused", 1, time=10.0))
    assert (paused.phase, paused.eta) == ("paused", None)
    assert paused.work_left == before.eta
    on = advance(paused, event("run.continued", 1, time=99.0, reason="resume", seconds=89.0))
    assert (on.phase, on.eta) == ("training", before.eta)
    in_reference = [started(), event("reference", done=8, total=16), event("run.paused", 0)]
    assert progress_of([*in_reference, event("run.continued", 0)]).phase == "reference"
    in_evaluation = [started(), step(4), phase("evaluating", 4), event("run.paused", 4)]
    assert progress_of([*in_evaluation, event("run.continued", 4)]).phase == "evaluating"


def test_a_paused_run_that_evaluates_on_command_is_paused_again_after_it():
    asked = event("control", id="1", command="evaluate", ok=True, message="evaluating after step 3")
    begun = phase("evaluating", 3, done=0, total=8)
    log = [started(), step(3), event("run.paused", 3), asked, begun]
    assert progress_of(log).phase == "evaluating"
    log += [event("eval", 3, seconds=2.0), event("samples", 3)]
    assert progress_of(log).phase == "paused"
    assert progress_of([*log, event("run.continued", 3)]).phase == "training"
    refused = event("control", id="1", command="evaluate", ok=False, message="evaluated already")
    assert progress_of([started(), step(3), refused]).phase == "training"
    meanwhile = [started(), step(3), event("run.paused", 3), asked, begun, event("run.continued", 3)]
    assert progress_of(meanwhile).phase == "evaluating"
    assert progress_of([*meanwhile, event("eval", 3)]).phase == "training"


def test_the_time_stopped_or_asleep_is_no_pace_of_the_reference_pass():
    log = [
        started(),
        event("reference", done=100, total=400, time=10.0),
        event("run.continued", 0, time=100.0, reason="sleep", seconds=80.0),
        event("reference", done=200, total=400, time=110.0),
    ]
    assert progress_of(log).reference_eta == pytest.approx(40.0)


def test_the_time_left_counts_measurements_and_later_reference_passes():
    recipe = {**RECIPE, "eval": {"every": 100, "kl_every": 3}, "save": {"every": 100}}
    start = event("run.started", total_steps=10, recipe=recipe)
    measured = event("step", 3, metrics={"step_seconds": 2.0}, kl_seconds=0.5)
    # 7 steps, KL at 6 and 9; the evaluation at the end was never timed, the checkpoint neither.
    assert progress_of([start, measured]).eta == pytest.approx(7 * 2.0 + 2 * 0.5)
    log = [
        start,
        measured,
        event("run.resumed", 3),
        event("reference", done=100, total=400, later=50, time=10.0),
        event("reference", done=200, total=400, later=50, time=30.0),
    ]
    assert progress_of(log).reference_eta == pytest.approx(250 * 0.2)
    assert progress_of(log).eta == pytest.approx(50.0 + 15.0)


def test_silence_is_longer_than_the_work_explains():
    assert silent_for(Progress(), 1e9) is None
    assert event_age(Progress(), 5.0) is None
    fast = progress_of([started(), step(1)])
    assert event_age(fast, 12.0) == 12.0
    assert event_age(fast, -3.0) == 0.0
    assert silent_for(fast, 30.0) is None
    assert silent_for(fast, 31.0) == 31.0
    slow = progress_of([started(), step(1, 20.0)])
    assert silent_for(slow, 99.0) is None
    assert silent_for(slow, 101.0) == 101.0
    recipe = {**RECIPE, "train": {"log_every": 10}}
    rarely = progress_of([event("run.started", total_steps=90, recipe=recipe), step(10, 2.0)])
    assert silent_for(rarely, 99.0) is None
    assert silent_for(rarely, 101.0) == 101.0
    first = progress_of([started(), event("eval", 0, seconds=1.0)])
    assert silent_for(first, 299.0) is None
    assert silent_for(first, 301.0) == 301.0
    evaluating = progress_of([started(), event("eval", 0, seconds=90.0), step(4), phase("evaluating", 4)])
    assert silent_for(evaluating, 179.0) is None
    assert silent_for(evaluating, 181.0) == 181.0
    assert silent_for(progress_of([started(), phase("sampling", 0)]), 299.0) is None
    for last in ("run.paused", "run.finished", "run.crashed", "run.started"):
        assert silent_for(progress_of([started(), step(1), event(last)]), 1e6) is None


def test_a_crash_is_a_phase():
    progress = progress_of([started(), step(4), event("run.crashed", 4, signal="SIGKILL")])
    assert (progress.phase, progress.step, progress.eta) == ("crashed", 4, None)
