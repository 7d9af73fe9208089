"""How events are worded, the same in every place that shows them. Pure functions.

A line is a word for the kind of event, the step, and then `key value` pairs in a fixed order, the same in
every run, for people and for grep alike. Options of recipes, too: as they are written, and where they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

from localdpo.core.names import command_line
from localdpo.core.text import counted, format_brief, format_seconds, format_value
from localdpo.records.answers import Sampling
from localdpo.records.checkpoints import adapter_folder
from localdpo.records.events import Event, notice_of
from localdpo.records.metrics import ACCURACY, ALL_TIED, HEADLINES, all_tied, metrics_of
from localdpo.records.progress import Phase
from localdpo.records.rundir import ENDS, RunDir, path_in, runs_dir_of

DEFAULT_RUNS_DIR: Final = Path("runs")
# Fields of events that a line does not have: shown otherwise, or too long.
NOT_IN_LINES: Final = (
    *("kl_seconds", "reference_seconds", "reference_rows", "reference_left"),
    *("metrics", "recipe", "versions", "lines", "id", "phase", "pairs", "lowest"),
)

PHASES: Final[dict[Phase, str]] = {
    **{phase: phase for phase in get_args(Phase)},
    "loading": "loading model and data",
    "saving": "saving a checkpoint",
    "sampling": "sampling answers",
    "tokenising": "tokenising the data",
    "reference": "reference scores",
}


def format_event(event: Event, total: int | None, eta: float | None = None) -> str | None:
    """The text line of an event, or None for one that is only for programs (samples).

    Of its metrics it has the headlines. `eta`: seconds until the run ends, for the line of a step.
    """
    if event.type == "samples":
        return None
    words = [event.type]
    if event.step is not None:
        words += ["step", f"{event.step}/{total}" if total is not None else str(event.step)]
    if event.type in ("step", "eval"):
        words = [event.type, *words[2:]]
    if event.type == "phase" and event.data.get("phase") in PHASES:
        words[0] = PHASES[event.data["phase"]]
    words += _headlines(event)
    if event.type == "step" and eta is not None:
        words.append(f"ETA {format_seconds(eta)}")
    if event.type == "notice":
        return " ".join([*words, notice_of(event).text])
    own = {key: value for key, value in event.data.items() if key not in NOT_IN_LINES}
    # Reading goes on: the number of rows is that of the moment.
    return " ".join(words + _pairs(own) + (["so far"] if event.type == "data" else []))


def format_headline(event: Event, total: int | None) -> str | None:
    """The line above the bar, or None for an event that only moves the bar."""
    if event.type == "eval":
        of = f"/{total}" if total is not None else ""
        return f"evaluation at step {event.step}{of}: {'  '.join(_headlines(event))}"
    if event.type == "notice":
        return notice_of(event).text
    if event.type == "run.started":
        words = _pairs({key: event.data[key] for key in ("model", "loss", "device") if key in event.data})
        return " ".join(["run started:", *words])
    if event.type == "data":
        rows = counted(int(event.number("rows") or 0), "row")
        return f"{event.data.get('source', 'data')}: {rows} tokenised so far"
    if event.type == "run.resumed":
        return (
            f"resumed from step {event.step}" if event.step else "no checkpoint yet: starts again at step 0"
        )
    if event.type == "control":
        return f"{event.data.get('command') or 'command'}: {event.data.get('message')}"
    if event.type == "run.continued" and event.data.get("reason") != "resume":
        return f"{event.data.get('reason')}: {format_seconds(event.number('seconds') or 0)} not counted"
    return None


def alert_text(name: str, event: Event) -> str | None:
    """What a notification of the desktop says of an event of the run `name`: a warning, or the run's end."""
    if event.type == "notice" and event.data.get("level") in ("warning", "critical"):
        return f"{name}: {event.data['level']}: {event.data.get('message', '')}"
    if event.type in ENDS:
        at = "" if event.step is None else f" at step {event.step}"
        return f"{name} {ENDS[event.type]}{at}"
    return None


def _headlines(event: Event) -> list[str]:
    """`label value` of each headline that the event has, in three digits, so that a line fits 80 columns."""
    metrics = metrics_of(event)
    return [
        f"{metric.label} {metric_words(metric.name, metrics, format_brief)}"
        for metric in HEADLINES
        if metric.name in metrics
    ]


def _pairs(values: Mapping[str, Any]) -> list[str]:
    """Keys and values, objects within objects with keys such as `rows.train`."""
    return [word for key, value in flatten(values).items() for word in (key, format_value(value))]


def metric_words(name: str, metrics: Mapping[str, Any], form: Callable[[Any], str] = format_value) -> str:
    """One of `metrics`, written by `form`; the accuracy is no 0 where all pairs are tied."""
    return ALL_TIED if name == ACCURACY and all_tied(metrics) else form(metrics[name])


def closing_lines(run: RunDir, events: Iterable[Event]) -> list[str]:
    """What to do with a finished run: how long it took, where the adapter is, how to try it."""
    seconds = None
    for event in events:
        if event.type == "run.finished":
            seconds = event.data.get("seconds")
    took = f" in {format_seconds(seconds)}" if isinstance(seconds, int | float) else ""
    command = command_line("chat", *run_words(run))
    return [f"finished{took}", f"adapter: {adapter_folder(run)}", f"try it: {command}"]


def resume_command(run: RunDir) -> str:
    """The command that resumes a run or a series, ready for a shell in the current directory."""
    return command_line(run.command, "--resume", "--run", *run_words(run))


def run_words(run: RunDir) -> list[str]:
    """How a command in the current directory names a run or a series: `NAME`, or `SERIES/NAME` for a run of a
    series, and the option without which it would look in another folder.
    """
    runs_dir = runs_dir_of(run)
    name = path_in(runs_dir, run)
    return [name] if runs_dir == DEFAULT_RUNS_DIR else [name, "--runs-dir", str(runs_dir)]


def format_sampling(sampling: Sampling) -> str:
    """How answers were drawn: `temperature 0.7, seed 3, at most 256 tokens`."""
    drawn = f"temperature {sampling.temperature:g}, seed {sampling.seed}"
    how = drawn if sampling.temperature else "likeliest tokens"
    return f"{how}, at most {counted(sampling.max_tokens, 'token')}"


def flatten(values: object, prefix: str = "") -> dict[str, object]:
    """Nested mappings, and lists of them, as one with keys such as `data.train[0].source`."""
    flat: dict[str, object] = {}
    if isinstance(values, Mapping):
        for key, value in values.items():
            flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    elif isinstance(values, list) and any(isinstance(value, Mapping) for value in values):
        for index, value in enumerate(values):
            flat.update(flatten(value, f"{prefix}[{index}]"))
    else:
        flat[prefix] = values
    return flat


def differing(recipes: Sequence[Mapping[str, object]]) -> list[tuple[str, list[str]]]:
    """The keys whose values are not the same in all recipes, with the value in each ("" where unset)."""
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    rows = []
    for key in keys:
        values = [option_words(recipe[key]) if key in recipe else "" for recipe in recipes]
        if len(set(values)) > 1:
            rows.append((key, values))
    return rows


def option_words(value: object) -> str:
    """A value of a recipe as it is written there."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
