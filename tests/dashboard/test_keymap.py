from __future__ import annotations

import re
from collections import Counter

import pytest
from textual.binding import Binding

from localdpo.cli.label_screen import KEYS as LABEL_KEYS
from localdpo.cli.watch import SCREENS
from localdpo.dashboard.keymap import (
    INNER_TITLES,
    KEYS,
    SCREEN_TITLES,
    bindings_of,
    key_name,
    keys_of,
    namespaced,
)

NAMED = {
    "left",
    "right",
    "up",
    "down",
    "home",
    "end",
    "enter",
    "escape",
    "space",
    "pageup",
    "pagedown",
    "tab",
}


def test_no_key_means_two_things_on_a_screen():
    everywhere = {key.key for key in keys_of("")}
    for screen in SCREEN_TITLES:
        keys = Counter(key.key for key in keys_of(screen))
        assert {key for key, count in keys.items() if count > 1} == set(), screen
        # Compare votes with 1, 2 and t, as `prefs label` does, while the names are hidden.
        assert everywhere & keys.keys() == ({"1", "2"} if screen == "compare" else set()), screen


def test_a_vote_has_the_same_key_wherever_one_votes():
    labels = {key.action: key.key for key in LABEL_KEYS}
    for key in keys_of("compare"):
        if key.label == "vote":
            choice = {"first": "1", "second": "2"}.get(key.action.split("'")[1], "tie")
            assert labels[f"choose('{choice}')"] == key.key
    assert labels["undo"] == next(key.key for key in keys_of("compare") if key.action == "undo")


def test_keys_are_single_and_without_modifiers():
    for key in KEYS:
        assert key.screen in ("", *SCREEN_TITLES, *INNER_TITLES)
        assert len(key.key) == 1 or key.key in NAMED or re.fullmatch(r"[a-z]+(_[a-z]+)*", key.key), key
        assert "+" not in key.key, key
        assert key.label, key
        assert key.help, key


def test_the_first_keys_are_the_screens_in_order():
    assert [key.action for key in keys_of("")[: len(SCREEN_TITLES)]] == [
        f"go('{name}')" for name in SCREEN_TITLES
    ]
    assert [key.key for key in keys_of("")[: len(SCREEN_TITLES)]] == [
        str(number) for number in range(1, len(SCREEN_TITLES) + 1)
    ]


def test_bindings_are_the_keys():
    for screen in ("", *SCREEN_TITLES):
        bindings = [binding for binding in bindings_of(screen) if isinstance(binding, Binding)]
        assert [(one.key, one.action) for one in bindings] == [
            (key.key, key.action) for key in keys_of(screen)
        ]


def test_names_of_keys():
    assert key_name("left") == "←"
    assert key_name("left", unicode=False) == "Left"
    assert key_name("question_mark") == "?"
    assert key_name("p") == "p"
    names = [key_name(key.key, unicode=False) for key in KEYS]
    assert all(name.isascii() and "_" not in name for name in names), names


def test_actions_are_the_apps_or_the_screens():
    assert {namespaced(key).split(".")[0] for key in keys_of("")} == {"app"}
    assert {namespaced(key).split(".")[0] for key in keys_of("runs")} == {"screen"}


def test_the_command_line_names_the_same_screens():
    assert tuple(SCREEN_TITLES) == SCREENS


@pytest.mark.parametrize("screen", [name for name in SCREEN_TITLES if keys_of(name)])
def test_every_key_has_an_action_on_its_screen(screen: str):
    from localdpo.dashboard.app import DashboardApp

    for key in keys_of(""):
        assert hasattr(DashboardApp, f"action_{key.action.split('(')[0]}"), key
    made = DashboardApp.SCREENS[screen]()
    for key in keys_of(screen):
        assert hasattr(made, f"action_{key.action.split('(')[0]}"), key
