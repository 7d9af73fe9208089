"""What a series of trials came to: how many were tried, and how many of them broke a promise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

_SHOWN = 5


@dataclass
class Tally:
    """The outcome of one series.

    Attributes:
        lost: trials after which work was gone that had been done.
        silent: trials that went on with wrong values, or ended otherwise than promised, without a word.
        tracebacks: trials that showed a person a traceback.
        details: what happened in the trials that count above, a line each.
    """

    name: str
    tried: int = 0
    lost: int = 0
    silent: int = 0
    tracebacks: int = 0
    details: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether every promise was kept in every trial, and there was one."""
        return self.tried > 0 and not (self.lost or self.silent or self.tracebacks)

    def trial(self, what: str, **broken: bool) -> None:
        """Count one trial. `broken`: whether it was lost, silent, traceback."""
        self.tried += 1
        self.verdict(what, **broken)

    def verdict(
        self, what: str, *, lost: bool = False, silent: bool = False, traceback: bool = False
    ) -> None:
        """Count what trials that are counted already came to."""
        self.lost += lost
        self.silent += silent
        self.tracebacks += traceback
        words = [
            name for name, broken in (("lost", lost), ("silent", silent), ("traceback", traceback)) if broken
        ]
        if words:
            self.details.append(f"{', '.join(words)}: {what}")


def table(tallies: Iterable[Tally]) -> str:
    """The tallies as a Markdown table."""
    lines = ["| trials | tried | lost | wrong without a word | tracebacks |", "|---|---|---|---|---|"]
    lines += [f"| {t.name} | {t.tried:,} | {t.lost} | {t.silent} | {t.tracebacks} |" for t in tallies]
    return "\n".join(lines)


def require(tally: Tally) -> None:
    """Raise AssertionError with the first broken promises unless all were kept."""
    assert tally.held, f"{table([tally])}\n" + "\n".join(tally.details[:_SHOWN])
