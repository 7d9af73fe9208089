"""The pairs of lowest margin at an evaluation: which they are, and what their file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_folders import recipe_text, write_pairs, write_rows
from training_runs import train

from localdpo.evals.inspect_pairs import inspect_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]


def trained(folder: Path, model: Path, **sections: Any) -> list[dict[str, Any]]:
    """Train two steps; the `pairs` events' files, as they stand on the disk."""
    pairs = write_pairs(folder / "pairs.jsonl", 9)
    steps = {"max_steps": 2, "batch_size": 4, "learning_rate": 0.01}
    text = recipe_text(model, pairs, pairs, **{"train": steps, "eval": {"worst_pairs": 8}, **sections})
    found = train(folder / "run", text)
    events = [event for event in found.events if event.type == "pairs"]
    files = [json.loads((found.run.path / event.data["path"]).read_text()) for event in events]
    for event, file in zip(events, files, strict=True):
        assert event.step == file["step"]
        assert event.data["lowest"] == [
            [pair["row"], pytest.approx(pair["margin"])] for pair in file["pairs"]
        ]
    return files


def test_the_file_holds_the_lowest_margins_first(tmp_path: Path, tiny_model: Path) -> None:
    files = trained(tmp_path, tiny_model, eval={"worst_pairs": 3})
    assert [file["step"] for file in files] == [0, 2]
    seen = inspect_run(tmp_path / "run", worst=3, note=lambda line: None).pairs
    last = files[-1]["pairs"]
    assert [pair["row"] for pair in last] == [pair.row for pair in seen]
    assert [pair["margin"] for pair in last] == pytest.approx([pair.margin for pair in seen], abs=1e-5)
    for pair, expected in zip(last, seen, strict=True):
        assert pair["prompt"] == expected.prompt
        assert pair["source"] == str(tmp_path / "pairs.jsonl")
        for side in ("chosen", "rejected"):
            texts, rewards = zip(*pair[side]["tokens"], strict=True)
            assert "".join(texts) == pair[side]["text"] == getattr(expected, side).text
            assert np.sum(rewards) == pytest.approx(pair[side]["reward"])


def test_none_are_kept_where_none_are_wanted(tmp_path: Path, tiny_model: Path) -> None:
    assert trained(tmp_path, tiny_model, eval={"worst_pairs": 0}) == []
    assert not (tmp_path / "run" / "pairs").exists()


def test_demonstrations_have_no_pairs(tmp_path: Path, tiny_model: Path) -> None:
    data = write_rows(tmp_path / "sft.jsonl", [{"prompt": f"p{i}", "completion": "yes"} for i in range(6)])
    text = recipe_text(tiny_model, data, data, loss={"type": "sft"}, train={"max_steps": 1})
    found = train(tmp_path / "run", text)
    assert not any(event.type == "pairs" for event in found.events)


@pytest.mark.parametrize("loss", [{"type": "simpo"}, {"type": "sigmoid", "sync_every": 1}])
def test_rewards_are_those_of_the_loss(loss: dict[str, Any], tmp_path: Path, tiny_model: Path) -> None:
    """Without a reference the reward is the mean log-probability; a moving one is the one of that moment."""
    files = trained(tmp_path, tiny_model, loss=loss)
    seen = {pair.row: pair for pair in inspect_run(tmp_path / "run", note=lambda line: None).pairs}
    assert files[-1]["pairs"]
    for pair in files[-1]["pairs"]:
        assert pair["margin"] == pytest.approx(seen[pair["row"]].margin, abs=1e-5)
