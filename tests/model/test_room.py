"""How much goes through a model at once: what fits the free memory, and what a display can wait for."""

from __future__ import annotations

import mlx.core as mx
import pytest
from model_families import BASE, tiny

from localdpo.model import memory
from localdpo.model.memory import UNKNOWN_BYTES, answers_at_once, cache_bytes, rows_in_pass

# Keys and values of four layers, two heads of 16 columns, float32.
TOKEN_BYTES = 2 * 4 * 2 * 16 * 4


def test_a_pass_takes_some_thousand_tokens_and_one_row_at_least() -> None:
    assert [rows_in_pass(tokens, 16) for tokens in (1, 256, 300, 2048, 10_000)] == [16, 16, 13, 2, 1]


def test_keys_and_values_are_counted_as_the_cache_holds_them() -> None:
    model = tiny("qwen3")
    assert cache_bytes(model) == TOKEN_BYTES
    model.set_dtype(mx.bfloat16)
    assert cache_bytes(model) == TOKEN_BYTES // 2
    assert BASE["num_hidden_layers"] == 4
    assert cache_bytes(tiny("qwen3_next")) == TOKEN_BYTES // 2  # every other layer keeps a state instead


def test_a_model_that_does_not_say_its_sizes_counts_as_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen3")
    for name in ("num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim"):
        monkeypatch.setattr(model.args, name, None)
    assert cache_bytes(model) == UNKNOWN_BYTES


def test_as_many_answers_as_fit_are_generated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, free = tiny("qwen3"), 8_000_000
    monkeypatch.setattr(memory, "memory_limit", lambda device: mx.get_active_memory() + free)
    assert answers_at_once(model, 100, 32) == 32
    assert answers_at_once(model, 1000, 32) == free // 2 // (1000 * TOKEN_BYTES) == 3
    assert answers_at_once(model, 100_000, 32) == 1
    monkeypatch.setattr(memory, "memory_limit", lambda device: 0)
    assert answers_at_once(model, 100, 32) == 1
