"""A run as a Python object: what its folder holds, its charts, and commands to its worker."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from localdpo.core.errors import UserError
from localdpo.launch.processes import watch
from localdpo.out import note
from localdpo.recipe.arguments import Amount, checked
from localdpo.recipe.load import load_recipe
from localdpo.recipe.schema import Recipe
from localdpo.records import rundir
from localdpo.records.checkpoints import checkpoint_folders, read_log
from localdpo.records.control import Command, steer
from localdpo.records.evaluations import Evaluation, evaluation_files, read_evaluation
from localdpo.records.events import Event, Notice, Sample, as_number, effective, notice_of, samples_of
from localdpo.records.metrics import CHARTS, metrics_of
from localdpo.records.pairs import PairsRecord, read_pairs
from localdpo.records.rundir import RunDir, State
from localdpo.records.runs import RunSummary, summarise

# Charts that tell whether training works.
_FIRST_CHARTS: Final = 4


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: `path` is a folder with an adapter in mlx-lm's layout."""

    step: int
    path: Path


@dataclass(frozen=True)
class Figure:
    """Charts as HTML with SVG in it, which notebooks show; they load nothing."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


class Run:
    """A run on the disk, whether it trains, has ended or was made elsewhere.

    Nothing is kept: every call reads what the folder holds by then. `str(run)` is its path.

    Attributes:
        folder: the paths in it.
    """

    @checked
    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.folder = RunDir(os.fspath(path))
        if not self.folder.exists():
            raise UserError(f"{path}: not the folder of a run: there is no {self.folder.recipe.name} in it")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def state(self) -> State:
        """new, running, finished, stopped, failed or crashed."""
        return self.folder.status()

    @property
    def recipe(self) -> Recipe:
        """The recipe, with every default written out."""
        return load_recipe(self.folder.recipe)

    def summary(self) -> RunSummary:
        """State, progress and the metrics of the last evaluation."""
        return summarise(self.folder, self._log(), self.folder.is_running())

    def events(self) -> list[Event]:
        """The events in their order, without those that a resume made void."""
        return effective(self._log())

    @checked
    def metrics(self, kind: Literal["step", "eval"] = "step") -> dict[str, np.ndarray]:
        """The metrics of steps or evaluations: `step` [N] int64, and an array [N] float64 for each metric.

        NaN where an event lacks the metric, or it was not finite. `pandas.DataFrame` takes it as it is. For
        names and units see docs/run-folder.md.
        """
        events = [event for event in self.events() if event.type == kind and event.step is not None]
        rows = [metrics_of(event) for event in events]
        names = dict.fromkeys(name for row in rows for name in row)
        numbers = {name: [as_number(row.get(name)) for row in rows] for name in names}
        return {
            "step": np.array([event.step for event in events], dtype=np.int64),
            **{name: np.array(values, dtype=np.float64) for name, values in numbers.items()},
        }

    def samples(self) -> list[Sample]:
        """What was sampled at evaluations, oldest first."""
        return [sample for event in self.events() for sample in samples_of(event)]

    def pairs(self) -> list[PairsRecord]:
        """The pairs of lowest margin at each evaluation, token by token, oldest first."""
        paths = [event.text("path") for event in self.events() if event.type == "pairs"]
        return [read_pairs(self.folder, path) for path in paths if path is not None]

    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints that are kept, oldest first."""
        folders = checkpoint_folders(self.folder.checkpoints)
        return [Checkpoint(int(folder.name.removeprefix("step-")), folder) for folder in folders]

    def notices(self) -> list[Notice]:
        """What training noticed, oldest first."""
        return [notice_of(event) for event in self.events() if event.type == "notice"]

    def evaluations(self) -> list[Evaluation]:
        """The evaluations of `evaluate`, the newest first."""
        return [read_evaluation(path) for path in evaluation_files(self.folder)]

    def watch(self) -> Iterator[Event]:
        """Every event from the beginning, and those to come as they come; ends when the worker has ended."""
        return watch(self.folder)

    @checked
    def steer(self, command: Command, *, save: bool = True, timeout: Amount = 60.0) -> str:
        """Pause, resume, checkpoint, evaluate or stop the run that trains; what its worker answers.

        `save`: whether a stop saves first. Raises UserError when no worker runs, it refuses, or it does not
        answer within `timeout` seconds.
        """
        return steer(self.folder, command, note, save=save, timeout=timeout)

    @checked
    def plot(self, *charts: str) -> Figure:
        """Charts of the metrics so far, for a notebook; without names those that tell whether it works.

        Raises UserError for a name of no chart.
        """
        from localdpo.pages import render
        from localdpo.pages.chart import charts_of

        known = [chart.name for chart in CHARTS]
        if unknown := [name for name in charts if name not in known]:
            raise UserError(f"{unknown[0]}: no such chart; expected one of {', '.join(known)}")
        drawn = charts_of(self.events(), charts or known[:_FIRST_CHARTS])
        summary = self.summary()
        heading = f"{self.name}: {summary.state}, step {summary.steps.replace('/', ' of ')}"
        return Figure(render("figure", charts=drawn, heading=heading))

    def plots(self, *charts: str, seconds: float = 1.0) -> Iterator[Figure]:
        """The plot at once, then again every so many `seconds` with events, and when the worker has ended."""
        yield self.plot(*charts)
        drawn = time.monotonic()
        for _ in watch(self.folder):
            if time.monotonic() - drawn >= seconds:
                yield self.plot(*charts)
                drawn = time.monotonic()
        yield self.plot(*charts)

    def _log(self) -> list[Event]:
        return read_log(self.folder, note, alive=self.folder.is_running())


@checked
def find_run(name: str | None = None, runs_dir: str | os.PathLike[str] = "runs") -> Run:
    """The run of this name, or the most recently active one. Raises UserError if there is none."""
    return Run(rundir.find_run(Path(runs_dir), name).path)


@checked
def list_runs(runs_dir: str | os.PathLike[str] = "runs") -> list[Run]:
    """Every run in the folder and in its series of rounds and sweeps, the most recently active first."""
    return [Run(run.path) for run in rundir.runs_below(Path(runs_dir))]
