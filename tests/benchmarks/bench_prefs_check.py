"""Time and memory of `prefs check` on many rows, in a process of its own; `make bench` runs it.

500,000 rows of random words, some 1.4 KB each, one in a hundred a copy of the row before it. They are checked
as text, without a tokenizer; then a tenth of them with the demo's.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

ROWS = 500_000
WITH_TOKENS = ROWS // 10
LIMIT_GB = 1.0


def make_file(path: Path, rows: int) -> None:
    """`rows` rows of words from a vocabulary of 20,000, one in a hundred a copy of the row before it."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(20_000)]
    row: dict[str, str] = {}
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            if number % 100 != 99:
                lengths = rng.randint(10, 80), rng.randint(20, 150), rng.randint(20, 150)
                texts = (" ".join(rng.choices(words, k=length)) for length in lengths)
                row = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
            file.write(json.dumps(row) + "\n")


def measure(path: str, with_tokenizer: bool) -> None:
    """Check a file and print rows, seconds, peak resident memory in GB, and the verdict."""
    from localdpo.data.encode import Limits
    from localdpo.prefs.check import check, closing_lines
    from localdpo.prefs.checks.base import CheckSettings
    from localdpo.prefs.settings import open_tokenizer

    options = CheckSettings()
    if with_tokenizer:
        options = CheckSettings(tokenizer=open_tokenizer("demo:model"), limits=Limits(1024))
    began = time.perf_counter()
    report = check(path, options)
    seconds = time.perf_counter() - began
    words = closing_lines(report)[-1].partition(";")[0]
    # Linux counts in KB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    print(json.dumps({"rows": report.facts["rows"], "s": seconds, "gb": peak, "found": words}))


def measured(path: Path, with_tokenizer: bool) -> dict[str, float]:
    """`measure` in a process of its own."""
    program = f"import bench_prefs_check as bench; bench.measure({str(path)!r}, {with_tokenizer})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def test_many_rows_in_bounded_memory(tmp_path: Path) -> None:
    print()
    for rows, with_tokenizer in ((ROWS, False), (WITH_TOKENS, True)):
        path = tmp_path / "pairs.jsonl"
        make_file(path, rows)
        found = measured(path, with_tokenizer)
        what = "with the demo's tokenizer" if with_tokenizer else "text only"
        print(
            f"prefs check, {what}: {found['rows']:,} rows ({path.stat().st_size / 1e9:.2f} GB) in "
            f"{found['s']:.0f} s, {found['rows'] / found['s']:,.0f} rows/s, peak {found['gb']:.2f} GB; "
            f"{found['found']}"
        )
        assert found["gb"] < LIMIT_GB
