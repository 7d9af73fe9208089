from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_runs import drive, make_app, make_run, settle
from textual.pilot import Pilot

from localdpo.dashboard.appbase import frame_text
from localdpo.dashboard.state import RunState
from localdpo.dashboard.widgets import log as log_module
from localdpo.dashboard.widgets.log import LogView, colour_of, log_line
from localdpo.records.events import Event


@pytest.fixture(autouse=True)
def utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def event(type: str, step: int | None = None, **data: Any) -> Event:
    return Event(v=1, time=3661.0, type=type, step=step, data=data)


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            event(
                "step", 1204, metrics={"loss": 0.5121, "rewards/margins": 0.91, "tokens_per_second": 1846.2}
            ),
            "01:01:01 step 1204 loss 0.512 margin 0.91 tokens/s 1846",
        ),
        (event("step", 3, metrics={"loss": None}), "01:01:01 step 3 loss -"),
        (event("eval", 20, metrics={"kl": 0.05}), "01:01:01 eval 20 KL 0.05"),
        (
            event("notice", 7, level="warning", name="kl", message="m", why="w"),
            "01:01:01 notice warning kl: m | w",
        ),
        (event("run.resumed", 7), "01:01:01 resumed from step 7"),
        (
            event("checkpoint", 7, path="checkpoints/a\x1bb"),
            "01:01:01 checkpoint step 7/9 path checkpoints/a\\x1bb",
        ),
        (event("step", None, metrics={"loss": 1.0}), "01:01:01 step loss 1"),
    ],
)
def test_lines_read_well(found: Event, line: str):
    assert log_line(found, 9) == line


def test_what_is_wrong_has_its_colour():
    assert colour_of(event("notice", level="critical")) == "critical"
    assert colour_of(event("notice", level="info")) == "ink"
    assert colour_of(event("run.crashed")) == "critical"
    assert colour_of(event("step")) == "muted"


def test_a_long_log_is_trimmed_from_its_beginning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_module, "_KEPT", 50)
    monkeypatch.setattr(log_module, "_SLACK", 20)
    app = make_app(make_run(Path("runs"), "r"))

    async def act(pilot: Pilot[None]) -> None:
        view = app.screen.query_one(LogView)
        view.clear()
        state = RunState("r")
        view.filter = "loss"
        for step in range(1, 131):
            state.feed([event("step", step, metrics={"loss": float(step)})])
            view.show(state)
            if step == 60:
                view.action_scroll_by(-20)
        shown, kept = view.count
        assert shown == kept
        assert 50 <= kept <= 70
        assert not view.follow
        view.go_to_end()
        await settle(pilot)
        assert "step 130 loss 130" in frame_text(app)
        view.action_scroll_by(-1000)
        await settle(pilot)
        assert "step 130 loss" not in frame_text(app)
        view.action_scroll_by(1000)
        assert view.follow

    drive(app, act)
