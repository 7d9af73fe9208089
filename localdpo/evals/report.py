"""What a run's report shows, from the files of its folder. Works for runs that have not ended, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from localdpo.core.text import format_number, format_seconds
from localdpo.evals.table import heading, latest_record, tables
from localdpo.pages import compare_values
from localdpo.pages.chart import COLOURS, Look, PlotSeries, charts_of, line_chart
from localdpo.records import series as rounds
from localdpo.records import sweeps
from localdpo.records.answers import answers_files, read_answers
from localdpo.records.checkpoints import read_log
from localdpo.records.evaluations import RateEstimate
from localdpo.records.events import Event, effective, notice_of, samples_of
from localdpo.records.metrics import in_order, metrics_of
from localdpo.records.rundir import RunDir
from localdpo.records.runs import summarise
from localdpo.records.series import RoundResult, RoundsDir, SeriesDir
from localdpo.records.wording import metric_words

# Prompts of the comparison on the page; `localdpo compare --html` has all of them.
SHOWN_PROMPTS: Final = 12
# A win rate and the ends of its interval.
_RATE_LINES: Final[tuple[tuple[str, Look, str], ...]] = (
    ("win rate", "circles", "value"),
    ("95% interval from", "thin", "low"),
    ("to", "broken", "high"),
)
_ROUNDS_FIGURES: Final = (
    "Win rates on held-out prompts with 95% intervals, ties half. KL(policy || start) of whole responses in "
    "nats, and 1.96 standard errors. Tokens of an answer on average, and how many more than the start's."
)
_SWEEP_FIGURES: Final = (
    "Figures of the last evaluation on held-out pairs; KL in nats a token. Accuracy at an equal KL is that "
    "where a run came to the largest KL that all runs reached, linear between two evaluations. No other run "
    "has a higher accuracy than one on the front at a KL that is no larger."
)


def report_values(run: RunDir, note: Callable[[str], None]) -> dict[str, Any]:
    """The values of the template `report`; `note` is called with one line about a damaged log.

    Raises UserError when another file of the run is damaged.
    """
    log = read_log(run, note, alive=run.is_running())
    events = effective(log)
    metrics = metrics_of(next((event for event in reversed(events) if event.type == "eval"), None))
    record = latest_record(run)
    return {
        "name": run.name,
        "facts": facts_of(run, log),
        "last": [(name, metric_words(name, metrics)) for name in in_order(metrics)],
        "charts": charts_of(events),
        "notices": [(event.step, notice_of(event).text) for event in events if event.type == "notice"],
        "samples": next((samples for event in reversed(events) if (samples := samples_of(event))), []),
        "evaluation": None
        if record is None
        else {
            **{name: record[name] for name in ("name", "conclusion")},
            "heading": heading(record),
            "tables": tables(record),
        },
        "comparison": comparison_values(run),
        "recipe": run.recipe.read_text(encoding="utf-8"),
    }


def series_values(series: SeriesDir) -> dict[str, Any]:
    """The values of the template `series`. Raises UserError when what the series keeps is damaged."""
    if isinstance(series, sweeps.SweepDir):
        return _sweep_values(series)
    assert isinstance(series, RoundsDir)
    return _rounds_values(series)


def _sweep_values(sweep: sweeps.SweepDir) -> dict[str, Any]:
    results = sweeps.results_of(sweep)
    headings, rows = sweeps.table_of(results)
    # The front first: a run on it is beaten by none at its KL.
    measured = sorted((run for run in results.runs if run.path), key=lambda run: not run.on_front)
    shown = sorted(measured[: len(COLOURS)], key=lambda run: run.name)
    lines = [PlotSeries(run.name, look, run.path) for run, look in zip(shown, COLOURS, strict=False)]
    chart = line_chart(
        "Reward accuracy over KL", "held-out pairs", lines, x_label="KL, nats a token", counted=False
    )
    return {
        "name": sweep.name,
        "headings": headings,
        "rows": rows,
        "explained": _SWEEP_FIGURES,
        "closing": [sweeps.stage_of(sweep, results), *sweeps.closing_lines(sweep, results)],
        "charts": [] if chart is None else [chart],
        "recipe": sweep.recipe.read_text(encoding="utf-8"),
    }


def _rounds_values(series: RoundsDir) -> dict[str, Any]:
    record = rounds.read_record(series)

    def points(pick: Callable[[RoundResult], float | None]) -> tuple[tuple[float, float | None], ...]:
        return tuple((float(number), pick(result)) for number, result in enumerate(record.rounds, start=1))

    def rates(pick: Callable[[RoundResult], RateEstimate | None]) -> list[PlotSeries]:
        def end(result: RoundResult, name: str) -> float | None:
            rate = pick(result)
            return None if rate is None else getattr(rate, name)

        return [PlotSeries(words, look, points(partial(end, name=name))) for words, look, name in _RATE_LINES]

    charts = (
        line_chart(title, unit, lines, x_label="round", bounds=bounds)
        for title, unit, lines, bounds in (
            ("Against the round before", "win rate", rates(lambda one: one.last), (0.0, 1.0)),
            ("Against the start", "win rate", rates(lambda one: one.first), (0.0, 1.0)),
            ("KL from the start", "nats", [PlotSeries("KL", "circles", points(lambda one: one.kl))], None),
            (
                "Length of an answer",
                "tokens",
                [
                    PlotSeries("the policy", "circles", points(lambda one: one.tokens)),
                    PlotSeries("the start", "broken", points(lambda one: one.tokens_first)),
                ],
                None,
            ),
        )
    )
    return {
        "name": series.name,
        "headings": rounds.HEADINGS,
        "rows": [rounds.cells(result) for result in record.rounds],
        "explained": _ROUNDS_FIGURES,
        "closing": [rounds.stage_of(series, record), *rounds.closing_lines(record)],
        "charts": [chart for chart in charts if chart is not None],
        "recipe": series.recipe.read_text(encoding="utf-8"),
    }


def facts_of(run: RunDir, log: Sequence[Event]) -> list[tuple[str, str]]:
    """What the run is, in pairs of a word and a value; what its log does not say is skipped."""
    summary = summarise(run, log, run.is_running())
    start = next((event.data for event in reversed(log) if event.type == "run.started"), {})
    device = start.get("device")
    began, latest = summary.started, summary.updated
    took = None if began is None or latest is None else format_seconds(latest - began)
    facts: list[tuple[str, str | None]] = [
        ("state", summary.state),
        ("why", summary.why),
        ("model", summary.model),
        ("loss", summary.loss),
        ("beta", None if summary.beta is None else format_number(summary.beta)),
        ("step", summary.steps.replace("/", " of ")),
        ("device", device if isinstance(device, str) else None),
        ("rows", _counts(start.get("rows"))),
        ("started", _moment(summary.started)),
        ("last event", _moment(summary.updated)),
        ("took", took),
        ("versions", _counts(start.get("versions"))),
    ]
    return [(word, value) for word, value in facts if value]


def comparison_values(run: RunDir) -> dict[str, Any] | None:
    """The answers that were made last, the first SHOWN_PROMPTS prompts of them; None without any."""
    files = answers_files(run.path)
    if not files:
        return None
    values = compare_values(read_answers(files[0]))
    return {**values, "prompts": values["prompts"][:SHOWN_PROMPTS], "total": len(values["prompts"])}


def _counts(values: object) -> str | None:
    if not isinstance(values, Mapping):
        return None
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
