"""`preference_loss`: every loss on pairs by its name. One family a file; the table is registry.py."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

import mlx.core as mx

from localdpo.objective.registry import LossSpec, OptionValue, loss_spec
from localdpo.objective.scores import PairScores

PairLoss = Callable[..., mx.array]


def loss_function(spec: LossSpec) -> Callable[..., object]:
    """The function of a registry entry: `NAME_loss` in its module."""
    module = import_module(f"localdpo.objective.losses.{spec.module}")
    return cast("Callable[..., object]", getattr(module, f"{spec.name}_loss"))


def preference_loss(
    loss_type: str,
    policy_chosen: mx.array,
    policy_rejected: mx.array,
    ref_chosen: mx.array | None,
    ref_rejected: mx.array | None,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    chosen_tokens: mx.array | None = None,
    rejected_tokens: mx.array | None = None,
    **options: OptionValue,
) -> mx.array:
    """The loss `loss_type` of B pairs, float32 [B], one term a pair (aot: one a rank).

    policy_*, ref_* [B]: log-probabilities (nats) of whole responses, summed over their scored tokens, of any
    float type. ref_* may be None for a loss that reads no reference. *_tokens [B]: numbers of scored tokens,
    at least 1 each, needed by losses that divide by them and ignored by the others. `options` are the loss's
    own keys (see `localdpo.objective.registry.LOSSES`); `reference_free=True` takes the reference as uniform
    in the loss.

    Works inside `mx.grad` and `mx.compile` (the options are constants of the trace). Raises ValueError for an
    unknown loss, an option that the loss does not read or that is out of range, arrays that are not of one
    shape [B], and missing reference log-probabilities or token counts.
    """
    spec = loss_spec(loss_type)
    if spec.data != "pairs":
        raise ValueError(f"loss {spec.name!r} trains on {spec.data}, not on pairs")
    settings = _settings(spec, beta, label_smoothing, options)
    reference_free = bool(settings.pop("reference_free", False)) or not spec.needs_reference
    scores = _scores(
        spec,
        {"policy_chosen": policy_chosen, "policy_rejected": policy_rejected},
        {"ref_chosen": ref_chosen, "ref_rejected": ref_rejected},
        {"chosen_tokens": chosen_tokens, "rejected_tokens": rejected_tokens},
        reference_free=reference_free,
    )
    return cast("PairLoss", loss_function(spec))(scores, **settings)


def _settings(
    spec: LossSpec, beta: float, label_smoothing: float, options: dict[str, OptionValue]
) -> dict[str, OptionValue]:
    """The keyword arguments of the loss: what the caller passed, checked, over the registry's defaults."""
    given: dict[str, OptionValue] = {"beta": beta, **options}
    # 0 is the signature's own default: only a caller's value can be "not read".
    if label_smoothing != 0.0 or "label_smoothing" in spec.options:
        given["label_smoothing"] = label_smoothing
    for name, value in given.items():
        problem = spec.option_problem(name, value)
        if problem is not None:
            raise ValueError(problem)
    return {name: given.get(name, option.default) for name, option in spec.options.items()}


def _scores(
    spec: LossSpec,
    policy: dict[str, mx.array],
    reference: dict[str, mx.array | None],
    tokens: dict[str, mx.array | None],
    *,
    reference_free: bool,
) -> PairScores:
    """The arrays, checked against each other and cast to float32."""
    shape = policy["policy_chosen"].shape
    if len(shape) != 1:
        raise ValueError(f"loss {spec.name!r}: expected policy_chosen of shape [B], got {shape}")
    arrays: dict[str, mx.array] = {}
    for name, array in {**policy, **reference, **tokens}.items():
        if array is None:
            continue
        if array.shape != shape:
            raise ValueError(f"loss {spec.name!r}: expected {name} of shape {shape}, got {array.shape}")
        arrays[name] = array.astype(mx.float32)
    needed = [*(reference if not reference_free else ()), *(tokens if spec.needs_tokens else ())]
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"loss {spec.name!r} needs {' and '.join(missing)}")
    if reference_free:
        # As Mitchell's code takes the uniform reference: 0 for every response, whatever its length.
        arrays |= {name: mx.zeros(shape, dtype=mx.float32) for name in reference}
    return PairScores(**arrays)
