"""What a check found, as the lines that travel from the process that checks to the one that shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

# "ok" and "differs" compare something with a bar, "info" has none; "error": the check itself broke off;
# "skipped": it has no meaning here, `value` says why.
State = Literal["ok", "differs", "error", "info", "skipped"]
BAD: Final = frozenset({"differs", "error"})


@dataclass(frozen=True)
class Finding:
    """One line of the table: `value` is what was found, `bar` what it may be."""

    state: State
    value: str
    bar: str = ""


class Differs(Exception):
    """A check whose outcome is wrong in a way that no number says."""


def compared(gaps: dict[str, tuple[float, float]]) -> Finding:
    """A finding of several distances by name, each with its own bar; NaN is above every bar."""
    state: State = "ok" if all(gap <= bar for gap, bar in gaps.values()) else "differs"
    return Finding(
        state,
        ", ".join(f"{name} {gap:.2g}" for name, (gap, _) in gaps.items()),
        "at most " + ", ".join(f"{bar:.2g}" for _, bar in gaps.values()),
    )
