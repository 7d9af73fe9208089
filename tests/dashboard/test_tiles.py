from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import drive, make_app, make_run
from textual.pilot import Pilot

from localdpo.dashboard.appbase import frame_text
from localdpo.dashboard.state import RunState
from localdpo.dashboard.widgets.tiles import Tile, TileRow, sparkline, tiles_of, trend
from localdpo.records.events import Event


def state_of(rows: list[dict[str, float | None]]) -> RunState:
    state = RunState("r")
    started = Event(1, 0.0, "run.started", None, {"memory_limit_gb": 36.0})
    steps = [Event(1, 0.0, "step", step, {"metrics": row}) for step, row in enumerate(rows, start=1)]
    state.feed([started, *steps])
    return state


def test_the_tiles_are_those_that_the_run_has_values_for():
    assert tiles_of(RunState("r")) == []
    dpo = state_of(
        [{"rewards/margins": 0.5, "loss": 0.6, "tokens_per_second": 1840.4, "peak_memory_gb": 21.3}]
    )
    assert [(tile.name, tile.figure) for tile in tiles_of(dpo)] == [
        ("margin", "0.5"),
        ("loss", "0.6"),
        ("tokens/s", "1,840"),
        ("memory", "21.3/36 GB"),
    ]
    cached = state_of([{"peak_memory_gb": 21.3, "memory_gb": 23.0, "cache_memory_gb": 2.0}])
    assert [tile.figure for tile in tiles_of(cached)] == ["23/36 GB"]
    sft = state_of([{"loss": 2.0, "grad_norm": 1.0, "logps/chosen": -3.0}])
    assert [tile.name for tile in tiles_of(sft)] == ["loss", "grad norm", "logp"]


def test_a_figure_that_is_smoothed_says_so():
    state = state_of([{"loss": 1.0, "peak_memory_gb": 21.3}, {"loss": 0.0, "peak_memory_gb": 21.4}])
    assert [tile.figure for tile in tiles_of(state, 0.9)] == ["~0.474", "21.4/36 GB"]
    assert [tile.figure for tile in tiles_of(state)] == ["0", "21.4/36 GB"]
    assert [tile.name for tile in tiles_of(state, words="mem loss")] == []
    assert [tile.name for tile in tiles_of(state, words="MEM")] == ["memory"]


def test_pairs_that_are_all_tied_have_no_accuracy():
    tied = {"rewards/accuracies": 0.0, "rewards/ties": 1.0}
    ranked = {"rewards/accuracies": 0.5, "rewards/ties": 0.25}
    assert [tile.figure for tile in tiles_of(state_of([tied]))] == ["all tied"]
    assert [tile.figure for tile in tiles_of(state_of([ranked, tied]))] == ["all tied"]
    assert [tile.figure for tile in tiles_of(state_of([tied, ranked]))] == ["0.5"]


def test_a_value_that_is_not_finite_shows_at_once():
    assert tiles_of(state_of([{"loss": 0.5}, {"loss": None}]))[0].figure == "-"


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 80, 120])
def test_boxes_show_their_figures_whole(width: int, tmp_path: Path):
    app = make_app(make_run(tmp_path, "a"))
    figures = {"margin": "~0.216", "grad norm": "~0.000123", "tokens/s": "12,345", "memory": "0.0664/25.3 GB"}
    tiles = [Tile(name, name, figure, "up", (1.0, 2.0)) for name, figure in figures.items()]

    async def act(pilot: Pilot[None]) -> None:
        app.screen.query_one("#tiles", TileRow).show(tiles)
        await pilot.pause()
        top = app.screen.query_one("#tiles", TileRow).region.y
        names, shown = frame_text(app).split("\n")[top : top + 2]
        count = names.count("╭")
        assert count == {40: 3, 80: 4, 120: 4}[width]
        assert all(name in names and figure in shown for name, figure in list(figures.items())[:count])
        assert names.endswith("╮")
        assert len(names) == len(shown) == width

    drive(app, act, (width, 32))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.linspace(0, 1, 100), "up"),
        (np.linspace(1, 0, 100), "down"),
        (np.full(100, 0.7), "level"),
        (np.tile([0.0, 1.0], 50), "level"),
        (np.array([1.0]), "level"),
        (np.array([]), "level"),
        (np.array([math.nan, 1.0, math.nan]), "level"),
    ],
)
def test_the_trend_is_told_from_noise(values: np.ndarray, expected: str):
    assert trend(values) == expected


@settings(deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), max_size=80), st.integers(0, 20), st.booleans())
def test_any_course_fits_its_cells(course: list[float], cells: int, unicode: bool):
    bars = sparkline(course, cells, unicode)
    assert len(bars) <= cells
    assert unicode or bars.isascii()


def test_a_course_from_low_to_high():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8, True) == "▁▂▃▄▅▆▇█"
    assert sparkline([3.0, 3.0], 8, True) == "▁▁"
    assert sparkline([], 8, True) == ""
