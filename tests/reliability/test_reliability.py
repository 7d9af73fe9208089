"""A few trials of most series, in `make test-long`; `make soak` runs all of them in full.

Kills at other moments are in train/test_worker.py, two commands on one folder in cli/test_train_twice.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
for folder in ("train", "prefs", ""):
    sys.path.insert(0, str(HERE.parent / folder))

import build_kills  # noqa: E402
import corruption  # noqa: E402
import disk  # noqa: E402
import kills  # noqa: E402
from tally import Tally, require, table  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kills.Whole]:
    with kills.undisturbed(tmp_path_factory.mktemp("undisturbed")) as made:
        yield made


@pytest.mark.long
@pytest.mark.parametrize(("kind", "count"), [("save", 2), ("reference", 1)])
def test_a_killed_run_ends_as_one_that_nobody_killed(
    tmp_path: Path, whole: kills.Whole, kind: str, count: int
) -> None:
    require(kills.kill_runs(whole, tmp_path, kind, count))


@pytest.mark.long
def test_a_killed_build_ends_as_one_that_nobody_killed(tmp_path: Path) -> None:
    require(build_kills.kill_builds(tmp_path, 1))


@pytest.mark.long
def test_a_damaged_file_is_never_used_without_a_word(tmp_path: Path) -> None:
    require(corruption.corrupt(tmp_path, 6))


@pytest.mark.skipif(not disk.can_mount(), reason="mounting a small volume needs root on Linux")
@pytest.mark.long
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, whole: kills.Whole) -> None:
    require(disk.fill_levels(whole, tmp_path, 1))


def test_a_broken_promise_is_counted_and_shown() -> None:
    tally = Tally("kills")
    tally.trial("fine")
    assert tally.held
    tally.trial("adapter differs", lost=True, traceback=True)
    assert not tally.held
    assert table([tally]).splitlines()[-1] == "| kills | 2 | 1 | 0 | 1 |"
    with pytest.raises(AssertionError, match="lost, traceback: adapter differs"):
        require(tally)
    assert not Tally("none").held
