"""Names, rows and answers on every screen: shown as they are, never obeyed by terminal or Textual."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_answers import write_answers
from made_runs import drive, make_app, make_evaluation, make_run, press, settle
from rich.segment import ControlType, Segment
from textual.color import Color
from textual.pilot import Pilot

from localdpo.core.text import escaped
from localdpo.dashboard.appbase import frame_svg, frame_text
from localdpo.dashboard.terminal import CharFilter, without_controls
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow

HOSTILE = "[red][@click=app.quit]x[/][link=y]\x1b]52;c;SEVZ\x07\x9b2J\r\b\x7f\u202e\ud800"
# What stands for something to the program; every other text of a file may hold anything.
MEANT = {"type", "path", "status", "outcome", "name", "first", "second", "statuses", "order", "reading"}
MEANT |= {"direction", "winner", "key", "contestant", "contestants", "role", "id", "versus", "preferred"}


def spoiled(value: Any, key: str = "") -> Any:
    """`value` with HOSTILE in front of every text in it."""
    if isinstance(value, dict):
        return {name: spoiled(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [spoiled(one, key) for one in value]
    return f"{HOSTILE}{value}" if isinstance(value, str) and key not in MEANT else value


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    made = make_run(Path("runs"), "a")
    run = RunDir(made.path.rename(made.path.with_name("a[red][@click=app.quit]\x1b]0;x\x07")))
    make_evaluation(run)
    write_answers(run.path)
    for path in [run.events, *run.path.glob("pairs/*.json"), *run.path.glob("eval/*.json")]:
        lines = [spoiled(json.loads(line)) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.mark.parametrize("screen", ["live", "samples", "pairs", "compare", "judge", "runs"])
def test_a_screen_shows_hostile_text_as_it_is(run: RunDir, screen: str) -> None:
    app = make_app(run, screen)

    async def act(pilot: Pilot[None]) -> None:
        for keys in ((), ("n", "enter"), ("escape", "question_mark"), ("escape",)):
            await press(pilot, *keys)
            frame = frame_text(app)
            assert [char for char in frame if escaped(char) != char] == []
            assert app.is_running
        assert not [char for char in frame_svg(app) if escaped(char) != char]
        assert "[red]" in frame

    drive(app, act)


def test_a_notification_is_never_markup(run: RunDir) -> None:
    app = make_app(run, "live")

    async def act(pilot: Pilot[None]) -> None:
        app.notify(f"{HOSTILE} is deleted")
        app.screen.notify(f"{HOSTILE} is finished", severity="warning")
        await settle(pilot)
        assert frame_text(app).count("[red][@click=app.quit]x[/][link=y]") >= 2

    drive(app, act)


def test_what_a_widget_lets_pass_is_taken_out_in_the_last_filter() -> None:
    home = Segment("\x1b[H", control=[(ControlType.HOME,)])
    segments = CharFilter(without_controls).apply([Segment("a\x1b[2J\x9bé日\xad"), home], Color(0, 0, 0))
    assert [segment.text for segment in segments] == ["a[2Jé日?", "\x1b[H"]
