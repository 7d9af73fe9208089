from __future__ import annotations

import io

from logged import EVAL, METRICS, NOTICE, STARTED, event
from rich.console import Console

from localdpo.cli.plain import ProgressView, bar_state
from localdpo.records.progress import Progress, progress_of


def test_the_bar_follows_the_phase():
    scoring = [STARTED, event("reference", done=8, total=64)]
    assert bar_state(progress_of([])) == (0, None, None)
    assert bar_state(progress_of(scoring)) == (8, 64, None)
    step = event("step", 10, metrics={"step_seconds": 2.0})
    done, of, left = bar_state(progress_of([*scoring, step]))
    assert (done, of) == (10, 60)
    assert left is not None
    assert left >= 100.0


def show_all(console: Console) -> None:
    with ProgressView(console, Progress()) as view:
        view.say("run runs/dpo")
        log = [STARTED, event("reference", done=8, total=64), event("step", 1, metrics=METRICS), EVAL, NOTICE]
        for one in [*log, event("samples", 10, samples=[]), event("run.finished", 60)]:
            view.show(one)


def test_without_a_terminal_there_is_one_line_an_event():
    out = io.StringIO()
    show_all(Console(file=out, width=40))
    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == [
        "run",
        "run.started",
        "reference",
        "step",
        "eval",
        "notice",
        "run.finished",
    ]
    assert "\x1b" not in out.getvalue()


def test_without_a_terminal_a_reference_pass_is_ten_lines():
    out = io.StringIO()
    with ProgressView(Console(file=out, width=40), Progress()) as view:
        view.show(STARTED)
        for total in (400, 64, 3):
            for done in range(1, total + 1):
                view.show(event("reference", done=done, total=total))
    counts = [line.split()[2::2] for line in out.getvalue().splitlines()[1:]]
    assert counts[:10] == [[str(done), "400"] for done in range(40, 401, 40)]
    assert len(counts) == 10 + 10 + 3
    assert counts[-1] == ["3", "3"]


def test_a_failure_is_left_to_the_end_of_the_command():
    out = io.StringIO()
    with ProgressView(Console(file=out), Progress()) as view:
        for failure in ("run.failed", "run.crashed"):
            view.show(event(failure, 4, error="boom"))
    assert out.getvalue() == ""


def test_on_a_terminal_there_is_a_bar_and_a_line_an_evaluation():
    out = io.StringIO()
    show_all(Console(file=out, width=100, force_terminal=True, color_system=None))
    assert "evaluation at step 10/60: loss 0.693" in out.getvalue()
    assert "warning displacement: both fall" in out.getvalue()
    assert "step 1/60" not in out.getvalue()
    assert "10/60" in out.getvalue()
