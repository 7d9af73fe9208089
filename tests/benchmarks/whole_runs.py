"""From the command to the saved adapter: localdpo beside other trainers on the same pairs.

    python tests/benchmarks/whole_runs.py [--rounds 2] [--pairs 200] [--only localdpo,unsloth]
                                          [--python unsloth=/path/to/python ...]

An epoch over the model and pairs of peers.py, which also says what each trainer needs. Each run is a process
from its start to its end: imports, tokenising, the reference pass, steps and saving. None evaluates, but for
the one pair that localdpo holds out. Printed are medians of wall and processor time and the largest process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import wraps
from pathlib import Path
from typing import Any

import peers


def command(name: str, python: str, folder: Path, out: Path, steps: int) -> list[str]:
    """The command that trains and leaves an adapter below `out`."""
    if name != "localdpo":
        return [python, __file__, "--child", name, "--folder", str(folder), "--steps", str(steps)]
    recipe = folder / "whole.yaml"
    # Something is to be held out.
    held_out = folder / "held_out.jsonl"
    held_out.write_text((folder / "pairs.jsonl").read_text().splitlines(keepends=True)[0])
    data = f"data:\n  train: {folder / 'pairs.jsonl'}\n  valid: {held_out}\n"
    recipe.write_text(f"model: {folder / 'model'}\n{data}")
    overrides = [
        f"lora.rank={peers.RANK}",
        f"train.batch_size={peers.BATCH}",
        f"train.max_steps={steps}",
        f"train.max_length={peers.MAX_LENGTH}",
        "train.gradient_checkpointing=false",
        "eval.samples=0",
        "eval.kl_pairs=0",
    ]
    return [python, "-m", "localdpo", "train", str(recipe), *overrides, "--plain", "--runs-dir", str(out)]


def child(name: str, folder: Path, steps: int) -> None:
    """Train with another trainer; what does not save by itself does so at the end."""
    if name == "trl":
        from trl import DPOTrainer

        train = DPOTrainer.train

        @wraps(train)
        def train_and_save(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = train(self, *args, **kwargs)
            self.save_model(str(folder / "trl"))
            return result

        DPOTrainer.train = train_and_save
    peers.TRAINERS[name](folder, steps, False, lambda: None)


def run(name: str, python: str, folder: Path, steps: int) -> tuple[float, float, float] | str:
    """Seconds of wall and processor time and GB of the largest process; or why there is no adapter."""
    out = folder / name
    environment = peers.environment_of(name, folder / f"cache-{time.time_ns()}")
    began, before = time.time(), time.perf_counter()
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command(name, python, folder, out, steps), env=environment, stdout=log, stderr=log
        )
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - before
    adapters = [path for path in out.rglob("adapter*.safetensors") if path.stat().st_mtime >= began]
    if status or not adapters:
        last = (folder / f"{name}.log").read_text(errors="replace").strip().splitlines()[-1:]
        return f"{name} left out: {' '.join(last)[:160] or 'no adapter'}"
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--only", default="localdpo,unsloth,trl")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.folder, args.steps)
        return
    pythons = dict(pair.split("=", 1) for pair in args.python)
    runs: dict[str, list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peers.PAIRS = args.pairs
        peers.make_work(folder)
        trainers = args.only.split(",")
        for _ in range(args.rounds):
            for trainer in list(trainers):
                result = run(trainer, pythons.get(trainer, sys.executable), folder, args.pairs // peers.BATCH)
                if isinstance(result, str):
                    print(result)
                    trainers.remove(trainer)
                else:
                    runs.setdefault(trainer, []).append(result)
    print(f"{args.pairs} pairs, {peers.BATCH} a step, from the command to the adapter; medians")
    print(f"{'':14}{'wall s':>8}{'cpu s':>8}{'GB':>6}  wall of each")
    for trainer, results in runs.items():
        wall, cpu, size = (statistics.median(column) for column in zip(*results, strict=True))
        print(f"{trainer:14}{wall:8.1f}{cpu:8.1f}{size:6.2f}  {', '.join(f'{r[0]:.1f}' for r in results)}")


if __name__ == "__main__":
    main()
