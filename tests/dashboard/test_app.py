from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_runs import NOW, drive, make_app, make_run, press, settle, shown, until
from textual import events
from textual.pilot import Pilot
from textual.widgets import OptionList

from localdpo.dashboard.app import DashboardApp
from localdpo.dashboard.appbase import frame_svg, frame_text
from localdpo.dashboard.keymap import SCREEN_TITLES
from localdpo.dashboard.screens.base import RunScreen
from localdpo.dashboard.screens.dialogs import ChoiceDialog, CommandsScreen, HelpScreen
from localdpo.dashboard.terminal import THEME_NAMES
from localdpo.dashboard.widgets.bars import TopBar
from localdpo.records.control import CommandFile, take
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir, RunLock

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def finished() -> RunDir:
    return make_run(Path("runs"), "dpo")


@pytest.fixture
def running() -> Iterator[RunDir]:
    run = make_run(Path("runs"), "dpo", steps=20, end=None)
    with RunLock(run):
        yield run


def name_of(app: DashboardApp) -> str:
    assert isinstance(app.screen, RunScreen)
    return app.screen.NAME


def messages(app: DashboardApp) -> list[str]:
    return [notice.message for notice in app._notifications]


def commands(run: RunDir) -> list[tuple[str | None, bool]]:
    return [(found.command, found.save) for found in take(run)]


def reply(run: RunDir, found: CommandFile, message: str, ok: bool = True) -> None:
    with EventWriter(run.events) as log:
        log.write("control", 20, id=found.id, command=found.command, ok=ok, message=message)


# --- screens -------------------------------------------------------------------------------------------


def test_the_number_keys_go_to_the_screens(finished: RunDir):
    app = make_app(finished)

    async def act(pilot: Pilot[None]) -> None:
        assert name_of(app) == "live"
        for number, name in enumerate(SCREEN_TITLES, start=1):
            await press(pilot, str(number))
            assert name_of(app) == name
            assert f"{number} {SCREEN_TITLES[name]}" in frame_text(app)
        await press(pilot, "1")
        assert name_of(app) == "live"

    drive(app, act)


def test_a_click_goes_to_a_screen_and_works_like_a_key(finished: RunDir):
    app = make_app(finished)

    async def act(pilot: Pilot[None]) -> None:
        column = frame_text(app).splitlines()[0].index("2 Samples")
        await pilot.click(TopBar, offset=(column + 2, 0))
        await settle(pilot)
        assert name_of(app) == "samples"
        last = frame_text(app).splitlines()[-1]
        await pilot.click(offset=(last.index("? help"), 35))
        await settle(pilot)
        assert isinstance(app.screen, HelpScreen)

    drive(app, act)


def test_without_a_run_it_opens_on_runs_and_stays_there():
    app = make_app(None)

    async def act(pilot: Pilot[None]) -> None:
        assert name_of(app) == "runs"
        assert "no runs yet" in frame_text(app)
        await press(pilot, "1", "p", "x", "c", "e", "enter", "space", "R", "D")
        assert name_of(app) == "runs"
        assert any("no run is open" in message for message in messages(app))

    drive(app, act)


def test_help_lists_the_keys_and_closes(finished: RunDir):
    app = make_app(finished, "samples")

    async def act(pilot: Pilot[None]) -> None:
        for closing in ("escape", "question_mark", "q"):
            await press(pilot, "question_mark")
            assert isinstance(app.screen, HelpScreen)
            text = frame_text(app)
            assert "Samples (this screen)" in text
            assert "the next prompt" in text
            await press(pilot, closing)
            assert name_of(app) == "samples"

    drive(app, act, size=(120, 60))


def test_the_help_leads_to_the_commands_as_it_says(finished: RunDir):
    app = make_app(finished)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "question_mark")
        assert ": lists all commands" in frame_text(app)
        await press(pilot, "colon")
        assert isinstance(app.screen, CommandsScreen)
        await press(pilot, "escape", "escape")
        assert name_of(app) == "live"

    drive(app, act)


def test_the_theme_key_goes_round(finished: RunDir):
    app = make_app(finished)

    async def act(pilot: Pilot[None]) -> None:
        seen = [app.theme]
        for _ in THEME_NAMES:
            await press(pilot, "T")
            seen.append(app.theme)
        assert seen == [*THEME_NAMES, THEME_NAMES[0]]

    drive(app, act)


def test_few_colours_choose_their_theme(finished: RunDir):
    environment = {"TERM": "xterm", "COLORTERM": ""}
    assert make_app(finished, environment=environment).theme == "16"
    assert make_app(finished).theme == "dark"


# --- leaving -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["q", "ctrl+q"])
def test_leaving_stops_nothing(running: RunDir, key: str):
    app = make_app(running)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, key)

    drive(app, act)
    assert app.return_code == 0
    assert commands(running) == []


@pytest.mark.parametrize(("opens", "types"), [("j", "zz"), ("x", "cc"), ("x", "ss")])
def test_a_box_is_left_once_however_fast_its_keys_come(opens: str, types: str, running: RunDir):
    app = make_app(running)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, opens)
        for letter in types:
            app.screen.post_message(events.Key(letter, letter))
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        await press(pilot, "2", "1")
        assert name_of(app) == "live"

    drive(app, act)
    assert len(commands(running)) == ("s" in types)


def test_the_palette_is_left_before_it_says_that_nothing_matches(finished: RunDir):
    app = make_app(finished)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "colon", *"qqq")
        palette = app.screen
        assert isinstance(palette, CommandsScreen)
        await until(pilot, lambda: palette._no_matches_timer is not None)
        await press(pilot, "escape")
        assert palette._no_matches_timer is None
        palette.dismiss()
        assert name_of(app) == "live"

    drive(app, act)


def test_ctrl_c_asks_and_says_how_to_leave(running: RunDir):
    app = make_app(running)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "ctrl+c")
        assert isinstance(app.screen, ChoiceDialog)
        assert "To leave and let it train: c, then q." in frame_text(app)
        await press(pilot, "escape")
        assert name_of(app) == "live"

    drive(app, act)
    assert commands(running) == []


def test_ctrl_c_without_a_worker_says_how_to_leave(finished: RunDir):
    app = make_app(finished)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "ctrl+c")
        assert name_of(app) == "live"
        assert messages(app) == ["press q to leave the dashboard"]

    drive(app, act)


# --- commands ------------------------------------------------------------------------------------------


COMMANDS = (
    (["p"], [("pause", True)]),
    (["c"], [("checkpoint", True)]),
    (["e"], [("evaluate", True)]),
    (["x", "s"], [("stop", True)]),
    (["x", "w"], [("stop", False)]),
    (["x", "enter"], [("stop", True)]),
    (["x", "down", "enter"], [("stop", False)]),
    (["x", "c"], []),
    (["x", "escape"], []),
    (["x", "down", "down", "enter"], []),
    (["p", "p"], [("pause", True), ("resume", True)]),
    (["p", "p", "p"], [("pause", True), ("resume", True), ("pause", True)]),
)


def test_keys_give_the_worker_commands(running: RunDir):
    app = make_app(running)

    async def act(pilot: Pilot[None]) -> None:
        assert "p pause" in frame_text(app)
        for keys, expected in COMMANDS:
            await press(pilot, *keys)
            assert ("sent:" in frame_text(app).splitlines()[0]) is bool(expected), keys
            found = take(running)
            assert [(command.command, command.save) for command in found] == expected, keys
            for command in found:
                reply(running, command, "done")
            await until(pilot, lambda: "sent:" not in frame_text(app).splitlines()[0])

    drive(app, act)


def test_what_was_asked_waits_until_it_is_answered(running: RunDir):
    app = make_app(running)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "p")
        assert "sent: pause, 0s" in frame_text(app)
        (found,) = take(running)
        reply(running, found, "paused after step 20")
        await until(pilot, lambda: "sent:" not in frame_text(app).splitlines()[0])
        assert "paused after step 20" in messages(app)
        await shown(pilot, "paused after step 20")

    drive(app, act)


def test_all_that_waits_is_listed_in_80_columns_and_hides_no_question(running: RunDir):
    app = make_app(running)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "p", "c", "e")
        assert "sent: pause, checkpoint, evaluate, 0s (X cancels)" in frame_text(app).splitlines()[0]
        for found in take(running):
            reply(running, found, f"{found.command} is done")
        await shown(pilot, "evaluate is done")
        await press(pilot, "x")
        assert messages(app) == []
        assert "stop without saving" in frame_text(app)

    drive(app, act, size=(80, 24))


def test_a_paused_run_is_let_go_on(running: RunDir):
    with EventWriter(running.events) as log:
        log.write("run.paused", 20)
    app = make_app(running)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "p")

    drive(app, act)
    assert commands(running) == [("resume", True)]


def test_the_desktop_is_notified_of_what_comes_while_it_looks(
    running: RunDir, monkeypatch: pytest.MonkeyPatch
):
    told: list[str] = []
    monkeypatch.setattr(DashboardApp, "alert", lambda app, text: told.append(text))
    fields = {"level": "warning", "name": "kl", "message": "KL is high"}
    with EventWriter(running.events) as log:
        log.write("notice", 20, **fields)
        app = make_app(running)

        async def act(pilot: Pilot[None]) -> None:
            log.write("notice", 20, **{**fields, "message": "not told"})
            await until(pilot, lambda: len(app.feed.state.notices) == 2 if app.feed else False)
            await press(pilot, "N")
            assert told == []
            log.write("notice", 20, **fields)
            log.write("run.stopped", 20, reason="ctl", saved=True)
            await until(pilot, lambda: len(told) == 2)
            assert told == ["dpo: warning: KL is high", "dpo stopped at step 20"]
            await press(pilot, "N")
            assert not app.notifies

        drive(app, act)


def test_without_a_worker_a_command_says_so(finished: RunDir):
    app = make_app(finished)

    async def act(pilot: Pilot[None]) -> None:
        for command in ("pause", "checkpoint", "evaluate", "stop"):
            await press(pilot, "x" if command == "stop" else command[0])
            assert name_of(app) == "live"
            assert any(f"nothing to {command}" in message for message in messages(app)), command
        assert "p pause" not in frame_text(app)

    drive(app, act)
    assert commands(finished) == []


def test_a_crash_is_shown_with_the_resume_command():
    run = make_run(Path("runs"), "dpo", steps=20, end=None)
    lock = RunLock(run)
    lock.acquire()
    app = make_app(run, "samples")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "c")
        lock.release()
        with EventWriter(run.events) as log:
            log.write(
                "run.crashed",
                20,
                signal="SIGKILL",
                lines=["the worker was killed by SIGKILL", "resume with: x"],
            )
        await shown(pilot, "✖ the worker was killed by SIGKILL")
        text = frame_text(app)
        assert "resume with: localdpo train --resume --run dpo" in text
        assert "the worker ended before it answered" in messages(app)
        await press(pilot, "2", "1")
        assert name_of(app) == "live"

    drive(app, act)


# --- command palette and export ------------------------------------------------------------------------


def test_the_palette_has_our_commands_only(finished: RunDir):
    app = make_app(finished, "samples")

    async def act(pilot: Pilot[None]) -> None:
        titles = [command.title for command in app.get_system_commands(app.screen)]
        assert "Go to Runs: all runs of this folder" in titles
        assert "The next prompt" in titles
        assert "Theme: light" in titles
        assert "Export screen to SVG" in titles
        assert len(titles) == len(set(titles))
        assert not {"Quit", "Keys", "Maximize", "Screenshot", "Theme"} & set(titles)
        await press(pilot, "colon")
        await press(pilot, *"to pairs")
        await shown(pilot, "Go to Pairs:")
        await press(pilot, "enter")
        await until(pilot, lambda: app.screen_name == "pairs")

    drive(app, act)


def test_a_palette_command_works_on_the_screen_below(finished: RunDir):
    app = make_app(finished, "samples")

    async def act(pilot: Pilot[None]) -> None:
        assert "prompt 1 of 2" in frame_text(app)
        await press(pilot, "colon")
        await press(pilot, *"xt prompt")
        await until(pilot, lambda: app.screen.query_one(OptionList).option_count == 1)
        await press(pilot, "enter")
        await shown(pilot, "prompt 2 of 2")

    drive(app, act)


def test_the_screen_is_exported_without_an_address(finished: RunDir, tmp_path: Path):
    app = make_app(finished, "samples")

    async def act(pilot: Pilot[None]) -> None:
        expected = frame_svg(app)
        path = app.export_svg()
        await settle(pilot)
        text = path.read_text()
        assert text.startswith("<svg")
        assert "Samples" in text
        assert "@font-face" not in text
        assert "url(http" not in text
        assert text == expected
        assert any(str(path) in message for message in messages(app))

    drive(app, act)
    assert [path.suffix for path in tmp_path.iterdir() if path.is_file()] == [".svg"]


def test_a_picture_that_cannot_be_written_is_said(finished: RunDir, monkeypatch: pytest.MonkeyPatch):
    app = make_app(finished, "samples")

    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("localdpo.dashboard.app.write_text", refuse)

    async def act(pilot: Pilot[None]) -> None:
        app.export_svg()
        await settle(pilot)
        assert any("cannot be written: Permission denied" in message for message in messages(app))

    drive(app, act)


# --- the house -----------------------------------------------------------------------------------------


def test_the_dashboard_loads_no_model():
    heavy = {"mlx", "mlx_lm", "transformers", "datasets", "torch", "anthropic"}
    screens = ", ".join(f"localdpo.dashboard.screens.{name}" for name in SCREEN_TITLES)
    loaded = f"json.dumps(sorted({heavy} & set(sys.modules)))"
    code = f"import sys, json, localdpo.dashboard.app, {screens}; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_a_long_log_is_read_in_pieces(finished: RunDir):
    line = finished.events.read_bytes().splitlines(keepends=True)[4]
    finished.events.write_bytes(finished.events.read_bytes() + line * 10_000)
    app = make_app(finished)

    async def act(pilot: Pilot[None]) -> None:
        assert app.feed is not None
        await until(pilot, lambda: app.feed is not None and not app.feed.behind)
        assert app.feed.state.count > 10_000

    drive(app, act)


@pytest.mark.parametrize("size", [(20, 6), (40, 12), (1, 1)])
@pytest.mark.every(3)
def test_small_terminals_do_not_crash(finished: RunDir, size: tuple[int, int]):
    app = make_app(finished)

    async def act(pilot: Pilot[None]) -> None:
        for key in "123456":
            await press(pilot, key)
        await press(pilot, "question_mark")

    drive(app, act, size, paint=True)


def test_the_time_of_the_app_is_the_clocks(finished: RunDir):
    assert make_app(finished).now() == NOW
