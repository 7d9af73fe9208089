"""Workers that are killed: reads jobs from stdin, starts a child for each, prints how it ended.

A job is a JSON line {"run", "log", "cache", "kill"}. The child is the worker of the run folder `run`, its
output appended to `log`. `kill` says when SIGKILL comes:

    null            never
    ["after", S]    S seconds after its start
    ["event", T, N] once an event T with a step, or a `done`, of N or more is written
    ["save", N]     before the N-th call that changes the disk within saves, counted over the child's life

One parent for all of them, so that MLX is imported once where a child is a fork (see `children`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from children import Job, serve, status_of

from localdpo.records.events import Event, EventWriter
from localdpo.train import checkpoint, worker

CALLS = ("open", "write", "fsync", "close", "replace", "rename", "symlink", "mkdir", "unlink", "rmdir")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after_event(kind: str, number: int) -> None:
    write = EventWriter.write

    def writing(self: EventWriter, type: str, step: int | None = None, **fields: Any) -> Event:
        event = write(self, type, step, **fields)
        if type == kind and max(step or 0, fields.get("done", 0)) >= number:
            die()
        return event

    EventWriter.write = writing  # type: ignore[method-assign]


def kill_in_save(number: int) -> None:
    save, calls, inside = checkpoint.save, 0, False

    def saving(*args: Any, **kwargs: Any) -> Path:
        nonlocal inside
        inside = True
        try:
            return save(*args, **kwargs)
        finally:
            inside = False

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += inside
            if inside and calls == number:
                die()
            return real(*args, **kwargs)

        return call

    checkpoint.save = saving
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def live(job: Job) -> int:
    """The worker's life in a child; its exit code."""
    os.environ["LOCALDPO_CACHE"] = job["cache"]
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    kill = job["kill"]
    if kill and kill[0] == "event":
        kill_after_event(kill[1], kill[2])
    elif kill and kill[0] == "save":
        kill_in_save(kill[1])
    return worker.main([job["run"]])


def wait(child: int, job: Job) -> int:
    """The status of a child that is killed in time unless it has ended."""
    kill: list[Any] | None = job["kill"]
    end = time.monotonic() + kill[1] if kill and kill[0] == "after" else None
    while end is not None:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.001)
    return status_of(child, job)


if __name__ == "__main__":
    serve(live, wait)
