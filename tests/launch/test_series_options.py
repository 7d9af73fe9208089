"""What `rounds` and `sweep` were told holds when they are resumed by the command that they print."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import localdpo

from localdpo.cli import rounds as rounds_command
from localdpo.cli.main import command_tree
from localdpo.core.errors import UserError
from localdpo.launch import rounds as launch_rounds
from localdpo.launch import sweep as launch
from localdpo.launch.rounds import RoundsPlan
from localdpo.launch.sweep import Judging
from localdpo.records import rundir
from localdpo.records.rundir import RunLock
from localdpo.records.series import (
    RoundsDir,
    SeriesDir,
    SeriesOptions,
    read_options,
    read_record,
    stage_of,
    write_options,
)
from localdpo.records.sweeps import SweepDir, SweepPlan

# Stands for what is not looked at.
NOBODY: Any = None
# Of the command itself: which series, and how it is shown.
OWN = {
    *("recipe", "overrides", "run", "runs_dir", "resume", "forget_options"),
    *("show", "plain", "as_json", "dry_run"),
}
LIMITS = {
    "batch": ["--batch"],
    "max_usd": ["--max-usd", "0"],
    "concurrency": ["--concurrency", "3"],
    "judge_tokens": ["--judge-tokens", "77"],
    "effort": ["--effort", "low"],
    "price": ["--price", "1,2"],
    "prices": ["--prices", "prices.yaml"],
}
OF_SWEEP = {
    **LIMITS,
    "judge": ["--judge", "anthropic"],
    "rubrics": ["--rubric", "one.md", "--rubric", "two.md"],
    "constitution": ["--constitution", "own.yaml"],
    "principles": ["--principles", "all"],
    "prompts": ["--prompts", "asked.jsonl"],
    "limit": ["--limit", "5"],
    "max_tokens": ["--max-tokens", "9"],
    "jobs": ["--jobs", "2"],
    "best_by": ["--best-by", "kl"],
}
OF_ROUNDS = {**LIMITS, "wanted": ["--rounds", "5"]}


def options_of(command: str) -> set[str]:
    parameters = command_tree().commands[command].params
    return {parameter.name for parameter in parameters} - OWN - {"help"}


def words_of(options: dict[str, list[str]]) -> list[str]:
    return [word for words in options.values() for word in words]


Sweep = Callable[..., tuple[int, Judging | None, str]]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Makes a sweep that trains nothing: (runs at once, how it is judged, what it prints)."""
    monkeypatch.chdir(tmp_path)
    Path("dpo.yaml").write_text("model: org/tiny\ndata: {train: pairs.jsonl}\n")
    seen: dict[str, Any] = {}
    # Their names are what is kept; nobody has these files and keys.
    monkeypatch.setattr(launch, "require_judge", lambda plan, folder, judging: None)

    def train_sweep(sweep: SweepDir, plan: object, options: SeriesOptions, hands: object) -> None:
        write_options(sweep, options)
        seen.update(jobs=options.jobs or 1)

    monkeypatch.setattr(launch, "train_sweep", train_sweep)
    monkeypatch.setattr(
        launch, "evaluate_sweep", lambda sweep, plan, judging, ask: seen.update(judging=judging)
    )

    def call(*words: str) -> tuple[int, Judging | None, str]:
        seen.clear()
        done = localdpo("sweep", *words)
        assert done.returncode == 0, done.stderr
        return seen["jobs"], seen.get("judging"), done.stdout

    return call


def printed(output: str) -> list[str]:
    """The words behind `localdpo sweep` of the command that goes on with a sweep."""
    (line,) = (line for line in output.splitlines() if "go on with: " in line)
    program, command, *words = shlex.split(line.partition("go on with: ")[2])
    assert (program, command) == ("localdpo", "sweep")
    return words


def test_a_sweep_goes_on_as_it_was_told(sweep: Sweep) -> None:
    assert OF_SWEEP.keys() == options_of("sweep")
    first = sweep("dpo.yaml", "loss.beta=0.1,0.2", "--run", "grid", *words_of(OF_SWEEP))
    jobs, judging, output = first
    assert jobs == 2
    assert judging is not None
    assert (judging.prompts, judging.limit, judging.max_tokens) == ("asked.jsonl", 5, 9)
    assert set(judging.request) == {"judge", "rubrics", "constitution", "principles", *LIMITS}
    assert sweep(*printed(output)) == first
    assert localdpo("sweep", "--show").stdout == output


def test_options_that_are_given_take_the_place_of_those_that_were(sweep: Sweep) -> None:
    limits = ["--judge", "anthropic", "--limit", "5", "--max-usd", "0.5"]
    sweep("dpo.yaml", "loss.beta=0.1,0.2", "--run", "grid", *limits)
    _, dearer, _ = sweep("--resume", "--run", "grid", "--max-usd", "2")
    assert dearer == Judging({"judge": "anthropic", "max_usd": 2.0}, limit=5)
    _, other, _ = sweep("--resume", "--run", "grid", "--judge", "rules")
    assert other == Judging({"judge": "rules"})
    assert sweep("dpo.yaml", "loss.beta=0.1,0.2", "--run", "grid")[1] == other


def test_options_can_be_taken_back(sweep: Sweep) -> None:
    sweep("dpo.yaml", "loss.beta=0.1,0.2", "--run", "grid", *words_of(OF_SWEEP))
    again = ["--resume", "--run", "grid", "--forget-options"]
    jobs, judging, output = sweep(*again, "--judge", "rules", "--limit", "7")
    assert (jobs, judging) == (1, Judging({"judge": "rules"}, limit=7))
    assert sweep(*printed(output))[:2] == (jobs, judging)
    assert sweep(*again)[:2] == (1, None)
    assert read_options(SweepDir("runs/grid")) == SeriesOptions()
    Path("runs/grid/options.json").write_text("damaged")
    assert sweep(*again, "--jobs", "3")[0] == 3


def test_there_must_be_options_to_forget(sweep: Sweep) -> None:
    done = localdpo("sweep", "dpo.yaml", "loss.beta=0.1,0.2", "--forget-options")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --forget-options: there is no series yet that has options; leave it out\n"


def test_a_command_that_ends_before_its_dashboard_has_kept_the_options(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending:
        def __init__(self, *values: object) -> None:
            raise UserError("no process")

    monkeypatch.setattr("localdpo.cli.sweep.has_screen", lambda: True)
    monkeypatch.setattr("localdpo.cli.rounds.Job", Ending)
    limits = ["--judge", "anthropic", "--max-usd", "1"]
    done = localdpo("sweep", "dpo.yaml", "loss.beta=0.1,0.2", "--run", "grid", *limits)
    assert (done.returncode, done.stderr) == (2, "error: no process\n")
    assert read_options(SweepDir("runs/grid")).judging == {"judge": "anthropic", "max_usd": 1.0}


def test_who_does_not_get_to_make_a_series_changes_none_of_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rundir, "_LOCK_PATIENCE", 0.01)
    kept, other = SeriesOptions({"max_usd": 1.0}), SeriesOptions({"max_usd": 9.0})
    makers: list[tuple[SeriesDir, Callable[[SeriesDir], object]]] = [
        (
            SweepDir(tmp_path / "grid"),
            lambda sweep: launch.train_sweep(sweep, SweepPlan({}, ()), other, NOBODY),
        ),
        (
            RoundsDir(tmp_path / "again"),
            lambda series: launch_rounds.run_rounds(series, RoundsPlan(NOBODY, (), other), 1, NOBODY),
        ),
    ]
    for series, make in makers:
        series.path.mkdir()
        series.recipe.touch()
        write_options(series, kept)
        with RunLock(series), pytest.raises(UserError, match="is running"):
            make(series)
        assert read_options(series) == kept


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", "5"], "--limit: there is no judge to use it; name one with --judge"),
        (["--rubric", "one.md"], "--rubric: there is no judge to use it; name one with --judge"),
        (["--best-by", "win"], "--best-by win: needs a judge; name one with --judge"),
        (["--show"], "--show prints a sweep that is there: name it with --run, and leave out the rest"),
    ],
)
def test_options_that_nothing_would_use_are_refused(sweep: Sweep, words: list[str], message: str) -> None:
    done = localdpo("sweep", "dpo.yaml", "loss.beta=0.1,0.2", *words)
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--judge", "typo"], "typo: no such judge; expected one of "),
        (["--judge", "rules", "--prompts", "none.jsonl"], "none.jsonl: no such file"),
        (["--judge", "anthropic"], "ANTHROPIC_API_KEY"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    Path("dpo.yaml").write_text("model: demo:model\ndata: {train: demo:preferences/train}\n")
    prompts = [] if "--prompts" in words else ["--prompts", "demo:prompts/heldout"]
    done = localdpo("sweep", "dpo.yaml", "loss.beta=0.1,0.2", "--plain", *words, *prompts)
    assert done.returncode == 2
    assert message in done.stderr
    assert not Path("runs").exists()


def test_a_preview_does_not_call_an_evaluation_free_whose_prompts_are_not_known_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dpo.yaml").write_text(
        "model: demo:model\ndata: {train: demo:preferences/train, limit: 20}\ntrain: {max_steps: 1}\n"
    )
    done = localdpo("sweep", "dpo.yaml", "loss.beta=0.1,0.2", "--judge", "anthropic", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "data.valid_fraction holds out; its cost is not known yet" in done.stdout
    assert "$" not in done.stdout
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ("", "not the options of a series of runs (JSONDecodeError: "),
        (
            '{"v": 2, "judging": {}}',
            "not the options of a series of runs (ValueError: version 2, expected 1)",
        ),
        ('{"v": 1, "judging": {"judge": "rules", "tone": 1}}', "tone: unknown; "),
        ('{"v": 1, "judging": {"judge": 3}}', "judge: expected text or None, got 3; "),
        ('{"v": 1, "judging": {"judge": "rules", "limit": 0}}', "limit: expected a whole number"),
        ('{"v": 1, "jobs": -3}', "jobs: expected a whole number"),
    ],
)
def test_kept_options_that_no_command_of_this_version_wrote_are_refused(
    sweep: Sweep, kept: str, message: str
) -> None:
    sweep("dpo.yaml", "loss.beta=0.1,0.2", "--run", "grid")
    Path("runs/grid/options.json").write_text(kept)
    done = localdpo("sweep", "--resume", "--run", "grid")
    assert done.returncode == 2
    assert done.stderr.startswith("error: runs/grid/options.json: ")
    assert message in done.stderr
    assert done.stderr.endswith("; remove the file and give the options again\n")
    assert done.stderr.count("\n") == 1


def test_rounds_go_on_as_they_were_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prices.yaml").write_text("date: 2030-01-01\nmodels: {}\n")
    Path("rounds.yaml").write_text(
        "model: demo:model\nadapter: demo:sft\ndata: {train: demo:preferences/train}\n"
        "eval: {prompts: demo:prompts/heldout}\n"
        "rounds: {prompts: demo:preferences/train, limit: 2, held_out: 2, judge: anthropic}\n"
    )
    asked: list[dict[str, Any]] = []

    def ask(options: Any, plan: object, run: object, budget: Any) -> None:
        asked.append({name: getattr(options, name) for name in LIMITS} | {"budget": budget.max_usd})
        raise UserError("the judge is away")

    monkeypatch.setattr(rounds_command, "carry_out", ask)
    # Takes seconds, and says nothing of limits.
    monkeypatch.setattr(launch_rounds, "preview_lines", lambda plan, series, wanted: [])
    assert OF_ROUNDS.keys() == options_of("rounds")
    begun = localdpo("rounds", "rounds.yaml", "--run", "again", *words_of(OF_ROUNDS))
    assert (begun.returncode, begun.stderr.splitlines()[-1]) == (2, "error: the judge is away")
    series = RoundsDir("runs/again")
    command = stage_of(series, read_record(series)).partition("resume it with: ")[2]
    resumed = localdpo(*shlex.split(command)[1:])
    assert resumed.stderr == begun.stderr
    assert len(asked) == 2
    assert asked[0] == asked[1]
    assert asked[0]["budget"] == 0
    assert read_record(series).wanted == 5
    localdpo("rounds", "--resume", "--run", "again", "--rounds", "2", "--max-usd", "3")
    assert (read_record(series).wanted, asked[2]["budget"]) == (2, 3.0)
    assert read_options(series).judging == {name: asked[2][name] for name in LIMITS}
    localdpo("rounds", "--resume", "--run", "again", "--forget-options", "--effort", "high")
    assert asked[3] == {**dict.fromkeys(LIMITS), "batch": False, "effort": "high", "budget": None}
    assert read_record(series).wanted == 2


def test_a_series_of_an_earlier_version_has_no_options(tmp_path: Path) -> None:
    assert read_options(RoundsDir(tmp_path)) == read_options(None) == SeriesOptions()
