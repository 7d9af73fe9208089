"""10,000 broken rows over all formats of pairs: each is kept, skipped or named, none is lost."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from published_rows import ROWS, line_of, mutate

from localdpo.data.rows import InvalidRow, Skipped, read_rows
from localdpo.data.sources import open_source
from localdpo.data.types import Pair

MUTATED = 10_000
# A field with its place inside the row, or what is wrong with the whole line; one line.
NAMED = re.compile(
    r"[\w-]+(\[\d+\]|\.[\w-]+)*: \S.*|not valid JSON.*|byte \d+ is not UTF-8.*|expected .*|not usable.*"
)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_no_mutated_row_is_lost(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    count = -(-MUTATED // len(ROWS))
    lines = []
    while len(lines) < count:
        lines += [line_of(mutate(row, rng), rng) for row in ROWS[name]]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    seen: set[int] = set()
    kinds = set()
    for row in read_rows(open_source(str(path)), "pairs", None, name):
        seen.update(row.rows)
        kinds.add(type(row.result))
        if isinstance(row.result, InvalidRow):
            assert NAMED.fullmatch(row.result.message), row.result.message
        elif isinstance(row.result, Skipped):
            assert row.result.reason
        else:
            assert isinstance(row.result, Pair)
    assert seen == set(range(len(lines)))
    assert {Pair, InvalidRow} <= kinds
