"""Workers that send themselves signals: reads jobs from stdin, starts a child for each, prints how it ended.

A job is a JSON line {"run", "cache", "stderr", "moment", "signals"}. `moment` is `EVENT:N`, right after the
event of that type with step N (or `done` N) was written, or `save:N`, inside the checkpoint of step N, before
its manifest; null: never. `signals` is `SIGKILL`, or several: `SIGINT+SIGINT`.

One parent for all of them, so that MLX is imported once where a child is a fork (see `children`).
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from children import Job, serve, status_of

from localdpo.core import atomic
from localdpo.records.events import Event, EventWriter
from localdpo.train import loop, worker  # noqa: F401  (the loop brings all that a worker imports)


def send(names: str) -> None:
    for name in names.split("+"):
        os.kill(os.getpid(), signal.Signals[name])


def after_event(kind: str, number: int, names: str) -> None:
    write = EventWriter.write

    def writing(self: EventWriter, type: str, step: int | None = None, **fields: Any) -> Event:
        event = write(self, type, step, **fields)
        if type == kind and number in (step, fields.get("done")):
            send(names)
        return event

    EventWriter.write = writing  # type: ignore[method-assign]


def inside_save(number: int, names: str) -> None:
    write_manifest = atomic.write_manifest

    def writing(folder: Path) -> None:
        if f"step-{number:06d}" in folder.name:
            send(names)
        write_manifest(folder)

    atomic.write_manifest = writing


def live(job: Job) -> int:
    """The worker's life in a child; its exit code."""
    os.environ["LOCALDPO_CACHE"] = job["cache"]
    os.dup2(os.open(job["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
    os.dup2(2, 1)
    kind, _, number = (job["moment"] or "").partition(":")
    if kind == "save":
        inside_save(int(number), job["signals"])
    elif kind:
        after_event(kind, int(number), job["signals"])
    return worker.main([job["run"]])


if __name__ == "__main__":
    serve(live, status_of)
