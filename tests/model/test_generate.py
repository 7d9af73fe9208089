"""Sampling: mlx-lm's own answers, the same for the same seed, and training's random state untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import stream_generate
from tiny_folders import make_model_folder

from localdpo.model.arrays import random_key, set_random_key
from localdpo.model.generate import Answer, generate
from localdpo.model.load import Base, load_base

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
    def sampled(**options: Any) -> list[Answer]:
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

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    broken.layers = base.model.layers  # type: ignore[attr-defined]
    with pytest.raises((RuntimeError, AttributeError)):
        generate(broken, base.tokenizer, [[5, 6]], max_tokens=3, seed=1)
    assert random_key() == (3, 4)


def test_no_prompts_no_answers(base: Base, tmp_path: Path) -> None:
    assert generate(base.model, base.tokenizer, [], max_tokens=3) == []


def test_a_limit_of_one_token(base: Base) -> None:
    answers = generate(base.model, base.tokenizer, prompts(base), max_tokens=1)
    assert all(len(answer.tokens) <= 1 for answer in answers)
