from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import drive, make_app, make_run, press
from textual.pilot import Pilot

from localdpo.dashboard.appbase import frame_text
from localdpo.dashboard.keymap import hidden_screens
from localdpo.objective.registry import LOSSES
from localdpo.records.events import Event
from localdpo.records.runs import KINDS, beta_of, kind_of


def started(**data: object) -> Event:
    return Event(1, 0.0, "run.started", None, {"recipe": {"loss": {"beta": 0.1}}, **data})


def test_every_loss_trains_on_a_kind():
    assert {loss.data for loss in LOSSES.values()} == KINDS.keys()
    assert kind_of(None) == kind_of(started()) == KINDS["pairs"]


def test_an_old_log_tells_its_kind_by_the_loss():
    for name, loss in LOSSES.items():
        assert (
            kind_of(Event(1, 0.0, "run.started", None, {"recipe": {"loss": {"type": name}}}))
            == KINDS[loss.data]
        )
    assert kind_of(started(recipe={"loss": {"type": ["sft"]}})) == KINDS["pairs"]


def test_demonstrations_have_neither_beta_nor_pairs():
    assert beta_of(started(kind="pairs")) == beta_of(started(kind="unpaired")) == 0.1
    assert beta_of(started(kind="demonstrations")) is None
    assert [name for name, kind in KINDS.items() if hidden_screens(kind)] == ["unpaired", "demonstrations"]


@pytest.mark.slow
def test_a_run_on_demonstrations_shows_no_pairs(tmp_path: Path):
    app = make_app(make_run(tmp_path, "sft", loss="sft", pairs=False, kind="demonstrations"))

    async def act(pilot: Pilot[None]) -> None:
        top, header = frame_text(app).split("\n")[:2]
        assert "2 Samples  4 Compare" in top
        assert "β" not in header
        await press(pilot, "3")
        assert app.screen_name == "live"
        await press(pilot, "2")
        frame = frame_text(app)
        assert "against before training:" in frame
        assert "reference" not in frame
        await press(pilot, "6")
        assert "Pairs" not in frame_text(app).split("\n")[0]

    drive(app, act)
