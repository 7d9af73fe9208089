"""A run as one page, whatever it has so far."""

from __future__ import annotations

from pathlib import Path

import pytest
from eval_parts import Told, asked, fair

from localdpo.evals.evaluate import evaluate
from localdpo.evals.report import report_values
from localdpo.evals.table import write_record
from localdpo.heuristics import STANDARD
from localdpo.judging.registry import Judges
from localdpo.pages import render
from localdpo.pages.chart import EVAL_LOOKS, TRAIN_LOOKS, points_of
from localdpo.records.events import EventWriter, read_events
from localdpo.records.metrics import CHARTS
from localdpo.records.rundir import RunDir

RECIPE = "model: demo:model\ndata: {train: '<b>.jsonl'}\n"
HOSTILE = "<script>x</script>"


def new_run(folder: Path) -> RunDir:
    return RunDir.create(folder, "mine", RECIPE)


def train(run: RunDir, steps: int, *, end: str | None = None) -> None:
    """The events of a run that was trained for some steps."""
    with EventWriter(run.events) as log:
        log.write(
            "run.started", model="demo:model", loss="sigmoid", total_steps=steps, recipe={}, device="cpu"
        )
        log.write("eval", 0, metrics={"loss": 0.69, "rewards/accuracies": 0.0, "rewards/ties": 1.0})
        for step in range(1, steps + 1):
            loss = float("nan") if step == 3 else round(0.7 - 0.01 * step, 2)
            log.write("step", step, metrics={"loss": loss, "rewards/chosen": 0.1, "rewards/rejected": -0.2})
        log.write("samples", steps, samples=[{"prompt": HOSTILE, "reference": "old", "policy": "new"}])
        log.write("notice", steps, level="warning", name="displacement", message=HOSTILE, why="w")
        log.write("eval", steps, metrics={"loss": 0.5, "rewards/accuracies": 0.8, "rewards/ties": 0.0})
        if end is not None:
            log.write(end, steps, error="MemoryError: ")


def page(run: RunDir) -> str:
    return render("report", **report_values(run, pytest.fail))


def test_a_run_that_only_has_a_recipe_has_a_report(tmp_path: Path) -> None:
    shown = page(new_run(tmp_path))
    assert "No step was measured yet." in shown
    assert "&lt;b&gt;.jsonl" in shown
    assert "<svg" not in shown


def test_a_whole_run_shows_everything(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    train(run, 10, end="run.finished")
    write_record(run, evaluate("it", asked(run.path, 20), STANDARD, Judges(Told(fair))))
    shown = page(run)
    assert "<dt>state</dt><dd>finished</dd>" in shown
    assert "<dt>step</dt><dd>10 of 10</dd>" in shown
    assert "Evaluation it" in shown
    assert "DPO vs SFT" in shown
    assert "step 10: warning displacement" in shown
    assert "loss, training" in shown
    assert "loss, held-out" in shown
    assert shown.count('<figure class="chart">') == 3
    assert "<script>" not in shown


def test_an_unfinished_and_a_failed_run_say_so(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    train(run, 4)
    assert "<dd>crashed</dd>" in page(run)
    failed = new_run(tmp_path / "other")
    train(failed, 4, end="run.failed")
    assert "<dd>failed</dd>" in page(failed)
    assert "hint: memory ran out: lower train.micro_batch_size" in page(failed)


def test_damaged_lines_of_the_log_are_told(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.events.write_bytes(b"damage\n")
    notes: list[str] = []
    report_values(run, notes.append)
    assert notes == [f"{run.events}: 1 damaged line is skipped (line 1)"]


def test_points_have_gaps_where_nothing_was_measured(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    train(run, 4)
    events = read_events(run.events)
    assert points_of(events, "step", "loss") == ((1, 0.69), (2, 0.68), (3, None), (4, 0.66))
    assert points_of(events, "eval", "rewards/accuracies") == ((0, None), (4, 0.8))
    assert points_of(events, "step", "nothing") == ()


def test_no_chart_has_more_series_than_looks() -> None:
    assert max(map(len, CHARTS.values())) == len(TRAIN_LOOKS) == len(EVAL_LOOKS)
