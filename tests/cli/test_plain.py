from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from localdpo.cli.plain import bar_state, make_view
from localdpo.core.events import Event
from localdpo.core.names import BUNDLE
from localdpo.core.progress import Progress, progress_of
from localdpo.core.rundir import RunDir
from localdpo.core.wording import (
    closing_lines,
    format_event,
    format_headline,
    format_number,
    format_seconds,
    generate_command,
    printable,
)


def event(type: str, step: int | None = None, **data: object) -> Event:
    return Event(v=1, time=0.0, type=type, step=step, data=data)


STARTED = event(
    "run.started",
    total_steps=60,
    model="demo:model",
    loss="sigmoid",
    device="cpu",
    recipe={"eval": {"every": 10}},
    versions={"mlx": "1"},
)
METRICS = {"kl": 0.0123456, "loss": 0.69314718, "rewards/accuracies": 0.5, "zeta": 1, "rewards/margins": None}
EVAL = event("eval", 10, metrics=METRICS, pairs=64, seconds=1.5)
TIED = event(
    "eval", 0, metrics={"loss": 0.6931, "rewards/accuracies": 0.0, "rewards/ties": 1.0, "kl": 0.0}, pairs=64
)
NOTICE = event(
    "notice", 3, level="warning", name="displacement", message="both\nfall", why="w", **{"try": "t"}
)


@pytest.mark.parametrize(
    ("one", "line"),
    [
        (STARTED, "run.started total_steps 60 model demo:model loss sigmoid device cpu"),
        (event("reference", done=8, total=64), "reference done 8 total 64"),
        (
            event("step", 12, metrics=METRICS),
            "step 12/60 loss 0.69315 rewards/accuracies 0.5 rewards/margins - kl 0.012346 zeta 1",
        ),
        (
            EVAL,
            "eval 10/60 loss 0.69315 rewards/accuracies 0.5 rewards/margins - kl 0.012346 zeta 1 "
            "pairs 64 seconds 1.5",
        ),
        (
            event("checkpoint", 20, path="checkpoints/step-000020", seconds=0.25),
            "checkpoint step 20/60 path checkpoints/step-000020 seconds 0.25",
        ),
        (NOTICE, "notice step 3/60 warning displacement: both\nfall | w | t"),
        (event("run.resumed", 20), "run.resumed step 20/60"),
        (
            event("control", id="0179", command="pause", ok=True, message="paused after step 2"),
            "control command pause ok True message paused after step 2",
        ),
        (event("run.failed", error="no  such\nmodel"), "run.failed error no such model"),
        (
            event("run.finished", 60, metrics={"loss": 0.5}, seconds=9.0),
            "run.finished step 60/60 loss 0.5 seconds 9",
        ),
    ],
)
def test_every_event_has_its_line(one: Event, line: str):
    assert format_event(one, 60) == line


def test_samples_are_not_for_a_log():
    assert format_event(event("samples", 0, samples=[]), 60) is None


def test_a_step_of_an_unknown_number_of_steps():
    assert format_event(event("step", 3, metrics={"loss": 1.0}), None) == "step 3 loss 1"


@pytest.mark.parametrize(
    ("one", "line"),
    [
        (EVAL, "evaluation at step 10/60: loss 0.693  accuracy 0.5  margin -  KL 0.0123"),
        (TIED, "evaluation at step 0/60: loss 0.693  accuracy all tied  KL 0"),
        (NOTICE, "warning displacement: both\nfall | w | t"),
        (STARTED, "run started: model demo:model loss sigmoid device cpu"),
        (event("run.resumed", 20), "resumed from step 20"),
        (
            event("control", id="0179", command="pause", ok=True, message="paused after step 2"),
            "pause: paused after step 2",
        ),
        (event("control", id="0179", command=None, ok=False, message="no"), "command: no"),
        (event("run.continued", 2, reason="resume", seconds=9.0), None),
        (event("run.continued", 2, reason="sleep", seconds=65.0), "sleep: 1m 05s not counted"),
        (event("step", 12, metrics=METRICS), None),
        (event("samples", 0, samples=[]), None),
    ],
)
def test_above_the_bar_stands_what_matters(one: Event, line: str | None):
    assert format_headline(one, 60) == line


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (3, "3"), (0.00001, "1e-05"), (1234.5678, "1234.6"), (0.0, "0")]
)
def test_numbers(value: float | None, text: str):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (185, "3m 05s"), (7620, "2h 07m")]
)
def test_times(seconds: float, text: str):
    assert format_seconds(seconds) == text


def test_the_bar_follows_the_phase():
    scoring = [STARTED, event("reference", done=8, total=64)]
    assert bar_state(progress_of([])) == (0, None, None)
    assert bar_state(progress_of(scoring)) == (8, 64, None)
    step = event("step", 10, metrics={"step_seconds": 2.0})
    done, of, left = bar_state(progress_of([*scoring, step]))
    assert (done, of) == (10, 60)
    assert left is not None
    assert left >= 100.0


def test_text_from_a_model_cannot_steer_the_terminal():
    assert printable("a\x1b[31mb\r\nc\x07é") == "a [31mb  c é"


def show_all(console: Console) -> None:
    with make_view(console, Progress()) as view:
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


def test_on_a_terminal_there_is_a_bar_and_a_line_an_evaluation():
    out = io.StringIO()
    show_all(Console(file=out, width=100, force_terminal=True, color_system=None))
    assert "evaluation at step 10/60: loss 0.693" in out.getvalue()
    assert "warning displacement: both fall" in out.getvalue()
    assert "step 1/60" not in out.getvalue()
    assert "10/60" in out.getvalue()


def test_at_the_end_stands_what_to_do_next():
    run = RunDir(Path("my runs/dpo"))
    samples = event("samples", 0, samples=[{"prompt": "What's up?", "reference": "a", "policy": "b"}])
    started = event("run.started", model="org/tiny")
    lines = closing_lines(run, [started, samples, event("run.finished", 60, seconds=65.0)])
    assert lines[:2] == ["finished in 1m 05s", "adapter: my runs/dpo/checkpoints/LATEST"]
    command = shlex.split(lines[2].removeprefix("try it: "))
    assert command == [
        "mlx_lm.generate", "--model", "org/tiny", "--adapter-path", "my runs/dpo/checkpoints/LATEST",
        "--prompt", "What's up?",
    ]  # fmt: skip
    assert closing_lines(run, []) == ["finished", "adapter: my runs/dpo/checkpoints/LATEST"]


def test_the_command_names_the_folder_of_a_demo_model():
    if not (BUNDLE / "model").is_dir():
        pytest.skip("the demo bundle is not made")
    assert str(BUNDLE / "model") in generate_command("demo:model", RunDir("runs/dpo"), None)
