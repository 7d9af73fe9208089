from __future__ import annotations

import math

import numpy as np

from localdpo.dashboard.charts import CHARTS, SMOOTHINGS, Arrays, available
from localdpo.dashboard.plot import smooth
from localdpo.dashboard.state import RunState
from localdpo.records.events import Event


def event(type: str, step: int | None = None, **data: object) -> Event:
    return Event(v=1, time=0.0, type=type, step=step, data=data)


def names(state: RunState) -> list[str]:
    return [spec.name for spec in available(state)]


def spec_of(name: str):
    return next(spec for spec in CHARTS if spec.name == name)


def state_of(*events: Event) -> RunState:
    state = RunState("r")
    state.feed(events)
    return state


def test_only_charts_with_values_are_there():
    assert names(RunState("r")) == []
    sft = state_of(event("step", 1, metrics={"loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-5}))
    assert names(sft) == ["loss", "grad", "lr"]
    dpo = state_of(
        event("step", 1, metrics={"rewards/margins": 0.1, "loss": 0.6}), event("eval", 1, metrics={"kl": 0.1})
    )
    assert names(dpo) == ["margin", "kl", "loss"]


def test_names_are_unique_and_titles_go_from_long_to_short():
    assert len({spec.name for spec in CHARTS}) == len(CHARTS)
    for spec in CHARTS:
        assert list(spec.titles) == sorted(spec.titles, key=len, reverse=True)


def test_every_kl_says_what_it_is():
    for spec in CHARTS:
        for title in spec.titles:
            assert "KL" not in title or "exact" in title or "sampled" in title


def test_train_is_a_line_and_evaluation_are_marks():
    state = state_of(event("step", 1, metrics={"loss": 0.6}), event("eval", 1, metrics={"loss": 0.5}))
    train, evals = Arrays().of(spec_of("loss"), state, 0.9)
    assert (train.kind, train.band, train.name) == ("line", True, "train")
    assert (evals.kind, evals.line, evals.name) == ("points", None, "eval")


def test_ln_2_is_named_where_it_is_the_loss_before_training():
    def labels(loss: str, *first: float) -> list[str]:
        events = [
            event("run.started", loss=loss),
            *(event("eval", 0, metrics={"loss": value}) for value in first),
        ]
        return [reference.label for reference in spec_of("loss").references(state_of(*events))]

    assert labels("sigmoid") == ["ln 2"]
    assert labels("sigmoid", math.log(2)) == ["ln 2"]
    assert labels("hinge", 1.0) == ["before training"]
    assert labels("hinge") == []


def test_limits_come_from_the_recipe_and_the_machine():
    started = event("run.started", recipe={"train": {"max_grad_norm": 1.0}}, memory_limit_gb=16.0)
    state = state_of(started)
    assert [one.label for one in spec_of("grad").references(state)] == ["clipped at 1"]
    assert [one.label for one in spec_of("memory").references(state)] == ["limit 16"]
    assert spec_of("grad").references(RunState("r")) == ()
    assert spec_of("memory").references(RunState("r")) == ()


def test_arrays_follow_a_series_that_grows_and_is_cut():
    state, arrays = RunState("r"), Arrays()
    spec = spec_of("loss")
    values: list[float] = []
    for step in range(1, 120):
        values.append(math.sin(step))
        state.feed([event("step", step, metrics={"loss": values[-1]})])
        if step % 3:
            continue
        (train,) = arrays.of(spec, state, 0.9)
        assert train.line is not None
        assert np.allclose(train.line, smooth(np.array(values), 0.9))
        assert arrays.of(spec, state, 0.9)[0].line is train.line
    before = arrays.version(spec, state)
    state.feed([event("run.resumed", 50), event("step", 51, metrics={"loss": 5.0})])
    assert arrays.version(spec, state) != before
    (train,) = arrays.of(spec, state, 0.9)
    assert train.steps.tolist() == list(range(1, 52))
    assert train.line is not None
    assert np.allclose(train.line, smooth(np.array([*values[:50], 5.0]), 0.9))


def test_smoothing_can_be_changed_and_left_out():
    state = state_of(*(event("step", step, metrics={"loss": float(step % 2)}) for step in range(1, 30)))
    arrays = Arrays()
    lines = [arrays.of(spec_of("loss"), state, weight)[0].line for weight in SMOOTHINGS]
    assert sum(line is None for line in lines) == 1
    kept = [line.std() for line in lines if line is not None]
    assert len(set(kept)) == len(kept)
    assert arrays.of(spec_of("kl"), state, 0.9) == []
