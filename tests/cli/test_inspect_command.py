from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from localdpo.cli.inspect import as_object, numbered_tokens, show_pair, show_worst
from localdpo.core.text import excerpt
from localdpo.evals.inspect_pairs import Inspection
from localdpo.train.token_rewards import PairRewards, ResponseRewards, TokenReward


def response(*tokens: tuple[str, float]) -> ResponseRewards:
    return ResponseRewards(
        tuple(TokenReward(i, text, -1.0, -1.0 - reward, reward) for i, (text, reward) in enumerate(tokens))
    )


PAIR = PairRewards(
    7,
    "v.jsonl",
    "What is [bold]up[/bold]?",
    response(("The", 0.4), (" sky", 0.1), ("\n", -0.2), ("", 0.1), ("", 0.1), ("☕", 0.2), ("<end>", 0.0)),
    response(("\x1b[31mred", 0.9), ("\n\nno", 0.1)),
)
FOUND = Inspection("step-000003", "valid", "v.jsonl", "sigmoid", 0.1, 40, 30, 0.75, 0.5, (PAIR,))


def shown(inspection: Inspection, show: object = show_pair, **options: object) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100, **{"color_system": None, **options})
    if show is show_worst:
        show_worst(console, "dpo", inspection)
    else:
        show_pair(console, inspection)
    return out.getvalue()


def test_pairs_that_are_all_tied_have_no_accuracy():
    head = shown(replace(FOUND, accuracy=None, margin=0.0), show_worst).splitlines()[0]
    assert head.endswith("30 of 40 valid pairs of v.jsonl, all tied, margin +0.000")
    assert as_object("dpo", replace(FOUND, accuracy=None))["metrics"]["rewards/accuracies"] is None


def test_sums_and_rank():
    assert PAIR.chosen.reward == pytest.approx(0.7)
    assert PAIR.rejected.reward == pytest.approx(1.0)
    assert PAIR.margin == pytest.approx(-0.3)
    assert PAIR.ranked == "wrong"


def test_numbers_stand_beside_tokens():
    text = numbered_tokens([(token.text, token.reward) for token in PAIR.chosen.tokens]).plain
    assert text == "▸The[+0.400]▸ sky[+0.100]▸⏎[-0.200]\n▸☕[+0.400]▸<end>[+0.000]"


def test_without_colour_there_are_numbers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown(FOUND)
    assert "\x1b" not in text
    assert "valid row 7: margin -0.300, ranked wrong" in text
    assert "What is [bold]up[/bold]?" in text
    assert "chosen: reward +0.700, 7 tokens" in text
    assert "▸\\x1b[31mred[+0.900]▸⏎\n⏎\nno[+0.100]" in text
    assert "in brackets: beta (0.1) * log-ratio of each token" in text


def test_with_colour_there_are_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown(FOUND, force_terminal=True, color_system="truecolor")
    assert "48;2;38;135;189m" in text  # blue for what was rewarded
    assert "48;2;228;217;196m" in text  # orange for what was penalised
    assert "underlined: below 0" in text
    assert "▸" not in text
    # Nothing of the data steers the terminal.
    assert "\x1b[31m" not in text


def test_no_color_is_heard(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(FOUND, force_terminal=True, color_system="truecolor")
    assert "48;2" not in text
    assert "▸The[+0.400]" in text


def test_a_loss_without_a_reference_says_what_is_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    free = ResponseRewards((TokenReward(1, "a", -2.0, None, -0.2),))
    found = Inspection(
        "step-000001",
        "valid",
        "v.jsonl",
        "simpo",
        0.1,
        1,
        1,
        0.0,
        0.0,
        (PairRewards(1, "v.jsonl", "p", free, free),),
    )
    assert "beta (0.1) * log-probability / tokens" in shown(found)


def test_the_list_is_text_without_a_terminal():
    lines = [" ".join(line.split()) for line in shown(FOUND, show_worst).splitlines()]
    assert lines == [
        "dpo, step-000003: 30 of 40 valid pairs of v.jsonl, reward accuracy 0.750, margin +0.500",
        "row margin ranked tokens chosen rejected",
        "7 -0.300 wrong 7/2 The sky ☕<end> \\x1b[31mred no",
    ]


def test_the_list_is_a_table_on_a_terminal():
    text = shown(FOUND, show_worst, force_terminal=True)
    assert "┃" in text
    assert "-0.300" in text


def test_excerpts_are_one_short_line():
    assert excerpt("a\n b\t c") == "a b c"
    assert len(excerpt("x" * 100, 40)) == 40


def test_a_row_of_several_data_sets_is_shown_with_its_own():
    several = replace(FOUND, source="v.jsonl, w.jsonl")
    assert "valid row v.jsonl:7: margin -0.300" in shown(several)
    assert any(line.startswith("v.jsonl:7 ") for line in shown(several, show_worst).splitlines())
    assert "valid row 7: margin -0.300" in shown(FOUND)
    assert as_object("dpo", several)["pairs"][0]["source"] == "v.jsonl"
