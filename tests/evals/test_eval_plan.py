"""From options to an evaluation of a tiny run: who judges, what it may cost, what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from answering_runs import run_folder
from eval_parts import Told, fair, first
from tiny_folders import write_rows

from localdpo.answering import generator
from localdpo.core.errors import LocalDPOError
from localdpo.evals import evaluate as evals_evaluate
from localdpo.evals.evaluate import EvalOptions, plan_evaluation, preview_lines, run_evaluation
from localdpo.evals.table import read_record
from localdpo.incidents import Facts
from localdpo.judging import registry
from localdpo.judging.base import JudgeStopped
from localdpo.judging.registry import Hooks
from localdpo.judging.without_model import RulesJudge
from localdpo.records.answers import Sampling
from localdpo.records.rundir import RunDir
from localdpo.records.verdicts import Verdict

pytestmark = pytest.mark.slow

FACTS = Facts("login", "Tokyo", "timeouts", 9, 85, 1600).to_dict()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, sft_adapter: Path) -> RunDir:
    """A run with one checkpoint, whose adapter is a random one."""
    return run_folder(tmp_path_factory.mktemp("runs") / "tiny", tiny_model, sft_adapter)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"prompt": f"What is question number {n}?", "category": "odd" if n % 2 else "even"} for n in range(6)
    ]
    return write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


@pytest.fixture(scope="module")
def demo_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"Report {n}", "facts": {**FACTS, "minutes": 10 + n}} for n in range(3)]
    return write_rows(tmp_path_factory.mktemp("prompts") / "demo.jsonl", rows)


def options(run: RunDir, prompts: Path, **changes: Any) -> EvalOptions:
    return EvalOptions(run, **{"prompts": str(prompts), "sampling": Sampling(8, 1.0, 0), **changes})


def told(monkeypatch: pytest.MonkeyPatch, judge: Told) -> Told:
    monkeypatch.setattr(registry, "make_judge", lambda spec, request, mode: judge)
    return judge


def test_the_demos_rows_are_judged_by_rules_with_scores(run: RunDir, demo_prompts: Path) -> None:
    plan = plan_evaluation(options(run, demo_prompts))
    assert isinstance(plan.judges.pairs, RulesJudge)
    assert isinstance(plan.judges.scores, RulesJudge)
    record = run_evaluation(plan)
    assert (record["name"], record["prompts"], len(record["duels"])) == ("rules", 3, 3)
    assert record["metrics"][0]["name"] == "in the format"
    written = run.path / "eval" / "rules.json"
    assert read_record(written) == record
    assert plan_evaluation(options(run, demo_prompts, scores=False)).judges.scores is None


def test_other_rows_have_no_judge_unless_one_is_named(run: RunDir, prompts: Path) -> None:
    plan = plan_evaluation(options(run, prompts))
    assert (plan.name, plan.judges.pairs, plan.judges.scores) == ("heuristics", None, None)
    assert plan.notes[0].startswith("no judge: these are no incident reports")
    record = run_evaluation(plan)
    assert record["duels"] == []
    # Nothing of the demo's, neither shown ahead nor in the table.
    measured = ["empty", "words", "refusal", "tokens", "ended by itself"]
    assert [row["name"] for row in record["metrics"]] == measured
    assert "heuristics: empty, words, repetition, refusal" in preview_lines(plan)
    assert preview_lines(plan)[-1] == plan.notes[0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"max_usd": 1.0}, "--max-usd: there is no judge to use it"),
        ({"scores": True}, "--scores: there is no judge"),
        ({"rubrics": ("helpful",)}, "--rubric: there is no judge"),
        ({"judge": "mlx:./x", "rubrics": ("helpful", "triage")}, "one for mode pairwise already, helpful"),
        ({"judge": "rules"}, "--judge rules: rules checks the demo's incident reports"),
        ({"judge": "rules"}, "which 6 of 6 prompts are not; name another judge: mlx:MODEL"),
        ({"judge": "jury:human+rules"}, "--judge jury:human+rules: rules checks the demo's"),
        ({"judge": "nobody"}, "nobody: no such judge"),
        ({"name": "../up"}, "'../up' is no name"),
        ({"checks": Path("nothing.yaml")}, "nothing.yaml: cannot be read"),
        ({"with_runs": "self"}, "compared already"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(
    changes: dict[str, Any], line: str, run: RunDir, prompts: Path
) -> None:
    if changes.get("with_runs") == "self":
        changes = {"with_runs": (run,)}
    with pytest.raises(LocalDPOError) as caught:
        plan_evaluation(options(run, prompts, **changes))
    assert line in str(caught.value)


def test_rubrics_go_where_their_mode_says(
    run: RunDir, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def make(spec: str, request: Any, mode: str) -> Told:
        made.append(mode)
        return Told(fair)

    monkeypatch.setattr(registry, "make_judge", make)
    plan_evaluation(options(run, prompts, judge="anthropic"))
    plan_evaluation(options(run, prompts, judge="anthropic", rubrics=("quality", "triage")))
    assert made == ["pairwise", "pairwise", "score"]


def test_a_look_ahead_costs_and_asks_nothing(
    run: RunDir, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = told(monkeypatch, Told(first))
    fresh = options(run, prompts, judge="told", sampling=Sampling(9, 1.0, 5), max_usd=2.0)
    lines = preview_lines(plan_evaluation(fresh))
    assert "answers: 18 of at most 9 tokens, 18 to generate" in lines
    assert "judge: told, at most 36 questions to ask, 0 answered already" in lines
    assert "cost: at most $0.04, were every answer as long as it may be" in lines
    assert lines[-1] == "limit: $2.00"
    assert judge.count == 0
    run_evaluation(plan_evaluation(fresh))
    lines = preview_lines(plan_evaluation(fresh))
    assert "answers: 18 of at most 9 tokens, 0 to generate" in lines
    assert lines[-2] == "cost: at most $0.00"


def test_a_missing_key_is_said_before_anything_is_generated(
    run: RunDir, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "")
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    monkeypatch.setattr(evals_evaluate, "answer_all", lambda *args, **more: pytest.fail("it generates"))
    plan = plan_evaluation(options(run, prompts, judge="anthropic", sampling=Sampling(9, 1.0, 6)))
    with pytest.raises(JudgeStopped, match=r"no key for anthropic .*: set ANTHROPIC_API_KEY"):
        run_evaluation(plan)


def test_a_second_time_loads_and_asks_nothing_and_writes_the_same(
    run: RunDir, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = told(monkeypatch, Told(first, name="again"))
    wanted = options(run, prompts, judge="again", sampling=Sampling(8, 1.0, 9), concurrency=1)
    run_evaluation(plan_evaluation(wanted))
    path = run.path / "eval" / "again.json"
    before, count = path.read_bytes(), judge.count

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(generator, "load_base", never)
    run_evaluation(plan_evaluation(EvalOptions(**{**vars(wanted), "concurrency": 16})))
    assert path.read_bytes() == before
    assert judge.count == count


def test_checks_of_a_file_are_rows_of_the_table(run: RunDir, prompts: Path, tmp_path: Path) -> None:
    checks = tmp_path / "checks.yaml"
    checks.write_text("checks: [{kind: label, column: category, name: names its kind}]\n")
    record = run_evaluation(plan_evaluation(options(run, prompts, checks=checks)))
    assert "names its kind" in [row["name"] for row in record["metrics"]]


def test_what_happens_on_the_way_is_told(run: RunDir, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, Told(lambda question: Verdict("ok", choice="tie"), name="seen"))
    seen: dict[str, int] = {"answers": 0, "verdicts": 0}

    def count(what: str) -> Any:
        return lambda *args: seen.update({what: seen[what] + 1})

    plan = plan_evaluation(options(run, prompts, judge="seen", sampling=Sampling(8, 1.0, 11)))
    run_evaluation(plan, hooks=Hooks(on_answer=count("answers"), on_verdict=count("verdicts")))
    assert seen["answers"] == 18
    assert 0 < seen["verdicts"] <= plan.most_verdicts
