"""Every number of a run's log goes to a tracker once, whenever and however often it is shown."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
from tracked_runs import RECIPE, as_charted, points_of, resume, samples_in, start, stopped_run, train

from localdpo.core.errors import UserErrors
from localdpo.core.process import preload
from localdpo.recipe.load import dump_recipe, load_recipe
from localdpo.recipe.schema import Recipe
from localdpo.records.events import EventTail, EventWriter, effective, read_events
from localdpo.records.rundir import Ending, RunDir
from localdpo.trackers import registry
from localdpo.trackers import reporter as module
from localdpo.trackers.registry import TRACKERS, Row, TrackedRun, TrackerName, charted, require_packages
from localdpo.trackers.reporter import Reporter
from localdpo.train.control import StopRequest
from localdpo.train.worker import train_run


class Memory:
    """A tracker that keeps what it is shown, from one opening to the next."""

    place = "memory"

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.calls: list[int] = []
        self.runs: list[TrackedRun] = []
        self.endings: list[Ending] = []

    def open(self, run: TrackedRun) -> Memory:
        self.runs.append(run)
        return self

    @property
    def last_step(self) -> int:
        return max((row.step for row in self.rows), default=-1)

    def log(self, rows: Sequence[Row]) -> None:
        self.calls.append(len(rows))
        self.rows += rows

    def finish(self, ending: Ending) -> None:
        self.endings.append(ending)

    @property
    def points(self) -> dict[tuple[str, int], float]:
        return {(name, row.step): value for row in self.rows for name, value in row.metrics.items()}

    @property
    def samples(self) -> list[tuple[int, str, str, str]]:
        return [(row.step, *sample) for row in self.rows for sample in row.samples]


def show(run: RunDir, tracker: Memory) -> None:
    reporter = Reporter(run, tracker.open)
    reporter.add(effective(read_events(run.events)))
    while reporter.send(over=True):
        pass
    reporter.finish("finished")


def test_a_run_is_shown_whole_and_once(tmp_path: Path):
    run, tracker = stopped_run(tmp_path), Memory()
    show(run, tracker)
    assert tracker.points == points_of(run)
    assert ("rewards/margins", 2) not in tracker.points  # it was not finite
    assert ("eval_rewards/accuracies", 0) not in tracker.points  # all pairs were tied
    resume(run)
    for _ in range(2):
        show(run, tracker)
        assert tracker.points == points_of(run)
        assert tracker.samples == samples_in(run)
        assert [row.step for row in tracker.rows] == list(range(7))
    first, *others = tracker.runs
    assert others == [first, first]
    assert {name: first.recipe[name] for name in RECIPE} == RECIPE
    assert first.name == "dpo"


def test_a_run_of_the_same_name_is_another_one(tmp_path: Path):
    trackers = [Memory(), Memory()]
    for number, tracker in enumerate(trackers):
        show(stopped_run(tmp_path / str(number)), tracker)
    one, other = (tracker.runs[0].id for tracker in trackers)
    assert one != other


def test_a_row_goes_out_when_the_next_step_has_begun(tmp_path: Path):
    run, tracker = stopped_run(tmp_path), Memory()
    reporter, tail = Reporter(run, tracker.open), EventTail(run.events)
    reporter.add(tail.poll())
    assert not reporter.send()
    assert tracker.last_step == 4
    with EventWriter(run.events) as log:
        start(log)
        train(log, 6, 6)
    reporter.add(tail.poll())
    reporter.send()
    assert tracker.last_step == 5
    reporter.send(over=True)
    assert tracker.points == points_of(run)


def test_a_long_log_goes_out_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_ROWS", 2)
    run, tracker = stopped_run(tmp_path), Memory()
    show(run, tracker)
    assert tracker.calls == [2, 2, 2]
    assert tracker.points == points_of(run)


def test_a_run_that_has_not_begun_opens_nothing(tmp_path: Path):
    tracker = Memory()
    show(RunDir.create(tmp_path, "new", "model: demo:model\n"), tracker)
    assert tracker.runs == tracker.endings == []


def test_metrics_have_the_names_that_transformers_callbacks_give_them():
    names = {"rewards/chosen": 1.0, "eval_rewards/chosen": 2.0, "loss": 3.0}
    assert charted(names) == {"train/rewards/chosen": 1.0, "eval/rewards/chosen": 2.0, "train/loss": 3.0}
    as_points = {(name, 1): value for name, value in names.items()}
    assert as_charted(as_points) == {(name, 1): value for name, value in charted(names).items()}


def test_a_recipe_may_name_every_tracker():
    assert get_args(TrackerName) == tuple(TRACKERS)


def test_a_run_does_not_begin_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    recipe = Recipe.model_validate(
        {"model": "demo:model", "data": {"train": "demo:preferences/train"}, "report_to": "wandb"}
    )
    run = RunDir.create(tmp_path, "dpo", dump_recipe(recipe))
    with pytest.raises(UserErrors, match="report_to: wandb needs the package wandb"):
        train_run(run, StopRequest(), accept=False)


def test_mlx_lm_loads_no_tracker_and_a_broken_one_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "wandb.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    preload()
    monkeypatch.delitem(sys.modules, "mlx_lm.tuner.callbacks", raising=False)
    assert importlib.import_module("mlx_lm.tuner.callbacks").wandb is None
    with pytest.raises(RuntimeError, match="broken"):
        importlib.import_module("wandb")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("none", ()),
        ("wandb", ("wandb",)),
        (["none"], ()),
        (["mlflow", "wandb", "mlflow"], ("mlflow", "wandb")),
    ],
)
def test_report_to_is_read_as_hugging_face_does(value: object, names: tuple[str, ...]):
    data = {"train": "demo:preferences/train"}
    recipe = Recipe.model_validate({"model": "demo:model", "data": data, "report_to": value})
    assert recipe.report_to == names


def test_an_unknown_tracker_is_one_line(tmp_path: Path):
    path = tmp_path / "dpo.yaml"
    path.write_text("model: demo:model\ndata: {train: demo:preferences/train}\nreport_to: [wandb, comet]\n")
    with pytest.raises(UserErrors) as raised:
        load_recipe(path)
    assert raised.value.lines == (
        f'{path}:3 report_to: expected a list of wandb, tensorboard, trackio, mlflow, got "comet"',
    )


def test_a_missing_package_is_one_line_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # As the package wandb leaves one behind where it ran.
    (tmp_path / "no_such_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserErrors) as raised:
        require_packages(["no_such_tracker", "nor_this"])
    assert raised.value.lines[0] == (
        "report_to: no_such_tracker needs the package no_such_tracker: "
        "pip install 'localdpo[no_such_tracker]'"
    )
    assert len(raised.value.lines) == 2
