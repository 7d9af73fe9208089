from __future__ import annotations

import shutil
import time
from dataclasses import fields
from pathlib import Path

import pytest
from made_runs import BEGAN, make_run
from rich.text import Text

from localdpo.dashboard.runstable import COLUMNS, SORTABLE, RunIndex, arranged, cell, fitting, lead, matches
from localdpo.dashboard.terminal import PALETTES, Abilities
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir, RunLock
from localdpo.records.runs import RunSummary


def lines(index: RunIndex) -> dict[str, RunSummary]:
    index.refresh(60.0)
    assert not index.is_reading
    return {line.name: line for line in index.runs}


def test_a_line_says_what_the_log_says(tmp_path: Path):
    make_run(tmp_path, "dpo")
    make_run(tmp_path, "dead", steps=20, end="run.crashed", began=BEGAN + 50, loss="ipo", beta=0.3)
    found = lines(RunIndex(tmp_path))
    assert list(found) == ["dead", "dpo"]
    dpo, dead = found["dpo"], found["dead"]
    assert (dpo.state, dpo.step, dpo.total, dpo.loss, dpo.beta) == (
        "finished",
        40,
        40,
        "sigmoid",
        0.1,
    )
    assert (dpo.accuracy, dpo.margin, dpo.kl, dpo.memory, dpo.win) == (0.8, 0.4, 0.05, 12.5, None)
    assert (dead.state, dead.step, dead.launched) == ("crashed", 20, BEGAN + 50)
    assert dead.ended[0].startswith("the worker was killed by SIGKILL")
    assert dpo.ended == ()


def test_only_what_changed_is_read_again(tmp_path: Path):
    run = make_run(tmp_path, "dpo", steps=20, end=None)
    index = RunIndex(tmp_path)
    assert lines(index)["dpo"].state == "crashed"
    before = index.runs
    index.refresh(60.0)
    assert index.runs == before
    with RunLock(run):
        assert lines(index)["dpo"].state == "running"
        with EventWriter(run.events) as log:
            log.write("step", 21, metrics={"loss": 0.5})
        assert lines(index)["dpo"].step == 21
    make_run(tmp_path, "new")
    assert set(lines(index)) == {"dpo", "new"}
    shutil.rmtree(tmp_path / "dpo")
    assert set(lines(index)) == {"new"}


def test_a_refresh_takes_no_longer_than_it_may(tmp_path: Path):
    for number in range(5):
        make_run(tmp_path, f"run-{number}", pairs=False)
    index = RunIndex(tmp_path)
    index.refresh(0.0)
    assert index.is_reading
    assert all(line.step == 0 for line in index.runs)
    assert all(line.step == 40 for line in lines(index).values())


def test_a_folder_without_runs(tmp_path: Path):
    assert lines(RunIndex(tmp_path / "none")) == {}


def line(name: str, **values: object) -> RunSummary:
    defaults = dict.fromkeys(field.name for field in fields(RunSummary))
    defaults |= {"state": "finished", "phase": "finished", "step": 3, "ended": (), "all_tied": False}
    return RunSummary(**{**defaults, "run": RunDir(name), **values})  # type: ignore[arg-type]


def column(title: str):
    return next(column for column in SORTABLE if column.title == title)


def test_sorting_puts_the_unknown_last_either_way():
    rows = [line("a", accuracy=0.5), line("b"), line("c", accuracy=0.9)]
    assert [one.name for one in arranged(rows, column("acc"), False, "")] == ["c", "a", "b"]
    assert [one.name for one in arranged(rows, column("acc"), True, "")] == ["a", "c", "b"]
    assert [one.name for one in arranged(rows, column("name"), False, "")] == ["a", "b", "c"]
    assert SORTABLE[0].title == "started"


def test_filtering_by_words():
    row = line("qwen-ultra-3", state="crashed")
    assert matches(row, "")
    assert matches(row, "ULTRA crash")
    assert not matches(row, "ultra finished")


def test_columns_leave_a_narrow_table_by_their_rank():
    assert [found.title for found, _ in fitting(300)] == [found.title for found in COLUMNS]
    narrow = [found.title for found, _ in fitting(60)]
    assert narrow[0] == "name"
    assert {"mem GB", "model", "beta", "win"}.isdisjoint(narrow)
    assert [found.title for found, _ in fitting(10)] == ["name"]
    for width in (40, 79, 80, 119, 120, 199):
        assert 14 + sum(wide + 2 for _, wide in fitting(width)) <= width


def test_cells_are_cut_and_the_unknown_is_a_dot():
    row = line("x" * 40, step=1234567, total=2000000)
    name, steps, win = (
        next(one for one in COLUMNS if one.title == title) for title in ("name", "step", "win")
    )
    assert cell(name, 10, row, 0.0, Abilities()).plain == "x" * 9 + "…"
    assert cell(steps, steps.width, row, 0.0, Abilities()).plain == "1.2M/2.0M"
    assert cell(win, 4, row, 0.0, Abilities()).plain == "·"
    assert cell(win, 4, line("a", win=0.613), 0.0, Abilities()).plain == "61%"


@pytest.mark.parametrize(("value", "shown"), [(0.0318, "0.0318"), (21.34, "21.3"), (None, "·")])
def test_a_little_memory_is_not_none(value: float | None, shown: str):
    assert cell(column("mem GB"), 6, line("a", memory=value), 0.0, Abilities()).plain.strip() == shown


def test_a_state_is_told_by_mark_and_word():
    dark = PALETTES["dark"]
    words: Text = lead(line("a", state="crashed"), "B", Abilities(), dark)
    assert words.plain == "B ✖ crashed"
    paused = line("a", state="running", phase="paused")
    assert lead(paused, None, Abilities(unicode=False), dark).plain == "  = paused"


def test_a_hundred_runs_that_stand_still_are_cheap(tmp_path: Path):
    for number in range(100):
        make_run(tmp_path, f"run-{number}", steps=0, pairs=False)
    index = RunIndex(tmp_path)
    lines(index)
    began = time.process_time()
    index.refresh(10.0)
    # Generous: it takes some 10 ms.
    assert time.process_time() - began < 0.5
