"""Sampling: mlx-lm's own answers, the same for the same seed, and training's random state untouched."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm import stream_generate
from mlx_lm.generate import BatchGenerator
from model_families import tiny
from tiny_folders import make_model_folder

from localdpo.model import generate as room
from localdpo.model.arrays import random_key, set_random_key
from localdpo.model.generate import Memory, SampledAnswer, generate, generate_apart, stream
from localdpo.model.load import Base, load_base

pytestmark = pytest.mark.slow

TEXTS = ["What is the answer?", "7", "The answer to question number 7 is bad. " * 3, "question", "good good"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = make_model_folder(tmp_path_factory.mktemp("models") / "m", family="llama", seed=3)
    return load_base(str(folder))


def prompts(base: Base) -> list[list[int]]:
    return [base.tokenizer.encode(text) for text in TEXTS]


def one_by_one(base: Base, ids: list[int], limit: int) -> list[int]:
    """mlx-lm's greedy answer to one prompt, without its stop token."""
    tokens = [r.token for r in stream_generate(base.model, base.tokenizer, ids, max_tokens=limit)]
    return tokens[:-1] if tokens[-1] in base.tokenizer.eos_token_ids else tokens


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_greedy_answers_are_those_of_mlx_lm_whatever_the_batch(batch: int, base: Base) -> None:
    answers = generate(base.model, base.tokenizer, prompts(base), max_tokens=24, batch=batch)
    expected = [one_by_one(base, ids, 24) for ids in prompts(base)]
    assert [list(answer.tokens) for answer in answers] == expected
    assert len({answer.tokens for answer in answers}) > 2


def test_the_stop_token_is_no_part_of_an_answer(base: Base) -> None:
    def sampled(**options: Any) -> list[SampledAnswer]:
        many = prompts(base) * 8
        return generate(base.model, base.tokenizer, many, max_tokens=60, temperature=3.0, **options)

    answers = sampled(seed=1)
    ends = base.tokenizer.eos_token_ids
    assert any(answer.finished for answer in answers)
    assert any(not answer.finished for answer in answers)
    for answer in answers:
        assert not ends & set(answer.tokens)
        assert answer.finished or len(answer.tokens) == 60
        assert answer.drawn == (*answer.tokens, answer.end) if answer.finished else answer.tokens
        assert (answer.end in ends) == answer.finished
        assert answer.text == base.tokenizer.decode(list(answer.tokens), skip_special_tokens=True)
        assert "<|im_end|>" not in answer.text


def test_samples_follow_the_seed_and_leave_the_random_state(base: Base) -> None:
    def sampled(seed: int) -> list[tuple[int, ...]]:
        answers = generate(
            base.model, base.tokenizer, prompts(base), max_tokens=8, temperature=1.0, seed=seed
        )
        return [answer.tokens for answer in answers]

    set_random_key((3, 4))
    first = sampled(0)
    assert random_key() == (3, 4)
    mx.random.seed(99)
    assert sampled(0) == first
    assert sampled(1) != first


def test_the_random_state_is_put_back_when_generation_fails(base: Base) -> None:
    set_random_key((3, 4))

    class Broken(nn.Module):
        layers = base.model.layers

        def __call__(self, *args: object, **kwargs: object) -> None:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        generate(Broken(), base.tokenizer, [[5, 6]], max_tokens=3, seed=1)
    assert random_key() == (3, 4)


def test_no_prompts_no_answers(base: Base, tmp_path: Path) -> None:
    assert generate(base.model, base.tokenizer, [], max_tokens=3) == []


def test_a_limit_of_one_token(base: Base) -> None:
    answers = generate(base.model, base.tokenizer, prompts(base), max_tokens=1)
    assert all(len(answer.tokens) <= 1 for answer in answers)


def apart(
    base: Base, texts: list[str], seeds: list[int], batch: int = 32, **options: Any
) -> dict[str, SampledAnswer]:
    """Answers by text, drawn with a key each."""
    settings = {"max_tokens": 24, "temperatures": [1.0] * len(texts), **options}
    ids = [base.tokenizer.encode(text) for text in texts]
    found = generate_apart(base.model, base.tokenizer, ids, seeds, batch=batch, **settings)
    return {texts[place]: answer for place, answer in found}


def test_an_answer_with_a_key_of_its_own_does_not_depend_on_its_company(base: Base) -> None:
    seeds = [2**64 - 1, 0, 17, 2**40, 5]
    together = apart(base, TEXTS, seeds)
    assert set(together) == set(TEXTS)
    assert apart(base, TEXTS, seeds, batch=2) == together
    for text, seed in zip(TEXTS, seeds, strict=True):
        assert apart(base, [text], [seed]) == {text: together[text]}
    assert apart(base, TEXTS[::-1], seeds[::-1]) == together


def test_keys_decide_the_answer_and_the_global_state_does_not(base: Base) -> None:
    set_random_key((3, 4))
    first = apart(base, TEXTS, [1, 2, 3, 4, 5])
    assert random_key() == (3, 4)
    mx.random.seed(8)
    assert apart(base, TEXTS, [1, 2, 3, 4, 5]) == first
    other = apart(base, TEXTS, [1, 2, 3, 4, 6])
    assert [text for text in TEXTS if other[text] != first[text]] == [TEXTS[4]]


def test_keyed_draws_have_the_probabilities_of_the_model(base: Base) -> None:
    draws = 2000
    text = TEXTS[0]
    ids = base.tokenizer.encode(text)
    logits = base.model(mx.array([ids]))[0, -1].astype(mx.float32)
    expected = np.array(mx.softmax(logits / 0.7))
    found = generate_apart(
        base.model,
        base.tokenizer,
        [ids] * draws,
        range(draws),
        max_tokens=1,
        temperatures=[0.7] * draws,
        batch=250,
    )
    counts = np.bincount([answer.drawn[0] for _, answer in found], minlength=len(expected))
    error = np.sqrt(expected * (1 - expected) / draws) + 1e-9
    assert (np.abs(counts / draws - expected) < 5 * error + 2 / draws).all()


def test_without_temperature_keys_mean_nothing(base: Base) -> None:
    greedy = generate(base.model, base.tokenizer, prompts(base), max_tokens=24)
    found = apart(base, TEXTS, [9, 8, 7, 6, 5], temperatures=[0.0] * 5)
    assert [found[text] for text in TEXTS] == greedy


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_next"])
def test_a_prompt_that_is_read_once_for_several_answers_gives_those_of_one_each(
    family: str, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family)
    ids = [row for row in ([5, 7, 9, 11] * 5, [4], [8, 6], [3] * 11) for _ in range(3)]
    read: list[int] = []
    read_prompt = room._read

    def counted(model: nn.Module, tokens: Sequence[int], caches: Any = None, known: int = 0) -> Any:
        read.append(len(tokens) - known)
        return read_prompt(model, tokens, caches, known)

    def drawn(rows: Sequence[int], batch: int) -> dict[int, SampledAnswer]:
        asked = [ids[i] for i in rows]
        options = {"max_tokens": 12, "temperatures": [1.0] * len(rows), "batch": batch}
        return {rows[i]: each for i, each in generate_apart(model, base.tokenizer, asked, rows, **options)}

    monkeypatch.setattr(room, "_read", counted)
    alone = {i: drawn([i], 1)[i] for i in range(len(ids))}
    assert read == []
    assert drawn(range(len(ids)), 32) == alone
    assert sorted(read) == [1, 10, 19]
    assert drawn(range(len(ids)), 2) == alone


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_next"])
def test_what_all_prompts_begin_with_is_read_once_and_changes_no_answer(
    family: str, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family)
    system = [5, 7, 9, 11] * 4
    ids = [[*system, 3], [*system, 4, 6, 8], [*system, 4, 6, 8], [*system, 4, 9] * 2]
    read: list[int] = []
    forward = type(model).__call__

    def counted(self: nn.Module, tokens: mx.array, *args: Any, **kwargs: Any) -> Any:
        if tokens.shape[1] > 1:
            read.append(tokens.size)
        return forward(self, tokens, *args, **kwargs)

    def drawn(rows: Sequence[int], batch: int) -> dict[int, SampledAnswer]:
        asked = [ids[i] for i in rows]
        options = {"max_tokens": 12, "temperatures": [1.0] * len(rows), "batch": batch}
        return {rows[i]: each for i, each in generate_apart(model, base.tokenizer, asked, rows, **options)}

    alone = {i: drawn([i], 1)[i] for i in range(len(ids))}
    monkeypatch.setattr(type(model), "__call__", counted)
    assert drawn(range(len(ids)), 32) == alone
    assert read[0] == len(system)
    assert sum(read) < 2 * len(system) + len(ids[3])
    assert drawn(range(len(ids)), 1) == alone


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_next"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_conversation_with_a_memory_says_the_same_and_reads_each_turn_once(
    family: str, temperature: float, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns that go on, one that was stopped, one that was changed, and a conversation begun anew."""
    model = tiny(family)
    read: list[int] = []
    insert = BatchGenerator.insert

    def counted(self: BatchGenerator, ids: list[list[int]], *rest: Any, **options: Any) -> Any:
        read.append(len(ids[0]))
        return insert(self, ids, *rest, **options)

    monkeypatch.setattr(BatchGenerator, "insert", counted)

    def turn(ids: list[int], most: int, memory: Memory | None) -> list[int]:
        pieces = stream(
            model, base.tokenizer, ids, max_tokens=12, temperature=temperature, seed=5, memory=memory
        )
        said = [answer.drawn for answer in islice(pieces, most)]
        pieces.close()  # type: ignore[attr-defined]
        return list(said[-1])

    memory, first = Memory(), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    asked = {"first": first}
    for name, most in (("whole", 99), ("stopped", 4), ("after", 99)):
        said = turn(ids := list(asked.values())[-1], most, memory)
        assert said == turn(ids, most, None), name
        asked[name] = [*ids, *said, 7, 8, 9]
    changed = [*asked["whole"][:-6], 11, 12, 13, 14]
    for ids in (changed, first, first):
        assert turn(ids, 99, memory) == turn(ids, 99, None)
    with_memory, without = read[::2], read[1::2]
    assert without == [len(ids) for ids in (*list(asked.values())[:3], changed, first, first)]
    # An answer whose last token was not read yet has it read with the next turn.
    assert with_memory[0] == len(first)
    assert all(count <= 4 for count in with_memory[1:3])
    if family == "llama":
        assert with_memory[3] <= 10
        assert with_memory[4:] == [1, 1]
