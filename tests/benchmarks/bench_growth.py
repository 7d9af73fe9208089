"""What does not grow: steps after thousands of steps, with a million rows, and with a large vocabulary.

1,000 steps, 40,000 rows; with --full 10,000 steps and 1,000,000 rows. `make bench` runs it. Steps are
measured in processor time, which depends less on what else the machine does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from localdpo.records.events import EventTail
from localdpo.records.rundir import RunDir

GROWTH_MB, SLOWER = 10.0, 1.25


class Sample(NamedTuple):
    """What a worker has used when it has taken so many steps.

    `mb`: its own resident memory. `mapped`: resident pages of files, of the programs and the tokens of the
    rows: the system takes them back for others whenever it likes, and they are counted whether they were read
    or lie beside what was.
    """

    step: int
    mb: float
    mapped: float
    seconds: float


def sample(pid: int, step: int) -> Sample:
    """Resident memory and processor time of a process (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    own, mapped = (1024e-6 * int(status[name].split()[0]) for name in ("RssAnon", "RssFile"))
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return Sample(step, own, mapped, seconds)


def train(folder: Path, rows: int, steps: int) -> tuple[list[Sample], float]:
    """Samples of a run of a tiny model, and seconds to its start."""
    # Not where the process that takes steps of a large vocabulary would find it.
    from tiny_folders import make_adapter, make_model_folder, recipe_text, write_pairs

    model = make_model_folder(folder / "model")
    make_adapter(folder / "sft", model)
    text = recipe_text(
        model,
        write_pairs(folder / "pairs.jsonl", rows),
        write_pairs(folder / "valid.jsonl", 4, start=rows),
        adapter=str(folder / "sft"),
        train={"epochs": -(-steps * 4 // rows), "max_steps": steps, "learning_rate": 1e-5},
        eval={"every": 500, "kl_every": 1000},
        save={"every": 500},
    )
    run = RunDir(folder / "run")
    run.path.mkdir()
    run.recipe.write_text(text)
    environment = {**os.environ, "LOCALDPO_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    began, start = time.time(), float("nan")
    samples: list[Sample] = []
    with run.worker_log.open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "localdpo.train", str(run.path)], env=environment, stdout=log, stderr=log
        )
        tail = EventTail(run.events)
        while worker.poll() is None:
            time.sleep(0.1)
            step = 0
            for event in tail.poll():
                if event.type == "run.started":
                    start = event.time - began
                elif event.type == "step":
                    step = event.step or 0
            if step and worker.poll() is None:
                samples.append(sample(worker.pid, step))
    assert worker.returncode == 0, run.worker_log.read_text(errors="replace")[-2000:]
    return samples, start


def step_ms(samples: list[Sample], start: float = 0.1, stop: float = 1.0) -> float:
    """Milliseconds of processor time a step, from one share of the steps to another."""
    last = samples[-1].step
    part = [sample for sample in samples if start * last <= sample.step <= stop * last]
    return 1e3 * (part[-1].seconds - part[0].seconds) / (part[-1].step - part[0].step)


def test_steps_stay_what_they_are(tmp_path: Path, full: bool) -> None:
    steps = 10_000 if full else 1_000
    samples, _ = train(tmp_path, 64, steps)
    early, late = step_ms(samples, 0.1, 0.3), step_ms(samples, 0.8)
    sizes = [sample.mb for sample in samples if sample.step > steps / 5]
    print(
        f"\n{steps:,} steps: {early:.1f} ms of processor time each in the second and third tenths, "
        f"{late:.1f} in the last two; memory {sizes[0]:.0f} MB after a fifth, {sizes[-1]:.0f} MB at the end"
    )
    assert late < SLOWER * early
    assert sizes[-1] - sizes[0] < GROWTH_MB


def test_rows_cost_no_step_anything(tmp_path: Path, full: bool) -> None:
    few, many = 10_000, 1_000_000 if full else 40_000
    print(f"\n{'rows':>12}{'start s':>10}{'cpu ms a step':>15}{'memory MB':>13}{'files MB':>10}")
    found = []
    for rows in (few, many):
        samples, start = train(tmp_path / str(rows), rows, 400)
        found.append((step_ms(samples), samples[-1].mb))
        print(f"{rows:12,}{start:10.1f}{found[-1][0]:15.1f}{found[-1][1]:13.0f}{samples[-1].mapped:10.0f}")
    (before, small), (after, large) = found
    assert after < SLOWER * before
    # Lengths, keys, numbers and orders of the rows: some 100 bytes each; and what tokenising left.
    assert large - small < 3 * GROWTH_MB + 1e-4 * many


@pytest.mark.parametrize("vocabulary", [16_000, 250_000])
def test_a_large_vocabulary_costs_weights_and_no_logits(vocabulary: int) -> None:
    program = f"import localdpo.model, bench_growth; bench_growth.print_head({vocabulary})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    print(
        f"\nvocabulary {vocabulary:,}: peak {found['peak']:.2f} GB, of it weights {found['weights']:.2f}; "
        f"all logits of a micro-batch would be {found['logits']:.2f} GB, and their gradients as much again"
    )
    # 64 tokens at least have logits at once, in eight buffers.
    assert found["peak"] - found["weights"] < 0.4 + 8 * 64 * 4e-9 * vocabulary


def print_head(vocabulary: int) -> None:
    """Take steps of bench_step's model with a vocabulary; print GB at the peak, of weights, of logits."""
    import bench_step as bench

    bench.CONFIG["vocab_size"] = vocabulary
    micro, compiled = bench.trainer_choice()
    epoch = bench.batches(micro)[:3]
    step, reference = bench.shared_prompt_step(compiled)
    for batch in epoch:
        reference(batch)
    mx.reset_peak_memory()
    for batch in epoch:
        step(batch)
    scored = max(int(part.lengths.sum()) for batch in epoch for part in batch)
    weights = sum(array.nbytes for _, array in tree_flatten(bench.model().parameters()))
    figures = {
        "peak": mx.get_peak_memory() / 1e9,
        "weights": weights / 1e9,
        "logits": 4e-9 * scored * vocabulary,
    }
    print(json.dumps(figures))
