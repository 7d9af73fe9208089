from __future__ import annotations

import pytest
from rich.segment import Segment
from textual.color import Color

from localdpo.dashboard.terminal import MARKS, Abilities, CharFilter, abilities_of, to_ascii

UTF8 = {"LANG": "en_US.UTF-8"}


def test_colours_follow_the_terminal():
    assert abilities_of({"TERM": "xterm", "COLORTERM": "truecolor"}).colours == 2**24
    assert abilities_of({"TERM": "xterm-256color"}).colours == 256
    assert abilities_of({"TERM": "screen"}).colours == 16
    for environment in ({"TERM": "xterm-256color", "NO_COLOR": ""}, {"TERM": "dumb"}):
        assert abilities_of(environment) == Abilities(abilities_of(environment).unicode, False, 0)


@pytest.mark.parametrize(
    ("environment", "unicode"),
    [
        (UTF8, True),
        ({}, True),
        ({"LANG": "C.utf8"}, True),
        ({"LANG": "C"}, False),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "POSIX"}, False),
        ({"LC_ALL": "", "LANG": "de_DE.UTF-8"}, True),
        ({**UTF8, "TERM": "linux"}, False),
        ({**UTF8, "LOCALDPO_ASCII": "1"}, False),
        ({**UTF8, "LOCALDPO_ASCII": "0"}, True),
    ],
)
def test_unicode_follows_locale_and_terminal(environment: dict[str, str], unicode: bool):
    assert abilities_of(environment).unicode is unicode


def test_every_mark_has_an_ascii_twin():
    assert all(plain.isascii() for _, plain in MARKS.values())
    assert Abilities().mark("finished") == "✓"
    assert Abilities(unicode=False).mark("finished") == "+"
    with pytest.raises(KeyError):
        Abilities().mark("nonsense")


def test_states_have_marks_of_their_own():
    for place in (0, 1):
        glyphs = [
            MARKS[state][place] for state in ("running", "paused", "finished", "failed", "stopped", "new")
        ]
        assert len(set(glyphs)) == len(glyphs)


def test_the_filter_leaves_ascii_of_the_same_width():
    assert to_ascii("╭─ a ─╮ ✓ é 漢") == "+- a -+ + ? ??"
    assert to_ascii(chr(0x2212) + chr(0x201C) + chr(0x2019)) == "-\"'"
    segments = CharFilter(to_ascii).apply([Segment("▲1"), Segment("plain")], Color(0, 0, 0))
    assert [segment.text for segment in segments] == ["^1", "plain"]
