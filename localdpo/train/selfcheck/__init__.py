"""Whether training computes on this device what it computes on the CPU in float32.

`python -m localdpo.train.selfcheck` runs every check and prints a line of JSON before and after each, so
that `localdpo doctor --check`, which reads them, knows in which one the device crashed.
It uses small random models and the bundled demo only: nothing is downloaded, nothing is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# "ok" and "differs" compare something with a bar, "info" has none; "error": the check itself broke off;
# "skipped": it has no meaning here, for the reason in `value`.
State = Literal["ok", "differs", "error", "info", "skipped"]


@dataclass(frozen=True)
class CheckResult:
    """One line of the table: `value` is what was found, `bar` what it may be."""

    state: State
    value: str
    bar: str = ""


class Differs(Exception):
    """A check whose outcome is wrong, where no distance expresses it."""


def compared(gaps: dict[str, tuple[float, float]]) -> CheckResult:
    """The result for several distances by name, each with its own bar; NaN is above every bar."""
    state: State = "ok" if all(gap <= bar for gap, bar in gaps.values()) else "differs"
    return CheckResult(
        state,
        ", ".join(f"{name} {gap:.2g}" for name, (gap, _) in gaps.items()),
        "at most " + ", ".join(f"{bar:.2g}" for _, bar in gaps.values()),
    )
