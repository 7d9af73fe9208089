"""What a check says: the words of its entry in the table, and what it found in the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from localdpo.prefs.rows import Chunk

Level = Literal["error", "warning", "info"]
LEVELS: Final[tuple[Level, ...]] = ("error", "warning", "info")
EXAMPLES: Final = 5
NOTHING: Final[NDArray[np.int64]] = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Check:
    """One entry of the table CHECKS.

    Attributes:
        level: of its finding; an error makes `prefs check` exit with 1.
        what: what is counted, for a heading.
        advice: what a person may do.
        drops: whether `prefs clean` takes the rows out unless told otherwise.
        rows: whether it points at rows (False: it is about the data as a whole, and cannot be cleaned).
    """

    name: str
    level: Level
    what: str
    advice: str
    drops: bool = False
    rows: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """An example of a finding: the places of its pairs among all pairs, and a few words."""

    places: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: `count` of `total` pairs, and `places` int64 of those that cleaning would drop."""

    check: Check
    count: int
    total: int
    message: str
    samples: tuple[Sample, ...] = ()
    places: NDArray[np.int64] = field(default_factory=lambda: NOTHING)


class Family(Protocol):
    """Checks that look at the data together. `add` sees every pair once, in order; then `finish`."""

    checks: ClassVar[tuple[Check, ...]]

    def add(self, chunk: Chunk) -> None: ...
    def finish(self) -> Iterable[Finding]: ...
    def facts(self) -> Mapping[str, Any]:
        """Figures for the report, as JSON values."""
        ...


def at_rows(
    check: Check, total: int, places: Iterable[int], message: str, notes: Iterable[str] = ()
) -> list[Finding]:
    """The finding of a check that flags rows one by one; none when there are none."""
    found = np.fromiter(places, np.int64)
    if not len(found):
        return []
    words = [*notes, *[""] * EXAMPLES]
    samples = tuple(Sample((int(place),), words[i]) for i, place in enumerate(found[:EXAMPLES]))
    return [Finding(check, len(found), total, message, samples, found)]


def excerpt(text: str, width: int = 60) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width and len(text) <= 4 * width else f"{line[: width - 1]}…"
