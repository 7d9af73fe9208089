"""Follow the event log of a run to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from localdpo.launch.start import Worker
from localdpo.records.events import Event, EventTail
from localdpo.records.rundir import RunDir, is_end

_POLL_SECONDS: Final = 0.1
# The supervisor of a worker that died writes so within moments of the death.
_LAST_WORD_SECONDS: Final = 2.0


def watch(target: Worker | RunDir, on_poll: Callable[[], None] | None = None) -> Iterator[Event]:
    """The events of a run as they come; ends when its worker has ended and its last event was given.

    Of a Worker: what this worker writes. Of a RunDir: the whole log from the beginning. `on_poll` is called
    about ten times a second.
    """
    tail = target.events if isinstance(target, Worker) else EventTail(target.events)
    ended, over, deadline = False, False, 0.0
    while True:
        # Looked at before the log is read, so that nothing written before the end is missed.
        if isinstance(target, Worker):
            ended = target.returncode is not None
        else:
            running = target.is_running()
            if running:
                deadline = time.monotonic() + _LAST_WORD_SECONDS
            ended = not running and (over or time.monotonic() > deadline)
        for event in tail.poll():
            over = is_end(event) or (over and not event.type.startswith("run."))
            yield event
        if on_poll is not None:
            on_poll()
        if ended:
            return
        time.sleep(_POLL_SECONDS)
