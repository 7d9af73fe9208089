"""Time and memory of tokenising pairs like UltraFeedback's, in a process of its own; `make bench` runs it.

6,000 pairs, with --full 60,000: some 4 KB of text each, a fifth of it the prompt's.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import chat_pairs

SMALL, FULL, VOCABULARY = 6_000, 60_000, 50_000
LIMIT_GB = 0.6


class Helpers(threading.Thread):
    """Watches the resident memory of the processes that help, together (Linux; else it stays 0).

    What `getrusage` says of children counts the memory of this process when it started them, too.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.start()

    def run(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                self.peak = max(self.peak, sum(map(resident, children())))
            time.sleep(0.02)


def children() -> list[str]:
    """The process ids of those that this process started."""
    return " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split()


def resident(pid: str) -> int:
    """Bytes of a process's memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def measure(pairs: str, tokenizer: str) -> None:
    """Tokenise a file; print rows, tokens a row, seconds, processor time, and peaks of memory in GB."""
    from transformers import AutoTokenizer

    from localdpo.data.store import open_store

    # Linux counts in KB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    with tempfile.TemporaryDirectory() as cache:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
        helpers = Helpers()
        began = time.perf_counter()
        store = open_store(
            pairs,
            kind="pairs",
            tokenizer=loaded,
            template="auto",
            max_length=1024,
            max_prompt_length=None,
            truncation="keep_end",
            cache_dir=Path(cache),
        )
        seconds = time.perf_counter() - began
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    figures = {
        "rows": store.report.read,
        "tokens": float(store.prompt_lengths.mean() + store.response_lengths.sum(axis=1).mean()),
        "s": seconds,
        "cpu": sum(used.ru_utime + used.ru_stime for used in (own, others)),
        "gb": own.ru_maxrss * unit / 1e9,
        "helper_gb": helpers.peak / 1e9,
    }
    print(json.dumps(figures))


def test_tokenising_is_quick_and_lean(tmp_path: Path, full: bool) -> None:
    rows = FULL if full else SMALL
    chat_pairs.write_pairs(tmp_path / "pairs.jsonl", rows)
    chat_pairs.make_tokenizer(tmp_path / "tokenizer", VOCABULARY)
    program = (
        "import localdpo.model, bench_tokenising as bench; "
        f"bench.measure({str(tmp_path / 'pairs.jsonl')!r}, {str(tmp_path / 'tokenizer')!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    print(
        f"\n{found['rows']:,} pairs ({(tmp_path / 'pairs.jsonl').stat().st_size / 1e9:.2f} GB, "
        f"{found['tokens']:.0f} tokens each) in {found['s']:.0f} s, {found['cpu']:.0f} s of processor time, "
        f"{found['rows'] / found['s']:,.0f} pairs/s; peak {found['gb']:.2f} GB, "
        f"of other processes {found['helper_gb']:.2f} GB"
    )
    assert found["gb"] + found["helper_gb"] < LIMIT_GB
