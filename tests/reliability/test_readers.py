"""Whatever stands in a file, its reader refuses it in lines or reads it; nothing else comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutations import READERS, tried

pytestmark = pytest.mark.slow

# Each within a second or two on two cores; the tokenizer is parsed in full each time.
FEW = {"models": 40, "tokenizers": 30, "tokenizer configurations": 30, "adapters": 60}
FEW |= dict.fromkeys(("recipes", "checks", "prices", "journals of labels", "logs in the dashboard"), 80)


@pytest.mark.parametrize("kind", READERS)
def test_nothing_but_an_error_in_lines_comes_out_of_a_reader(kind: str, tmp_path: Path) -> None:
    count = FEW.get(kind, 150)
    found = tried(READERS[kind], tmp_path / "it", count)
    assert sum(found.values()) == count
