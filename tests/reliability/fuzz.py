"""Mutations of every kind of file that a person may bring, by the thousand: `mutations.tried` counted."""

from __future__ import annotations

from pathlib import Path

from mutations import READERS, tried
from tally import Tally

ROWS = ("rows", "arrays of rows", "parquet", "prompts")
MODELS = ("adapters", "weights", "models", "tokenizers", "tokenizer configurations")
OTHERS = tuple(kind for kind in READERS if kind not in {"recipes", *ROWS, *MODELS})
_PORTION = 100


def fuzz(folder: Path, name: str, kinds: tuple[str, ...], count: int) -> Tally:
    """Try `count` mutations, in equal parts of each of these kinds of `mutations.READERS`."""
    tally = Tally(name)
    for kind in kinds:
        for seed in range(-(-count // len(kinds) // _PORTION)):
            try:
                found = tried(READERS[kind], folder / kind.replace(" ", "-"), _PORTION, seed)
            except AssertionError as broken:
                tally.trial(f"{kind}, seed {seed}: {broken}", traceback=True)
                continue
            for _ in range(sum(found.values())):
                tally.trial(kind)
    return tally
