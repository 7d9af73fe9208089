"""What unpaired rows need beside their own scores: KTO's KL baseline, and a check of their balance.

KTO compares every response with z, an estimate of KL(policy || reference) from completions that belong to
other prompts. Each prompt of a step gets the completion of another of its rows, as in the paper and in TRL,
so the completions behind z are those that the step trains on. Who gets which follows from the set of the
step's rows alone, and that from (seed, step): a resumed run computes the same z, and however the step is cut
into micro-batches, z is that of the whole step and comes before the first gradient.

Both scores are computed live: the same prompt and completion hardly ever meet twice, so a cache would save
nothing within an epoch. The price is two passes without gradients over the rows of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from localdpo.core.text import counted
from localdpo.data.batches import collate, split_micro
from localdpo.data.inspect import named_parts
from localdpo.data.types import EncodedRow
from localdpo.model import lora
from localdpo.model.forward import Forward
from localdpo.objective.losses.responses import kl_baseline
from localdpo.recipe.loss import LossSection
from localdpo.train.data import Rows
from localdpo.train.ranks import ALONE, Ranks

# What KTO's authors advise for desirable_weight * desirable rows : undesirable_weight * undesirable rows
# (Ethayarajh et al. 2024, section 4). The bounds are held to two digits, as in TRL.
RATIO_LOW, RATIO_HIGH = 1.0, 4.0 / 3.0
RATIO_SLACK = 0.005


def partners(prompts: Sequence[bytes]) -> list[tuple[int, int]]:
    """(row, other): the row `other` whose completion the prompt of `row` gets, for as many rows as possible.

    Rows are grouped by prompt in the order of their first ones, and the completions move on by the size of
    the largest group: by one where all prompts differ. The two of a pair never have the same prompt. Every
    row is on both sides unless more than half of them share a prompt; rows that all do have no pairs.
    """
    first = {prompt: row for row, prompt in reversed(list(enumerate(prompts)))}
    order = sorted(range(len(prompts)), key=lambda row: (first[prompts[row]], row))
    shift = max((prompts.count(prompt) for prompt in first), default=0)
    pairs = ((row, order[k - shift]) for k, row in enumerate(order))
    return [(row, other) for row, other in pairs if prompts[row] != prompts[other]]


def mismatched_rows(rows: Rows, indices: np.ndarray, max_length: int) -> list[EncodedRow]:
    """The prompts of these rows of the store with completions of others of them, cut to `max_length` tokens.

    A function of the set of the rows, not of their order.
    """
    own = [rows.store[int(i)] for i in np.sort(indices)]
    pairs = partners([row.prompt.tobytes() for row in own])
    return [
        EncodedRow(
            own[row].row,
            own[row].prompt,
            (own[other].responses[0][: max_length - len(own[row].prompt)],),
        )
        for row, other in pairs
    ]


class KLBaseline:
    """The KL baseline z of some rows together, a float32 scalar in nats a response, evaluated.

    The policy is what the model computes now, the reference what it does with the adapter weights that
    `reference` returns. 0 for rows among which no completion is of another prompt.

    Args:
        max_length: tokens of a prompt with a completion at most.
        batch: rows that are scored at once.
    """

    def __init__(
        self,
        forward: Forward,
        reference: Callable[[], lora.Weights],
        *,
        max_length: int,
        batch: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self._forward, self._reference, self._ranks = forward, reference, ranks
        self._max_length, self._batch = max_length, batch

    def __call__(self, rows: Rows, indices: np.ndarray) -> mx.array:
        """z of the rows of the store at `indices`, the same on all ranks, which share the work."""
        mismatched = mismatched_rows(rows, indices, self._max_length)
        if not mismatched:
            return mx.array(0.0)
        # In batches of similar length.
        lengths = [len(row.prompt) + len(row.responses[0]) for row in mismatched]
        batches = [
            collate([mismatched[int(i)] for i in part], rows.pad, part)
            for part in self._ranks.mine(split_micro(np.arange(len(mismatched)), lengths, self._batch))
        ]
        policy = [self._forward.score(batch) for batch in batches]
        with lora.use(self._forward.model, self._reference()):
            reference = [self._forward.score(batch) for batch in batches]
        log_ratios = [now - before for now, before in zip(policy, reference, strict=True)]
        if self._ranks.size > 1:
            by_rank = self._ranks.gather([array.tolist() for array in log_ratios])
            log_ratios = [mx.array(values) for part in by_rank for values in part]
        z = kl_baseline(mx.concatenate(log_ratios))
        mx.eval(z)
        return z


def notes(loss: LossSection, train: Rows, valid: Rows) -> list[str]:
    """What a person should know about unpaired rows, a line each; nothing for rows of other kinds."""
    if train.store.desirable is None:
        return []
    parts = named_parts(train.store, valid.store)
    lines = [
        f"{name}: {counted(part.store.report.split, 'pair')}, each taken as one desirable and one "
        "undesirable row"
        for name, part in parts
        if part.store.report.split
    ]
    # Rows count as often as an epoch takes them.
    labels, weights = train.store.desirable[train.indices], train.weights
    desirable, undesirable = float(weights[labels].sum()), float(weights[~labels].sum())
    if desirable == 0 or undesirable == 0:
        kind = "undesirable" if desirable == 0 else "desirable"
        return [
            *lines,
            f"all {desirable + undesirable:,.0f} training rows are {kind}: nothing says what to prefer",
        ]
    balanced = loss.undesirable_weight * undesirable / desirable
    ratio = loss.desirable_weight / balanced
    if RATIO_LOW - RATIO_SLACK <= ratio <= RATIO_HIGH + RATIO_SLACK:
        return lines
    return [
        *lines,
        f"{desirable:,.0f} desirable rows weigh {ratio:.2f} times as much as {undesirable:,.0f} undesirable "
        f"ones; KTO's authors advise 1 to {RATIO_HIGH:.2f} times: set loss.desirable_weight between "
        f"{balanced * RATIO_LOW:.3g} and {balanced * RATIO_HIGH:.3g}",
    ]
