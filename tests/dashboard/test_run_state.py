"""The state is a pure function of the log: batches, resumes and gaps."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo.dashboard.charts import CHARTS
from localdpo.dashboard.state import MetricSeries, RunState
from localdpo.dashboard.terminal import Abilities
from localdpo.dashboard.widgets.bars import header_words
from localdpo.records.events import Event, effective

pytestmark = pytest.mark.slow


def event(type: str, step: int | None = None, time: float = 0.0, **data: Any) -> Event:
    return Event(v=1, time=time, type=type, step=step, data=data)


def fold(events: list[Event], *cuts: int) -> RunState:
    state = RunState("r")
    places = [0, *sorted(cuts), len(events)]
    for start, end in itertools.pairwise(places):
        state.feed(events[start:end])
    return state


def seen(state: RunState) -> dict[str, Any]:
    """Everything that a screen could read, in a form that compares."""

    def table(series: dict[str, MetricSeries]) -> dict[str, Any]:
        return {
            n: (s.steps.tolist(), np.nan_to_num(s.values, nan=-1e9).tolist())
            for n, s in series.items()
            if len(s)
        }

    return {
        "start": state.start,
        "progress": state.progress,
        "train": table(state.train),
        "evals": table(state.evals),
        "notices": state.notices,
        "samples": state.samples,
        "pairs": state.pairs,
        "acknowledgements": state.acknowledgements,
        "ended": state.ended,
        "log": state.log(),
        "state": state.state(False),
    }


values = st.one_of(st.none(), st.floats(-5, 5, width=32))
one = st.one_of(
    st.builds(lambda s, v: event("step", s, metrics={"loss": v, "kl": v}), st.integers(1, 30), values),
    st.builds(lambda s, v: event("eval", s, metrics={"loss": v}, seconds=1.0), st.integers(0, 30), values),
    st.builds(lambda s: event("run.resumed", s), st.integers(0, 30)),
    st.builds(lambda s: event("checkpoint", s, seconds=0.1), st.integers(0, 30)),
    st.builds(
        lambda s: event("samples", s, samples=[{"prompt": "p", "reference": "a", "policy": "b"}]),
        st.integers(0, 30),
    ),
    st.builds(lambda s: event("pairs", s, path=f"pairs/step-{s:06d}.json"), st.integers(0, 30)),
    st.just(event("notice", 3, level="warning", name="kl-spike", message="m", why="w")),
    st.just(event("run.finished", 30)),
)


def in_order(events: list[Event]) -> list[Event]:
    """Steps as a worker writes them: rising, from the step that a resume names."""
    step, kept = 0, []
    for entry in events:
        if entry.type == "run.resumed":
            step = min(entry.step or 0, step)
            kept.append(event("run.resumed", step))
            continue
        if entry.type == "step":
            step += 1
        kept.append(Event(entry.v, entry.time, entry.type, step, entry.data))
    return kept


logs = st.lists(one, max_size=40).map(
    lambda events: [event("run.started", total_steps=99), *in_order(events)]
)


@given(logs, st.lists(st.integers(0, 40), max_size=3))
def test_however_the_log_is_cut_the_state_is_the_same(events: list[Event], cuts: list[int]) -> None:
    assert seen(fold(events)) == seen(fold(events, *(min(cut, len(events)) for cut in cuts)))


@given(logs)
def test_what_a_resume_makes_void_is_gone(events: list[Event]) -> None:
    whole, kept = seen(fold(events)), seen(fold(effective(events)))
    for name in ("train", "evals", "samples", "pairs"):
        assert whole[name] == kept[name], name


def test_an_accuracy_of_nothing_but_ties_is_no_value_that_was_not_finite() -> None:
    """The chart marks the latter on its axis; that pairs are tied at step 0 is as it should be."""
    events = [
        event("eval", step, metrics={"rewards/accuracies": right, "rewards/ties": ties, "loss": 0.5})
        for step, right, ties in ((0, 0.0, 1), (3, 0.75, 0), (6, None, 0))
    ]
    accuracy = fold(events).evals["rewards/accuracies"]
    assert accuracy.steps.tolist() == [3, 6]
    assert accuracy.values[0] == 0.75
    assert math.isnan(accuracy.values[1])


def test_a_value_that_was_not_finite_is_a_gap_and_an_absent_one_no_point() -> None:
    state = fold(
        [event("step", 1, metrics={"kl": 0.5}), event("step", 2, metrics={"kl": None}), event("step", 3)]
    )
    assert state.train["kl"].steps.tolist() == [1, 2]
    assert math.isnan(state.train["kl"].values[1])
    assert state.train["kl"].last == 0.5


def test_an_end_is_forgotten_when_the_run_goes_on() -> None:
    events = [event("run.started"), event("run.stopped", 4, reason="SIGINT")]
    assert fold(events).ended is events[1]
    assert fold(events).state(False) == "stopped"
    assert fold([*events, event("run.resumed", 4)]).ended is None
    assert fold([*events, event("run.resumed", 4)]).state(True) == "running"


def test_facts_of_the_start_survive_wrong_types() -> None:
    damaged = event("run.started", recipe=[1], rows="x", total_steps="9", model=None, memory_limit_gb="lots")
    good = event("run.started", loss="ipo", recipe={"loss": {"beta": 1}}, total_steps=9, memory_limit_gb=36)

    def shown(start: Event) -> list[str]:
        state = fold([start])
        words = [word.text for word in header_words(state, True, 0.0, Abilities())]
        return words[2:-1] + [
            line.label for chart in CHARTS for line in chart.references(state) if line.label
        ]

    assert shown(damaged) == ["0.5 chance"]
    assert shown(good) == ["step 0/9", "ipo", "β 1", "0.5 chance", "limit 36"]


@pytest.mark.parametrize("data", [{}, {"samples": 3}, {"samples": [3]}, {"path": 4}, {"metrics": [1]}])
def test_damaged_events_are_passed_over(data: dict[str, Any]) -> None:
    for kind in ("step", "eval", "samples", "pairs", "notice", "control", "checkpoint"):
        fold([event(kind, 1, **data), event(kind, None, **data)])


def test_the_log_keeps_evaluations_however_many_steps_follow() -> None:
    steps = [event("step", i, metrics={"loss": 1.0}) for i in range(1, 5000)]
    log = fold([event("run.started"), event("eval", 0, metrics={}), *steps]).log()
    assert [entry.type for entry in log[:2]] == ["run.started", "eval"]
    assert log[-1].step == 4999
    assert len(log) < 5000


@pytest.mark.parametrize(
    ("options", "valid", "step", "samples", "pairs"),
    [
        (
            {"samples": 2, "worst_pairs": 8},
            9,
            0,
            "yet: the evaluation at step 0 brings",
            "yet: the evaluation",
        ),
        ({"samples": 0, "worst_pairs": 0}, 9, 0, "eval.samples is 0", "eval.worst_pairs is 0"),
        ({"samples": 2}, 0, 0, "no rows are held out; a new run with data.valid", "no rows are held out"),
        ({"samples": 2, "prompts": "x.jsonl"}, 0, 0, "yet: the evaluation", "no rows are held out"),
        ({}, None, 40, "no evaluation up to step 40 brought any", "no evaluation up to step 40"),
    ],
)
def test_what_no_evaluation_will_bring_is_not_promised(
    options: dict[str, Any], valid: int | None, step: int, samples: str, pairs: str
) -> None:
    assert fold([]).why_none("samples") == "no samples yet"
    start = event("run.started", recipe={"eval": options}, rows={"train": 9, "valid": valid})
    state = fold([start, event("eval", 0, metrics={}), *([event("step", step, metrics={})] if step else [])])
    for what, why in (("samples", samples), ("pairs", pairs)):
        line = state.why_none(what)
        assert line.startswith(f"no {what}")
        assert why in line
        assert len(line) < 79
