"""A run that is as training leaves one, without training: a recipe, a random adapter as its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_folders import make_adapter, recipe_text, write_pairs

from localdpo.core.atomic import write_manifest
from localdpo.interop.trained import Trained, open_trained
from localdpo.records.rundir import RunDir


def make_run(folder: Path, base: Path, *, name: str = "r", step: int = 20, **shape: Any) -> RunDir:
    """The run `name` in FOLDER/runs, on pairs of which four are held out for its evaluations."""
    pairs = write_pairs(folder / "pairs.jsonl", 8)
    valid = write_pairs(folder / "valid.jsonl", 4, start=100)
    lora = {"rank": shape.get("rank", 4), "scale": 8.0, "type": shape.get("kind", "lora")}
    text = recipe_text(base, pairs, valid, lora=lora)
    run = RunDir.create(folder / "runs", name, text)
    add_checkpoint(run, base, step, **shape)
    return run


def add_checkpoint(run: RunDir, base: Path, step: int, **shape: Any) -> Path:
    folder = run.checkpoint_path(step)
    make_adapter(folder, base, **shape)
    write_manifest(folder)
    return folder


def trained(folder: Path, base: Path, **shape: Any) -> Trained:
    """The run's adapter, as an export takes it."""
    return open_trained(make_run(folder, base, **shape), None, lambda line: None)
