"""What replaces MLX's exponentials on x86, against NumPy in float64 and MLX's own gradients."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import activations, llama
from model_families import tiny

from localdpo.model import cpu


def test_a_power_of_e_is_as_exact_as_mlxs_exponential() -> None:
    x = -np.abs(np.random.default_rng(0).normal(size=10_000) * 10).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    ours, theirs = np.array(mx.power(np.e, mx.array(x))), np.array(mx.exp(mx.array(x)))
    error, bound = (np.abs(found / exact - 1).max() for found in (ours, theirs))
    assert error < 2 * bound
    assert float(cpu.exp(mx.array(-np.inf)).item()) == 0.0


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("queries", "width"), [(1, 16), (7, 16), (20, 16), (20, 24)])
def test_attention_and_its_gradients_are_mlxs(heads: int, groups: int, queries: int, width: int) -> None:
    """With values of another width than the keys, too, as in DeepSeek-V2 and MiniCPM3."""
    mx.random.seed(0)
    keys = queries + 13
    shapes = [(1, heads, queries, 16), (1, groups, keys, 16), (1, groups, keys, width)]
    arrays = [mx.random.normal(shape) for shape in shapes]
    flow = mx.random.normal((1, heads, queries, width))
    mask = mx.arange(13, keys)[:, None] >= mx.arange(keys)[None]

    def loss(attend: object, *arrays: mx.array) -> mx.array:
        assert callable(attend)
        return (attend(*arrays, scale=0.3, mask=mask) * flow).sum()

    found = [
        mx.value_and_grad(lambda *a, f=attend: loss(f, *a), argnums=(0, 1, 2))(*arrays)
        for attend in (cpu.attention, mx.fast.scaled_dot_product_attention)
    ]
    (value, grads), (expected, expected_grads) = found
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, wanted, atol=1e-5)


def test_swiglu_and_its_gradients_are_mlx_lms_and_finite_far_out() -> None:
    gate = mx.concatenate([mx.random.normal((50,)) * 4, mx.array([-200.0, 200.0])])
    x = mx.random.normal(gate.shape)
    found, wanted = (
        mx.value_and_grad(lambda g, x, f=f: mx.square(f(g, x)).sum(), argnums=(0, 1))(gate, x)
        for f in (cpu.swiglu, activations.swiglu)
    )
    assert found[0].item() == pytest.approx(wanted[0].item(), rel=1e-5)
    for grad, expected in zip(found[1], wanted[1], strict=True):
        np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_swiglu_of_16_bits_is_mlx_lms(dtype: mx.Dtype) -> None:
    """Of 16 bits a power of 1 / e is that of another number."""
    gate, x = (mx.random.normal((50,)).astype(dtype) * 8 for _ in range(2))
    assert mx.array_equal(cpu.swiglu(gate, x), activations.swiglu(gate, x))


def test_a_model_calls_the_swiglu_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "swiglu", activations.swiglu)
    model = tiny("llama")
    ids = mx.arange(12)[None]
    before = np.array(model(ids))
    monkeypatch.setattr(cpu, "slow_exponentials", lambda: False)
    cpu.take_swiglu(model)
    assert llama.swiglu is activations.swiglu
    monkeypatch.setattr(cpu, "slow_exponentials", lambda: True)
    cpu.take_swiglu(model)
    assert llama.swiglu is cpu.swiglu
    np.testing.assert_allclose(np.array(model(ids)), before, atol=1e-5)
