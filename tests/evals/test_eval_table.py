"""The record in words: tables for three kinds of readers, and sentences that claim no more than is known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from eval_parts import Told, asked, fair, first, tie

from localdpo.core.errors import UserError
from localdpo.evals.evaluate import evaluate
from localdpo.evals.table import (
    SHOWN_ROWS,
    conclusion,
    duel_sentence,
    latest_record,
    markdown,
    page,
    read_record,
    tables,
    text,
    write_record,
)
from localdpo.heuristics import STANDARD
from localdpo.judging.registry import Judges
from localdpo.records.evaluations import evaluation_text
from localdpo.records.rundir import RunDir
from localdpo.records.verdicts import Verdict

LABELS = {"dpo": "DPO", "sft": "SFT"}
HOSTILE = "<script>alert(1)</script> | `x` \x1b[31m"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    every = asked(tmp_path_factory.mktemp("run"), 120, category=["a", HOSTILE])
    return evaluate("it", every, STANDARD, Judges(Told(fair, name=HOSTILE), Told(fair)))


def duel(**changes: Any) -> dict[str, Any]:
    """The record of a duel that DPO wins beyond doubt."""
    found = {
        "first": "dpo",
        "second": "sft",
        "prompts": 200,
        "valid": 200,
        "identical": 0,
        "flips": 10,
        "statuses": {},
        "why": "",
        "win_rate": {"value": 0.7, "low": 0.63, "high": 0.76},
        "prompts_needed": 47,
        "position_bias": {"value": 0.01, "low": -0.05, "high": 0.07, "flagged": False},
        "length_controlled": {"rate": {"value": 0.69, "low": 0.6, "high": 0.77}, "phi": 0.1, "refused": ""},
    }
    return {**found, **changes}


def told(one: dict[str, Any]) -> list[str]:
    lines = conclusion([], [one], LABELS, ("sft", "dpo"))
    return [lines[0], *lines[2:]]


def test_a_clear_win_is_told_without_a_caution() -> None:
    assert told(duel()) == ["DPO is preferred to SFT: 70.0% of 200 prompts, interval 63.0 to 76.0."]


def test_a_clear_loss_is_told() -> None:
    rate = {"value": 0.3, "low": 0.24, "high": 0.37}
    assert duel_sentence(duel(win_rate=rate), LABELS).startswith("DPO is worse than SFT: preferred on 30.0%")


def test_equal_answers_are_no_verdict() -> None:
    all_same = duel(identical=200)
    assert duel_sentence(all_same, LABELS).endswith("gave the same answer to all of 200 prompts.")
    rest_lost = duel(identical=150, valid=150)
    assert duel_sentence(rest_lost, LABELS).endswith("not one of 50 differing answers was judged.")


def test_an_interval_that_holds_one_half_is_no_verdict() -> None:
    rate = {"value": 0.53, "low": 0.46, "high": 0.6}
    assert duel_sentence(duel(win_rate=rate, prompts_needed=2177), LABELS) == (
        "No verdict: DPO is preferred to SFT on 53.0% of 200 prompts, interval 46.0 to 60.0, which holds 50. "
        "If the true rate were this one, about 2,177 prompts would be needed to tell."
    )


@pytest.mark.parametrize(
    ("changes", "caution"),
    [
        (
            {"valid": 150, "statuses": {"refused": 80}},
            "no valid verdict on 50 of 200 prompts (refused 80).",
        ),
        (
            {"valid": 150, "statuses": {"truncated": 8}, "why": "too long"},
            "(truncated 8); most often: too long.",
        ),
        ({"flips": 50}, "on 25.0% of the prompts the judge changed its mind"),
        (
            {"position_bias": {"value": -0.2, "flagged": True}},
            "favours the answer shown second, by 20.0 points",
        ),
        (
            {"length_controlled": {"rate": {"value": 0.52, "low": 0.44, "high": 0.6}}},
            "at equal lengths DPO would win 52.0%, interval 44.0 to 60.0: length may be why",
        ),
    ],
)
def test_what_stands_against_it_is_told(changes: dict[str, Any], caution: str) -> None:
    [_, line] = told(duel(**changes))
    assert line.startswith("Caution: ")
    assert caution in line


def test_better_and_worse_are_named_with_their_differences() -> None:
    def row(name: str, reading: str, value: float) -> dict[str, Any]:
        return {"name": name, "reading": reading, "digits": 2, "difference": {"value": value}}

    rows = [row("format", "better", 0.2), row("length", "", 4.0), row("refusal", "worse", 0.1)]
    [line] = conclusion(rows, [], LABELS, ("sft", "dpo"))
    assert line == "DPO against SFT, beyond the interval, better: format (+0.20); worse: refusal (+0.10)."


def test_the_terminal_gets_aligned_columns_within_its_width(record: dict[str, Any]) -> None:
    shown = text(record)
    lines = shown.splitlines()
    head = next(line for line in lines if line.startswith("metric"))
    assert head.split() == ["metric", "base", "SFT", "DPO", "DPO", "-", "SFT"]
    words = next(line for line in lines if line.startswith("words"))
    assert words.index("+") > head.index("SFT")
    rate = record["duels"][0]["win_rate"]["value"]
    assert re.search(rf"win rate +{100 * rate:.1f}% \[", shown)
    assert "\x1b" not in shown
    own = shown[shown.index("Metrics") : shown.index("Win rate by category")]
    assert max(len(line) for line in own.splitlines()) <= 96


def test_markdown_is_tables_and_nothing_hostile(record: dict[str, Any]) -> None:
    shown = markdown(record)
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in rows}
    assert len(widths) <= 4
    assert "<script>" not in shown
    assert "\x1b" not in shown
    assert shown.startswith("# Evaluation it\n")


def test_the_page_escapes_everything_and_asks_nobody(record: dict[str, Any]) -> None:
    every = asked(Path("run"), 3)
    hostile = every.answers["dpo"][0].__class__(0, "dpo", HOSTILE, 4, True)
    every.answers["dpo"][0] = hostile  # type: ignore[index]
    html = page(evaluate("it", every, STANDARD, Judges(Told(tie))))
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert not re.search(r"(?:src|href)=\"?(?:https?:)?//", html)
    assert page(record).count("<details>") == SHOWN_ROWS


def test_the_page_says_who_won_in_which_order(tmp_path: Path) -> None:
    shown = " ".join(page(evaluate("it", asked(tmp_path, 2), STANDARD, Judges(Told(fair)))).split())
    assert "DPO vs SFT: DPO shown first: SFT (rank); SFT shown first: SFT (rank)" in shown
    assert "DPO vs SFT: DPO shown first: DPO (rank); SFT shown first: DPO (rank)" in shown
    swayed = " ".join(page(evaluate("it", asked(tmp_path, 2), STANDARD, Judges(Told(first)))).split())
    assert "DPO shown first: DPO; SFT shown first: SFT" in swayed
    refused = Told(lambda question: Verdict("refused", reason="policy"))
    assert "DPO shown first: refused (policy)" in page(
        evaluate("it", asked(tmp_path, 2), STANDARD, Judges(refused))
    )


def test_all_tables_are_there_and_rectangular(record: dict[str, Any]) -> None:
    found = tables(record)
    assert [table.caption.split()[0] for table in found] == ["Metrics,", "Pairwise", "Win", "Strength"]
    for table in found:
        assert {len(row) for row in table.rows} == {len(table.head)}


def test_files_are_written_and_read_back(record: dict[str, Any], tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert latest_record(run) is None
    path = write_record(run, record)
    assert sorted(file.name for file in path.parent.iterdir()) == ["it.html", "it.json", "it.md"]
    assert evaluation_text(read_record(path)) == evaluation_text(record)
    assert latest_record(run) == read_record(path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"it\.json: not an evaluation that `localdpo eval` wrote"):
        latest_record(run)
