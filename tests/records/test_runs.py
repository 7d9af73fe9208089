from __future__ import annotations

from pathlib import Path

import pytest
from logged import event, started, step

from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir, list_runs
from localdpo.records.runs import RunReader, read_summaries, summarise


def test_the_summary_of_a_run():
    metrics = {"rewards/accuracies": 0.8, "rewards/margins": 0.4, "kl": None}
    log = [started(), step(1), event("eval", 4, metrics=metrics), event("run.stopped", 5, time=9.0)]
    summary = summarise(RunDir("dpo"), log, running=False)
    assert (summary.name, summary.state, summary.loss, summary.beta) == ("dpo", "stopped", "sigmoid", 0.1)
    assert (summary.model, summary.step, summary.total) == ("demo:model", 5, 10)
    assert (summary.accuracy, summary.margin, summary.kl) == (0.8, 0.4, None)
    assert (summary.started, summary.updated) == (0.0, 9.0)


def test_the_summary_of_a_resumed_run_forgets_what_is_done_again():
    log = [
        started(),
        event("eval", 4, metrics={"kl": 1.0}),
        event("eval", 8, metrics={"kl": 2.0}),
        event("run.resumed", 5),
    ]
    summary = summarise(RunDir("dpo"), log, running=True)
    assert (summary.state, summary.step, summary.kl) == ("running", 5, 1.0)


def test_the_summary_of_nothing():
    summary = summarise(RunDir("dpo"), [], running=False)
    assert (summary.state, summary.step, summary.total, summary.updated) == ("new", 0, None, None)


def test_a_log_that_may_not_be_read_hides_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        RunDir(tmp_path / name).path.mkdir()
        RunDir(tmp_path / name).recipe.write_text("model: m\n")
        with EventWriter(RunDir(tmp_path / name).events) as log:
            log.write("step", 1)
    refresh = RunReader.refresh

    def refuse(self: RunReader) -> None:
        if self.run.name == "a":
            raise PermissionError(13, "Permission denied")
        refresh(self)

    monkeypatch.setattr(RunReader, "refresh", refuse)
    said: list[str] = []
    assert [summary.name for summary in read_summaries(list_runs(tmp_path), said.append)] == ["b"]
    assert said == [f"{tmp_path}/a/events.jsonl: cannot be read (Permission denied); the run is left out"]
