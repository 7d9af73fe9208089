"""Every screen as text, at three sizes, against golden/*.txt; LOCALDPO_UPDATE_GOLDEN=1 writes them anew.

A frame under NO_COLOR has a file of its own only where it differs (charts show their bands as characters).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_runs import BEGAN, drive, make_app, make_evaluation, make_run, press, resize, shown
from textual.pilot import Pilot

from localdpo.dashboard.app import DashboardApp, render_once
from localdpo.dashboard.appbase import frame_text
from localdpo.dashboard.keymap import SCREEN_TITLES
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden"
SIZES = ((80, 24), (120, 36), (200, 60))
BARS = ("TopBar", "RunHeader", "KeyBar")
# What must not be blank, screen by screen.
REGIONS = {
    "live": ("#tiles", "LineChart"),
    "samples": ("StepSlider", "#prompt Static", "#before Static", "#now Static"),
    "pairs": ("StepSlider", "#list", "#chosen Static", "#rejected Static", "#legend"),
    "compare": ("#answers-status",),
    "judge": ("#judged", "#rates Static", "#conclusion", "#verdicts"),
    "runs": ("#sorting", "#runs", "LineChart", "#options Static"),
}


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDir]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    make_run(Path("runs"), "early", began=BEGAN - 90_000, loss="ipo", beta=0.3, seed=1)
    make_run(Path("runs"), "dead", began=BEGAN - 5_000, steps=20, end="run.crashed")
    run = make_run(Path("runs"), "dpo")
    path = make_evaluation(run)
    os.utime(path, (BEGAN, BEGAN))
    yield run
    monkeypatch.undo()
    time.tzset()


def check_regions(app: DashboardApp, screen: str) -> str:
    """Nothing of the screen is blank; the frame that was looked at."""
    frame = frame_text(app)
    lines = [line.ljust(app.size.width) for line in frame.split("\n")]
    for selector in (*BARS, *REGIONS[screen]):
        shown = [
            widget for widget in app.screen.query(selector) if widget.region.area and widget.is_on_screen
        ]
        assert shown, f"{screen}: {selector} is not on the screen"
        for region in (widget.region for widget in shown):
            text = [line[region.x : region.right] for line in lines[region.y : region.bottom]]
            assert "".join(text).strip(), f"{screen}: {selector} is blank"
            if selector == "LineChart":
                inner = "".join(line[1:-1] for line in text[1:-2])
                drawn = sum(char not in " │┤└─0123456789.-" for char in inner)
                assert drawn >= 5, f"{screen}: a chart is empty"
    return frame


CASES = [(screen, "dark") for screen in SCREEN_TITLES] + [
    pytest.param(screen, "nocolor", marks=[] if screen == "live" else [pytest.mark.long])
    for screen in SCREEN_TITLES
]


@pytest.mark.parametrize(("screen", "colours"), CASES)
def test_frames(run: RunDir, monkeypatch: pytest.MonkeyPatch, screen: str, colours: str) -> None:
    """One terminal that is resized: every size shows what it shows when it is the first."""
    environment = {}
    if colours == "nocolor":
        environment = {"NO_COLOR": "1"}
        monkeypatch.setenv("NO_COLOR", "1")
    # Colours decide what is drawn on one screen alone, whose charts show their bands as characters.
    sizes = SIZES if colours == "dark" or screen == "live" else SIZES[1:2]
    app = make_app(run, screen, environment=environment)
    frames = []

    async def act(pilot: Pilot[None]) -> None:
        if screen == "runs":
            await shown(pilot, "early")
            await press(pilot, "space", "down", "space")
        for size in sizes:
            await resize(pilot, *size)
            frames.append(check_regions(app, screen))
            if colours == "nocolor":
                assert coloured(app) == set()

    drive(app, act, SIZES[0])
    for (width, height), frame in zip(sizes, frames, strict=True):
        compare(f"{screen}-{width}x{height}", colours, frame)


def coloured(app: DashboardApp) -> set[str]:
    """The colours of the frame that are no grey."""
    found = set()
    for strip in app.screen._compositor.render_strips():
        for style in (segment.style for segment in strip):
            for colour in (style.color, style.bgcolor) if style is not None else ():
                if colour is not None and colour.triplet is not None and len(set(colour.triplet)) > 1:
                    found.add(str(colour.triplet))
    return found


def compare(name: str, colours: str, frame: str) -> None:
    plain, own = GOLDEN / f"{name}.txt", GOLDEN / f"{name}-nocolor.txt"
    path = plain if colours == "dark" else own
    if os.environ.get("LOCALDPO_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        if colours == "dark" or frame != plain.read_text():
            path.write_text(frame)
        else:
            own.unlink(missing_ok=True)
    expected = path if path.exists() else plain
    assert frame == expected.read_text(), f"{expected.name}: see LOCALDPO_UPDATE_GOLDEN in this file"


@pytest.mark.long
def test_ascii_frames_are_ascii(run: RunDir) -> None:
    app = make_app(run, "live", environment={"LOCALDPO_ASCII": "1"})

    async def act(pilot: Pilot[None]) -> None:
        for number, screen in enumerate(SCREEN_TITLES, start=1):
            await press(pilot, str(number))
            text = check_regions(app, screen)
            assert text.isascii(), screen
            assert text.count("?") < 10, screen
            await press(pilot, "question_mark")
            assert frame_text(app).isascii(), screen
            await press(pilot, "escape")
        await press(pilot, "colon")
        assert frame_text(app).isascii()
        await press(pilot, "escape")
        # The last screen is that of the runs, which has a dialog of its own.
        await press(pilot, "D")
        assert "Delete runs/dpo?" in frame_text(app)
        assert frame_text(app).isascii()

    drive(app, act)


def test_one_frame_is_printed_without_a_terminal(run: RunDir) -> None:
    text = render_once(make_app(run, "samples"), (100, 30))
    assert "2 Samples" in text
    assert "\x1b" not in text
    assert len(text.splitlines()) == 30
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("theme", ["light", "contrast", "16"])
@pytest.mark.every(3)
def test_every_theme_draws_every_screen(run: RunDir, theme: str) -> None:
    app = make_app(run, "live")

    async def act(pilot: Pilot[None]) -> None:
        app.set_theme(theme)
        for number, screen in enumerate(SCREEN_TITLES, start=1):
            await press(pilot, str(number))
            check_regions(app, screen)

    drive(app, act)


@pytest.mark.long
def test_any_number_of_resizes(run: RunDir) -> None:
    import random

    numbers = random.Random(7)
    app = make_app(run, "live")

    async def act(pilot: Pilot[None]) -> None:
        for number in range(12):
            if number % 2 == 0:
                await press(pilot, str(number // 2 + 1))
            await resize(pilot, numbers.randint(1, 200), numbers.randint(1, 60))
        await resize(pilot, 120, 36)
        await press(pilot, "1")
        check_regions(app, "live")

    drive(app, act, paint=True)
