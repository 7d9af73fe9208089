"""Whole runs in this process: what they write, that they learn, and the same way each time."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_folders import pair, recipe_text, write_pairs, write_rows
from training_runs import EAGER, Run, assert_same_arrays, files_of, metrics_of, train

from localdpo.core.errors import UserError
from localdpo.model.backend import prepare
from localdpo.records.checkpoints import newest_checkpoint
from localdpo.records.events import effective, read_events
from localdpo.records.rundir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]
STEP_METRICS = {
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
    "memory_gb",
    "peak_memory_gb",
    "cache_memory_gb",
    "step_seconds",
    "epoch",
}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", 24)


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "valid.jsonl", 8, start=100)


def test_a_run_writes_what_its_folder_promises(
    tmp_path: Path, pairs: Path, held_out: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    text = recipe_text(
        tiny_model,
        pairs,
        held_out,
        adapter=str(sft_adapter),
        eval={"every": 2, "samples": 1, "max_tokens": 4, "kl_every": 2, "kl_samples": 2},
        save={"every": 2},
        train={"max_steps": 5, "log_every": 2, "schedule": "linear"},
    )
    run = train(tmp_path / "run", text)
    kinds = [(event.type, event.step) for event in run.events]
    assert [step for kind, step in kinds if kind == "step"] == [2, 4, 5]
    assert [step for kind, step in kinds if kind == "eval"] == [0, 2, 4, 5]
    assert [step for kind, step in kinds if kind == "samples"] == [0, 2, 4, 5]
    assert [step for kind, step in kinds if kind == "checkpoint"] == [2, 4, 5]
    steps = run.metrics("step")
    assert all(metrics.keys() >= STEP_METRICS for metrics in steps)
    assert ["kl" in metrics for metrics in steps] == [True, True, False]
    assert steps[-1]["epoch"] == pytest.approx(5 / 6)
    assert [m["learning_rate"] for m in steps] == pytest.approx([8e-4, 4e-4, 2e-4])
    first, *_, last = run.metrics("eval")
    assert abs(first["loss"] - math.log(2)) < 1e-6
    assert abs(first["kl"]) < 1e-7
    assert last["kl"] > first["kl"]
    assert run.outcome.metrics == pytest.approx(last)
    assert newest_checkpoint(run.run) == run.run.checkpoint_path(5)
    sample = next(event for event in run.events if event.type == "samples").data["samples"][0]
    assert sample.keys() == {"prompt", "reference", "policy"}


def test_the_first_logged_loss_is_ln_2_when_compiled(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    options = {"max_steps": 1, "compile": True}
    text = recipe_text(tiny_model, pairs, train=options, eval={"pairs": 1}, adapter=str(sft_adapter))
    run = train(tmp_path / "run", text, backend=prepare())
    assert run.session.compiled
    (metrics,) = run.metrics("step")
    assert abs(metrics["loss"] - math.log(2)) < 1e-6
    assert abs(metrics["rewards/margins"]) < 1e-5


def learned(folder: Path, model: Path, pairs: Path, held_out: Path) -> Run:
    options = {"epochs": 4, "batch_size": 8, "learning_rate": 2e-3}
    return train(folder, recipe_text(model, pairs, held_out, train=options, eval={"every": 3, "kl_pairs": 0}))


def test_a_rule_is_learned_and_flipped_labels_teach_its_opposite(
    tmp_path: Path, pairs: Path, held_out: Path, tiny_model: Path
) -> None:
    right = learned(tmp_path / "right", tiny_model, pairs, held_out)
    assert right.outcome.metrics["rewards/accuracies"] == 1.0
    flipped = write_pairs(tmp_path / "flipped.jsonl", 24, flipped=True)
    wrong = learned(tmp_path / "wrong", tiny_model, flipped, held_out)
    assert wrong.metrics("step")[-1]["rewards/accuracies"] > 0.9
    assert wrong.outcome.metrics["rewards/accuracies"] < 0.5
    names = {event.data["name"] for event in wrong.events if event.type == "notice"}
    assert "labels-swapped" in names
    assert "labels-swapped" not in {e.data["name"] for e in right.events if e.type == "notice"}


def test_two_runs_are_equal_to_the_bit_and_another_seed_is_not(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    def run(name: str, seed: int) -> dict[str, np.ndarray]:
        text = recipe_text(
            tiny_model,
            pairs,
            train={"max_steps": 2, "seed": seed, "micro_batch_size": 3},
            lora={"dropout": 0.2},
            eval={"samples": 1, "max_tokens": 4, "temperature": 1.0},
        )
        return files_of(train(tmp_path / name, text).run.latest)

    first = run("first", 1)
    assert_same_arrays(run("second", 1), first)
    other = run("third", 2)
    assert any(not np.array_equal(other[name], first[name]) for name in first)


def test_sft_runs_through_the_same_loop(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": f"Question {n}?", "completion": pair(n)["chosen"]} for n in range(20)]
    data = write_rows(tmp_path / "sft.jsonl", rows)
    text = recipe_text(
        tiny_model,
        data,
        loss={"type": "sft"},
        data={"valid_fraction": 0.2},
        train={"epochs": 3, "learning_rate": 3e-3},
    )
    run = train(tmp_path / "run", text)
    evals = run.metrics("eval")
    assert evals[-1]["loss"] < 0.8 * evals[0]["loss"]
    assert "kl" not in evals[-1]
    assert not any(event.type == "reference" for event in run.events)


def test_an_sft_adapter_is_the_start_and_the_reference_of_dpo(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    """The two-stage recipe: SFT, then DPO from its checkpoint."""
    rows = [{"prompt": pair(n)["prompt"], "completion": pair(n)["chosen"]} for n in range(12)]
    data = write_rows(tmp_path / "sft.jsonl", rows)
    sft = train(tmp_path / "sft", recipe_text(tiny_model, data, loss={"type": "sft"}))
    adapter = sft.run.latest
    dpo = train(
        tmp_path / "dpo", recipe_text(tiny_model, pairs, adapter=str(adapter), train={"max_steps": 1})
    )
    (first,) = dpo.metrics("step")
    assert abs(first["loss"] - math.log(2)) < 1e-6
    base = train(tmp_path / "base", recipe_text(tiny_model, pairs, train={"max_steps": 1}))
    assert first["logps/chosen"] > base.metrics("step")[0]["logps/chosen"] + 1


def test_fewer_pairs_than_a_batch_train_and_a_single_row_evaluates_nothing(
    tmp_path: Path, tiny_model: Path
) -> None:
    one = write_pairs(tmp_path / "one.jsonl", 1)
    run = train(tmp_path / "run", recipe_text(tiny_model, one, train={"epochs": 3, "batch_size": 8}))
    assert len(run.metrics("step")) == 3
    assert run.metrics("eval") == []
    assert run.metrics("step")[2]["loss"] < run.metrics("step")[0]["loss"]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_rows(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    text = recipe_text(
        tiny_model,
        pairs,
        train={"optimizer": "sgd", "learning_rate": 1e30, "batch_size": 3, "max_grad_norm": 1e30},
        save={"every": 1},
    )
    with pytest.raises(UserError, match=r"step \d: the (loss|gradient norm) is not finite") as caught:
        train(tmp_path / "run", text)
    message = str(caught.value)
    step = int(message.split("step ")[1].split(":")[0])
    rows = [int(r) for r in message.split("(rows ")[1].split(" of ")[0].split(", ")]
    run = RunDir(tmp_path / "run")
    assert len(rows) == 3
    assert all(1 <= row <= 24 for row in rows)
    assert str(pairs) in message
    assert len(metrics_of(run, "step")) == step - 1
    latest = newest_checkpoint(run)
    assert latest is None or int(latest.name.split("-")[1]) < step


def test_the_first_life_is_void_when_a_run_died_before_its_first_checkpoint(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    text = recipe_text(tiny_model, pairs, train={"max_steps": 3})
    first = train(tmp_path / "run", text, backend=EAGER)
    lines = [line for line in first.run.events.read_text().splitlines(keepends=True)]
    kept = [line for line in lines if json.loads(line)["type"] in {"reference", "step"}][:-1]
    first.run.events.write_text("".join(kept))
    weights = files_of(first.run.latest)
    for path in first.run.checkpoints.iterdir():
        if path.is_dir() and not path.is_symlink():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    first.run.latest.unlink()
    second = train(tmp_path / "run", text, backend=EAGER)
    steps = [event.step for event in effective(read_events(second.run.events)) if event.type == "step"]
    assert steps == [1, 2, 3]
    assert [event.step for event in second.events if event.type == "run.resumed"] == [0]
    assert_same_arrays(files_of(second.run.latest), weights)


def test_a_checkpoint_that_was_deleted_is_missed(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    text = recipe_text(tiny_model, pairs, train={"max_steps": 3}, save={"every": 1})
    folder = tmp_path / "run"
    whole = files_of(train(folder, text).run.latest)
    for lost, newest in (([3], 2), ([2, 3], 0)):
        for step in lost:
            shutil.rmtree(RunDir(folder).checkpoint_path(step))
        again = train(folder, text)
        resumed = [event.step for event in again.events if event.type == "run.resumed"]
        notices = [event.data for event in again.events if event.data.get("name") == "lost-checkpoint"]
        assert resumed[-1] == newest
        assert notices[-1]["message"] == f"{again.run.checkpoint_path(3)}: saved before, and missing now"
        assert len(notices) == len(resumed)
        assert_same_arrays(files_of(again.run.latest), whole)


def test_a_resume_takes_pairs_that_were_all_tied_for_no_damage(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    """Step 0's accuracy is shown as a gap, but it was measured and finite."""
    text = recipe_text(tiny_model, pairs, pairs, train={"max_steps": 2}, save={"every": 1}, eval={"pairs": 4})
    folder = tmp_path / "run"
    first = train(folder, text)
    assert first.metrics("eval")[0]["rewards/ties"] == 1.0
    shutil.rmtree(RunDir(folder).checkpoint_path(2))
    again = train(folder, text)
    assert [event.step for event in again.events if event.type == "run.resumed"] == [1]
    assert "nan" not in [event.data.get("name") for event in again.events]
