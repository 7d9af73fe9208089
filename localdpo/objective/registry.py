"""The table of losses: what each one is called, where it comes from, which options it reads.

Standard library only: the recipe checks a file against this table without loading mlx. Adding a loss
takes one entry here and one function `NAME_loss` in `localdpo/objective/losses/`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from localdpo.objective.options import (
    BETA,
    DESIRABLE_WEIGHT,
    DISCOPOP_TAU,
    DPOP_LAMBDA,
    F_ALPHA,
    F_DIVERGENCE,
    LABEL_SMOOTHING,
    LD_ALPHA,
    ORPO_BETA,
    R_DPO_ALPHA,
    REFERENCE_FREE,
    SIMPO_GAMMA,
    UNDESIRABLE_WEIGHT,
    USE_WEIGHTING,
    OptionSpec,
)

DataKind = Literal["pairs", "demonstrations", "unpaired"]


@dataclass(frozen=True)
class LossSpec:
    """One loss.

    name: the value of `loss.type`. summary, source: for `--help` and the documentation.
    options: keys under `loss.` (besides `type`) that the loss reads; any other key is an error.
    module: the module in `localdpo.objective.losses` that holds the function `NAME_loss`; a loss on
    demonstrations that can also be a term beside losses on pairs has `NAME_term` there as well.
    data: which rows it trains on; unpaired ones are single responses with a label, desirable or not.
    needs_reference: whether it reads reference log-probabilities. needs_baseline: whether it reads the KL
    baseline of the step's batch.
    requires: options that must be above 0 (their default of 0 leaves the formula undefined).
    separable: the batch loss is a mean of per-row terms, so micro-batches leave it unchanged.
    per_token: divides by the number of scored tokens, so the token counts are needed.
    lengths: reads the token counts in another way (r_dpo's length term).
    """

    name: str
    summary: str
    source: str
    options: Mapping[str, OptionSpec]
    module: str
    data: DataKind = "pairs"
    needs_reference: bool = True
    needs_baseline: bool = False
    requires: frozenset[str] = field(default_factory=frozenset)
    separable: bool = True
    per_token: bool = False
    lengths: bool = False

    @property
    def option_names(self) -> frozenset[str]:
        return frozenset(self.options)

    @property
    def needs_tokens(self) -> bool:
        """Whether the loss cannot be computed without the counts of scored tokens."""
        return self.per_token or self.lengths

    def option_problem(self, name: str, value: object) -> str | None:
        """What is wrong with `name=value` for this loss, in one line that names both, or None."""
        if name not in self.options:
            known = ", ".join(self.options) or "no options"
            return f"loss {self.name!r} does not read {name!r}; it reads {known}"
        problem = self.options[name].problem(value)
        if problem is None and name in self.requires and value == 0:
            problem = "expected above 0, got 0"
        return None if problem is None else f"{name} of loss {self.name!r}: {problem}"


def _options(**extra: OptionSpec) -> Mapping[str, OptionSpec]:
    """Options of a loss with a term for each pair."""
    return MappingProxyType({"beta": BETA, **extra, "use_weighting": USE_WEIGHTING})


def _sum_options(**extra: OptionSpec) -> Mapping[str, OptionSpec]:
    """The same for a loss on sums over responses, whose tokens may weigh differently."""
    return _options(**extra, ld_alpha=LD_ALPHA)


# Ranks of the batch, not pairs, have the terms of these: no pair has a loss of its own to be weighed.
_AOT_OPTIONS = MappingProxyType({"beta": BETA, "label_smoothing": LABEL_SMOOTHING, "ld_alpha": LD_ALPHA})


# No pair has a weight of its own, but each of the two labels does.
_UNPAIRED_OPTIONS = MappingProxyType(
    {"beta": BETA, "desirable_weight": DESIRABLE_WEIGHT, "undesirable_weight": UNDESIRABLE_WEIGHT}
)


# Losses on the margin of two rewards: any f-divergence can stand behind the rewards.
_F_DIVERGENCE = {"f_divergence": F_DIVERGENCE, "f_alpha": F_ALPHA}


_SPECS = (
    LossSpec(
        "sigmoid",
        "DPO; conservative DPO (cDPO) with label_smoothing",
        "Rafailov et al. 2023, arXiv 2305.18290, eq. 7; Mitchell 2023, cDPO note, eq. 3",
        _sum_options(label_smoothing=LABEL_SMOOTHING, reference_free=REFERENCE_FREE, **_F_DIVERGENCE),
        "sigmoid",
    ),
    LossSpec(
        "ipo",
        "IPO on per-token averages, as TRL",
        "Azar et al. 2023, arXiv 2310.12036, eq. 17",
        _options(reference_free=REFERENCE_FREE),
        "ipo",
        per_token=True,
    ),
    LossSpec(
        "ipo_sum",
        "IPO on sums over the response, as the paper and Mitchell's code",
        "Azar et al. 2023, arXiv 2310.12036, eq. 17",
        _sum_options(reference_free=REFERENCE_FREE),
        "ipo",
    ),
    LossSpec(
        "hinge",
        "hinge on the margin (SLiC)",
        "Zhao et al. 2023, arXiv 2305.10425; Liu et al. 2023, arXiv 2309.06657",
        _sum_options(reference_free=REFERENCE_FREE, **_F_DIVERGENCE),
        "hinge",
    ),
    LossSpec(
        "robust",
        "unbiased DPO under label noise",
        "Chowdhury et al. 2024, arXiv 2403.00409, eq. 12",
        _sum_options(label_smoothing=LABEL_SMOOTHING, **_F_DIVERGENCE),
        "noise",
    ),
    LossSpec(
        "exo_pair",
        "EXO for pairs: reverse KL to the smoothed preference",
        "Ji et al. 2024, arXiv 2402.00856, eq. 16",
        _sum_options(label_smoothing=LABEL_SMOOTHING, **_F_DIVERGENCE),
        "noise",
        requires=frozenset({"label_smoothing"}),
    ),
    LossSpec(
        "nca_pair",
        "noise contrastive alignment for pairs",
        "Chen et al. 2024, arXiv 2402.05369",
        _sum_options(),
        "classifier",
    ),
    LossSpec(
        "bco_pair",
        "binary classifier optimisation for pairs, reward shift 0",
        "Jung et al. 2024, arXiv 2404.04656",
        _sum_options(),
        "classifier",
    ),
    LossSpec(
        "sppo_hard",
        "self-play preference optimisation with hard labels",
        "Wu et al. 2024, arXiv 2405.00675, eq. 4.7",
        _sum_options(),
        "sppo",
    ),
    LossSpec(
        "aot",
        "distributional alignment by optimal transport, paired",
        "Melnyk et al. 2024, arXiv 2406.05882",
        _AOT_OPTIONS,
        "aot",
        separable=False,
    ),
    LossSpec(
        "aot_unpaired",
        "distributional alignment by optimal transport, unpaired",
        "Melnyk et al. 2024, arXiv 2406.05882",
        _AOT_OPTIONS,
        "aot",
        separable=False,
    ),
    LossSpec(
        "apo_zero",
        "anchored: chosen up, rejected down",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266",
        _sum_options(),
        "apo",
    ),
    LossSpec(
        "apo_down",
        "anchored: both down, rejected faster",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266",
        _sum_options(),
        "apo",
    ),
    LossSpec(
        "discopop",
        "discovered blend of logistic and exponential loss (LRML)",
        "Lu et al. 2024, arXiv 2406.08414",
        _sum_options(discopop_tau=DISCOPOP_TAU, **_F_DIVERGENCE),
        "discopop",
    ),
    LossSpec(
        "sigmoid_norm",
        "DPO on per-token averages (length-normalised)",
        "Lambert et al. 2024 (Tulu 3), arXiv 2411.15124",
        _options(),
        "normalised",
        per_token=True,
    ),
    LossSpec(
        "dpop",
        "DPO-Positive: a penalty when the chosen response falls below the reference",
        "Pal et al. 2024, arXiv 2402.13228, eq. 3",
        _sum_options(dpop_lambda=DPOP_LAMBDA),
        "penalised",
    ),
    LossSpec(
        "r_dpo",
        "DPO with a length penalty",
        "Park et al. 2024, arXiv 2403.19159",
        _options(r_dpo_alpha=R_DPO_ALPHA, **_F_DIVERGENCE),
        "penalised",
        lengths=True,
    ),
    LossSpec(
        "simpo",
        "reference-free margin on per-token averages",
        "Meng et al. 2024, arXiv 2405.14734, eq. 6",
        _options(simpo_gamma=SIMPO_GAMMA),
        "reference_free",
        needs_reference=False,
        per_token=True,
    ),
    LossSpec(
        "orpo",
        "NLL of the chosen response plus an odds-ratio term, no reference",
        "Hong et al. 2024, arXiv 2403.07691, eq. 6",
        MappingProxyType({"beta": ORPO_BETA, "use_weighting": USE_WEIGHTING}),
        "reference_free",
        needs_reference=False,
        per_token=True,
    ),
    LossSpec(
        "kto",
        "desirable responses above a KL baseline, undesirable ones below it, no pairs",
        "Ethayarajh et al. 2024, arXiv 2402.01306",
        _UNPAIRED_OPTIONS,
        "kto",
        data="unpaired",
        needs_baseline=True,
    ),
    LossSpec(
        "apo_zero_unpaired",
        "anchored: desirable up, undesirable down, no pairs and no KL baseline",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266",
        _UNPAIRED_OPTIONS,
        "kto",
        data="unpaired",
    ),
    LossSpec(
        "sft",
        "negative log-likelihood of demonstrations, mean over tokens",
        "maximum likelihood",
        MappingProxyType({}),
        "sft",
        data="demonstrations",
        needs_reference=False,
        per_token=True,
    ),
)

LOSSES: Mapping[str, LossSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})


def loss_spec(name: str) -> LossSpec:
    """The spec of `name`; ValueError with the nearest names when there is none."""
    if name in LOSSES:
        return LOSSES[name]
    near = difflib.get_close_matches(name, LOSSES, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(LOSSES)}"
    raise ValueError(f"unknown loss {name!r}; {hint}")
