"""What a loss can be told: the keys under `loss.`, with defaults and ranges. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass

OptionValue = float | bool


@dataclass(frozen=True)
class OptionSpec:
    """One key under `loss.`: its default, its range, and what it does.

    `low` and `high` are None where there is no bound; `open_low`/`open_high` exclude the bound itself.
    A switch has a bool default and no bounds.
    """

    default: OptionValue
    low: float | None
    high: float | None
    description: str
    open_low: bool = False
    open_high: bool = False

    @property
    def is_switch(self) -> bool:
        return isinstance(self.default, bool)

    @property
    def range_text(self) -> str:
        """The range in words, e.g. `above 0` or `0 or more and below 0.5`."""
        if self.is_switch:
            return "true or false"
        parts = []
        if self.low is not None:
            parts.append(f"above {self.low:g}" if self.open_low else f"{self.low:g} or more")
        if self.high is not None:
            parts.append(f"below {self.high:g}" if self.open_high else f"{self.high:g} or less")
        return " and ".join(parts) or "a number"

    def problem(self, value: object) -> str | None:
        """What is wrong with `value`, or None: `expected above 0, got -1`."""
        wrong = f"expected {self.range_text}, got {value!r}"
        if self.is_switch:
            return None if isinstance(value, bool) else wrong
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return wrong
        too_low = self.low is not None and (value <= self.low if self.open_low else value < self.low)
        too_high = self.high is not None and (value >= self.high if self.open_high else value > self.high)
        return wrong if too_low or too_high else None


BETA = OptionSpec(0.1, 0.0, None, "strength of the pull towards the reference (1/nat)", open_low=True)
LABEL_SMOOTHING = OptionSpec(0.0, 0.0, 0.5, "assumed share of pairs whose labels are swapped", open_high=True)
REFERENCE_FREE = OptionSpec(
    False, None, None, "take the reference as uniform in the loss (reported rewards keep the real one)"
)
# TRL's default. Above 1 the exponential term grows without bound for a badly ordered pair.
DISCOPOP_TAU = OptionSpec(
    0.05, 0.0, 1.0, "temperature of the blend of logistic and exponential loss", open_low=True
)
# The paper's experiments use 5, 50 and 500, with 50 for its published models.
DPOP_LAMBDA = OptionSpec(
    50.0, 0.0, None, "weight of the penalty when the chosen response falls below the reference"
)
# The paper gives no single value; SimPO's baselines searched 0.05 to 1.0. 0.01 x 100 tokens is 1 nat.
R_DPO_ALPHA = OptionSpec(0.01, 0.0, None, "length penalty on the reward (nats per token)")
# TRL's default; the SimPO paper sets it together with beta 2.0 to 2.5.
SIMPO_GAMMA = OptionSpec(0.5, 0.0, None, "margin that the chosen response must reach (nats)")
ORPO_BETA = OptionSpec(
    0.1, 0.0, None, "weight of the odds-ratio term (the paper's lambda, as in TRL)", open_low=True
)
