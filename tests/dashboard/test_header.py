from __future__ import annotations

import pytest

from localdpo.dashboard.state import RunState
from localdpo.dashboard.terminal import Abilities
from localdpo.dashboard.widgets.bars import HeaderWord, fit, header_words, phase_of, progress_bar
from localdpo.records.events import Event


def event(type: str, step: int | None = None, time: float = 0.0, **data: object) -> Event:
    return Event(v=1, time=time, type=type, step=step, data=data)


def state_of(*events: Event) -> RunState:
    state = RunState("demo")
    recipe = {"loss": {"beta": 0.1}}
    state.feed([event("run.started", loss="sigmoid", total_steps=3000, recipe=recipe), *events])
    return state


def step(number: int, time: float) -> Event:
    return event("step", number, time, metrics={"step_seconds": 2.0, "learning_rate": 5e-6})


def text(state: RunState, alive: bool, now: float, abilities: Abilities | None = None) -> str:
    return "  ".join(word.text for word in header_words(state, alive, now, abilities or Abilities()))


def test_a_training_run():
    state = state_of(step(1, 2.0), step(2, 4.0))
    assert text(state, True, 7.0) == (
        "● training  demo  step 2/3,000  ETA 1h 39m  sigmoid  β 0.1  lr 5e-06  3s ago"
    )
    assert "beta 0.1" in text(state, True, 7.0, Abilities(unicode=False))
    assert text(state, True, 7.0, Abilities(unicode=False)).isascii()


def test_a_mac_says_whether_it_may_fall_asleep():
    state = RunState("demo")
    for held, word in (("caffeinate", "kept awake"), ("off (LOCALDPO_CAFFEINATE)", "may sleep")):
        state.feed([event("run.started", loss="sigmoid", total_steps=3000, awake=held)])
        assert word in text(state, True, 3.0)
        assert word not in text(state, False, 3.0)
    assert header_words(state, True, 3.0, Abilities())[-2].weight == 1


def test_a_silent_run_has_its_age_in_another_colour():
    words = header_words(state_of(step(1, 2.0)), True, 300.0, Abilities())
    assert words[-1] == HeaderWord("4m ago", "critical", True, 9) or words[-1].colour == "critical"
    assert header_words(state_of(step(1, 2.0)), False, 300.0, Abilities())[-1].colour == "muted"


def test_the_reference_pass_counts_its_rows():
    state = state_of(
        event("reference", None, 1.0, done=10, total=400), event("reference", None, 2.0, done=20, total=400)
    )
    assert text(state, True, 3.0).startswith("◍ reference scores  demo  20/400 rows  step 0/3,000")


def test_tokenising_counts_its_rows_until_the_run_starts():
    state = RunState("demo")
    state.feed([event("data", None, 1.0, source="pairs.jsonl", rows=4000)])
    assert "tokenising the data  demo  4,000 rows" in text(state, True, 3.0)
    state.feed([event("run.started", loss="sigmoid", total_steps=30)])
    assert "tokenised" not in text(state, True, 3.0)


@pytest.mark.parametrize(
    ("last", "alive", "starting", "phase"),
    [
        (None, True, False, "loading"),
        (None, False, True, "starting"),
        (None, False, False, "crashed"),
        (event("run.crashed", 2, 9.0), False, False, "crashed"),
        (event("run.stopped", 2, 9.0), False, False, "stopped"),
        (event("run.stopped", 2, 9.0), True, False, "starting"),
        (event("run.finished", 2, 9.0), True, False, "finished"),
        (event("run.paused", 2, 9.0), True, False, "paused"),
    ],
)
def test_the_word_for_what_it_does(last: Event | None, alive: bool, starting: bool, phase: str):
    assert phase_of(state_of(*([last] if last else [])), alive, starting) == phase


def test_a_run_without_a_log():
    state = RunState("new")
    assert text(state, False, 5.0) == "○ not started  new"


def test_the_lightest_words_go_first():
    words = [
        HeaderWord("state"),
        HeaderWord("name", weight=7),
        HeaderWord("beta", weight=4),
        HeaderWord("loss", weight=2),
    ]
    assert [word.text for word in fit(words, 100)] == ["state", "name", "beta", "loss"]
    assert [word.text for word in fit(words, 18)] == ["state", "name", "beta"]
    assert [word.text for word in fit(words, 1)] == ["state"]


def test_the_bar():
    assert progress_bar(0.5, 8, True) == ("━━━━", "────")
    assert progress_bar(2.0, 4, False) == ("====", "")
    assert progress_bar(-1.0, 4, False) == ("", "----")
