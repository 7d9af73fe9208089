"""Several ranks on this machine, processes that MLX's ring joins: they compute what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ports import reserved_ports
from tiny_folders import pair, recipe_text, write_pairs, write_rows
from training_runs import files_of, metrics_of, train

from localdpo.records.checkpoints import newest_checkpoint
from localdpo.records.events import read_events
from localdpo.records.rundir import RunDir

# Ranks wait for each other, so a busy machine takes long over them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HERE = Path(__file__).resolve().parent
# One of every kind: a mean over pairs, a baseline over the batch, tokens as the count, a loss over the whole
# batch, a reference that moves with split responses.
LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "kto": {"type": "kto"},
    "sft": {"type": "sft"},
    "aot": {"type": "aot"},
    "moving": {"sync_every": 1, "ld_alpha": 0.5},
}


def start_ranks(folder: Path, size: int) -> tuple[dict[str, Any], list[int], float]:
    """What rank 0 of two_ranks.py found, the exit codes, and when the last rank ended."""
    with reserved_ports(size) as ports:
        (folder / "ring.json").write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
        codes, died = run_ranks(folder, size)
    found = folder / "found.json"
    assert found.is_file(), "".join(path.read_text() for path in sorted(folder.glob("log-*")))
    return json.loads(found.read_text()), codes, died


def run_ranks(folder: Path, size: int) -> tuple[list[int], float]:
    """The exit codes of the ranks, and when the last one ended."""
    paths = [os.environ.get("PYTHONPATH", ""), str(HERE), str(HERE.parent)]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "MLX_HOSTFILE": str(folder / "ring.json"),
        "LOCALDPO_CACHE": str(folder / "cache"),
        "OPENBLAS_NUM_THREADS": "1",
    }
    logs = [(folder / f"log-{rank}").open("wb") for rank in range(size)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "two_ranks.py"), str(rank), str(size), str(folder)],
            stdout=log,
            stderr=log,
            env=env | {"MLX_RANK": str(rank)},
        )
        for rank, log in enumerate(logs)
    ]
    for log in logs:
        log.close()
    processes[-1].wait()
    died = time.time()
    return [process.wait() for process in processes], died


def lay_out(folder: Path, model: Path) -> None:
    pairs = write_pairs(folder / "pairs.jsonl", 11)
    valid = write_pairs(folder / "valid.jsonl", 5, start=50)
    common: dict[str, Any] = {
        "eval": {"every": 2, "samples": 1, "max_tokens": 3, "kl_samples": 2},
        "save": {"every": 2, "keep": 9},
    }
    train = {"max_steps": 5, "batch_size": 5, "micro_batch_size": 2, "log_every": 1}
    (folder / "run.yaml").write_text(recipe_text(model, pairs, valid, train=train, **common))
    write_rows(folder / "rows.jsonl", [pair(number) for number in range(11)])
    for name, loss in LOSSES.items():
        micro = 5 if name == "aot" else 2
        text = recipe_text(
            model, pairs, valid, train={**train, "micro_batch_size": micro}, loss=loss, **common
        )
        (folder / f"loss-{name}.yaml").write_text(text)


@pytest.fixture(scope="module")
def two(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> tuple[Path, dict[str, Any], list[int], float]:
    folder = tmp_path_factory.mktemp("two")
    lay_out(folder, tiny_model)
    return folder, *start_ranks(folder, 2)


def test_the_gradients_of_several_ranks_are_those_of_one(two: Any) -> None:
    _, found, _, _ = two
    assert found["losses"].keys() == {f"loss-{name}" for name in LOSSES}
    for name, gaps in found["losses"].items():
        assert gaps["gradient"] < 1e-5, name
        assert gaps["metrics"] < 1e-4, name
    assert (found["sum"], found["long"]) == (1, [3, 10_000])


def test_a_run_has_the_loss_curve_of_one_process(two: Any, tmp_path: Path, tiny_model: Path) -> None:
    folder, found, _, _ = two
    assert found["whole"] == 0
    alone = train(tmp_path / "alone", (folder / "run.yaml").read_text())
    for kind in ("step", "eval"):
        pairs = zip(metrics_of(RunDir(folder / "whole"), kind), alone.metrics(kind), strict=True)
        for several, one in pairs:
            assert several["loss"] == pytest.approx(one["loss"], abs=1e-4)
            assert several["rewards/margins"] == pytest.approx(one["rewards/margins"], abs=1e-3)
    events = read_events(folder / "whole" / "events.jsonl")
    started = next(event for event in events if event.type == "run.started")
    assert (started.data["world_size"], len(started.data["ranks"])) == (2, 2)
    step = next(event for event in events if event.type == "step")
    speeds = step.data["rank_tokens_per_second"]
    assert (
        step.data["metrics"]["slowest_rank_tokens_per_second"]
        == speeds[step.data["slowest_rank"]]
        == min(speeds)
    )


def test_a_resumed_run_ends_with_the_same_bits(two: Any) -> None:
    folder, found, _, _ = two
    assert found["resumed"]["codes"] == [3, 0]
    whole, resumed = (newest_checkpoint(RunDir(folder / name)) for name in ("whole", "resumed"))
    assert whole is not None
    assert resumed is not None
    for name, array in files_of(whole).items():
        np.testing.assert_array_equal(files_of(resumed)[name], array, err_msg=name)


def test_another_number_of_ranks_takes_the_run_on(two: Any, tmp_path: Path) -> None:
    folder, _, _, _ = two
    lost = RunDir(folder / "lost")
    whole = metrics_of(RunDir(folder / "whole"), "step")
    again = train(lost.path, lost.recipe.read_text())
    assert again.loop.resumed
    for several, one in zip(again.metrics("step")[3:], whole[3:], strict=True):
        assert several["loss"] == pytest.approx(one["loss"], abs=1e-4)


def test_a_rank_with_another_recipe_is_named(two: Any) -> None:
    _, found, _, _ = two
    assert "loss.beta is 0.3, on rank 0" in found["another"]
    assert found["another"].startswith("rank 1 (")


def test_a_rank_that_dies_ends_the_run_with_a_checkpoint(two: Any) -> None:
    folder, found, codes, died = two
    assert found["lost"] == f"{found['names'][1]} was lost"
    assert codes == [0, -9]
    events = read_events(folder / "lost" / "events.jsonl")
    failed = next(event for event in events if event.type == "run.failed")
    assert failed.time - died < 10
    assert failed.data["error"] == f"RankLost: {found['lost']}"


@pytest.mark.long
def test_four_ranks(tmp_path: Path, tiny_model: Path) -> None:
    lay_out(tmp_path, tiny_model)
    found, codes, _ = start_ranks(tmp_path, 4)
    assert max(gaps["gradient"] for gaps in found["losses"].values()) < 1e-5
    assert (found["whole"], found["resumed"]["codes"]) == (0, [3, 0])
    # MLX's ring may not tell rank 0 that a rank beyond its neighbours has gone: the pulse ends it.
    assert f"{found['names'][3]} was lost" in found.get("lost", (tmp_path / "log-0").read_text())
    assert codes in ([0, 4, 4, -9], [4, 4, 4, -9])
