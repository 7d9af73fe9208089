from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from localdpo.cli.inspect import (
    PENALISED,
    REWARDED,
    SHADES,
    as_object,
    beginning,
    coloured_tokens,
    numbered_tokens,
    scale_of,
    show_pair,
    show_worst,
    style_of,
)
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


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_pairs_that_are_all_tied_have_no_accuracy():
    head = shown(replace(FOUND, accuracy=None, margin=0.0), show_worst).splitlines()[0]
    assert head.endswith("30 of 40 valid pairs of v.jsonl, all tied, margin +0.000")
    assert as_object("dpo", replace(FOUND, accuracy=None))["metrics"]["rewards/accuracies"] is None


def test_sums_and_rank():
    assert PAIR.chosen.reward == pytest.approx(0.7)
    assert PAIR.rejected.reward == pytest.approx(1.0)
    assert PAIR.margin == pytest.approx(-0.3)
    assert PAIR.ranked == "wrong"


def test_blue_is_rewarded_and_orange_is_penalised():
    def of(colour: tuple[int, int, int]) -> str:
        return "#{:02x}{:02x}{:02x}".format(*colour)

    assert of(REWARDED) == "#0072b2"
    assert of(PENALISED) == "#e69f00"
    assert style_of(1.0, 1.0).endswith(of(REWARDED))
    assert style_of(-1.0, 1.0).endswith(of(PENALISED))
    assert style_of(50.0, 1.0) == style_of(1.0, 1.0)
    assert style_of(0.1, 1.0) == style_of(-0.1, 1.0) == ""


@pytest.mark.parametrize("sign", [1, -1])
def test_every_shade_is_legible_and_darker_than_the_one_before(sign: int):
    before = 1.0
    for step in range(1, SHADES + 1):
        ink, paper = style_of(sign * step, SHADES).split(" on ")
        light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5
        assert luminance(paper) < before
        before = luminance(paper)


def test_the_scale_passes_over_outliers():
    calm = response(*[("a", 0.1)] * 60)
    wild = PairRewards(1, "v.jsonl", "", calm, response(("b", 50.0)))
    assert scale_of(wild) == pytest.approx(0.1)
    assert scale_of(PairRewards(1, "v.jsonl", "", response(("a", 0.0)), response(("b", 0.0)))) > 0


def test_numbers_stand_beside_tokens():
    text = numbered_tokens(PAIR.chosen).plain
    assert text == "▸The[+0.400]▸ sky[+0.100]▸⏎[-0.200]\n▸☕[+0.400]▸<end>[+0.000]"


def test_colours_keep_the_text():
    text = coloured_tokens(PAIR.chosen, 0.4)
    assert text.plain == "The sky⏎\n☕<end>"
    assert text.get_style_at_offset(Console(), 0).bgcolor is not None


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
    assert "48;2;0;114;178" in text
    assert "48;2;230;159;0" in text
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


def test_beginnings_are_one_short_line():
    assert beginning("a\n b\t c") == "a b c"
    assert len(beginning("x" * 100)) == 40


def test_a_row_of_several_data_sets_is_shown_with_its_own():
    several = replace(FOUND, source="v.jsonl, w.jsonl")
    assert "valid row v.jsonl:7: margin -0.300" in shown(several)
    assert any(line.startswith("v.jsonl:7 ") for line in shown(several, show_worst).splitlines())
    assert "valid row 7: margin -0.300" in shown(FOUND)
    assert as_object("dpo", several)["pairs"][0]["source"] == "v.jsonl"
