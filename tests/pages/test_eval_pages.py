"""The pages of an evaluation and of a run in a browser, on a phone and on a desk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import measure

from localdpo.answering.contestants import Contestant
from localdpo.data.prompts import PromptRow
from localdpo.evals.evaluate import AnsweredPrompts, evaluate
from localdpo.evals.report import report_values
from localdpo.evals.table import page, write_record
from localdpo.heuristics import STANDARD
from localdpo.incidents import Facts
from localdpo.judging.registry import Judges
from localdpo.judging.without_model import RulesJudge
from localdpo.pages import render
from localdpo.records.answers import AnswerRecord, Sampling
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow

FACTS = Facts("login", "Tokyo", "timeouts", 9, 85, 1600).to_dict()


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three prompts, one of them with an answer that is one long word."""
    roles = (("base", "base", "base"), ("sft", "SFT", "start"), ("dpo", "DPO", "trained"))
    answers = {
        name: [AnswerRecord(i, name, f"{name} {i} {'x' * 400 if i == 2 else ''}", 5, i > 0) for i in range(3)]
        for name, _, _ in roles
    }
    asked = AnsweredPrompts(
        RunDir(tmp_path_factory.mktemp("run")),
        [Contestant(name, label, None, "none", role) for name, label, role in roles],
        [PromptRow(f"report {i} <script>hit = 1</script>", {"facts": FACTS}) for i in range(3)],
        "a file",
        Sampling(),
        answers,
    )
    return evaluate("it", asked, STANDARD, Judges(RulesJudge(), RulesJudge()))


def report_of(record: dict[str, Any], folder: Path) -> str:
    """The page of a run with this evaluation."""
    run = RunDir.create(folder, "mine", f"model: demo:model\ndata: {{train: {'x' * 300}.jsonl}}\n")
    with EventWriter(run.events) as log:
        log.write("run.started", model="demo:model", loss="sigmoid", total_steps=3, recipe={})
        for step in range(1, 4):
            metrics = {"loss": 1.0 / step, "rewards/chosen": 1e-7 * step, "rewards/rejected": -12345.6 * step}
            log.write("step", step, metrics=metrics)
        log.write("eval", 3, metrics={"loss": 0.4, "rewards/chosen": 0.1})
    write_record(run, record)
    html = render("report", **report_values(run, pytest.fail))
    assert html.count('class="chart"') >= 2
    return html


def test_an_evaluation_and_a_report_fit_the_screen(record: dict[str, Any], tmp_path: Path) -> None:
    """Nothing sticks out of the pages, nothing ran."""
    pages = [page(record).replace("<details>", "<details open>"), report_of(record, tmp_path)]
    for found in measure([(html, width) for html in pages for width in (390, 1200)], tmp_path):
        assert found["scrollWidth"] <= found["clientWidth"]
        assert found["wide"] == []
        assert not found["ran"]
        assert found["text"] > 500
