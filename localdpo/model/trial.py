"""A first look at a model: what it answers to a question, and its perplexity of a paragraph.

Enough to see that a converted model is in order: a wrong order of rows, a wrong tokenizer or a wrong template
shows in both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, cast

import mlx.core as mx

from localdpo.model.generate import generate
from localdpo.model.load import Base

QUESTION: Final = "What is the capital of France?"
BEGINNING: Final = "The capital of France is"
PARAGRAPH: Final = (
    "Water covers most of the surface of the Earth. The sun warms the seas, and part of their water rises "
    "as vapour into the air, where it cools and forms clouds. The wind carries the clouds over the land. "
    "There the water falls as rain or snow, runs through streams and rivers, and flows back into the sea, "
    "where the cycle begins again. Without it there would be no fresh water, and nothing could grow on land."
)


@dataclass(frozen=True)
class Trial:
    """What a model made of it.

    Attributes:
        asked: the question, or the beginning of a sentence for a model without chat template.
        answer: greedy, at most as many tokens as were asked for.
        perplexity: of PARAGRAPH, by token; NaN for a model that computes NaN.
        tokens: of PARAGRAPH.
    """

    asked: str
    answer: str
    perplexity: float
    tokens: int


def try_out(base: Base, *, max_tokens: int = 32) -> Trial:
    """Ask the model, and measure its perplexity."""
    tokenizer = base.tokenizer
    if tokenizer.chat_template is not None:
        asked = QUESTION
        messages = [{"role": "user", "content": asked}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    else:
        asked = BEGINNING
        ids = tokenizer.encode(asked)
    (answer,) = generate(base.model, tokenizer, [ids], max_tokens=max_tokens)
    paragraph = tokenizer.encode(PARAGRAPH)
    logits_TV = base.model(mx.array([paragraph]))[0, :-1].astype(mx.float32)
    picked_T = mx.take_along_axis(logits_TV, mx.array(paragraph[1:])[:, None], axis=-1)[:, 0]
    nats = cast(float, (mx.logsumexp(logits_TV, axis=-1) - picked_T).mean().item())
    return Trial(asked, answer.text, math.exp(min(nats, 700.0)), len(paragraph))
