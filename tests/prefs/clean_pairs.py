"""Made-up preference data in which there is nothing to find, to plant defects in."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SYLLABLES = ["ba", "cor", "dil", "en", "fra", "gon", "hul", "im", "jor", "kel", "lum", "mer", "nop", "or"]
WORDS = [a + b + c for a in SYLLABLES for b in SYLLABLES[:7] for c in SYLLABLES[7:]]

Row = dict[str, Any]


def text(rng: random.Random, words: int) -> str:
    """A sentence of so many random words."""
    return " ".join(rng.choices(WORDS, k=words)).capitalize() + "."


def clean_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows with prompts of 15 to 40 and answers of 20 to 60 words; either answer may be the longer one."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        chosen, rejected = (text(rng, rng.randint(20, 60)) for _ in range(2))
        rows.append({"prompt": text(rng, rng.randint(15, 40)), "chosen": chosen, "rejected": rejected})
    return rows


def write(path: Path, rows: Iterable[Row | str]) -> str:
    """A JSONL file of rows, and of lines as they are; its name."""
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)
