"""What is compared in a sweep: accuracy at equal KL, the front, the best; from made logs."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_sweeps import PATHS, RECIPE, make_sweep

from localdpo.core.errors import UserError
from localdpo.evals.report import series_values
from localdpo.pages import render
from localdpo.records.catalog import find_series, read_all
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir, RunLock
from localdpo.records.series import RoundsDir, SeriesOptions, SeriesRecord, write_options
from localdpo.records.series import stage_of as rounds_stage
from localdpo.records.sweeps import (
    SweepDir,
    accuracy_at,
    closing_lines,
    results_of,
    stage_of,
    table_of,
)


def test_runs_are_compared_at_equal_kl(tmp_path: Path) -> None:
    sweep, runs_dir = make_sweep(tmp_path), shlex.quote(str(tmp_path))
    results = results_of(sweep)
    assert results.equal_kl == 0.02
    figures = {run.name: (run.at_equal_kl, run.on_front) for run in results.runs}
    assert figures["beta-0.05"] == (0.7, False)
    assert figures["beta-0.1"] == (0.8, True)
    assert figures["beta-0.3"] == (pytest.approx(0.65), False)
    assert figures["beta-9"] == (None, False)
    # Both have 0.8; this one at the smaller KL.
    assert results.best == "beta-0.1"
    assert results_of(sweep, "kl").best == "beta-0.1"
    assert results_of(sweep, "loss").best == "beta-0.1"
    headings, rows = table_of(results)
    assert headings == ["run", "state", "accuracy", "KL", "accuracy at KL 0.02", ""]
    assert rows[1] == ["beta-0.1", "finished", "0.8", "0.02", "0.8", "best, on the front"]
    assert rows[3] == ["beta-9", "failed 0/9", "-", "-", "-", ""]
    assert stage_of(sweep, results) == "3 of 4 runs finished"
    assert closing_lines(sweep, results) == [
        "best: beta-0.1, accuracy 0.8 (higher is better)",
        "beta-9 failed: the loss is not finite",
        f"1 of 4 runs are left; go on with: localdpo sweep --resume --run grid --runs-dir {runs_dir}",
    ]
    assert json.loads(json.dumps(results.to_json()))["runs"][1]["options"] == {"loss.beta": "0.1"}
    with pytest.raises(UserError, match=r"--best-by x: expected one of loss, rewards/accuracies, .*, win"):
        results_of(sweep, "x")


def test_who_was_killed_while_a_run_trains_is_said_to_be_missing(tmp_path: Path) -> None:
    sweep, rounds = make_sweep(tmp_path), RoundsDir.create(tmp_path, "again", RECIPE)
    run = RunDir.create(rounds.path, "round-1", RECIPE)
    with RunLock(RunDir(sweep.path / "beta-9")), RunLock(run):
        line = closing_lines(sweep, results_of(sweep))[-1]
        assert "1 of 4 runs are left; go on with: localdpo sweep --resume" in line
        stage = rounds_stage(rounds, SeriesRecord(3))
        command = f"localdpo rounds --resume --run again --runs-dir {shlex.quote(str(tmp_path))}"
        assert stage == f"round-1 of 3: training, step 0, then stopped; resume it with: {command}"
        with RunLock(sweep), RunLock(rounds):
            assert "go on with" not in closing_lines(sweep, results_of(sweep))[-1]
            assert rounds_stage(rounds, SeriesRecord(3)) == "round-1 of 3: training, step 0"


def test_a_sweep_with_a_judge_is_done_when_its_runs_are_judged(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    command = f"localdpo sweep --resume --run grid --runs-dir {shlex.quote(str(tmp_path))}"
    assert results_of(sweep).left == ("beta-9",)
    write_options(sweep, SeriesOptions({"judge": "mlx:judge", "limit": 5}, best_by="kl"))
    results = results_of(sweep)
    assert (len(results.left), results.best_by) == (4, "kl")
    assert closing_lines(sweep, results)[-1] == f"4 of 4 runs are left; go on with: {command}"
    with EventWriter(RunDir(sweep.path / "beta-9").events) as log:
        log.write("run.finished", 9)
    for name in PATHS:
        results = results_of(sweep)
        assert name in results.left
        left = f"{len(results.left)} of 4 runs are left to evaluate; go on with: {command}"
        assert closing_lines(sweep, results)[-1] == left
        with RunLock(sweep):
            assert stage_of(sweep, results) == f"4 of 4 runs finished; {len(results.left)} to evaluate"
        assert {summary.state for summary in read_all(tmp_path, print)[:1]} == {"stopped"}
        made = RunDir(sweep.path / name).evaluations / "mlx.json"
        made.parent.mkdir()
        made.touch()
    assert results_of(sweep).left == ()
    assert "go on with" not in closing_lines(sweep, results_of(sweep))[-1]
    assert read_all(tmp_path, print)[0].state == "finished"
    sweep.options.write_text("{}")
    with pytest.raises(UserError, match=r"options\.json: not the options of a series of runs"):
        results_of(sweep)


def test_a_run_that_is_made_anew_is_read_anew(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    assert results_of(sweep).finished == 3
    log = RunDir(sweep.path / "beta-0.1").events
    # As on a disk that gives the inode of a file that is gone to the next one.
    os.truncate(log, 0)
    with EventWriter(log) as writer:
        writer.write("run.started", total_steps=9)
    results = results_of(sweep)
    assert (results.finished, results.best) == (2, "beta-0.05")


def test_a_sweep_is_listed_with_its_runs_below(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    # A moment later the disk's clock, which is coarser than the log's, may still be behind.
    os.utime(RunDir.create(tmp_path, "alone", RECIPE).recipe, (2e9, 2e9))
    lines = read_all(tmp_path, lambda line: None)
    assert [line.name for line in lines[:2]] == ["alone", "grid"]
    assert {line.name for line in lines[2:]} == {f"grid/{name}" for name in PATHS}
    grid = lines[1]
    assert (grid.state, grid.loss, grid.steps, grid.accuracy) == ("stopped", "sweep", "3/4", 0.8)
    with RunLock(sweep):
        assert read_all(tmp_path, lambda line: None)[1].state == "running"
    found = find_series(tmp_path, "grid")
    assert isinstance(found, SweepDir)
    assert find_series(tmp_path, "alone") is None


def test_the_page_of_a_sweep(tmp_path: Path) -> None:
    page = render("series", **series_values(make_sweep(tmp_path)))
    assert "Reward accuracy over KL" in page
    assert all(name in page for name in PATHS)
    assert ">0.02<" in page


def test_a_damaged_sweep_is_one_line(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    for text in ("{", "[]", '{"v": 9}', '{"v": 1, "grid": {"a": ["1"]}, "runs": []}'):
        sweep.recipe.write_text(text)
        with pytest.raises(UserError, match=r"sweep\.json: not a sweep"):
            results_of(sweep)
    notes: list[str] = []
    assert read_all(tmp_path, notes.append)[0].state == "stopped"
    assert [line.partition(": not a sweep")[0] for line in notes] == [str(sweep.recipe)]


shares = st.floats(0, 1, allow_nan=False)


@given(st.lists(st.tuples(st.floats(1e-3, 1.0), shares), min_size=1, max_size=8), st.floats(0, 1))
def test_accuracy_at_a_kl_is_linear_between_evaluations(
    steps: Sequence[tuple[float, float]], share: float
) -> None:
    """Of a path whose KL rises it is NumPy's interpolation."""
    kls = np.cumsum([step for step, _ in steps])
    accuracies = np.array([accuracy for _, accuracy in steps])
    kl = float(kls[0] + share * (kls[-1] - kls[0]))
    path = list(zip(kls.tolist(), accuracies.tolist(), strict=True))
    found = accuracy_at(path, min(kl, float(kls[-1])))
    assert found == pytest.approx(float(np.interp(kl, kls, accuracies)), abs=1e-6)
    assert accuracy_at(path, float(kls[-1]) + 1.0) is None
    assert accuracy_at(path, float(kls[0]) / 2) is None
