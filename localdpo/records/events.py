"""The event log of a run: `events.jsonl`, one JSON object a line, only ever appended to.

The worker writes it; the command line, the dashboard and scripts read it while it grows. A line is

    {"v":1,"time":1700000000.0,"type":"step","step":12,"metrics":{"loss":0.61},"crc":"820ab427"}

`v` is the version of the format, `time` the Unix time in seconds, `step` is missing where it has no meaning;
every other field belongs to the type, but for `crc` (see records/log.py). Numbers that JSON does not have
(NaN, infinities) are written as null: a reader shows a gap, and the notice that goes with them names the
metric.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from localdpo.core.text import is_number
from localdpo.records.log import LogTail, LogWriter, encode, unseal

FORMAT_VERSION: Final = 1

# What a resumed run does again: the earlier record of these, past the step it resumes from, is void.
REDONE_TYPES: Final = frozenset({"step", "eval", "samples", "pairs", "checkpoint"})
EVENT_TYPES: Final = REDONE_TYPES | {
    *("data", "phase", "reference", "notice", "control"),
    *("run.started", "run.resumed", "run.paused", "run.continued"),
    *("run.finished", "run.failed", "run.stopped", "run.crashed"),
}
_LATEST_TIME: Final = 1e12  # seconds; a larger number is damage, and an int of that size may not fit a float
_MOST_STEPS: Final = 2**53  # a larger number is damage, and no column of a chart holds it
# A line may hold what JSON has no form for, by another program's hand: NaN, infinities, numbers that fit no
# float, halves of surrogate pairs. Such a line is read as if this writer had written it.
_NO_JSON: Final = re.compile(rb"NaN|Infinity|[eE]\+?[0-9]{3}|[0-9]{300}|\\u[dD][89a-fA-F]")
_OWN_KEYS: Final = frozenset({"v", "time", "type", "step", "crc"})


@dataclass(frozen=True)
class Event:
    """One line of the log. `data` holds the fields besides v, time, type and step."""

    v: int
    time: float
    type: str
    step: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def number(self, key: str) -> float | None:
        """The number under `key`, None where there is none."""
        return as_number(self.data.get(key))

    def text(self, key: str) -> str | None:
        """The text under `key`, None where there is none."""
        value = self.data.get(key)
        return value if isinstance(value, str) else None

    def recipe_section(self, name: str) -> Mapping[str, Any]:
        """A section of the recipe in a run.started event, empty where there is none."""
        recipe = self.data.get("recipe")
        section = recipe.get(name) if isinstance(recipe, Mapping) else None
        return section if isinstance(section, Mapping) else {}


@dataclass(frozen=True)
class Sample:
    """A watched prompt, and what reference and policy answered at the evaluation of `step`."""

    step: int
    prompt: str
    reference: str
    policy: str


def samples_of(event: Event) -> list[Sample]:
    """The answers in a samples event; none in any other."""
    entries = event.data.get("samples") if event.type == "samples" else None
    if event.step is None or not isinstance(entries, list):
        return []
    names = ("prompt", "reference", "policy")
    return [
        Sample(event.step, *(str(entry.get(name, "")) for name in names))
        for entry in entries
        if isinstance(entry, Mapping)
    ]


@dataclass(frozen=True)
class Notice:
    """Something a person should know. `level`: info, warning or critical; `advice`: what to try."""

    time: float
    step: int | None
    level: str
    name: str
    message: str
    why: str = ""
    advice: str = ""

    @property
    def text(self) -> str:
        """`warning displacement: message | why | advice`: all that it says, in one line."""
        said = " | ".join(part for part in (self.message, self.why, self.advice) if part)
        return f"{self.level} {self.name}: {said}"


def notice_of(event: Event) -> Notice:
    """What a notice event says."""
    words = (str(event.data.get(key, "")) for key in ("name", "message", "why", "try"))
    return Notice(event.time, event.step, event.text("level") or "info", *words)


class EventWriter(LogWriter):
    """Appends events to one log; `on_event` gets each that was written.

    Raises UserError when the disk is full, ValueError for an unknown type or a reserved field name.
    """

    def __init__(self, path: Path, on_event: Callable[[Event], object] | None = None) -> None:
        super().__init__(path)
        self._on_event = on_event

    def write(self, type: str, step: int | None = None, **fields: Any) -> Event:
        """Write one event and return it as a reader will see it."""
        if type not in EVENT_TYPES:
            raise ValueError(f"unknown event type {type!r}")
        if _OWN_KEYS & fields.keys():
            raise ValueError(f"reserved event fields: {sorted(_OWN_KEYS & fields.keys())}")
        line = encode_event(type, step, time.time(), fields)
        self.append(line)
        event = decode_event(line)
        assert event is not None
        if self._on_event is not None:
            self._on_event(event)
        return event


class EventTail(LogTail):
    """Reads a growing log of events.

    `loads` parses the bytes of a line in place of json.loads; it raises ValueError for what is not JSON.
    Lines with NaN and the like are read without it, with null in their place.

    Attributes:
        bad_lines: lines so far that were no event.
        last_step: the highest step of an event so far, 0 without any.
    """

    def __init__(self, path: str | Path, loads: Callable[[bytes], Any] = json.loads) -> None:
        super().__init__(path)
        self._loads = loads
        self.bad_lines = 0
        self.last_step = 0
        self._first_bad = 0

    def damage(self, *, alive: bool) -> str | None:
        """One line for the reader of the log about the damaged lines so far; None without any.

        `alive`: whether its writer may still be at work; else a last line without its end counts.
        """
        problems = []
        if self.bad_lines:
            which = "1 damaged line is" if self.bad_lines == 1 else f"{self.bad_lines:,} damaged lines are"
            first = "" if self.bad_lines == 1 else "first: "
            problems.append(f"{which} skipped ({first}line {self._first_bad:,})")
        if self.is_cut and not alive:
            problems.append("its last line is cut off: it was damaged, or its writer was killed")
        return f"{self.path}: {'; '.join(problems)}" if problems else None

    def poll(self, max_bytes: int | None = None) -> list[Event]:
        """The new events, in order; `max_bytes` as in `lines`."""
        events = []
        for number, line in self.lines(max_bytes):
            event = decode_event(line, self._loads)
            if event is not None:
                events.append(event)
                self.last_step = max(self.last_step, event.step or 0)
                continue
            self.bad_lines += 1
            self._first_bad = self._first_bad or number
        return events


def read_events(path: str | Path) -> list[Event]:
    """Every complete event of a log, in the order of writing; empty when there is no log.

    Damaged lines are skipped; `checkpoints.read_log` reports them, for screens and commands.
    """
    return EventTail(path).poll()


def effective(events: Iterable[Event]) -> list[Event]:
    """The events without what a resume made void.

    `run.resumed` at step N says that the run resumes from the state after step N: earlier step, eval,
    samples, pairs and checkpoint events with a step above N are dropped. Everything else stays, in order.
    """
    valid: list[Event] = []
    for event in events:
        if event.type == "run.resumed" and event.step is not None:
            last = event.step
            valid = [old for old in valid if old.type not in REDONE_TYPES or (old.step or 0) <= last]
        valid.append(event)
    return valid


def encode_event(type: str, step: int | None, now: float, fields: Mapping[str, Any]) -> bytes:
    """The line of one event, ended by a newline."""
    record: dict[str, Any] = {"v": FORMAT_VERSION, "time": round(now, 6), "type": type}
    if step is not None:
        record["step"] = step
    record.update(fields)
    return encode(finite(record))


def decode_event(line: bytes, loads: Callable[[bytes], Any] = json.loads) -> Event | None:
    """The event on one line, or None when the line is not an event of a version this reader knows."""
    try:
        line = unseal(line)
        record = _cleaned(json.loads(line)) if _NO_JSON.search(line) else loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    version, when = record.pop("v", None), record.pop("time", None)
    type_, step = record.pop("type", None), record.pop("step", None)
    if version != FORMAT_VERSION or not isinstance(type_, str):
        return None
    if not isinstance(when, int | float) or not abs(when) < _LATEST_TIME:
        return None
    if step is not None and not (type(step) is int and 0 <= step < _MOST_STEPS):
        return None
    return Event(v=version, time=float(when), type=type_, step=step, data=record)


def _cleaned(value: Any) -> Any:
    """`finite`, and without numbers that fit no float and halves of surrogate pairs."""
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return None
    return finite(value)


def as_number(value: Any) -> float | None:
    """`value` if it is a number, true and false aside."""
    return float(value) if is_number(value) else None


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity, at any depth, replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
