"""A stand-in for the worker: `python fake_worker.py MODE RUN_DIR` does what MODE says and trains nothing."""

from __future__ import annotations

import os
import signal
import sys
import time

from localdpo.core.atomic import published_dir
from localdpo.core.errors import UserError
from localdpo.records.checkpoints import newest_checkpoint, set_latest
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir, RunLock

TOTAL = 6


def begin(writer: EventWriter) -> None:
    recipe = {"loss": {"beta": 0.1}, "eval": {"every": 3}, "save": {"every": 3}}
    writer.write(
        "run.started", total_steps=TOTAL, recipe=recipe, model="org/tiny", loss="sigmoid", device="cpu"
    )
    writer.write("reference", done=4, total=8)
    writer.write("reference", done=8, total=8)


def train(run: RunDir, writer: EventWriter, first: int, last: int) -> None:
    for step in range(first, last + 1):
        writer.write("step", step, metrics={"loss": 0.7 - step / 100, "step_seconds": 0.01})
        if step % 3 == 0:
            metrics = {"loss": 0.6, "rewards/accuracies": 0.75, "rewards/margins": 0.2, "kl": float("nan")}
            writer.write("eval", step, metrics=metrics, pairs=4, seconds=0.01)
            writer.write("samples", step, samples=[{"prompt": "What's up?", "reference": "a", "policy": "b"}])
            save(run, writer, step)


def save(run: RunDir, writer: EventWriter, step: int) -> None:
    run.checkpoints.mkdir(exist_ok=True)
    path = run.checkpoint_path(step)
    with published_dir(path, 2) as temp:
        (temp / "state.json").write_text("{}")
    set_latest(path)
    writer.write("checkpoint", step, path=f"checkpoints/{path.name}", seconds=0.01)


def until_stopped(run: RunDir, writer: EventWriter) -> None:
    """Wait for SIGINT; the first saves and exits 3, a second one while it saves exits at once."""
    count = 0

    def count_up(*_: object) -> None:
        nonlocal count
        count += 1
        if count == 2:
            os._exit(130)

    signal.signal(signal.SIGINT, count_up)
    writer.write("notice", level="info", name="waiting", message="waiting for a signal")
    while count == 0:
        time.sleep(0.01)
    writer.write("notice", level="info", name="saving", message="saving")
    if "slow" in sys.argv[1]:
        time.sleep(30)
    writer.write("run.stopped", 4, reason="SIGINT")
    sys.exit(3)


def main() -> None:
    mode, run = sys.argv[1], RunDir(sys.argv[2])
    print(f"fake worker: {mode}", flush=True)
    if mode == "early":
        raise ImportError("no module named nothing")
    while mode.startswith("late") and not os.path.exists("go"):
        time.sleep(0.01)
    with RunLock(run), EventWriter(run.events) as writer:
        if mode.endswith("user-error"):
            writer.write("run.failed", error="no such model")
            print(
                "error: org/tiny: no such model", "error: data.train: no such file", sep="\n", file=sys.stderr
            )
            sys.exit(2)
        resumed = newest_checkpoint(run) is not None
        begin(writer)
        if resumed:
            writer.write("run.resumed", 3)
        train(run, writer, 4 if resumed else 1, 4)
        if mode == "wait":
            writer.write("notice", level="info", name="waiting", message="waiting for any signal")
            signal.pause()
        if mode == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "metal":
            print("[METAL] Command buffer execution failed: Insufficient Memory (kIOGPUCommandBufferCallback")
            print("ErrorOutOfMemory)", flush=True)
            os.abort()
        if mode == "trace":
            raise ZeroDivisionError("in the step")
        if mode == "stop-at-4":
            writer.write("run.stopped", 4, reason="stop")
            sys.exit(3)
        if mode.startswith("stop"):
            until_stopped(run, writer)
        train(run, writer, 5, TOTAL)
        writer.write("run.finished", TOTAL, metrics={"loss": 0.6}, seconds=65.0)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
