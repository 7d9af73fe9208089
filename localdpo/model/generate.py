"""Batched sampling of answers, through mlx-lm's generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from localdpo.model.arrays import random_key, set_random_key


@dataclass(frozen=True)
class Answer:
    """A sampled answer.

    Attributes:
        text: without special tokens.
        tokens: ids, without the end-of-turn token.
        end: the end-of-turn token that it ended with by itself; None at the limit of tokens.
    """

    text: str
    tokens: tuple[int, ...]
    end: int | None

    @property
    def finished(self) -> bool:
        """Whether it ended by itself."""
        return self.end is not None

    @property
    def drawn(self) -> tuple[int, ...]:
        """Every id that was drawn: the tokens, and the end-of-turn token if there is one."""
        return self.tokens if self.end is None else (*self.tokens, self.end)


def generate(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch: int = 32,
) -> list[Answer]:
    """Answers to prompts of token ids, in their order.

    The random state is set from `seed` and put back afterwards, so sampling never disturbs training,
    and the same prompts with the same seed and weights give the same answers.
    """
    before = random_key()
    mx.random.seed(seed)
    generator = BatchGenerator(
        model,
        max_tokens=max_tokens,
        stop_tokens=[[token] for token in sorted(tokenizer.eos_token_ids)],
        sampler=make_sampler(temp=temperature),
        completion_batch_size=batch,
        prefill_batch_size=min(batch, 8),
    )
    tokens: dict[int, list[int]] = {}
    ends: dict[int, int | None] = {}
    try:
        order = generator.insert([list(p) for p in prompts], [max_tokens] * len(prompts))
        tokens = {uid: [] for uid in order}
        while responses := generator.next_generated():
            for response in responses:
                if response.finish_reason != "stop":
                    tokens[response.uid].append(response.token)
                if response.finish_reason is not None:
                    ends[response.uid] = response.token if response.finish_reason == "stop" else None
    finally:
        generator.close()
        set_random_key(before)
    return [
        Answer(tokenizer.decode(tokens[uid], skip_special_tokens=True), tuple(tokens[uid]), ends[uid])
        for uid in order
    ]
