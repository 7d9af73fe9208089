"""Every loss by its name. `preference_loss` is public; training calls `pair_losses` and `unpaired_losses`.

The formulas are in `margins.py` and `responses.py`, what the recipe must know of each loss in
`objective/registry.py`. To add a loss, write its entry there, and its formula here, in a line of a table of
formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import mlx.core as mx

from localdpo.objective.losses import margins, responses
from localdpo.objective.options import OptionValue
from localdpo.objective.registry import LossSpec, LossSum, loss_sum
from localdpo.objective.scores import PairScores, ResponseScores, UnpairedScores

# Formulas on pairs take PairScores, those on single responses UnpairedScores, and the options of the registry
# as keywords; all return a term for each row, [B].
PAIR_FORMULAS: Final[dict[str, Callable[..., mx.array]]] = {
    "sigmoid": margins.sigmoid,
    "ipo": margins.ipo,
    "ipo_sum": margins.ipo_sum,
    "hinge": margins.hinge,
    "robust": margins.robust,
    "exo_pair": margins.exo_pair,
    "discopop": margins.discopop,
    "sigmoid_norm": margins.sigmoid_norm,
    "dpop": margins.dpop,
    "r_dpo": margins.r_dpo,
    "aot": margins.aot,
    "aot_unpaired": margins.aot_unpaired,
    "nca_pair": responses.nca_pair,
    "bco_pair": responses.bco_pair,
    "sppo_hard": responses.sppo_hard,
    "apo_zero": responses.apo_zero,
    "apo_down": responses.apo_down,
    "simpo": responses.simpo,
    "orpo": responses.orpo,
    "sft": responses.sft_of_chosen,
}
UNPAIRED_FORMULAS: Final[dict[str, Callable[..., mx.array]]] = {
    "kto": responses.kto,
    "apo_zero_unpaired": responses.apo_zero_unpaired,
}


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
    needed = {"policy_chosen": policy_chosen, "policy_rejected": policy_rejected}
    others = {"ref_chosen": ref_chosen, "ref_rejected": ref_rejected}
    others |= {"chosen_tokens": chosen_tokens, "rejected_tokens": rejected_tokens}
    for name, array in {**needed, **others}.items():
        # NumPy's arrays and lists have methods of other names.
        if not isinstance(array, mx.array) and not (array is None and name in others):
            raise ValueError(f"{name}: expected an mlx.core.array [B], got {type(array).__name__}")
    for name, parts, count in (("public", public, 4), ("alignment", alignment, 2)):
        if parts is not None and len(parts) != count:
            raise ValueError(f"{name}: expected {count} arrays, got {len(parts)}")
    loss = loss_sum(loss_type, weights)
    given: dict[str, OptionValue] = {"beta": beta, **options}
    # 0 is the signature's own default: only a caller's value can be "not read".
    if label_smoothing != 0.0 or "label_smoothing" in loss.options:
        given["label_smoothing"] = label_smoothing
    public_w, public_l, ref_public_w, ref_public_l = public or (None,) * 4
    aligned_w, aligned_l = alignment or (None,) * 2
    chosen = ResponseScores(policy_chosen, ref_chosen, chosen_tokens, public_w, ref_public_w, aligned_w)
    rejected = ResponseScores(
        policy_rejected, ref_rejected, rejected_tokens, public_l, ref_public_l, aligned_l
    )
    return pair_losses(loss, PairScores(chosen, rejected), given)


def pair_losses(loss: LossSum, scores: PairScores, options: Mapping[str, OptionValue]) -> mx.array:
    """The losses of B pairs, float32 [B]: see `preference_loss`, also for what is refused."""
    if loss.data != "pairs":
        raise ValueError(f"loss {loss.name!r} trains on {loss.data}, not on pairs")
    loss.require_valid(options)
    scores = scores.float32(f"loss {loss.name!r}")
    terms = [_pair_term(spec, scores, options) for spec in loss.terms]
    total = loss.weights[0] * terms[0]
    for weight, term in zip(loss.weights[1:], terms[1:], strict=True):
        total = total + weight * term
    return total


def unpaired_losses(loss: LossSum, scores: UnpairedScores, options: Mapping[str, OptionValue]) -> mx.array:
    """The losses of B single responses with a label, float32 [B].

    `scores` needs policy, reference and labels, and the KL baseline for `kto`; `options` are the loss's own
    keys. Works inside `mx.grad` and `mx.compile`.

    Raises:
        ValueError: a loss on other rows, an option that the loss does not read or that is out of range,
            arrays that are not of one shape [B], and a missing baseline.
    """
    if loss.data != "unpaired":
        raise ValueError(f"loss {loss.name!r} trains on {loss.data}, not on unpaired rows")
    loss.require_valid(options)
    shapes = [array.shape for _, array in scores.responses.arrays()] + [scores.desirable.shape]
    if scores.desirable.ndim != 1 or any(shape != shapes[0] for shape in shapes):
        listed = ", ".join(map(str, shapes))
        raise ValueError(f"loss {loss.name!r}: expected arrays of one shape [B], got {listed}")
    if loss.needs_baseline and scores.baseline is None:
        raise ValueError(f"loss {loss.name!r} needs baseline")
    (spec,) = loss.terms
    return loss.weights[0] * UNPAIRED_FORMULAS[spec.name](scores, **spec.settings(options))


def _pair_term(spec: LossSpec, scores: PairScores, options: Mapping[str, OptionValue]) -> mx.array:
    """One loss [B] with the options that it reads. Those that several losses share change the scores."""
    settings = spec.settings(options)
    ld_alpha = float(settings.pop("ld_alpha", 1.0))
    weighted = bool(settings.pop("use_weighting", False))
    uniform = bool(settings.pop("reference_free", False)) or not spec.needs_reference
    divergence, alpha = str(settings.pop("f_divergence", "reverse_kl")), float(settings.pop("f_alpha", 0.5))
    scores = replace(scores, divergence=divergence, divergence_alpha=alpha)
    if uniform:
        scores = scores.of_each(ResponseScores.with_uniform_reference)
    _require_scores(spec, scores, split=ld_alpha < 1.0, aligned=weighted)
    if ld_alpha < 1.0:
        scores = scores.of_each(lambda side: side.length_desensitised(ld_alpha))
    losses = PAIR_FORMULAS[spec.name](scores, **settings)
    return losses * scores.weights() if weighted else losses


def _require_scores(spec: LossSpec, scores: PairScores, *, split: bool, aligned: bool) -> None:
    """Raise ValueError for scores that a loss reads and the caller did not pass."""
    needed = ["ref_chosen", "ref_rejected"]
    needed += ["chosen_tokens", "rejected_tokens"] if spec.needs_tokens else []
    if split:
        needed += [
            f"public {source}_{side}" for source in ("policy", "ref") for side in ("chosen", "rejected")
        ]
    present = scores.named()
    missing = [name for name in needed if name not in present]
    if aligned and not {"alignment of chosen", "alignment of rejected"} <= present.keys():
        missing.append("alignment of chosen and rejected responses")
    if missing:
        raise ValueError(f"loss {spec.name!r} needs {' and '.join(missing)}")
