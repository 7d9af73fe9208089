"""Broken rows of every format go through check, clean and convert without a traceback or a silent loss."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from published_rows import ROWS, line_of, mutate

from localdpo.core.errors import LocalDPOError
from localdpo.data.encode import Limits
from localdpo.prefs.check import as_object, check, finding_lines, summary_lines
from localdpo.prefs.checks.base import CheckSettings
from localdpo.prefs.rewrite import clean, convert, writable
from localdpo.prefs.settings import open_tokenizer

pytestmark = pytest.mark.slow

COUNT = 100


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return open_tokenizer("demo:model")


@pytest.mark.parametrize("name", sorted(ROWS))
def test_broken_rows_are_reported_and_cleaned(name: str, tokenizer: Any, tmp_path: Path) -> None:
    rng = random.Random(f"prefs {name}")
    lines = [line_of(mutate(row, rng), rng) for _ in range(COUNT // len(ROWS[name])) for row in ROWS[name]]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    settings = CheckSettings(
        format_name=name, tokenizer=tokenizer, limits=Limits(64), against=["demo:prompts/heldout"]
    )
    report = check(str(path), settings)
    json.dumps(as_object(report))
    text = [*summary_lines(report), *(line for one in report.results for line in finding_lines(report, one))]
    assert all("\n" not in line for line in text)
    done = clean(str(path), tmp_path / "clean.jsonl", settings=settings)
    assert done.read == len(lines)
    assert len((tmp_path / "clean.jsonl").read_text().splitlines()) == done.kept
    if done.kept:
        again = check(str(tmp_path / "clean.jsonl"), settings)
        assert [one.check.name for one in again.results if one.check.level == "error"] == []
        for to in writable():
            _convert(tmp_path / "clean.jsonl", tmp_path / "out.jsonl", to, name)


def _convert(source: Path, out: Path, to: str, read_as: str) -> None:
    """A conversion writes all that it read, or nothing and says which rows are in the way."""
    complaints: tuple[str, ...] = ()
    written = 0
    try:
        written = convert(str(source), out, to, format_name=read_as, force=True).written
    except LocalDPOError as error:
        complaints = error.lines
    assert bool(written) != bool(complaints)
    assert all(line.startswith(f"{source}:") for line in complaints)
    assert out.exists() == bool(written)
    if written:
        assert len(out.read_text().splitlines()) == written
        out.unlink()
