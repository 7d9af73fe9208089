"""What a loss can be told: the keys under `loss.`, with defaults and ranges. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

OptionValue = float | bool | str


@dataclass(frozen=True)
class OptionSpec:
    """One key under `loss.`: its default, its range, and what it does.

    `low` and `high` are None where there is no bound; `open_low`/`open_high` exclude the bound itself.
    A switch has a bool default and no bounds; a name out of `choices` has none either.
    `needs` is the option that must have the value `needs_value` for this one to be read; `excludes` is a
    switch that must be off wherever this one is not at its default.
    """

    default: OptionValue
    low: float | None
    high: float | None
    description: str
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    needs: str | None = None
    needs_value: OptionValue | None = None
    excludes: str | None = None

    @property
    def is_switch(self) -> bool:
        return isinstance(self.default, bool)

    @property
    def range_text(self) -> str:
        """The range in words, e.g. `above 0` or `0 or more and below 0.5`."""
        if self.is_switch:
            return "true or false"
        if self.choices:
            return f"one of {', '.join(self.choices)}"
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
        if self.choices:
            return None if value in self.choices else wrong
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return wrong
        too_low = self.low is not None and (value <= self.low if self.open_low else value < self.low)
        too_high = self.high is not None and (value >= self.high if self.open_high else value > self.high)
        return wrong if too_low or too_high else None

    def combination_problem(self, value: object, others: Mapping[str, object]) -> str | None:
        """Why `value` makes no sense beside `others` (options by name), or None; names the other option."""
        if self.needs is not None and self.needs in others and others[self.needs] != self.needs_value:
            return f"it is read only where {self.needs} is {self.needs_value}; remove it or set that"
        if self.excludes is not None and value != self.default and others.get(self.excludes) is True:
            return f"{value} makes no sense with {self.excludes}; remove one of the two"
        return None


OPTIONS: Final[Mapping[str, OptionSpec]] = {
    "beta": OptionSpec(0.1, 0.0, None, "strength of the pull towards the reference (1/nat)", open_low=True),
    "label_smoothing": OptionSpec(
        0.0, 0.0, 0.5, "assumed share of pairs whose labels are swapped", open_high=True
    ),
    "reference_free": OptionSpec(
        False, None, None, "take the reference as uniform in the loss (reported rewards keep the real one)"
    ),
    # TRL's default. Above 1 the exponential term grows without bound for a badly ordered pair.
    "discopop_tau": OptionSpec(
        0.05, 0.0, 1.0, "temperature of the blend of logistic and exponential loss", open_low=True
    ),
    # The paper's experiments use 5, 50 and 500, with 50 for its published models.
    "dpop_lambda": OptionSpec(
        50.0, 0.0, None, "weight of the penalty when the chosen response falls below the reference"
    ),
    # The paper gives no single value; SimPO's baselines searched 0.05 to 1.0. 0.01 x 100 tokens is 1 nat.
    "r_dpo_alpha": OptionSpec(0.01, 0.0, None, "length penalty on the reward (nats per token)"),
    # TRL's default; the SimPO paper sets it together with beta 2.0 to 2.5.
    "simpo_gamma": OptionSpec(0.5, 0.0, None, "margin that the chosen response must reach (nats)"),
    # The uniform "reference" of reference_free has no ratio of probabilities, which is what f' is a function
    # of.
    "f_divergence": OptionSpec(
        "reverse_kl",
        None,
        None,
        "divergence from the reference that the reward is derived from",
        choices=("reverse_kl", "forward_kl", "js", "alpha"),
        excludes="reference_free",
    ),
    # TRL's default. In f-DPO's notation it is 1 - alpha. At 0 it is forward_kl, at 1 reverse_kl.
    "f_alpha": OptionSpec(
        0.5,
        0.0,
        1.0,
        "order of the alpha divergence: near 0 forward KL, near 1 reverse KL",
        open_low=True,
        open_high=True,
        needs="f_divergence",
        needs_value="alpha",
    ),
    "ld_alpha": OptionSpec(
        1.0,
        0.0,
        1.0,
        "weight of the tokens by which a response is longer than the other of its pair (LD-DPO)",
    ),
    "use_weighting": OptionSpec(
        False, None, None, "weigh each pair by how likely the policy would write it itself (WPO)"
    ),
    "desirable_weight": OptionSpec(1.0, 0.0, None, "weight of desirable rows", open_low=True),
    "undesirable_weight": OptionSpec(1.0, 0.0, None, "weight of undesirable rows", open_low=True),
}
ORPO_BETA = OptionSpec(
    0.1, 0.0, None, "weight of the odds-ratio term (the paper's lambda, as in TRL)", open_low=True
)
