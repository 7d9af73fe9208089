"""`localdpo mcp`: its tools as a client of the official SDK sees them."""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from command import localdpo
from made_sweeps import make_sweep
from tiny_folders import make_adapter, recipe_text, write_pairs

from localdpo.api import training
from localdpo.cli.mcp import when_closed
from localdpo.core.atomic import write_manifest
from localdpo.launch.processes import start_worker
from localdpo.recipe.load import dump_recipe, load_recipe
from localdpo.records.catalog import read_all
from localdpo.records.evaluations import RateEstimate
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir
from localdpo.records.series import RoundResult, RoundsDir, SeriesRecord, write_record
from localdpo.records.sweeps import results_of

FAKE = str(Path(__file__).parents[1] / "cli" / "fake_worker.py")


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localdpo.cli.mcp.find_spec", lambda name: None)
    done = localdpo("mcp")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: mcp needs the package mcp: pip install 'localdpo[mcp]'\n"


def test_a_client_that_vanishes_is_noticed_although_nobody_reads() -> None:
    reader, writer = os.pipe()
    closed = threading.Event()
    when_closed(reader, closed.set)
    os.write(writer, b"unread")
    assert not closed.wait(0.05)
    os.close(writer)
    assert closed.wait(10)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> RunDir:
    """A run that has finished, with an adapter; the current directory is beside its recipe."""
    pytest.importorskip("mcp", reason="needs the package mcp: pip install 'localdpo[mcp]'")
    monkeypatch.chdir(tmp_path)
    data = write_pairs(tmp_path / "pairs.jsonl", 4), write_pairs(tmp_path / "valid.jsonl", 2, start=50)
    Path("dpo.yaml").write_text(recipe_text(tiny_model, *data))
    run = RunDir.create("runs", "r", dump_recipe(load_recipe("dpo.yaml")))
    with EventWriter(run.events) as log:
        log.write("run.started", model="tiny", loss="sigmoid", total_steps=300, recipe={}, device="cpu")
        for step in range(1, 301):
            log.write("step", step, metrics={"loss": float("nan") if step == 1 else 1 / step, "kl": 0.0})
        log.write("notice", 300, level="warning", name="displacement", message="m")
        log.write("run.finished", 300, seconds=1.0)
    make_adapter(run.checkpoint_path(300), tiny_model, seed=7)
    write_manifest(run.checkpoint_path(300))
    return run


def call(tool: str, **arguments: Any) -> Any:
    """What the tool gives a client; the text of its error."""
    import anyio
    from mcp import Client

    from localdpo.api.tools import make_server

    async def ask() -> Any:
        async with Client(make_server(Path("runs"))) as client:
            answer = await client.call_tool(tool, arguments)
            if answer.is_error:
                return answer.content[0].text
            found = answer.structured_content
            return found["result"] if found.keys() == {"result"} else found

    return anyio.run(ask)


def tools() -> dict[str, Any]:
    import anyio
    from mcp import Client

    from localdpo.api.tools import make_server

    async def ask() -> Any:
        async with Client(make_server(Path("runs"))) as client:
            return {tool.name: tool for tool in (await client.list_tools()).tools}

    return anyio.run(ask)


def test_no_tool_destroys_and_those_that_only_read_say_so(run: RunDir) -> None:
    found = tools()
    assert list(found) == ["list_runs", "read_run", "read_metrics", "start", "steer", "compare", "evaluate"]
    for name, tool in found.items():
        assert tool.description
        assert tool.annotations.read_only_hint == (name in ("list_runs", "read_run", "read_metrics"))
        assert not tool.annotations.destructive_hint
        assert not {"force", "save", "delete"} & tool.input_schema["properties"].keys()


def test_runs_are_read(run: RunDir) -> None:
    (listed,) = call("list_runs")
    assert (listed["name"], listed["state"], listed["step"]) == ("r", "finished", 300)
    read = call("read_run")
    assert read["notices"] == ["warning displacement: m"]
    assert read["checkpoints"] == ["runs/r/checkpoints/step-000300"]
    metrics = call("read_metrics", run="r", names=["loss"])
    assert metrics.keys() == {"step", "loss"}
    assert (metrics["step"][0], metrics["step"][-1], len(metrics["step"])) == (1, 300, 100)
    assert metrics["loss"][0] is None
    assert call("read_metrics", kind="eval") == {"step": []}


def test_series_are_listed_with_their_runs_and_read(run: RunDir) -> None:
    sweep = make_sweep(Path("runs"))
    rate = RateEstimate(0.7, 0.6, 0.8)
    record = SeriesRecord(3, (RoundResult("round-1", 9, rate, rate, 1.5, None, 9, 8),))
    rounds = RoundsDir.create("runs", "again", "model: m\n")
    write_record(rounds, record)
    listed = {each["name"]: each for each in call("list_runs")}
    assert list(listed) == [summary.name for summary in read_all("runs", print)]
    assert {"r", "again", "grid", "grid/beta-0.1"} <= listed.keys()
    assert (listed["grid"]["loss"], listed["grid"]["step"], listed["grid"]["total"]) == ("sweep", 3, 4)
    read = call("read_run", run="grid")
    assert (read["name"], read["state"], read["best"]) == ("grid", "stopped", "beta-0.1")
    assert read["runs"] == json.loads(json.dumps(results_of(sweep).to_json()))["runs"]
    read = call("read_run", run="again")
    assert (read["total"], read["best"], read["rounds"][0]["last"]["value"]) == (3, "round-1", 0.7)
    assert call("read_run", run="grid/beta-0.1")["kl"] == 0.02
    assert call("read_metrics", run="grid/beta-0.1", kind="eval", names=["kl"])["kl"] == [0.0, 0.01, 0.02]
    assert "holds several runs; name one of them: grid/beta-" in call("read_metrics", run="grid")
    for name in ("grid/../r", "../runs/grid", "grid/beta-0.1/checkpoints", "grid/", "/grid"):
        assert "is no name for a run" in call("read_run", run=name)


def test_mistakes_are_said_in_their_own_words(run: RunDir) -> None:
    assert "no run named 'x'; the latest are r" in call("read_run", run="x")
    assert "is no name for a run" in call("read_run", run="../runs/r")
    assert "nothing: no such metric; expected one of step, loss, kl" in call(
        "read_metrics", names=["nothing"]
    )
    assert "no worker is running, so there is nothing to pause" in call("steer", run="r", command="pause")
    assert "nothing.yaml: no such recipe" in call("start", recipe="nothing.yaml")
    Path("secrets.txt").write_text("the word\n")
    said = call("start", recipe="secrets.txt")
    assert "secrets.txt: expected a recipe, a file that ends in .yaml or .yml" in said
    assert "the word" not in said
    for arguments in ({"prompts": []}, {"prompts": ["a" * 20_001]}, {"prompts": ["a"], "max_tokens": 10**30}):
        assert "validation error" in call("compare", **arguments)
    assert "validation error" in call("evaluate", limit=10**6)
    said = call("start", recipe="dpo.yaml", overrides=["trust_remote_code=true"])
    assert "runs code of others" in said


def test_a_run_is_started(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    command = functools.partial(start_worker, command=[sys.executable, FAKE, "finish"])
    monkeypatch.setattr(training, "start_worker", command)
    name = call("start", recipe="dpo.yaml", overrides=["loss.beta=0.3"], name="new")
    assert name == "new"
    assert "beta: 0.3" in RunDir("runs/new").recipe.read_text()
    from localdpo.api.runs import Run

    assert [event.type for event in Run("runs/new").watch()][-1] == "run.finished"


def test_models_answer_in_whichever_thread_is_asked(run: RunDir) -> None:
    for text in ("What is good?", "What is bad?"):
        (prompt,) = call("compare", prompts=[text], max_tokens=3)["prompts"]
        assert prompt["answers"].keys() == {"base", "dpo"}
    found = call("evaluate", limit=2, max_tokens=3)
    assert found["name"] == "heuristics"
    assert found["conclusion"]
    assert call("read_run")["evaluations"] == {"heuristics": found["conclusion"]}
