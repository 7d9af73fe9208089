"""A sweep: runs of one recipe that differ in some options, compared at equal KL.

`sweep.json` is written when the sweep is made and never again:

v                   1
grid                {option: [value, ...]}, the values as they were typed
fixed               [KEY=VALUE, ...]: the options that have one value, on top of the recipe's
runs                [{name, values: [one of each option], recipe: its resolved text}]

All else is in the folders of the runs and in options.json (series.py), so a sweep goes on wherever it was
stopped.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from localdpo.core.errors import UserError
from localdpo.core.text import counted, format_brief
from localdpo.records.evaluations import RateEstimate, judged_rate, name_after
from localdpo.records.events import as_number
from localdpo.records.log import DAMAGE, as_record
from localdpo.records.metrics import ACCURACY, METRICS, metrics_of
from localdpo.records.rundir import SERIES_RECIPES, RunDir
from localdpo.records.runs import RunReader, RunSummary
from localdpo.records.series import SeriesDir, rate_text, read_options
from localdpo.records.wording import resume_command

VERSION: Final = 1
WIN: Final = "win"
KL: Final = "kl"
# What runs may be ranked by, with what a table calls it and the better direction.
RANKED: Final[Mapping[str, tuple[str, str]]] = {
    **{m.name: (m.label, m.better) for m in METRICS if m.better and m.measured != "steps"},
    WIN: ("win rate", "higher"),
}


class SweepDir(SeriesDir):
    """The folder of a sweep."""

    command = "sweep"
    nouns = ("sweep", "sweeps")

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.recipe = self.path / SERIES_RECIPES[1]


@dataclass(frozen=True)
class SweepRun:
    """One combination: the run's name, the value of each option of the grid, the resolved recipe."""

    name: str
    values: tuple[str, ...]
    recipe: str


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep consists of."""

    grid: Mapping[str, tuple[str, ...]]
    runs: tuple[SweepRun, ...]
    fixed: tuple[str, ...] = ()

    def to_text(self) -> str:
        """The content of sweep.json."""
        return json.dumps({"v": VERSION, **asdict(self)}, ensure_ascii=False, indent=1) + "\n"


def read_plan(sweep: SweepDir) -> SweepPlan:
    """What the sweep consists of. Raises UserError for a file that is damaged or cannot be read."""
    try:
        return plan_in(sweep.recipe.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{sweep.recipe}: cannot be read: {error.strerror}") from error
    except DAMAGE as error:
        raise UserError(f"{sweep.recipe}: not a sweep ({type(error).__name__}: {error})") from error


def plan_in(text: str) -> SweepPlan:
    """The plan in the text of a sweep.json. Raises one of log.DAMAGE for any other text."""
    plan = as_record(SweepPlan, json.loads(text), VERSION)
    if not plan.runs or any(len(run.values) != len(plan.grid) for run in plan.runs):
        raise ValueError("its runs do not fit its grid")
    return plan


@dataclass(frozen=True)
class SweptRun:
    """What came of a run so far.

    Attributes:
        options: of the grid, with the run's values.
        metrics: of its last evaluation.
        path: (KL in nats a token, reward accuracy) of each of its evaluations that measured both.
        win: the win rate of the trained model in the newest judged evaluation.
        at_equal_kl: reward accuracy where its KL was `SweepResults.equal_kl`; None where it was not measured.
        on_front: whether no other run has a higher accuracy at a KL that is no larger.
    """

    name: str
    options: Mapping[str, str]
    summary: RunSummary
    metrics: Mapping[str, float | None]
    path: tuple[tuple[float, float], ...]
    win: RateEstimate | None
    at_equal_kl: float | None = None
    on_front: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether it has taken all its steps."""
        return self.summary.state == "finished"

    def figure(self, metric: str) -> float | None:
        """What the run is ranked by; None where it was not measured."""
        if metric == WIN:
            return None if self.win is None else self.win.value
        return self.metrics.get(metric)

    def to_json(self) -> dict[str, Any]:
        """The run as a JSON object."""
        values = {name: getattr(self, name) for name in ("name", "options", "metrics", "path")}
        win = None if self.win is None else asdict(self.win)
        rest = {"win": win, "at_equal_kl": self.at_equal_kl, "on_front": self.on_front}
        return {**values, "state": self.summary.state, "why": self.summary.why, **rest}


@dataclass(frozen=True)
class SweepResults:
    """What came of a sweep so far.

    Attributes:
        left: the runs that are to be trained, or evaluated by the judge that was named.
        equal_kl: the largest KL that all finished runs reached; None where it was not measured.
        best_by: the metric that `best` is the best by; ties go to the smaller KL.
        best: a finished run, None without any that has the metric.
    """

    grid: Mapping[str, tuple[str, ...]]
    runs: tuple[SweptRun, ...]
    left: tuple[str, ...]
    equal_kl: float | None
    best_by: str
    best: str | None

    @property
    def finished(self) -> int:
        """How many runs have finished."""
        return sum(run.is_finished for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        """The results as a JSON object."""
        values = {name: getattr(self, name) for name in ("grid", "left", "equal_kl", "best_by", "best")}
        return {"v": VERSION, **values, "runs": [run.to_json() for run in self.runs]}


def results_of(sweep: SweepDir, best_by: str | None = None) -> SweepResults:
    """What came of the sweep so far.

    `best_by`: a name in RANKED; None: that of the command that made the sweep, else reward accuracy, or the
    loss where no run has an accuracy. Raises UserError for another name, and for a damaged sweep.json.
    """
    plan, options = read_plan(sweep), read_options(sweep)
    best_by = best_by or options.best_by
    require_ranked(best_by)
    runs = [_swept(RunDir(sweep.path / run.name), run, plan) for run in plan.runs]
    done = [run for run in runs if run.is_finished]
    equal = min((max((kl for kl, _ in run.path), default=0.0) for run in done), default=0.0) or None
    chosen = best_by or (ACCURACY if any(run.figure(ACCURACY) is not None for run in done) else "loss")
    compared = (
        replace(
            run,
            at_equal_kl=None if equal is None else accuracy_at(run.path, equal),
            on_front=_is_on_front(run, done),
        )
        if run.is_finished
        else run
        for run in runs
    )
    judge = options.judging.get("judge")
    left = tuple(
        run.name
        for run in runs
        if not run.is_finished
        or (judge and not (run.summary.run.evaluations / f"{name_after(judge)}.json").exists())
    )
    return SweepResults(plan.grid, tuple(compared), left, equal, chosen, _best(done, chosen))


def require_ranked(metric: str | None) -> None:
    """Raise UserError for what runs cannot be ranked by."""
    if metric is not None and metric not in RANKED:
        raise UserError(f"--best-by {metric}: expected one of {', '.join(RANKED)}")


def _swept(run: RunDir, planned: SweepRun, plan: SweepPlan) -> SweptRun:
    options = dict(zip(plan.grid, planned.values, strict=True))
    begins = b""
    with contextlib.suppress(FileNotFoundError), run.events.open("rb") as log:
        # The time of its first event. A log made anew may have the inode of the one before.
        begins = log.readline(256)
    reader = _reader(run.path, begins) if begins else RunReader(run)
    reader.refresh()
    measured = [metrics_of(event) for event in reader.evaluations]
    pairs = [(as_number(metrics.get(KL)), as_number(metrics.get(ACCURACY))) for metrics in measured]
    path = tuple((kl, accuracy) for kl, accuracy in pairs if kl is not None and accuracy is not None)
    last = {name: as_number(value) for name, value in measured[-1].items()} if measured else {}
    return SweptRun(planned.name, options, reader.summary, last, path, judged_rate(run))


@lru_cache(maxsize=256)
def _reader(path: Path, begins: bytes) -> RunReader:
    """What has read the log of a run that `begins` so, so that the next look reads only what is new."""
    return RunReader(RunDir(path))


def accuracy_at(path: Sequence[tuple[float, float]], kl: float) -> float | None:
    """The accuracy where a path of (KL, accuracy) first comes to `kl`, linear between two evaluations.

    None where it does not, or was beyond it at its first evaluation.
    """
    for (low, before), (high, after) in pairwise(path):
        if low <= kl <= high:
            return before + (after - before) * ((kl - low) / (high - low) if high > low else 0.0)
    return path[0][1] if path and path[0][0] == kl else None


def _is_on_front(run: SweptRun, runs: Sequence[SweptRun]) -> bool:
    if not run.path:
        return False
    kl, accuracy = run.path[-1]
    ends = [other.path[-1] for other in runs if other.path]
    return not any(k <= kl and a >= accuracy and (k, a) != (kl, accuracy) for k, a in ends)


def _best(runs: Sequence[SweptRun], metric: str) -> str | None:
    sign = 1 if RANKED[metric][1] == "higher" else -1

    def rank(run: SweptRun) -> tuple[float, float]:
        kl = run.metrics.get(KL)
        return sign * (run.figure(metric) or 0.0), -math.inf if kl is None else -kl

    known = [run for run in runs if run.figure(metric) is not None]
    return max(known, key=rank).name if known else None


# --- in words ----------------------------------------------------------------------------------------------


def table_of(results: SweepResults) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the runs' table; a column in which no run has a value is left out."""
    shown = dict.fromkeys([ACCURACY, "rewards/margins", KL, results.best_by])
    columns: list[tuple[str, Callable[[SweptRun], str]]] = [
        ("run", lambda run: run.name),
        ("state", _state),
        *((RANKED[name][0], partial(_figure, name)) for name in shown if name != WIN),
        (f"accuracy at KL {format_brief(results.equal_kl)}", lambda run: _text(run.at_equal_kl)),
        ("win rate", lambda run: "" if run.win is None else rate_text(run.win)),
        ("", lambda run: ", ".join(["best"] * (run.name == results.best) + ["on the front"] * run.on_front)),
    ]
    cells = [(heading, [text(run) for run in results.runs]) for heading, text in columns]
    kept = [(heading, texts) for heading, texts in cells if any(texts)]
    # The last column has marks, of which there may be none.
    filled = ([text or "-" * bool(heading) for text in texts] for heading, texts in kept)
    return [heading for heading, _ in kept], [list(row) for row in zip(*filled, strict=True)]


def _text(value: float | None) -> str:
    return "" if value is None else format_brief(value)


def _figure(metric: str, run: SweptRun) -> str:
    return _text(run.figure(metric))


def _state(run: SweptRun) -> str:
    state = run.summary.state
    return state if state in ("new", "finished") else f"{state} {run.summary.steps}"


def stage_of(sweep: SweepDir, results: SweepResults) -> str:
    """What a sweep does now, in words."""
    training = [f"{run.name} {run.summary.steps}" for run in results.runs if run.summary.state == "running"]
    of = f"{results.finished} of {counted(len(results.runs), 'run')} finished"
    if training:
        return f"{of}; training {', '.join(training)}"
    is_judging = results.finished == len(results.runs) and results.left and sweep.is_running()
    return f"{of}; {len(results.left)} to evaluate" if is_judging else of


def closing_lines(sweep: SweepDir, results: SweepResults) -> list[str]:
    """Which run is best, which failed and why, and how to go on."""
    lines = []
    if results.best is not None:
        best = next(run for run in results.runs if run.name == results.best)
        label, direction = RANKED[results.best_by]
        value = _text(best.figure(results.best_by))
        lines.append(f"best: {best.name}, {label} {value} ({direction} is better)")
    lines += [
        f"{run.name} {run.summary.state}: {run.summary.why}"
        for run in results.runs
        if run.summary.why is not None
    ]
    # A run whose sweep was killed trains on; whoever resumes the sweep waits for it.
    if results.left and not sweep.is_locked():
        is_trained = results.finished == len(results.runs)
        lines.append(
            f"{len(results.left)} of {counted(len(results.runs), 'run')} are left"
            f"{' to evaluate' if is_trained else ''}; go on with: {resume_command(sweep)}"
        )
    return lines
