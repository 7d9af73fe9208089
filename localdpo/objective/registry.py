"""The table of losses: what each one is called, where it comes from, which options it reads.

Standard library only: the recipe checks a file against this table without loading mlx. To add a loss, write
its entry here and its formula in `localdpo/objective/losses/`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, Literal

from localdpo.objective.options import OPTIONS, ORPO_BETA, OptionSpec, OptionValue

DataKind = Literal["pairs", "demonstrations", "unpaired"]


@dataclass(frozen=True)
class LossSpec:
    """One loss.

    name: the value of `loss.type`. summary, source: for `--help` and the documentation.
    options: keys under `loss.` (besides `type`) that the loss reads; any other key is an error.
    data: which rows it trains on; unpaired ones are single responses with a label, desirable or not.
    needs_reference: whether it reads reference log-probabilities. needs_baseline: whether it reads the KL
    baseline of the step's batch.
    requires: options that must be above 0 (their default of 0 leaves the formula undefined).
    separable: the batch loss is a mean of per-row terms, so micro-batches leave it unchanged.
    needs_tokens: whether it reads the numbers of scored tokens.
    """

    name: str
    summary: str
    source: str
    options: Mapping[str, OptionSpec]
    data: DataKind = "pairs"
    needs_reference: bool = True
    needs_baseline: bool = False
    requires: frozenset[str] = frozenset()
    separable: bool = True
    needs_tokens: bool = False

    def settings(self, given: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        """A value of each option that the loss reads: the given one, or its default."""
        return {name: given.get(name, option.default) for name, option in self.options.items()}

    def option_problem(self, name: str, value: object) -> str | None:
        """What is wrong with the value of an option that this loss reads, in one line, or None."""
        problem = self.options[name].problem(value)
        if problem is None and name in self.requires and value == 0:
            problem = "expected above 0, got 0"
        return None if problem is None else f"{name} of loss {self.name!r}: {problem}"


def _of_pairs(*names: str) -> Mapping[str, OptionSpec]:
    """Options of a loss with a term for each pair."""
    return {name: OPTIONS[name] for name in ("beta", *names, "use_weighting")}


def _of_sums(*names: str) -> Mapping[str, OptionSpec]:
    """The same for a loss on sums over responses, whose tokens may weigh differently."""
    return _of_pairs(*names, "ld_alpha")


# Ranks of the batch, not pairs, have the terms of these: no pair has a loss of its own to be weighed.
_AOT_OPTIONS = {name: OPTIONS[name] for name in ("beta", "label_smoothing", "ld_alpha")}
# No pair has a weight of its own, but each of the two labels does.
_UNPAIRED_OPTIONS = {name: OPTIONS[name] for name in ("beta", "desirable_weight", "undesirable_weight")}
# Losses on the margin of two rewards: any f-divergence can stand behind the rewards.
_F_DIVERGENCE = ("f_divergence", "f_alpha")


_SPECS = (
    LossSpec(
        "sigmoid",
        "DPO; conservative DPO (cDPO) with label_smoothing",
        "Rafailov et al. 2023, arXiv 2305.18290, eq. 7; Mitchell 2023, cDPO note, eq. 3",
        _of_sums("label_smoothing", "reference_free", *_F_DIVERGENCE),
    ),
    LossSpec(
        "ipo",
        "IPO on per-token averages, as TRL",
        "Azar et al. 2023, arXiv 2310.12036, eq. 17",
        _of_pairs("reference_free"),
        needs_tokens=True,
    ),
    LossSpec(
        "ipo_sum",
        "IPO on sums over the response, as the paper and Mitchell's code",
        "Azar et al. 2023, arXiv 2310.12036, eq. 17",
        _of_sums("reference_free"),
    ),
    LossSpec(
        "hinge",
        "hinge on the margin (SLiC)",
        "Zhao et al. 2023, arXiv 2305.10425; Liu et al. 2023, arXiv 2309.06657",
        _of_sums("reference_free", *_F_DIVERGENCE),
    ),
    LossSpec(
        "robust",
        "unbiased DPO under label noise",
        "Chowdhury et al. 2024, arXiv 2403.00409, eq. 12",
        _of_sums("label_smoothing", *_F_DIVERGENCE),
    ),
    LossSpec(
        "exo_pair",
        "EXO for pairs: reverse KL to the smoothed preference",
        "Ji et al. 2024, arXiv 2402.00856, eq. 16",
        _of_sums("label_smoothing", *_F_DIVERGENCE),
        requires=frozenset({"label_smoothing"}),
    ),
    LossSpec(
        "nca_pair",
        "noise contrastive alignment for pairs",
        "Chen et al. 2024, arXiv 2402.05369",
        _of_sums(),
    ),
    LossSpec(
        "bco_pair",
        "binary classifier optimisation for pairs, reward shift 0",
        "Jung et al. 2024, arXiv 2404.04656",
        _of_sums(),
    ),
    LossSpec(
        "sppo_hard",
        "self-play preference optimisation with hard labels",
        "Wu et al. 2024, arXiv 2405.00675, eq. 4.7",
        _of_sums(),
    ),
    LossSpec(
        "aot",
        "distributional alignment by optimal transport, paired",
        "Melnyk et al. 2024, arXiv 2406.05882",
        _AOT_OPTIONS,
        separable=False,
    ),
    LossSpec(
        "aot_unpaired",
        "distributional alignment by optimal transport, unpaired",
        "Melnyk et al. 2024, arXiv 2406.05882",
        _AOT_OPTIONS,
        separable=False,
    ),
    LossSpec(
        "apo_zero",
        "anchored: chosen up, rejected down",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266",
        _of_sums(),
    ),
    LossSpec(
        "apo_down",
        "anchored: both down, rejected faster",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266",
        _of_sums(),
    ),
    LossSpec(
        "discopop",
        "discovered blend of logistic and exponential loss (LRML)",
        "Lu et al. 2024, arXiv 2406.08414",
        _of_sums("discopop_tau", *_F_DIVERGENCE),
    ),
    LossSpec(
        "sigmoid_norm",
        "DPO on per-token averages (length-normalised)",
        "Lambert et al. 2024 (Tulu 3), arXiv 2411.15124",
        _of_pairs(),
        needs_tokens=True,
    ),
    LossSpec(
        "dpop",
        "DPO-Positive: a penalty when the chosen response falls below the reference",
        "Pal et al. 2024, arXiv 2402.13228, eq. 3",
        _of_sums("dpop_lambda"),
    ),
    LossSpec(
        "r_dpo",
        "DPO with a length penalty",
        "Park et al. 2024, arXiv 2403.19159",
        _of_pairs("r_dpo_alpha", *_F_DIVERGENCE),
        needs_tokens=True,
    ),
    LossSpec(
        "simpo",
        "reference-free margin on per-token averages",
        "Meng et al. 2024, arXiv 2405.14734, eq. 6",
        _of_pairs("simpo_gamma"),
        needs_reference=False,
        needs_tokens=True,
    ),
    LossSpec(
        "orpo",
        "NLL of the chosen response plus an odds-ratio term, no reference",
        "Hong et al. 2024, arXiv 2403.07691, eq. 6",
        {**_of_pairs(), "beta": ORPO_BETA},
        needs_reference=False,
        needs_tokens=True,
    ),
    LossSpec(
        "kto",
        "desirable responses above a KL baseline, undesirable ones below it, no pairs",
        "Ethayarajh et al. 2024, arXiv 2402.01306",
        _UNPAIRED_OPTIONS,
        data="unpaired",
        needs_baseline=True,
    ),
    LossSpec(
        "apo_zero_unpaired",
        "anchored: desirable up, undesirable down, no pairs and no KL baseline",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266",
        _UNPAIRED_OPTIONS,
        data="unpaired",
    ),
    LossSpec(
        "sft",
        "negative log-likelihood of demonstrations, mean over tokens",
        "maximum likelihood",
        {},
        data="demonstrations",
        needs_reference=False,
        needs_tokens=True,
    ),
)

# What people call a loss elsewhere, where the nearest spelling would lead them astray.
LOSS_SYNONYMS: Final = {"dpo": "sigmoid", "cdpo": "sigmoid", "slic": "hinge", "nll": "sft", "lm": "sft"}
LOSSES: Final[Mapping[str, LossSpec]] = {spec.name: spec for spec in _SPECS}


def loss_spec(name: str) -> LossSpec:
    """The spec of `name`; ValueError with the nearest names when there is none."""
    if name in LOSSES:
        return LOSSES[name]
    near = difflib.get_close_matches(name.lower(), LOSSES, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the losses are {', '.join(LOSSES)}"
    if synonym := LOSS_SYNONYMS.get(name.lower()):
        hint = f"here it is called {synonym}"
    raise ValueError(f'no loss is called "{name[:40]}"; {hint}')


class LossSum:
    """sum_k weights[k] * terms[k] on the same rows; a single loss is a sum of one term of weight 1.

    RPO is sigmoid + a * sft (Pang et al. 2024, arXiv 2404.19733), MPO 0.8 sigmoid + 0.2 bco_pair + sft
    (Wang et al. 2024, arXiv 2411.10442). The other attributes are those of `LossSpec`, over all terms: pairs
    are needed as soon as one term needs them (`sft` beside others is a term on the chosen responses), and of
    an option that several read the first one's is taken.
    """

    def __init__(self, terms: tuple[LossSpec, ...], weights: tuple[float, ...]) -> None:
        self.terms, self.weights = terms, weights
        self.name = "+".join(term.name for term in terms)
        self.options: dict[str, OptionSpec] = {}
        for name, option in chain.from_iterable(term.options.items() for term in terms):
            self.options.setdefault(name, option)
        self.requires: frozenset[str] = frozenset().union(*(term.requires for term in terms))
        self.data: DataKind = "pairs" if any(term.data == "pairs" for term in terms) else terms[0].data
        self.needs_reference = any(term.needs_reference for term in terms)
        self.needs_baseline = any(term.needs_baseline for term in terms)
        self.separable = all(term.separable for term in terms)

    def option_problem(self, name: str, value: object) -> str | None:
        """What is wrong with `name=value`, in one line, or None."""
        readers = [term for term in self.terms if name in term.options]
        if not readers:
            known = ", ".join(self.options) or "no options"
            return f"loss {self.name!r} does not read {name!r}; it reads {known}"
        problems = (term.option_problem(name, value) for term in readers)
        return next((problem for problem in problems if problem is not None), None)

    def require_valid(self, given: Mapping[str, OptionValue]) -> None:
        """Raise ValueError for an option that no term reads, is out of range, or contradicts another one."""
        problems = [self.option_problem(name, value) for name, value in given.items()]
        if not any(problems):
            values = {name: option.default for name, option in self.options.items()} | dict(given)
            for name, value in given.items():
                problem = self.options[name].combination_problem(value, values)
                problems.append(problem and f"{name} of loss {self.name!r}: {problem}")
        for problem in problems:
            if problem:
                raise ValueError(problem)

    def in_effect(self, values: Mapping[str, object]) -> list[str]:
        """Names of the options that are read where they have these values."""
        options = self.options.items()
        return [name for name, o in options if o.needs is None or values[o.needs] == o.needs_value]


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
        raise ValueError(f"expected a weight for each of the {len(terms)} losses, got {len(given)}")
    if not all(math.isfinite(weight) and weight > 0.0 for weight in given):
        raise ValueError(f"expected weights above 0, got {', '.join(f'{weight:g}' for weight in given)}")
    return LossSum(terms, given)
