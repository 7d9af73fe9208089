"""The real worker process, sending itself signals: `dying_worker.py MOMENT SIGNALS RUN_DIR`.

A MOMENT is `EVENT:N`, right after the event of that type with step N (or `done` N) was written, or `save:N`,
inside the checkpoint of step N, before its manifest. SIGNALS are `SIGKILL`, or several: `SIGINT+SIGINT`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from localdpo.core import atomic
from localdpo.records.events import Event, EventWriter
from localdpo.train.worker import main


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


if __name__ == "__main__":
    moment, names, run_dir = sys.argv[1:]
    kind, _, number = moment.partition(":")
    if kind == "save":
        inside_save(int(number), names)
    else:
        after_event(kind, int(number), names)
    sys.exit(main([run_dir]))
