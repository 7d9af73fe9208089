"""`localdpo rounds` from end to end: two rounds, judges of each kind, Ctrl-C and what comes after it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from command import localdpo
from fake_server import FakeServer, by_hash
from tiny_folders import ending_model, make_adapter, recipe_text, write_pairs, write_rows

from localdpo.launch import rounds
from localdpo.records.evaluations import read_evaluation
from localdpo.records.events import read_events
from localdpo.records.rundir import RunDir
from localdpo.records.series import RoundsDir, read_record

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A model whose answers end, with a context that holds a judge's prompt, and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    model = ending_model(folder / "model", tiny_model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    make_adapter(folder / "sft", model)
    return folder


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    prompts = [{"prompt": f"What is the answer to question number {number}?"} for number in range(10)]
    write_rows(Path("prompts.jsonl"), prompts[:6])
    write_rows(Path("heldout.jsonl"), prompts[6:])
    shutil.copytree(world / "sft", "sft")
    # The policies of so few steps are hardly better.
    monkeypatch.setattr(
        rounds, "why_end", lambda done, wanted, *limits: "done" if len(done) == wanted else None
    )
    return tmp_path


def write_recipe(world: Path, judge: str, steps: int = 2, n: int = 2) -> None:
    text = recipe_text(
        world / "model",
        write_pairs(Path("pairs.jsonl"), 8),
        adapter="sft",
        train={"max_steps": steps},
        eval={"prompts": "heldout.jsonl", "kl_samples": 0, "kl_pairs": 0},
        rounds={"prompts": "prompts.jsonl", "max_tokens": 10, "judge": judge, "n": n},
    )
    Path("recipe.yaml").write_text(text)


@pytest.mark.parametrize("kind", ["anthropic", "openai"])
def test_two_rounds_with_a_judge_on_a_server(
    here: Path, world: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test-key-of-the-tests")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FakeServer(by_hash) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        write_recipe(world, "anthropic" if kind == "anthropic" else f"openai:{server.url}/v1#tiny")
        limits = ["--max-usd", "5"] if kind == "anthropic" else []
        done = localdpo("rounds", "recipe.yaml", "--rounds", "2", "--json", *limits)
        assert done.returncode == 0, done.stderr
        asked = dict(server.asked)
        assert asked
        again = localdpo("rounds", "--resume", "--run", "recipe", "--rounds", "2")
        assert again.returncode == 0, again.stderr
        assert "round-2" in again.stdout
        assert dict(server.asked) == asked
    record = json.loads(done.stdout)
    assert [one["name"] for one in record["rounds"]] == ["round-1", "round-2"]
    assert ("spent on the judge: $" in done.stderr) == (kind == "anthropic")
    second = RunDir("runs/recipe/round-2")
    assert second.status() == "finished"
    evaluation = read_evaluation(second.evaluations / "rounds.json")
    assert evaluation.judge is not None
    assert evaluation.duels
    listed = localdpo("runs").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["name", "recipe", "recipe/round-1", "recipe/round-2"]


def test_the_recipe_gets_better_and_goes_on_after_round_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/rounds.md says: by a margin that other machines' rounding does not eat up."""
    recipe = Path(__file__).parents[2] / "recipes" / "rounds.yaml"
    monkeypatch.chdir(tmp_path)
    done = localdpo("rounds", str(recipe), "--run", "demo", "--rounds", "2", "--json")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["rounds"]
    assert first["last"]["low"] > 0.55
    assert second["first"]["low"] > 0.6


def test_ctrl_c_stops_at_the_end_of_a_step_and_resume_goes_on(here: Path, world: Path) -> None:
    """With a local model as the judge."""
    # A shell starts a background job with this signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Of more than two answers scores decide: in pairs a random model prefers a place.
    write_recipe(world, f"mlx:{world / 'model'}", steps=100, n=3)
    run, over = RunDir("runs/recipe/round-1"), threading.Event()

    def interrupt() -> None:
        while not over.wait(0.05):
            if any(event.type == "step" for event in read_events(run.events)):
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    stopped = localdpo("rounds", "recipe.yaml", "--rounds", "1")
    over.set()
    thread.join()
    assert stopped.returncode == 130, stopped.stderr
    assert "stopping: the worker saves at the end of this step" in stopped.stderr
    assert "stopped; resume it with: localdpo rounds --resume --run recipe" in stopped.stdout
    assert "--run round-1" not in stopped.stdout + stopped.stderr
    assert run.status() == "stopped"
    steps = [event.step or 0 for event in read_events(run.events) if event.type == "step"]
    assert 0 < max(steps) < 100
    pairs = (run.path / "build" / "train.jsonl").read_bytes()
    resumed = localdpo("rounds", "--resume", "--run", "recipe", "--rounds", "1")
    assert resumed.returncode == 0, resumed.stderr
    assert (run.path / "build" / "train.jsonl").read_bytes() == pairs
    assert run.status() == "finished"
    record = read_record(RoundsDir("runs/recipe"))
    assert record.ended == "done"
    assert record.rounds[0].last is not None
