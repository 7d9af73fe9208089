"""The chunked head against full logits."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from model_families import tiny

from localdpo.model.head import Head, chunk_size, token_scores

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "cohere2"])
@pytest.mark.parametrize("chunk", [1, 7, 32, 50, 64])
def test_every_chunk_size_gives_the_full_logits_result(family: str, chunk: int) -> None:
    model = tiny(family)
    head = Head(model)
    rng = np.random.default_rng(chunk)
    hidden = mx.array(rng.normal(size=(50, 64)).astype(np.float32))
    targets = mx.array(rng.integers(0, 160, 50).astype(np.int32))
    weights = mx.array(rng.normal(size=50).astype(np.float32))

    def chunked(h: mx.array) -> mx.array:
        return (token_scores(head, h, targets, chunk=chunk, gradient=True)[0] * weights).sum()

    def full(h: mx.array) -> mx.array:
        return (mx.take_along_axis(nn.log_softmax(head(h)), targets[:, None], axis=-1)[:, 0] * weights).sum()

    value, grad = mx.value_and_grad(chunked)(hidden)
    expected, expected_grad = mx.value_and_grad(full)(hidden)
    np.testing.assert_allclose(value.item(), expected.item(), rtol=1e-5)
    scale = np.abs(np.array(expected_grad)).max()
    np.testing.assert_allclose(np.array(grad), np.array(expected_grad), atol=1e-5 * scale)
    without = token_scores(head, hidden, targets, chunk=chunk, gradient=False)[0]
    np.testing.assert_allclose((without * weights).sum().item(), expected.item(), rtol=1e-5)


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("trained_head", [True, False])
@pytest.mark.parametrize("chunk", [7, 64])
def test_collisions_are_those_of_the_full_softmax_and_leave_the_gradient_alone(
    chunk: int, trained_head: bool, gradient: bool
) -> None:
    model = tiny("gemma2")
    model.freeze()
    if trained_head:
        model.model.embed_tokens.unfreeze()
    head, rng = Head(model), np.random.default_rng(chunk)
    hidden = mx.array(rng.normal(size=(50, 64)).astype(np.float32))
    targets = mx.array(rng.integers(0, 160, 50).astype(np.int32))
    logits = np.array(head(hidden)).astype(np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    logps, collisions = token_scores(head, hidden, targets, chunk=chunk, gradient=gradient, collisions=True)
    np.testing.assert_allclose(np.array(collisions), np.log((p**2).sum(-1)), rtol=1e-5)
    np.testing.assert_allclose(np.array(logps), np.log(p[np.arange(50), np.array(targets)]), rtol=1e-5)

    def total(h: mx.array, collisions: bool) -> mx.array:
        found = token_scores(head, h, targets, chunk=chunk, gradient=True, collisions=collisions)
        return sum((part.sum() for part in found), mx.array(0.0))

    with_them, without = (np.array(mx.grad(lambda h, f=f: total(h, f))(hidden)) for f in (True, False))
    np.testing.assert_allclose(with_them, without, atol=1e-7)


def test_reductions_are_float32_for_half_precision_models() -> None:
    model = tiny("llama")
    model.set_dtype(mx.bfloat16)
    hidden = mx.random.normal((20, 64)).astype(mx.bfloat16)
    targets = mx.arange(20)
    logps = token_scores(Head(model), hidden, targets, chunk=8, gradient=False)[0]
    assert logps.dtype == mx.float32
    logits = np.array(Head(model)(hidden).astype(mx.float32)).astype(np.float64)
    expected = logits[np.arange(20), np.arange(20)] - np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(np.array(logps), expected, atol=1e-4)


def test_far_logits_stay_finite() -> None:
    hidden = mx.ones((2, 4)) * 1e4
    head = lambda_head(mx.array([[1.0, -1.0, 0.0]] * 4))
    (logps,) = token_scores(head, hidden, mx.array([0, 1]), chunk=8, gradient=False)
    assert np.isfinite(np.array(logps)).all()


def lambda_head(weight: mx.array) -> Head:
    """A head of one dense layer."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Module()

        def __call__(self, tokens: mx.array) -> mx.array:
            return self.model(tokens) @ weight

    return Head(Plain())


def test_a_chunk_fits_its_budget() -> None:
    assert chunk_size(16_000, 16 * 2**20) * 16_000 * 4 <= 16 * 2**20
    assert chunk_size(10**9, 1) == 64


def test_chunks_are_not_alive_together() -> None:
    vocabulary, tokens, width = 4096, 1024, 16
    weight = mx.random.normal((width, vocabulary))
    hidden = mx.random.normal((tokens, width))
    targets = mx.zeros((tokens,), dtype=mx.int32)
    head = lambda_head(weight)
    mx.eval(weight, hidden, targets)

    def peak(chunk: int) -> int:
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        grad = mx.grad(lambda h: token_scores(head, h, targets, chunk=chunk, gradient=True)[0].sum())(hidden)
        mx.eval(grad)
        return mx.get_peak_memory() - before

    logits = 4 * vocabulary * tokens
    assert peak(tokens) > 1.5 * logits
    assert peak(tokens // 64) < 0.5 * logits


def test_wrong_shapes_are_refused() -> None:
    head = lambda_head(mx.ones((4, 3)))
    with pytest.raises(ValueError, match="hidden"):
        token_scores(head, mx.ones((2, 4)), mx.array([0]), chunk=4, gradient=False)
    with pytest.raises(ValueError, match="chunk"):
        token_scores(head, mx.ones((1, 4)), mx.array([0]), chunk=0, gradient=False)
