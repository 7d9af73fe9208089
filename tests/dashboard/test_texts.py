"""Word differences and token rewards as styled text."""

from __future__ import annotations

import math

from rich.text import Text

from localdpo.dashboard.terminal import PALETTES, THEME_NAMES, Abilities, theme_of
from localdpo.dashboard.widgets.answertext import (
    SHADES,
    Tinting,
    blend,
    clean,
    diff_text,
    ink_on,
    prompt_view,
    scale_of,
    shade_of,
    signed,
    spans,
    style_of,
    tints_legend,
    tokens_text,
    visible,
)

DARK = PALETTES["dark"]


def view(numbers: bool = False, **abilities: object) -> Tinting:
    return Tinting(1.0, numbers, DARK, Abilities(**abilities))  # type: ignore[arg-type]


def styles(text: Text) -> list[tuple[str, str]]:
    return [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]


def test_of_a_conversation_the_last_question_comes_first_with_roles_as_labels():
    shown = prompt_view("system: be brief\n\nuser: hi\n\nassistant: \x1b[2Jhello\n\nuser: and\nnow?", DARK)
    assert shown.plain.split("\n") == [
        " user  and",
        "now?",
        " system  be brief",
        " user  hi",
        " assistant  \\x1b[2Jhello",
    ]
    assert [text for text, _ in styles(shown)] == [" user ", " system ", " user ", " assistant "]
    assert prompt_view("a question", DARK).plain == "a question"


def test_both_sides_of_a_difference_are_marked():
    old, new = "login is slow.", "login is very broken."
    assert diff_text(old, new, "new", DARK, Abilities()).plain == "login is «very broken»."
    assert diff_text(old, new, "old", DARK, Abilities()).plain == "login is ⟨slow⟩."
    assert diff_text(old, new, "new", DARK, Abilities(unicode=False)).plain == "login is {+very broken+}."
    assert diff_text(old, new, "old", DARK, Abilities(unicode=False)).plain == "login is [-slow-]."
    assert styles(diff_text(old, new, "new", DARK, Abilities())) == [
        ("«very broken»", f"bold underline {DARK.chosen}")
    ]


def test_equal_texts_have_no_marks_and_white_space_none_of_its_own():
    assert diff_text("a b", "a b", "new", DARK, Abilities()).plain == "a b"
    assert diff_text("a b", "a  b", "new", DARK, Abilities()).plain == "a  b"
    assert diff_text("a", "a\nb", "new", DARK, Abilities()).plain == "a\n«b»"


def test_markup_and_control_characters_stay_text():
    assert clean("a\x1b[31mb\nc") == "a\\x1b[31mb\nc"
    assert diff_text("", "[red]x[/red]", "new", DARK, Abilities()).plain == "«[red]x[/red]»"


def test_the_scale_ignores_an_outlier_and_what_is_no_number():
    tokens = [("a", 0.1)] * 30 + [("b", -9.0), ("c", math.nan)]
    assert scale_of(tokens, []) == 0.1
    assert scale_of([], []) > 0


def test_shades_grow_with_the_reward_and_keep_its_sign():
    assert [shade_of(reward, 1.0) for reward in (-5, -1, -0.5, -0.01, 0, 0.3, 1, math.nan)] == [
        -SHADES, -SHADES, -2, 0, 0, 1, SHADES, 0,
    ]  # fmt: skip


def test_tints_are_marked_without_colour_too():
    coloured = style_of(-SHADES, view())
    assert coloured.underline
    assert coloured.bgcolor is not None
    plain = style_of(-SHADES, view(colour=False, colours=0))
    assert (plain.underline, plain.color, plain.bgcolor) == (True, None, None)
    assert style_of(SHADES, view(colour=False, colours=0)).reverse
    assert style_of(1, view(colours=16)).bgcolor is None
    assert not style_of(0, view())


def test_tokens_as_tints_and_as_numbers():
    tokens = [("Hi", 0.0), ("", 0.1), ("é\n", 0.2), ("bad", -1.0), ("odd", math.nan)]
    assert tokens_text(tokens, view()).plain == "Hié⏎\nbadodd"
    assert tokens_text(tokens, view(numbers=True)).plain == "Hi[+0.000]é⏎[+0.300]\nbad[-1.000]odd[-]"
    assert spans([("", 0.5)]) == [("", 0.5)]
    assert visible("a\x1bb\n\n", unicode=False) == "a\\x1bb\\n\\n\n"


def test_a_rounded_zero_has_no_minus():
    assert signed(-0.0001) == "+0.000"
    assert signed(0.12345) == "+0.123"


def test_the_legend_names_both_ends():
    assert tints_legend(view()).plain.startswith("-1.000  -  -  -  -  0  +  +  +  +  +1.000 ")


def test_ink_is_readable_on_every_tint():
    for palette in PALETTES.values():
        for end in (palette.chosen, palette.rejected):
            for share in (0.2, 0.4, 0.6, 0.85):
                ground = blend(palette.ground, end, share)
                assert contrast(ink_on(ground), ground) >= 4.5, (palette, share)


def test_text_of_every_theme_is_readable():
    for name in THEME_NAMES:
        palette = PALETTES[name]
        for colour in (
            palette.ink,
            palette.muted,
            palette.chosen,
            palette.rejected,
            palette.critical,
            palette.good,
        ):
            assert contrast(colour, palette.ground) >= 4.5, (name, colour)
            assert contrast(colour, palette.surface) >= 4.5, (name, colour)
        assert theme_of(name).dark is (name != "light")


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.1."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_of_a_very_long_text_the_beginning_is_shown_and_the_rest_counted():
    shown = clean("a\n" * 2_000_000)
    assert shown.startswith("a\na\n")
    assert shown.endswith("\n... 3,950,000 characters more")
    assert len(shown) < 51_000
