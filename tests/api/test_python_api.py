"""`import localdpo`: what a run holds as Python objects, training from Python, and that names stay true."""

from __future__ import annotations

import functools
import inspect
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_folders import recipe_text, write_pairs

import localdpo
from localdpo.api import training
from localdpo.judging.registry import JudgeOptions, JudgeRequest
from localdpo.launch.processes import start_worker
from localdpo.records.events import Event, EventWriter
from localdpo.records.rundir import RunDir

FAKE = str(Path(__file__).parents[1] / "cli" / "fake_worker.py")
RECIPE = "model: org/tiny\ndata: {train: pairs.jsonl}\n"


def made_run(folder: Path) -> localdpo.Run:
    """A run whose log has steps, a void stretch, an evaluation, samples and a notice."""
    run = RunDir.create(folder, "mine", RECIPE)
    with EventWriter(run.events) as log:
        log.write("run.started", model="org/tiny", loss="sigmoid", total_steps=3, recipe={}, device="cpu")
        log.write("step", 1, metrics={"loss": 0.7})
        log.write("step", 2, metrics={"loss": 9.0})
        log.write("run.resumed", 1)
        log.write("step", 2, metrics={"loss": float("nan"), "kl": 0.5})
        log.write("step", 3, metrics={"loss": 0.5})
        log.write("eval", 3, metrics={"loss": 0.4, "rewards/accuracies": 0.75})
        log.write("samples", 3, samples=[{"prompt": "p", "reference": "a", "policy": "b"}])
        log.write("notice", 3, level="warning", name="displacement", message="m")
        log.write("run.finished", 3)
    run.checkpoint_path(3).mkdir(parents=True)
    return localdpo.Run(run.path)


def test_a_run_as_arrays_and_objects(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    steps = run.metrics()
    assert steps["step"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(steps["loss"], [0.7, np.nan, 0.5])
    np.testing.assert_array_equal(steps["kl"], [np.nan, 0.5, np.nan])
    assert run.metrics("eval")["rewards/accuracies"].tolist() == [0.75]
    assert (run.state, run.summary().step, run.name) == ("finished", 3, "mine")
    assert [(sample.step, sample.prompt, sample.policy) for sample in run.samples()] == [(3, "p", "b")]
    assert [(notice.level, notice.name) for notice in run.notices()] == [("warning", "displacement")]
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [3]
    assert run.pairs() == run.evaluations() == []
    assert run.recipe.model == "org/tiny"
    assert [found.name for found in localdpo.list_runs(tmp_path)] == ["mine"]
    assert localdpo.find_run(runs_dir=tmp_path).path == run.path
    member = RunDir.create(tmp_path / "series", "round-1", RECIPE)
    assert {found.path for found in localdpo.list_runs(tmp_path)} == {run.path, member.path}


def test_a_run_that_just_began_has_empty_arrays(tmp_path: Path) -> None:
    run = localdpo.Run(RunDir.create(tmp_path, "new", RECIPE).path)
    assert run.metrics()["step"].shape == (0,)
    assert "<svg" not in run.plot().html
    with pytest.raises(localdpo.UserError, match="not the folder of a run"):
        localdpo.Run(tmp_path)


def test_a_plot_is_html_with_the_charts_that_were_named(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    html = run.plot("loss")._repr_html_()
    assert html.count("<figure") == 1
    assert "mine: finished, step 3 of 3" in html
    assert "http" not in html
    assert [figure.html for figure in run.plots("loss", seconds=0.0)][-1] == html
    with pytest.raises(localdpo.UserError, match="x: no such chart; expected one of margin, accuracy"):
        run.plot("x")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("dpo.yaml").write_text(RECIPE)
    return tmp_path


def worker(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Let training start a stand-in."""
    command = functools.partial(start_worker, command=[sys.executable, FAKE, mode])
    monkeypatch.setattr(training, "start_worker", command)


@pytest.mark.slow
def test_events_come_as_a_worker_writes_them(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "finish")
    events: list[Event] = []
    run = localdpo.train("dpo.yaml", ["loss.beta=0.2"], on_event=events.append)
    assert (run.path, run.state) == (Path("runs/dpo"), "finished")
    assert run.recipe.loss.beta == 0.2
    assert [event.step for event in events if event.type == "step"] == [1, 2, 3, 4, 5, 6]
    assert localdpo.train("dpo.yaml", ["loss.beta=0.2"], name="dpo").path == run.path  # it has finished


@pytest.mark.slow
def test_how_a_worker_ends_is_raised(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = localdpo.load_recipe("dpo.yaml")
    worker(monkeypatch, "user-error")
    with pytest.raises(localdpo.UserErrors, match="org/tiny: no such model"):
        localdpo.train(recipe)
    assert not Path("runs/run").exists()
    worker(monkeypatch, "sigkill")
    with pytest.raises(localdpo.TrainingFailed, match="killed by SIGKILL after step 4 of 6") as failed:
        localdpo.train(recipe, name="dead")
    assert any(line.startswith("resume with") for line in failed.value.lines)


@pytest.mark.slow
def test_ctrl_c_saves_and_stops(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "stop")
    # A shell starts a background job with this signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(event: Event) -> None:
        if event.text("name") == "waiting":
            signal.raise_signal(signal.SIGINT)

    run = localdpo.train("dpo.yaml", on_event=interrupt)
    assert run.state == "stopped"
    assert run.events()[-1].data["reason"] == "SIGINT"


@pytest.mark.slow
def test_a_worker_can_be_left_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "stop-at-4")
    run = localdpo.train("dpo.yaml", wait=False)
    assert [event.step for event in run.watch() if event.type == "run.stopped"] == [4]
    assert run.state == "stopped"


def test_arguments_that_do_not_go_together(here: Path) -> None:
    recipe = localdpo.load_recipe("dpo.yaml")
    for options, said in (
        ({"in_process": True, "wait": False}, "in_process"),
        ({"wait": False, "on_event": print}, "on_event"),
        ({"overrides": ["loss.beta=1"]}, "overrides"),
    ):
        with pytest.raises(localdpo.UserError, match=said):
            localdpo.train(recipe, **options)  # type: ignore[arg-type]


def test_numbers_out_of_range_are_said_before_any_work(here: Path) -> None:
    run = RunDir.create("runs", "r", "model: m\n").path
    for call, said in (
        (lambda: localdpo.compare(run, texts=["a"], max_tokens=0, seed=-1), ["max_tokens", "seed"]),
        (lambda: localdpo.compare(run, texts=["a"], temperature=float("nan")), ["temperature"]),
        (lambda: localdpo.evaluate(run, limit=0, judge="rules", concurrency=0), ["limit", "concurrency"]),
        (lambda: localdpo.build_pairs("p", "out", limit=-1, valid_fraction=2), ["limit", "valid_fraction"]),
        (lambda: localdpo.build_pairs("p", "out", valid_count=-1), ["valid_count"]),
        (lambda: localdpo.check_pairs("p", max_length=1), ["max_length"]),
    ):
        with pytest.raises(localdpo.UserErrors) as error:
            call()
        assert [line.partition(":")[0] for line in error.value.lines] == said


def test_every_public_function_checks_its_arguments() -> None:
    functions = {name for name in localdpo.__all__ if inspect.isfunction(getattr(localdpo, name))}
    unchecked = {name for name in functions if not hasattr(getattr(localdpo, name), "__wrapped__")}
    # One takes what `compare` gave; the other refuses arrays and options itself.
    assert unchecked == {"answers_object", "preference_loss"}


def test_arguments_of_another_type_are_said_by_name_before_any_work(here: Path) -> None:
    run = localdpo.Run(RunDir.create("runs", "r", "model: m\n").path)
    calls: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
        (localdpo.load_recipe, {"path": b"dpo.yaml"}, "path: expected text or a path, got b'dpo.yaml'"),
        (localdpo.train, {"recipe": {"model": "m"}}, "recipe: expected a Recipe or text or a path or None"),
        (localdpo.train, {}, "recipe: expected a recipe or the path of one, or the name of a run to resume"),
        (localdpo.train, {"recipe": "dpo.yaml", "on_event": 3}, "on_event: expected a function or None"),
        # Text is a list of characters to Python.
        (localdpo.train, {"recipe": "dpo.yaml", "overrides": "loss.beta=1"}, "overrides: expected a list"),
        (localdpo.sweep, {"recipe": "dpo.yaml", "grid": {"loss.beta": "0.1"}}, "grid: expected a mapping"),
        (localdpo.compare, {"run": run, "texts": "Why?"}, "texts: expected a list, each text, got 'Why?'"),
        # The answers' file would begin with it, and be damaged.
        (localdpo.compare, {"run": run, "max_tokens": 2.5}, "max_tokens: expected a whole number >= 1"),
        (localdpo.compare, {"run": run, "limit": True}, "limit: expected a whole number >= 1 or None"),
        (localdpo.evaluate, {"run": run, "effort": "ultra"}, "effort: expected one of low, medium, high"),
        (localdpo.evaluate, {"run": run, "price": (4, 20)}, "price: expected text or None"),
        (localdpo.evaluate, {"run": run, "rubrics": "helpful"}, "rubrics: expected a list, each text"),
        (localdpo.build_pairs, {"prompts": "p", "out": "o", "temperatures": 1.0}, "each a number >= 0"),
        (localdpo.check_pairs, {"data": [{"prompt": "p"}]}, "data: expected text or a path or None"),
        (localdpo.export, {"run": run, "dtype": "int8"}, "dtype: expected one of float16"),
        (run.metrics, {"kind": "steps"}, "kind: expected one of step, eval, got 'steps'"),
        (run.steer, {"command": "explode"}, "command: expected one of pause, resume"),
        (localdpo.find_run, {"name": 3}, "name: expected text or None, got 3"),
    ]
    for call, options, said in calls:
        with pytest.raises(localdpo.LocalDPOError) as error:
            call(**options)
        assert said in str(error.value)
    with pytest.raises(TypeError, match=r"evaluate\(\) got an unexpected keyword argument 'judges'"):
        localdpo.evaluate(run, judges="rules")  # type: ignore[call-arg]
    assert not list(run.path.rglob("*.jsonl"))


@pytest.mark.slow
def test_training_in_this_process(here: Path, tiny_model: Path, own_cache: Path) -> None:
    data = write_pairs(here / "pairs.jsonl", 8), write_pairs(here / "valid.jsonl", 2, start=50)
    Path("dpo.yaml").write_text(
        recipe_text(tiny_model, *data, train={"max_steps": 2}, eval={"kl_samples": 0})
    )
    events: list[Event] = []
    run = localdpo.train("dpo.yaml", on_event=events.append, in_process=True)
    assert run.state == "finished"
    assert events == run.events()
    assert run.metrics()["step"].tolist() == [1, 2]
    # The room of this name is loaded now; the name stays a function.
    assert localdpo.train("dpo.yaml", name="dpo").path == run.path
    # Ctrl-C saves and stops, and is as ever afterwards.
    before = signal.getsignal(signal.SIGINT)

    def interrupt(event: Event) -> None:
        if event.type == "step":
            signal.raise_signal(signal.SIGINT)

    run = localdpo.train("dpo.yaml", name="cut", on_event=interrupt, in_process=True)
    assert (run.state, [checkpoint.step for checkpoint in run.checkpoints()]) == ("stopped", [1])
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(localdpo.UserErrors, match="no such file"):
        localdpo.train("dpo.yaml", ["data.train=nothing.jsonl"], name="bad", in_process=True)
    assert not Path("runs/bad").exists()


def test_the_options_of_judges_are_those_of_the_commands() -> None:
    declared = {field.name: field.type for field in fields(JudgeRequest) if field.name != "votes"}
    assert declared == {name: kind.__forward_arg__ for name, kind in JudgeOptions.__annotations__.items()}


@pytest.mark.slow
def test_every_public_name_is_there_and_importing_is_light() -> None:
    assert all(getattr(localdpo, name) is not None for name in localdpo.__all__)
    assert set(localdpo.__all__) <= set(dir(localdpo))
    with pytest.raises(AttributeError, match="nothing"):
        _ = localdpo.nothing  # type: ignore[attr-defined]
    code = "import sys, localdpo; localdpo.Run; print({'mlx', 'transformers', 'textual'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
