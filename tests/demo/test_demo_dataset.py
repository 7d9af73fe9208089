from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo import incidents
from localdpo.demo import dataset
from localdpo.incidents import Facts

pytestmark = pytest.mark.slow

FACTS = Facts("checkout", "Oslo", "errors", 34, 25, 1200)
INCIDENT = (FACTS, incidents.report(FACTS, random.Random(0)))


@given(st.integers(0, 2**32))
def test_splits_are_seeded_and_share_no_facts(seed: int) -> None:
    counts = {"a": 30, "b": 20, "c": 10}
    splits = dataset.split_incidents(seed, counts)
    assert splits == dataset.split_incidents(seed, counts)
    assert {name: len(rows) for name, rows in splits.items()} == counts
    assert len({facts for rows in splits.values() for facts, _ in rows}) == 60


def test_rows_survive_a_round_trip(tmp_path: Path) -> None:
    rows = [dataset.prompt_row(INCIDENT), dataset.demonstration_row(INCIDENT, random.Random(1))]
    path = tmp_path / "new" / "rows.jsonl"
    dataset.write_rows(path, rows)
    assert dataset.read_rows(path) == rows
    assert incidents.parse(rows[1]["messages"][1]["content"]) is not None
