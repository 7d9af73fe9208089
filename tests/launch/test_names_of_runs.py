"""What a printed command calls a run is found from the folder in which it was printed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from localdpo.core.errors import UserError
from localdpo.launch.begin import TrainRequest, known_run, open_run
from localdpo.records.catalog import find_series
from localdpo.records.rundir import RunDir, find_run
from localdpo.records.series import RoundsDir
from localdpo.records.sweeps import SweepDir
from localdpo.records.wording import resume_command, run_words

RECIPE = "model: org/tiny\ndata: {train: pairs.jsonl}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, a series of rounds and a sweep in `runs`, and the same in a folder of another name."""
    monkeypatch.chdir(tmp_path)
    for runs_dir in (Path("runs"), Path("my runs")):
        RunDir.create(runs_dir, "dpo", RECIPE)
        RunDir.create(RoundsDir.create(runs_dir, "rounds", RECIPE).path, "round-1", RECIPE)
        RunDir.create(SweepDir.create(runs_dir, "grid", "{}").path, "beta-0.1", RECIPE)
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "run", "words"),
    [
        (".", "runs/dpo", ["dpo"]),
        (".", "runs/rounds/round-1", ["rounds/round-1"]),
        (".", "runs/grid/beta-0.1", ["grid/beta-0.1"]),
        (".", "my runs/dpo", ["dpo", "--runs-dir", "my runs"]),
        (".", "my runs/grid/beta-0.1", ["grid/beta-0.1", "--runs-dir", "my runs"]),
        ("runs", "rounds/round-1", ["rounds/round-1", "--runs-dir", "."]),
        ("runs/rounds", "round-1", ["round-1", "--runs-dir", "."]),
        ("runs/rounds/round-1", "../round-1", ["round-1", "--runs-dir", ".."]),
    ],
)
def test_a_run_is_found_under_the_name_that_commands_are_printed_with(
    here: Path, folder: str, run: str, words: list[str]
) -> None:
    os.chdir(folder)
    assert run_words(RunDir(run)) == words
    name, runs_dir = words[0], Path(words[2] if len(words) > 1 else "runs")
    assert find_run(runs_dir, name).path.samefile(run)
    request = TrainRequest(None, run=name, runs_dir=runs_dir, resume=True)
    known = known_run(request)
    assert known is not None
    assert known.path.samefile(run)
    assert open_run(request, print).path.samefile(run)


def test_a_series_is_found_under_its_name(here: Path) -> None:
    for path in ("runs/rounds", "runs/grid", "my runs/grid"):
        series = find_series(Path(path).parent, Path(path).name)
        assert series is not None
        name, *options = run_words(series)
        assert name == Path(path).name
        assert options == ([] if path.startswith("runs") else ["--runs-dir", "my runs"])
        assert resume_command(series).startswith(f"localdpo {series.command} --resume --run {name}")


@pytest.mark.parametrize("name", ["../dpo", "grid/../dpo", "/dpo", "grid/", "grid/beta-0.1/x", "grid/new"])
def test_a_name_is_that_of_a_run_or_of_one_in_a_series(here: Path, name: str) -> None:
    Path("recipe.yaml").write_text(RECIPE)
    with pytest.raises(UserError, match="is no name for a run"):
        open_run(TrainRequest(Path("recipe.yaml"), run=name), print)
    assert not Path("runs/grid/new").exists()
