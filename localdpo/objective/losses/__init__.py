"""`preference_loss`, `unpaired_loss`: every loss by its name. One family a file; the table is registry.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import cast

import mlx.core as mx

from localdpo.objective.divergences import with_divergence
from localdpo.objective.mixture import LossSum, loss_sum
from localdpo.objective.modifiers import length_desensitised, pair_weights
from localdpo.objective.options import OptionValue
from localdpo.objective.registry import LossSpec
from localdpo.objective.scores import PairScores, UnpairedScores

PairLoss = Callable[..., mx.array]
SUMS = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
ALIGNMENT = ("alignment of chosen", "alignment of rejected")
PUBLIC = tuple(f"public {name}" for name in SUMS)


def loss_function(spec: LossSpec) -> Callable[..., object]:
    """The function of a registry entry on its own rows: `NAME_loss` in its module."""
    return cast("Callable[..., object]", getattr(_module(spec), f"{spec.name}_loss"))


def pair_function(spec: LossSpec) -> PairLoss:
    """The function of a registry entry on pairs; for a loss on demonstrations that is `NAME_term`."""
    kind = "loss" if spec.data == "pairs" else "term"
    return cast("PairLoss", getattr(_module(spec), f"{spec.name}_{kind}"))


def _module(spec: LossSpec) -> object:
    return import_module(f"localdpo.objective.losses.{spec.module}")


def preference_loss(
    loss_type: str | Sequence[str],
    policy_chosen: mx.array,
    policy_rejected: mx.array,
    ref_chosen: mx.array | None,
    ref_rejected: mx.array | None,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    chosen_tokens: mx.array | None = None,
    rejected_tokens: mx.array | None = None,
    public: Sequence[mx.array | None] | None = None,
    alignment: Sequence[mx.array | None] | None = None,
    weights: Sequence[float] | None = None,
    **options: OptionValue,
) -> mx.array:
    """The loss `loss_type` of B pairs, float32 [B], one term a pair (aot: one a rank).

    policy_*, ref_* [B]: log-probabilities (nats) of whole responses, summed over their scored tokens, of any
    float type. ref_* may be None for a loss that reads no reference. *_tokens [B]: numbers of scored tokens,
    at least 1 each, needed by losses that divide by them and ignored by the others. `options` are the loss's
    own keys (see `localdpo.objective.registry.LOSSES`); `reference_free=True` takes the reference as uniform
    in the loss. `public`, needed where `ld_alpha` is below 1: the four log-probabilities again, in the same
    order, summed over the first min(|w|, |l|) tokens of each response. `alignment`, needed where
    `use_weighting` is on: the means over the tokens of chosen and of rejected responses of
    ln p(token) - ln sum_v p_v^2 under the policy, [B] each.

    Several losses in `loss_type` give the sum of `weights[k]` (1 each unless given) times the k-th one; every
    option goes to those of them that read it, and `sft` is there the token-mean negative log-likelihood of
    the chosen response.

    Works inside `mx.grad` and `mx.compile` (the options are constants of the trace). Raises ValueError for an
    unknown loss, weights that do not fit, an option that no named loss reads or that is out of range, arrays
    that are not of one shape [B], and missing reference log-probabilities or token counts.
    """
    loss = loss_sum(loss_type, weights)
    if loss.data != "pairs":
        raise ValueError(f"loss {loss.name!r} trains on {loss.data}, not on pairs")
    given = _given(loss, beta, label_smoothing, options)
    arrays = {
        "policy_chosen": policy_chosen,
        "policy_rejected": policy_rejected,
        "ref_chosen": ref_chosen,
        "ref_rejected": ref_rejected,
        "chosen_tokens": chosen_tokens,
        "rejected_tokens": rejected_tokens,
    }
    arrays |= dict(zip(PUBLIC, public or (None,) * len(PUBLIC), strict=True))
    arrays |= dict(zip(ALIGNMENT, alignment or (None,) * len(ALIGNMENT), strict=True))
    terms = [_term(spec, given, arrays) for spec in loss.terms]
    total = loss.weights[0] * terms[0]
    for weight, term in zip(loss.weights[1:], terms[1:], strict=True):
        total = total + weight * term
    return total


def unpaired_loss(
    loss_type: str | Sequence[str],
    policy: mx.array,
    reference: mx.array,
    desirable: mx.array,
    *,
    beta: float = 0.1,
    baseline: mx.array | None = None,
    weights: Sequence[float] | None = None,
    **options: OptionValue,
) -> mx.array:
    """The loss `loss_type` of B single responses with a label, float32 [B].

    policy, reference [B]: log-probabilities (nats) of whole responses, summed over their scored tokens, of
    any float type; desirable [B]: bool. baseline: the KL baseline z of the step, a scalar in nats that takes
    no gradient, needed by `kto` and ignored by the others. `options` are the loss's own keys; `weights` as in
    `preference_loss`, for a list of one loss.

    Works inside `mx.grad` and `mx.compile`. Raises ValueError for an unknown loss, one on other rows, an
    option that the loss does not read or that is out of range, arrays that are not of one shape [B], and a
    missing baseline.
    """
    loss = loss_sum(loss_type, weights)
    if loss.data != "unpaired":
        raise ValueError(f"loss {loss.name!r} trains on {loss.data}, not on unpaired rows")
    given = _given(loss, beta, 0.0, options)
    if policy.ndim != 1 or not policy.shape == reference.shape == desirable.shape:
        shapes = f"{policy.shape}, {reference.shape} and {desirable.shape}"
        raise ValueError(f"loss {loss.name!r}: expected three arrays of one shape [B], got {shapes}")
    if loss.needs_baseline and baseline is None:
        raise ValueError(f"loss {loss.name!r} needs baseline")
    (spec,) = loss.terms
    scores = UnpairedScores(policy, reference, desirable, baseline)
    settings = {name: given.get(name, option.default) for name, option in spec.options.items()}
    return loss.weights[0] * cast("mx.array", loss_function(spec)(scores, **settings))


def _given(
    loss: LossSum, beta: float, label_smoothing: float, options: dict[str, OptionValue]
) -> dict[str, OptionValue]:
    """What the caller passed, checked against the losses that read it, and what they require."""
    given: dict[str, OptionValue] = {"beta": beta, **options}
    # 0 is the signature's own default: only a caller's value can be "not read".
    if label_smoothing != 0.0 or "label_smoothing" in loss.options:
        given["label_smoothing"] = label_smoothing
    for name, value in given.items():
        problem = loss.option_problem(name, value)
        if problem is not None:
            raise ValueError(problem)
    values = {name: option.default for name, option in loss.options.items()} | given
    for name, value in given.items():
        problem = loss.options[name].combination_problem(value, values)
        if problem is not None:
            raise ValueError(f"{name} of loss {loss.name!r}: {problem}")
    return given


def _term(
    spec: LossSpec, given: Mapping[str, OptionValue], arrays: Mapping[str, mx.array | None]
) -> mx.array:
    """One loss [B] with those of the options that it reads, over the registry's defaults."""
    settings = {name: given.get(name, option.default) for name, option in spec.options.items()}
    reference_free = bool(settings.pop("reference_free", False)) or not spec.needs_reference
    ld_alpha = float(settings.pop("ld_alpha", 1.0))
    divergence, alpha = str(settings.pop("f_divergence", "reverse_kl")), float(settings.pop("f_alpha", 0.5))
    scores = _scores(spec, arrays, reference_free=reference_free, ld_alpha=ld_alpha)
    weighted = bool(settings.pop("use_weighting", False))
    losses = pair_function(spec)(with_divergence(scores, divergence, alpha), **settings)
    return losses * _weights(spec, arrays) if weighted else losses


def _weights(spec: LossSpec, arrays: Mapping[str, mx.array | None]) -> mx.array:
    chosen, rejected = (arrays[name] for name in ALIGNMENT)
    if chosen is None or rejected is None:
        raise ValueError(f"loss {spec.name!r} needs alignment of chosen and rejected responses")
    return pair_weights(chosen.astype(mx.float32), rejected.astype(mx.float32))


def _scores(
    spec: LossSpec, arrays: Mapping[str, mx.array | None], *, reference_free: bool, ld_alpha: float
) -> PairScores:
    """The arrays, checked against each other and cast to float32, with the tokens weighed by `ld_alpha`."""
    given = {name: array for name, array in arrays.items() if array is not None}
    shape = given["policy_chosen"].shape
    if len(shape) != 1:
        raise ValueError(f"loss {spec.name!r}: expected policy_chosen of shape [B], got {shape}")
    for name, array in given.items():
        if array.shape != shape:
            raise ValueError(f"loss {spec.name!r}: expected {name} of shape {shape}, got {array.shape}")
    reference, tokens = ("ref_chosen", "ref_rejected"), ("chosen_tokens", "rejected_tokens")
    summed = [name for name in SUMS if not (reference_free and name in reference)]
    needed = [*(name for name in reference if name in summed), *(tokens if spec.needs_tokens else ())]
    needed += [f"public {name}" for name in summed] if ld_alpha < 1.0 else []
    missing = [name for name in needed if name not in given]
    if missing:
        raise ValueError(f"loss {spec.name!r} needs {' and '.join(missing)}")
    floats = {name: given[name].astype(mx.float32) for name in (*SUMS, *tokens) if name in given}
    if ld_alpha < 1.0:
        floats |= {
            name: length_desensitised(floats[name], given[f"public {name}"].astype(mx.float32), ld_alpha)
            for name in summed
        }
    if reference_free:
        # As Mitchell's code takes the uniform reference: 0 for every response, whatever its length.
        floats |= {name: mx.zeros(shape, dtype=mx.float32) for name in reference}
    return PairScores(**floats)
