"""What `loss.type` names: one loss, or several whose weighted sum is minimised. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localdpo.objective.options import OptionSpec
from localdpo.objective.registry import DataKind, LossSpec, loss_spec


@dataclass(frozen=True)
class LossSum:
    """sum_k weights[k] * terms[k] on the same rows; a single loss is a sum of one term of weight 1.

    RPO is sigmoid + a * sft (Pang et al. 2024, arXiv 2404.19733), MPO 0.8 sigmoid + 0.2 bco_pair + sft
    (Wang et al. 2024, arXiv 2411.10442). The properties are those of `LossSpec`, over all terms.
    """

    terms: tuple[LossSpec, ...]
    weights: tuple[float, ...]

    @property
    def name(self) -> str:
        """The terms' names: `sigmoid`, or `sigmoid+sft`."""
        return "+".join(term.name for term in self.terms)

    @property
    def options(self) -> Mapping[str, OptionSpec]:
        """Every option that some term reads; the first term's where several read it."""
        merged: dict[str, OptionSpec] = {}
        for term in self.terms:
            merged |= {name: spec for name, spec in term.options.items() if name not in merged}
        return merged

    @property
    def requires(self) -> frozenset[str]:
        return frozenset().union(*(term.requires for term in self.terms))

    @property
    def data(self) -> DataKind:
        """Pairs as soon as one term needs them: `sft` beside others is a term on the chosen responses."""
        return "pairs" if any(term.data == "pairs" for term in self.terms) else self.terms[0].data

    @property
    def needs_reference(self) -> bool:
        return any(term.needs_reference for term in self.terms)

    @property
    def needs_baseline(self) -> bool:
        return any(term.needs_baseline for term in self.terms)

    @property
    def separable(self) -> bool:
        return all(term.separable for term in self.terms)

    def option_problem(self, name: str, value: object) -> str | None:
        """What is wrong with `name=value`, in one line, or None; every term that reads it is asked."""
        readers = [term for term in self.terms if name in term.options]
        if not readers:
            known = ", ".join(self.options) or "no options"
            return f"loss {self.name!r} does not read {name!r}; it reads {known}"
        problems = (term.option_problem(name, value) for term in readers)
        return next((problem for problem in problems if problem is not None), None)

    def in_effect(self, values: Mapping[str, object]) -> list[str]:
        """Names of the options that are read where they have these values."""
        return [
            name
            for name, spec in self.options.items()
            if spec.needs is None or values[spec.needs] == spec.needs_value
        ]


def loss_sum(names: str | Sequence[str], weights: Sequence[float] | None = None) -> LossSum:
    """The sum that `loss.type` and `loss.weights` name; weights are 1 where none are given.

    ValueError for an unknown loss, a loss named twice, no loss at all, a loss on unpaired rows beside another
    one, and weights that are not one finite number above 0 for each loss.
    """
    listed = (names,) if isinstance(names, str) else tuple(names)
    terms = tuple(loss_spec(name) for name in listed)
    if not terms:
        raise ValueError("expected one or more losses, got none")
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise ValueError(f"loss {', '.join(twice)} named twice; give it once with a larger weight")
    alone = [term.name for term in terms if term.data == "unpaired"]
    if alone and len(terms) > 1:
        raise ValueError(
            f"loss {alone[0]} trains on unpaired rows, which no other loss can share; name it alone"
        )
    given = (1.0,) * len(terms) if weights is None else tuple(float(weight) for weight in weights)
    if len(given) != len(terms):
        raise ValueError(f"expected one weight for each of {len(terms)} losses, got {len(given)}")
    if not all(math.isfinite(weight) and weight > 0.0 for weight in given):
        raise ValueError(f"expected weights above 0, got {', '.join(f'{weight:g}' for weight in given)}")
    return LossSum(terms, given)
