"""How often the model that training would start from already prefers the chosen answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from localdpo.core.text import counted
from localdpo.data.encode import Encoder, Limits
from localdpo.data.types import Pair
from localdpo.prefs.checks.base import (
    Check,
    CheckSettings,
    Chunk,
    Family,
    Finding,
    FindingExample,
    PairScorer,
    share,
)

if TYPE_CHECKING:
    from localdpo.recipe.schema import Recipe

# Where the reference accuracy is high there is little to learn; where it is low, the labels may be swapped.
# By tokens, so that length does not decide.
SURE, AGAINST = 0.9, 0.3
ENOUGH_PAIRS = 50

ACCURACY = Check(
    "reference-accuracy",
    "warning",
    "the accuracy of the reference is very high, or low",
    "very high: choose harder pairs; low: look at some pairs, the labels may be swapped",
    rows=False,
)
# Rows that are scored at once; on the CPU more gain nothing.
ROWS = 4


class ReferenceAccuracy(Family):
    """Scores an even sample of the pairs: reservoir sampling, the same for the same data."""

    checks: ClassVar[tuple[Check, ...]] = (ACCURACY,)

    @classmethod
    def from_settings(cls, settings: CheckSettings, not_checked: list[str]) -> Self | None:
        if settings.reference is not None:
            return cls(*settings.reference)
        not_checked.append("reference accuracy: give --reference N (pairs to score) with --recipe FILE")
        return None

    def __init__(self, score: PairScorer, size: int) -> None:
        self._score = score
        self._size = size
        self._sample: list[tuple[int, Pair]] = []
        self._random = random.Random(0)
        self._facts: dict[str, Any] = {}

    def add(self, chunk: Chunk) -> None:
        """Algorithm R: each pair so far is in the sample with the same probability."""
        for number, pair in enumerate(chunk.pairs, chunk.start):
            if len(self._sample) < self._size:
                self._sample.append((number, pair))
            elif (replaced := self._random.randrange(number + 1)) < self._size:
                self._sample[replaced] = (number, pair)

    def finish(self, total: int) -> Iterator[Finding]:
        self._sample.sort(key=lambda item: item[0])
        scores = self._score([pair for _, pair in self._sample])
        by_sum = sum(chosen > rejected for chosen, rejected, _, _ in scores)
        by_token = sum(chosen / m > rejected / n for chosen, rejected, m, n in scores)
        count = len(scores)
        self._facts = {
            "reference": {
                "scored": count,
                "accuracy": round(share(by_sum, count), 4),
                "accuracy_per_token": round(share(by_token, count), 4),
            }
        }
        if count >= ENOUGH_PAIRS and not AGAINST <= by_token / count <= SURE:
            message = (
                f"the reference finds the chosen answer likelier, token by token, in {by_token / count:.0%} "
                f"of {counted(count, 'pair')}"
            )
            examples = tuple(FindingExample((number,)) for number, _ in self._sample[:3])
            yield Finding(ACCURACY, by_token, count, message, examples)

    def facts(self) -> dict[str, Any]:
        return self._facts


def load_scorer(recipe: Recipe, limits: Limits) -> PairScorer:
    """Load the recipe's reference once; the function that scores pairs. Dropped rows have no score.

    Raises UserError for a model or adapter that does not load.
    """
    from localdpo.data.batches import collate, split_micro
    from localdpo.model import lora
    from localdpo.model.backend import prepare
    from localdpo.model.forward import Forward
    from localdpo.model.load import load_base

    prepare()
    base = load_base(recipe.model, trust_remote_code=recipe.trust_remote_code)
    if recipe.reference is not None:
        folder = lora.open_adapter(recipe.reference).path
        lora.attach(base.model, lora.read_config(folder), seed=0)
        lora.load_weights(base.model, folder)
    tokenizer = base.tokenizer._tokenizer
    encoder = Encoder(
        tokenizer,
        recipe.data.template,
        limits,
        end_ids=base.tokenizer.eos_token_ids,
        template_kwargs=recipe.data.chat_template_kwargs,
    )
    forward = Forward(base.model)
    pad = int(tokenizer.pad_token_id or tokenizer.eos_token_id or 0)

    def score(pairs: list[Pair]) -> list[tuple[float, float, int, int]]:
        rows = encoder.encode(list(enumerate(pairs))).rows
        sizes = [len(row.prompt) + sum(map(len, row.responses)) for row in rows]
        scores: dict[int, tuple[float, float, int, int]] = {}
        for part in split_micro(np.arange(len(rows)), sizes, ROWS) if rows else []:
            batch = collate([rows[int(i)] for i in part], pad, part)
            chosen, rejected = np.array(forward.score(batch)).reshape(2, -1).tolist()
            better, worse = batch.lengths.reshape(2, -1).tolist()
            scores.update(zip(map(int, part), zip(chosen, rejected, better, worse, strict=True), strict=True))
        return [scores[i] for i in range(len(rows))]

    return score
