"""Batched sampling of answers, through mlx-lm's generator; and a first look at a model."""

from __future__ import annotations

import copy
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache
from mlx_lm.sample_utils import greedy_sampler, make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from localdpo.model.arrays import random_key, set_random_key
from localdpo.model.backend import device_name, wire
from localdpo.model.load import Base
from localdpo.model.memory import PASS_TOKENS, answers_at_once

MOST_AT_ONCE = 32
# Answers that end make room; others begin when this part of a batch is free, since each time the caches are
# copied.
_REFILL: Final = 8
# What a tokenizer decodes the first bytes of a character to.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
Sampler = Callable[[mx.array], mx.array]
# MLX's stubs give what compile returns no call's type.
_compiled = cast("Callable[[Callable[..., mx.array]], Callable[..., mx.array]]", mx.compile)


@dataclass(frozen=True)
class SampledAnswer:
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
    batch: int = MOST_AT_ONCE,
    on_answer: Callable[[int], None] = lambda done: None,
) -> list[SampledAnswer]:
    """Answers to prompts of token ids, in their order; `on_answer` is called with how many are finished.

    At most `batch` are generated at once, fewer where they do not fit. The random state is set from `seed`
    and put back afterwards, so sampling never disturbs training, and the same prompts with the same seed and
    weights give the same answers.
    """
    before = random_key()
    mx.random.seed(seed)
    samplers = [make_sampler(temp=temperature)] * len(prompts)
    try:
        answers: dict[int, SampledAnswer] = {}
        for index, answer in _finished(model, tokenizer, prompts, samplers, max_tokens, batch, prefill=8):
            answers[index] = answer
            on_answer(len(answers))
    finally:
        set_random_key(before)
    return [answers[i] for i in range(len(prompts))]


def generate_apart(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_tokens: int,
    temperatures: Sequence[float],
    batch: int,
) -> Iterator[tuple[int, SampledAnswer]]:
    """(index in `prompts`, answer) as the answers finish, each drawn with a random key of its own.

    The noise of token t of a prompt follows from its seed (0 <= seed < 2^64) and t alone: which prompts share
    a batch, and how long their answers are, changes an answer by no more than the rounding of its logits, and
    two models that answer one prompt draw with the same noise. The global random state is not touched.
    """
    samplers = [_keyed(*own) for own in zip(seeds, temperatures, strict=True)]
    return _finished(model, tokenizer, prompts, samplers, max_tokens, batch, prefill=batch)


def _keyed(seed: int, temperature: float) -> Sampler:
    """A sampler of one answer: log-probabilities [1, V] to a token [1], with a new random key each time."""
    if temperature == 0.0:
        return greedy_sampler
    scale, drawn = mx.array(1.0 / temperature), count()
    return lambda logprobs: _draw(logprobs, scale, mx.random.key((seed + next(drawn)) % 2**64))


@_compiled
def _draw(logprobs: mx.array, scale: mx.array, key: mx.array) -> mx.array:
    """A token [1] of softmax(logprobs * scale) [1, V]: the largest after Gumbel noise.

    mx.random.categorical does the same in some ten operations; a batch asks this once a row, so it is traced.
    """
    uniform = mx.random.uniform(shape=logprobs.shape, key=key)
    return mx.argmax(logprobs * scale - mx.log(-mx.log(uniform)), axis=-1)


class Memory:
    """The tokens that a model has read and written in a conversation, and its caches of them."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._caches: list[Any] | None = None

    def take(self, prompt: Sequence[int]) -> tuple[list[Any] | None, int]:
        """Caches of the beginning of `prompt` and how many tokens that is, at most all but the last.

        None and 0 where the caches hold something else that they cannot forget. They are the caller's then.
        """
        caches, tokens = self._caches, self._tokens
        self._caches, self._tokens = None, []
        agreed = zip(tokens, prompt[:-1], strict=False)
        known = next((place for place, (old, new) in enumerate(agreed) if old != new), None)
        known = min(len(tokens), len(prompt) - 1) if known is None else known
        if caches is None or known == 0:
            return None, 0
        if known < len(tokens):
            if not can_trim_prompt_cache(caches):
                return None, 0
            trim_prompt_cache(caches, len(tokens) - known)
        return caches, known

    def keep(self, caches: list[Any], tokens: list[int]) -> None:
        """Keep caches of all these tokens."""
        self._caches, self._tokens = caches, tokens


def stream(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    memory: Memory | None = None,
) -> Iterator[SampledAnswer]:
    """The answer to a prompt of token ids after each of its tokens, drawn as `generate_apart` draws it.

    The last is the answer. Until then a character that is not complete yet is left out of the text. Close the
    iterator to stop early. What `memory` has of the prompt is not read again; it keeps prompt and answer.
    """
    samplers = [_keyed(seed, temperature)]
    for _, tokens, end, done in _drawn(model, tokenizer, [prompt], samplers, max_tokens, 1, 1, memory):
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        yield SampledAnswer(text if done else text.rstrip(_INCOMPLETE), tuple(tokens), end)


def _finished(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Sequence[int]],
    samplers: Sequence[Sampler],
    max_tokens: int,
    batch: int,
    prefill: int,
) -> Iterator[tuple[int, SampledAnswer]]:
    """(index in `prompts`, answer) as the answers finish; the other arguments are those of `_drawn`, but that
    fewer than `batch` are generated at once where they do not fit.
    """
    batch = answers_at_once(model, max(map(len, prompts), default=0) + max_tokens, batch)
    for index, tokens, end, done in _drawn(model, tokenizer, prompts, samplers, max_tokens, batch, prefill):
        if done:
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            yield index, SampledAnswer(text, tuple(tokens), end)


def _drawn(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Sequence[int]],
    samplers: Sequence[Sampler],
    max_tokens: int,
    batch: int,
    prefill: int,
    memory: Memory | None = None,
) -> Iterator[tuple[int, list[int], int | None, bool]]:
    """(index in `prompts`, its answer's tokens so far, the end-of-turn token, whether it is done) after each.

    At most `batch` answers are generated at once. At most `prefill` prompts are read at once, PASS_TOKENS of
    their tokens in one pass. With `memory` there is one prompt.
    """
    generator = BatchGenerator(
        model,
        max_tokens=max_tokens,
        stop_tokens=[[token] for token in sorted(tokenizer.eos_token_ids)],
        completion_batch_size=batch,
        prefill_batch_size=min(batch, prefill),
        prefill_step_size=max(1, PASS_TOKENS // min(batch, prefill)),
    )
    wire(device_name())
    counts = Counter(map(tuple, prompts))
    beginning = _beginning(list(counts))
    begun_with = _read(model, beginning) if beginning else None
    repeated = {prompt for prompt, count in counts.items() if count > 1 < len(prompt)}
    waiting = deque(range(len(prompts)))
    indices: dict[int, int] = {}
    tokens: list[list[int]] = [[] for _ in prompts]
    try:
        while waiting or indices:
            free = batch - len(indices)
            if waiting and free >= min(len(waiting), max(1, batch // _REFILL)):
                begun = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                keys = [tuple(prompts[i]) for i in begun]
                # A prompt that several answers follow is read once, but for its last token.
                read = {
                    key: (_read(model, key[:-1], begun_with, len(beginning)), len(key) - 1)
                    for key in repeated.intersection(keys)
                }
                shared = (begun_with, len(beginning))
                known = [read.get(key, shared) if memory is None else memory.take(key) for key in keys]
                uids = generator.insert(
                    [list(key[count:]) for key, (_, count) in zip(keys, known, strict=True)],
                    [max_tokens] * len(begun),
                    caches=[caches or make_prompt_cache(model) for caches, _ in known],
                    all_tokens=[list(key[:count]) for key, (_, count) in zip(keys, known, strict=True)],
                    samplers=[samplers[i] for i in begun],
                )
                indices |= dict(zip(uids, begun, strict=True))
            for response in generator.next_generated():
                if memory is not None and response.finish_reason is not None:
                    memory.keep(response.prompt_cache, response.all_tokens)
                index, stopped = indices[response.uid], response.finish_reason == "stop"
                if not stopped:
                    tokens[index].append(response.token)
                done = response.finish_reason is not None
                yield index, tokens[index], response.token if stopped else None, done
                if done:
                    del indices[response.uid]
    except GeneratorExit:
        if memory is not None:
            for caches, read_tokens in generator.remove(list(indices), return_prompt_caches=True).values():
                memory.keep(caches, read_tokens)
        raise
    finally:
        generator.close()


def _beginning(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens that all of several prompts begin with, such as a system prompt; each has one more."""
    if len(prompts) < 2:
        return ()
    first, last = min(prompts), max(prompts)
    agreed = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: min(agreed, min(map(len, prompts)) - 1)]


def _read(
    model: nn.Module, tokens: Sequence[int], caches: list[Any] | None = None, known: int = 0
) -> list[Any]:
    """The model's caches of tokens; `caches` are of the first `known` of them, and are left as they are."""
    read = make_prompt_cache(model) if caches is None else copy.deepcopy(caches)
    for start in range(known, len(tokens), PASS_TOKENS):
        model(mx.array([tokens[start : start + PASS_TOKENS]]), cache=read)
        mx.eval([layer.state for layer in read])
    return read


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
    """What a model answers to a question, and its perplexity of a paragraph: enough to see that a converted
    model is in order. A wrong order of rows, a wrong tokenizer or a wrong template shows in both.

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
