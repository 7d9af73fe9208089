"""Sweeps: the grid and what is refused, runs that fail or are killed, and what the runs share."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import localdpo
from hypothesis import given
from hypothesis import strategies as st
from tiny_folders import recipe_text, write_pairs

import localdpo as package
from localdpo.core.errors import UserError, UserErrors
from localdpo.launch import sweep as launch
from localdpo.launch.begin import TrainRequest
from localdpo.launch.processes import Worker, start_worker
from localdpo.launch.sweep import SweepHands, open_sweep, plan_sweep, split_values, train_sweep
from localdpo.recipe.load import load_recipe
from localdpo.records.events import Event, read_events
from localdpo.records.rundir import RunDir
from localdpo.records.series import SeriesOptions
from localdpo.records.sweeps import SweepDir, SweepPlan, read_plan, results_of

FAKE = str(Path(__file__).parents[1] / "cli" / "fake_worker.py")
RECIPE = "model: org/tiny\ndata: {train: pairs.jsonl}\n"
BETAS = ("loss.beta=0.1,0.2,0.3",)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("dpo.yaml").write_text(RECIPE)
    return tmp_path


def silent(line: str) -> None:
    pass


def request(*overrides: str, run: str | None = "grid", resume: bool = False) -> TrainRequest:
    return TrainRequest(Path("dpo.yaml"), overrides, run, resume=resume, kind=SweepDir)


class Seen:
    """Notes in which order runs begin and end."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.most = 0
        self._running: set[str] = set()

    def begun(self, run: RunDir, worker: Worker | None) -> None:
        self._running.add(run.name)
        self.most = max(self.most, len(self._running))
        self.order.append(f"{run.name} begun")

    def event(self, run: RunDir, event: Event) -> None:
        if event.type == "step" and event.step == 1:
            self.order.append(f"{run.name} step")

    def ended(self, run: RunDir, worker: Worker | None) -> None:
        self._running.remove(run.name)
        self.order.append(f"{run.name} {run.status()}")

    def refused(self, run: RunDir, error: UserError) -> None:
        self.order.append(f"{run.name} refused")


def start(modes: dict[str, str], run: RunDir) -> Worker:
    return start_worker(run, command=[sys.executable, FAKE, modes.get(run.name, "finish")])


def trained(plan: SweepPlan, jobs: int, **modes: str) -> Seen:
    seen = Seen()
    sweep = open_sweep(request(), plan, silent)
    named = {name.replace("_", "-").replace("-0", "-0."): mode for name, mode in modes.items()}
    hands = SweepHands(seen.begun, seen.refused, seen.event, seen.ended)
    train_sweep(sweep, plan, SeriesOptions(jobs=jobs), hands, functools.partial(start, named))
    return seen


# --- the grid --------------------------------------------------------------------------------------------


def test_every_problem_of_every_combination_is_said_at_once(here: Path) -> None:
    Path("dpo.yaml").write_text(f"{RECIPE}train: {{epochs: x}}\n")
    with pytest.raises(UserErrors) as refused:
        plan_sweep(request("loss.beta=0.1,a", "train.lr=1,2", "loss.type=ipo,sigmoid"), silent)
    assert refused.value.lines == (
        'dpo.yaml:3 train.epochs: expected a whole number >= 1 or null, got "x"',
        "train.lr=1: unknown key; did you mean train.learning_rate?",
        "train.lr=2: unknown key; did you mean train.learning_rate?",
        'loss.beta=a: expected a number > 0, got "a"',
    )
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("loss.beta=0.1",), "no option has several values; expected KEY=V1,V2"),
        (("loss.beta=0.1,0.2", "loss.beta=0.3"), "loss.beta is given twice"),
        (("loss.beta=0.1,0.10",), r"beta-0.1, beta-0.10: the same recipe"),
        # No value is null, of which there may be no limit.
        (("train.max_steps=10,",), r"train.max_steps=10,: expected a value on both sides of a comma"),
        (("loss.beta=0.1,0.2", "train.reference=as_needed,ahead"), "a sweep sets it to ahead; leave it out"),
        (("loss.beta=0.1,0.2", "rounds.n=2,4"), r"rounds.n=2,4: training reads no option of rounds"),
    ],
)
def test_grids_that_are_none(here: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises((UserError, UserErrors), match=message):
        plan_sweep(request(*overrides), silent)


def test_the_runs_of_a_grid(here: Path) -> None:
    plan = plan_sweep(request("loss.beta=0.1,0.2", "lora.keys=[a,b],[a]", "train.seed=7"), silent)
    assert plan.grid == {"loss.beta": ("0.1", "0.2"), "lora.keys": ("[a,b]", "[a]")}
    assert [run.name for run in plan.runs] == [
        "beta-0.1_keys-a-b",
        "beta-0.1_keys-a",
        "beta-0.2_keys-a-b",
        "beta-0.2_keys-a",
    ]
    recipes = [launch.recipe_in(run) for run in plan.runs]
    assert [recipe.loss.beta for recipe in recipes] == [0.1, 0.1, 0.2, 0.2]
    assert {(recipe.train.seed, recipe.train.reference) for recipe in recipes} == {(7, "ahead")}
    twins = plan_sweep(request("loss.type=ipo,sigmoid", "lora.type=lora,dora"), silent)
    assert twins.runs[0].name == "loss.type-ipo_lora.type-lora"
    alike = plan_sweep(request("data.train=a/x.jsonl,b/x.jsonl"), silent)
    assert [run.name for run in alike.runs] == ["run-1", "run-2"]
    # One folder on a disk that knows no case.
    cased = plan_sweep(request("model=org/Tiny,org/tiny"), silent)
    assert [run.name for run in cased.runs] == ["run-1", "run-2"]
    sweep = open_sweep(request(), plan, silent)
    assert read_plan(sweep) == plan_sweep(request(run="grid"), silent) == plan
    with pytest.raises(
        UserError, match=r"loss.beta: 0.1,0.2 there, 0.1,0.3 here; lora.keys: .* not swept here"
    ):
        open_sweep(request(), plan_sweep(request("loss.beta=0.1,0.3"), silent), silent)


def test_a_sweep_that_is_resumed_with_a_recipe_has_its_values_and_refuses_another_recipe(here: Path) -> None:
    begun = plan_sweep(request("loss.beta=0.1,0.2", "train.seed=7"), silent)
    sweep = open_sweep(request(), begun, silent)
    again = request(run=None, resume=True)
    assert plan_sweep(TrainRequest(None, run="grid", resume=True, kind=SweepDir), silent) == begun
    sweep.path.rename("runs/dpo")
    assert plan_sweep(again, silent) == begun
    assert open_sweep(again, begun, silent).name == "dpo"
    Path("dpo.yaml").write_text(f"{RECIPE}train: {{batch_size: 2}}\n")
    with pytest.raises(UserError, match=r"belongs to another recipe \(train.batch_size: 8 there, 2 here\)"):
        open_sweep(again, plan_sweep(again, silent), silent)


QUOTED = ['"x,y"', "'x, ''y'", '"a\\", b"', "it's", "{a: 'b,c'}"]


@given(st.lists(st.sampled_from(["1e-5", "[a, b]", "{a: [1,2]}", "true", "", "a]", *QUOTED]), min_size=1))
def test_values_are_parted_at_commas_outside_of_brackets_and_quotes(values: list[str]) -> None:
    assert split_values(",".join(values)) == tuple(values)


# --- making it -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_that_fails_is_named_and_the_others_go_on(here: Path) -> None:
    plan = plan_sweep(request(*BETAS), silent)
    seen = trained(plan, 1, beta_01="user-error", beta_02="sigkill")
    assert [line for line in seen.order if "step" not in line] == [
        "beta-0.1 begun",
        "beta-0.1 failed",
        "beta-0.2 begun",
        "beta-0.2 crashed",
        "beta-0.3 begun",
        "beta-0.3 finished",
    ]
    results = results_of(SweepDir("runs/grid"))
    assert [run.summary.state for run in results.runs] == ["failed", "crashed", "finished"]
    assert "no such model" in (results.runs[0].summary.why or "")
    # The next call does what is left, and nothing else.
    finished = Path("runs/grid/beta-0.3/events.jsonl").read_bytes()
    again = trained(plan, 2)
    assert "beta-0.3 begun" not in again.order
    assert Path("runs/grid/beta-0.3/events.jsonl").read_bytes() == finished
    # The second begins when the first has come to its first step (its caches are complete), not before.
    assert again.most == 2
    assert again.order.index("beta-0.1 step") < again.order.index("beta-0.2 begun")
    assert results_of(SweepDir("runs/grid")).finished == 3


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_sweep_whose_maker_was_killed_waits_for_the_run_that_trains(here: Path) -> None:
    plan = plan_sweep(request(*BETAS), silent)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_sweep as t\n"
        "plan = t.plan_sweep(t.request(*t.BETAS), t.silent)\n"
        "t.trained(plan, 1, beta_01='late', beta_02='late')\n"
    )
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", str(tests.parent))])
    command = [sys.executable, "-c", script, str(tests / "launch")]
    first = RunDir("runs/grid/beta-0.1")
    try:
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as maker:
            while not (first.worker_log.exists() and first.worker_log.stat().st_size):
                assert maker.poll() is None
                time.sleep(0.02)
            maker.kill()
        assert SweepDir("runs/grid").is_running()
        pid = first.pid()
    finally:
        Path("go").touch()
    seen = trained(plan, 1)
    assert first.pid() == pid
    assert [line for line in seen.order if "step" not in line][:2] == ["beta-0.1 begun", "beta-0.1 finished"]
    assert results_of(SweepDir("runs/grid")).finished == 3
    types = [event.type for event in read_events(first.events)]
    assert types.count("run.started") == 1


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_ctrl_c_stops_the_sweep_and_resume_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A shell starts a background job with this signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    modes = {"beta-0.1": "stop"}

    def interrupting(run: RunDir) -> Worker:
        worker = start(modes, run)
        if modes.get(run.name) == "stop":
            while not any(event.text("name") == "waiting" for event in worker.written_events()):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)
        return worker

    monkeypatch.setattr(launch, "train_sweep", functools.partial(launch.train_sweep, start=interrupting))
    done = localdpo("sweep", "dpo.yaml", *BETAS, "--run", "grid")
    assert done.returncode == 130
    assert "stopping: the worker saves at the end of this step" in done.stderr
    assert "3 of 3 runs are left; go on with: localdpo sweep --resume --run grid" in done.stdout
    assert not RunDir("runs/grid/beta-0.2").events.exists()
    modes.clear()
    resumed = localdpo("sweep", "--resume", "--run", "grid", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert '"best": "beta-0.1"' in resumed.stdout
    shown = localdpo("sweep", "--show")
    assert "best: beta-0.1, accuracy 0.75 (higher is better)" in shown.stdout


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("jobs", [1, 2])
def test_rows_are_scored_under_the_reference_once(
    tiny_model: Path, here: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setenv("LOCALDPO_CACHE", str(here / "cache"))
    text = recipe_text(tiny_model, write_pairs(Path("pairs.jsonl"), 8), train={"max_steps": 2})
    Path("dpo.yaml").write_text(text)
    grid = {"loss.beta": [0.1, 0.5], "train.learning_rate": [1e-3]}
    results = package.sweep("dpo.yaml", {**grid, "loss.type": ["sigmoid", "ipo"]}, jobs=jobs, name="grid")
    assert results.finished == 4
    scored, tokenised = [], []
    for run in results.runs:
        events = read_events(run.summary.run.events)
        passes = [event.data for event in events if event.type == "reference"]
        scored.append(sum(1 for data in passes if data["done"] == data["total"]))
        tokenised.append(sum(event.type == "phase" for event in events))
        assert not any(event.data.get("reference_rows") for event in events if event.type == "step")
        assert run.path
    # The training rows and the held-out rows, by the first run alone.
    assert scored == [2, 0, 0, 0]
    assert len(list((here / "cache" / "reference").glob("*.scores"))) == 2
    assert load_recipe(results.runs[0].summary.run.recipe).train.reference == "ahead"
