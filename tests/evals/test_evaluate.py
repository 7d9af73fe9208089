"""The record of an evaluation: its figures, and that nothing but what was asked changes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eval_parts import Told, answers, asked, contestants, fair, first, prompts, swapped, tie

from localdpo.evals.evaluate import AnsweredPrompts, evaluate
from localdpo.evals.figures import duels_of, measure, metric_record
from localdpo.heuristics import STANDARD, Heuristic
from localdpo.heuristics.checks import with_standard
from localdpo.judging.base import JudgeStopped, Question
from localdpo.judging.prompts import conversation_text
from localdpo.judging.registry import Judges
from localdpo.judging.run import Journal, JudgeSession
from localdpo.records.answers import Sampling
from localdpo.records.evaluations import evaluation_text
from localdpo.records.rundir import RunDir
from localdpo.records.verdicts import Verdict
from localdpo.records.votes import Votes, sides, text_id

pytestmark = pytest.mark.slow


def evaluated(folder: Path, judge: Told | None, count: int = 40, **options: Any) -> dict[str, Any]:
    session = JudgeSession(options.pop("journal", None), concurrency=options.pop("concurrency", None))
    judges = Judges(judge, options.pop("scorer", None))
    return evaluate("it", asked(folder, count, **options), with_standard([]), judges, session)


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """The first duel: DPO against SFT."""
    return record["duels"][0]


def test_without_a_judge_there_are_metrics_only(tmp_path: Path) -> None:
    record = evaluated(tmp_path, None)
    names = [row["name"] for row in record["metrics"]]
    assert names == ["empty", "words", "repetition", "refusal", "tokens", "ended by itself"]
    assert record["metrics"][2]["counts"] == {"base": 0, "sft": 0, "dpo": 20}
    assert record["metrics"][2]["difference"] is None
    assert (record["duels"], record["strengths"], record["judge"]) == ([], [], None)
    assert record["versus"] == ["sft", "dpo"]
    [sentence] = record["conclusion"]
    assert sentence == "DPO against SFT, beyond the interval, better: nothing; worse: nothing."
    assert record["rows"][3]["answers"]["dpo"]["metrics"]["words"] == 5


def test_who_is_compared_with_whom() -> None:
    assert duels_of(contestants()) == [("dpo", "sft"), ("dpo", "base"), ("sft", "base")]
    without_start = contestants([("base", "base", "base"), ("dpo", "DPO", "trained")])
    assert duels_of(without_start) == [("dpo", "base")]
    more = contestants(
        [
            ("base", "base", "base"),
            ("sft", "SFT", "start"),
            ("dpo", "DPO", "trained"),
            ("run:x", "x", "other"),
        ]
    )
    assert duels_of(more)[-1] == ("dpo", "run:x")
    assert duels_of(more)[0] == ("dpo", "sft")


def test_a_judge_that_always_says_first_is_even_inconsistent_and_flagged(tmp_path: Path) -> None:
    duel = figures(evaluated(tmp_path, Told(first)))
    assert duel["win_rate"]["value"] == 0.5
    assert (duel["wins"], duel["losses"], duel["consistency"]) == (0, 0, 0.0)
    assert duel["position_bias"]["value"] == 0.5
    assert duel["position_bias"]["flagged"]
    assert duel["prompts_needed"] is None


def test_a_judge_that_always_ties_is_even_without_a_crash(tmp_path: Path) -> None:
    record = evaluated(tmp_path, Told(tie))
    duel = figures(record)
    assert duel["win_rate"]["value"] == 0.5
    assert (duel["ties"], duel["flips"], duel["sign_test_p"]) == (40, 0, 1.0)
    assert duel["position_bias"] is None
    assert [each["value"] for each in record["strengths"]] == [0.0, 0.0, 0.0]
    assert record["conclusion"][0].startswith("No verdict: DPO is preferred to SFT on 50.0%")


def test_the_other_way_round_is_one_less_the_rate(tmp_path: Path) -> None:
    one, other = figures(evaluated(tmp_path, Told(fair))), figures(evaluated(tmp_path, Told(swapped)))
    assert other["win_rate"]["value"] == pytest.approx(1 - one["win_rate"]["value"], abs=1e-9)
    assert (one["wins"], one["losses"]) == (other["losses"], other["wins"])


def test_a_fair_judge_is_counted_right(tmp_path: Path) -> None:
    record = evaluated(tmp_path, Told(fair))
    duel = figures(record)
    # Of 40 prompts 4 end in 7 (refused in both orders) and 4 in 3 (flips); of the rest 8 are divisible by 5.
    assert duel["valid"] == 36
    assert (duel["wins"], duel["ties"], duel["losses"], duel["flips"]) == (24, 4, 8, 4)
    assert duel["statuses"] == {"refused": 8}
    assert duel["win_rate"]["value"] == pytest.approx((24 + 2) / 36, abs=1e-6)
    assert duel["length_controlled"]["refused"].startswith("36 prompts")
    assert [each["name"] for each in record["strengths"]] == ["base", "sft", "dpo"]
    assert record["strengths"][2]["value"] > 0
    assert "no valid verdict on 4 of 40 prompts (refused 8)" in record["conclusion"][2]


def test_equal_answers_are_ties_that_nobody_is_asked_about(tmp_path: Path) -> None:
    rows = prompts(3)
    texts = {"base": lambda i: f"b {i}", "sft": lambda i: f"same {i}", "dpo": lambda i: f"same {i}"}
    every = AnsweredPrompts(RunDir(tmp_path), contestants(), rows, "f", Sampling(), answers(texts, 3))
    judge = Told(first)
    duel = figures(evaluate("it", every, STANDARD, Judges(judge)))
    assert (duel["identical"], duel["ties"], duel["consistency"]) == (3, 3, None)
    assert judge.count == 2 * 3  # against the base the two are one question


def test_no_valid_verdict_is_said_and_scores_nothing(tmp_path: Path) -> None:
    record = evaluated(tmp_path, Told(lambda question: Verdict("unparseable", raw="?")))
    duel = figures(record)
    assert (duel["valid"], duel["win_rate"], duel["sign_test_p"]) == (0, None, None)
    assert duel["statuses"] == {"unparseable": 80}
    assert record["strengths"] == []
    assert (
        record["conclusion"][0]
        == "No verdict on DPO against SFT: not one of 40 differing answers was judged."
    )


def test_scores_are_a_metric_and_kept_with_each_answer(tmp_path: Path) -> None:
    record = evaluated(tmp_path, Told(fair), 120, scorer=Told(fair, name="scorer"))
    row = record["metrics"][-1]
    assert row["name"] == "judge score, 1 to 5"
    assert row["means"] == {"base": 2.0, "sft": 3.0, "dpo": pytest.approx(4 - 3 / 5)}
    assert row["reading"] == "better"
    assert record["rows"][1]["scores"]["dpo"]["score"] == 4.0


def test_categories_have_a_rate_of_their_own(tmp_path: Path) -> None:
    duel = figures(evaluated(tmp_path, Told(fair), category=["even", "odd"]))
    assert [(each["name"], each["valid"]) for each in duel["categories"]] == [("even", 20), ("odd", 16)]
    total = sum(each["valid"] * each["win_rate"]["value"] for each in duel["categories"])
    assert total / 36 == pytest.approx(duel["win_rate"]["value"], abs=1e-6)


def test_one_and_sixteen_at_a_time_give_the_same_bytes(tmp_path: Path) -> None:
    texts = {
        evaluation_text(evaluated(tmp_path, Told(fair), scorer=Told(fair, name="s"), concurrency=concurrency))
        for concurrency in (1, 16, 16)
    }
    assert len(texts) == 1


@pytest.mark.parametrize("stop_after", [50, 0, 1, 200])
@pytest.mark.every(4)
def test_stopped_and_started_again_gives_the_same_bytes_and_asks_nothing_twice(
    stop_after: int, tmp_path: Path
) -> None:
    whole = evaluation_text(evaluated(tmp_path, Told(fair)))
    judge = Told(fair)
    judge.stop_after = stop_after
    with Journal(tmp_path / "v.jsonl") as journal, pytest.raises(JudgeStopped):
        evaluated(tmp_path, judge, journal=journal)
    judge.stop_after = None
    with Journal(tmp_path / "v.jsonl") as journal:
        assert evaluation_text(evaluated(tmp_path, judge, journal=journal)) == whole
    refused = 3 * 2 * 4  # asked again: they have no verdict to keep
    assert judge.count <= 3 * 2 * 40 + refused


def test_the_rows_hold_every_answer_and_both_orders(tmp_path: Path) -> None:
    row = evaluated(tmp_path, Told(fair))["rows"][3]
    assert row["prompt"] == "prompt 3"
    assert set(row["answers"]) == {"base", "sft", "dpo"}
    [duel, *_] = row["verdicts"]
    assert (duel["first"], duel["second"], duel["score"], duel["flipped"]) == ("dpo", "sft", 0.5, True)
    assert [order["choice"] for order in duel["orders"]] == ["first", "first"]


def test_the_votes_of_people_are_set_beside_the_judge(tmp_path: Path) -> None:
    every = asked(tmp_path, 12)
    lines = []
    for i, row in enumerate(every.prompts):
        shown = sides(row.id, ("dpo", "sft"), 1)
        choice = "tie" if i == 1 else "first" if shown[0] == ("sft" if i % 5 == 0 else "dpo") else "second"
        ids = [text_id(every.answers[name][i].text) for name in shown]
        vote = {"time": i, "prompt": row.id, "first": shown[0], "second": shown[1], "choice": choice}
        lines.append(json.dumps({**vote, "seed": 1, "answers": ids}) + "\n")
    (tmp_path / "votes.jsonl").write_text("".join(lines))
    votes = Votes(tmp_path / "votes.jsonl")
    people = figures(evaluate("it", every, STANDARD, Judges(Told(fair)), votes=votes))["people"]
    # 12 prompts without 7 (refused); 1 (voted a tie) and 3 (a flip) differ.
    assert people["votes"] == 11
    assert people["agreement"] == pytest.approx(9 / 11, abs=1e-6)
    assert 0.5 < people["kappa"] < 1


def test_a_metric_is_compared_only_where_both_have_it(tmp_path: Path) -> None:
    def score(prompt: str, answer: str, facts: Any) -> float | None:
        number = int(prompt.split()[-1])
        return None if answer.startswith("sft") and number < 2 else float(answer.startswith("dpo"))

    every = asked(tmp_path, 13)
    measured = measure([Heuristic("it", "lower", score)], every.prompts, every.answers)
    row = metric_record(measured[0], ("sft", "dpo"), 0)
    assert row["counts"] == {"base": 13, "sft": 11, "dpo": 13}
    assert row["difference"] == {"value": 1.0, "low": 1.0, "high": 1.0, "prompts": 11}
    assert row["reading"] == "worse"


def test_a_conversation_is_told_with_its_roles() -> None:
    assert conversation_text("text") == "text"
    assert conversation_text([{"role": "user", "content": "alone"}]) == "alone"
    several = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None},
    ]
    assert conversation_text(several) == "system: Be kind.\n\nuser: Hi\n\nassistant: "


def test_columns_that_json_does_not_know_reach_the_judge_as_text(tmp_path: Path) -> None:
    seen: list[Question] = []
    every = asked(tmp_path, 1, when=[Path("a")])
    evaluate("it", every, STANDARD, Judges(Told(lambda q: seen.append(q) or tie(q))))
    assert seen[0].facts == {"when": "a"}


def test_a_model_without_any_verdict_has_no_strength(tmp_path: Path) -> None:
    def only_own(question: Question) -> Verdict:
        return Verdict("truncated") if any(a.startswith("base") for a in question.answers) else fair(question)

    assert evaluated(tmp_path, Told(only_own))["strengths"] == []

    def not_sft(question: Question) -> Verdict:
        return Verdict("truncated") if any(a.startswith("sft") for a in question.answers) else fair(question)

    record = evaluated(tmp_path, Told(not_sft))
    assert [each["name"] for each in record["strengths"]] == ["base", "dpo"]
