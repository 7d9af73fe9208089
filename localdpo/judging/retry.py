"""Waiting: how long after a failed try, who may interrupt it, and when it is no longer worth it."""

from __future__ import annotations

import email.utils
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import cast

from localdpo.core.text import format_seconds
from localdpo.judging.base import JudgeBusy, JudgeStopped, T

OnWait = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often one question is asked and how long is waited in between.

    Attributes:
        tries: how often a question is asked at most.
        first: seconds before the second try; doubled for each further one.
        most: seconds that a wait of our own choosing lasts at most.
        cap: seconds that a server may make us wait; beyond that the run stops and can go on later.
    """

    tries: int = 8
    first: float = 1.0
    most: float = 60.0
    cap: float = 300.0


class Interrupted(RuntimeError):
    """The run is being stopped; the one who waited has to give up. Never leaves this room."""


class Patience:
    """Waits that end when `stop` is set, and that are told to `on_wait` (seconds, why)."""

    def __init__(self, retry: Retry, stop: threading.Event, on_wait: OnWait | None = None) -> None:
        self.retry = retry
        self.stop = stop
        self.on_wait = on_wait

    def sleep(self, seconds: float, why: str) -> None:
        """Wait; raises Interrupted when the run is being stopped meanwhile."""
        if self.on_wait is not None and seconds > 0:
            self.on_wait(seconds, why)
        if self.stop.wait(seconds):
            raise Interrupted(why)

    def insist(self, call: Callable[[], T]) -> T:
        """What `call` returns; after JudgeBusy it is called again, `tries` times at most.

        Raises JudgeStopped when that was not enough.
        """
        why = ""
        for attempt in range(self.retry.tries):
            try:
                return call()
            except JudgeBusy as busy:
                why, wait = str(busy), self.delay(busy, attempt)
            if attempt + 1 < self.retry.tries:
                self.sleep(wait, why)
        raise JudgeStopped(
            f"{why}, {self.retry.tries} tries; what was answered is kept, run the same command again"
        )

    def delay(self, busy: JudgeBusy, attempt: int) -> float:
        """Seconds to wait: what the server asked for, or 1, 2, 4 ... times `first`, spread at random.

        The spread keeps sixteen threads from coming back in the same instant. Raises JudgeStopped when the
        server asks for more than `cap`.
        """
        if busy.after is None:
            return min(self.retry.most, self.retry.first * 2.0**attempt) * random.uniform(0.5, 1.0)
        if busy.after > self.retry.cap:
            raise JudgeStopped(
                f"{busy}: the server asks to wait {format_seconds(busy.after)}, longer than "
                f"{format_seconds(self.retry.cap)}; what was answered is kept, run the command again then"
            )
        return busy.after * random.uniform(1.0, 1.05)


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises, or TimeoutError after `seconds` in all.

    A socket's own timeout begins anew with every byte, and a server that sends one now and then would hold
    us for ever. So the call runs in a thread of its own, a daemon that is left behind when time is up or
    Ctrl-C comes; what it still brings is dropped.
    """
    arrived: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            arrived.put((call(), None))
        except BaseException as error:
            # Whatever it is, it is raised again in the thread that waits.
            arrived.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = arrived.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return cast("T", value)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """The seconds that a reply asks to wait, or None; never below 0.

    Reads `retry-after-ms` (milliseconds), then `retry-after`: seconds, or the date of RFC 9110, 10.2.3.
    `headers` has lower-case names or ignores case; `now` is the Unix time that a date is measured from.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000.0
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, when.timestamp() - (time.time() if now is None else now))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None
