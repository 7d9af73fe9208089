"""A stand-in for the worker of a run that trackers are shown: `python tracked_worker.py RUN_DIR`.

It finishes when there is a notice about each tracker, or after a minute.
"""

from __future__ import annotations

import sys
import time

from tracked_runs import evaluate, start, train

from localdpo.records.events import EventTail, EventWriter
from localdpo.records.rundir import RunDir, RunLock

TRACKERS = ("wandb", "trackio", "mlflow")


def main() -> None:
    run = RunDir(sys.argv[1])
    with RunLock(run), EventWriter(run.events) as log:
        start(log, TRACKERS)
        evaluate(log, 0)
        train(log, 1, 3)
        tail, notices, deadline = EventTail(run.events), 0, time.monotonic() + 60
        while notices < len(TRACKERS) and time.monotonic() < deadline:
            time.sleep(0.05)
            notices += sum(event.type == "notice" for event in tail.poll())
        train(log, 4, 6)
        log.write("run.finished", 6, seconds=1.0)


if __name__ == "__main__":
    main()
