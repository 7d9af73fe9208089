"""What MLX's CPU backend is slow at, computed otherwise: exponentials, and attention and SwiGLU made of them.

MLX's exponential takes 22 to 30 ns a number on x86, a third of a training step: its wheel is built for the
oldest of these processors, so that each of its multiplications is a call. A power is the C library's, at 7 to
10 ns, and one of e in float32 is as exact as MLX's exponential. On ARM, Macs included, MLX's is fast, and so
it is on GPUs; nothing here is used there.

Shape legend: B batch, G heads of keys and values, R heads of queries for each of them, L queries, K keys,
D head size of queries and keys, E that of values.
"""

from __future__ import annotations

import inspect
import math
import platform
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import activations

from localdpo.model.arrays import custom_function
from localdpo.model.backend import device_name


def slow_exponentials() -> bool:
    """Whether MLX's exponential is slow on the device where it evaluates by default."""
    return device_name() == "cpu" and platform.machine().lower() in ("x86_64", "amd64")


def exp(x: mx.array) -> mx.array:
    """e**x in float32, without a gradient where MLX's exponential is slow."""
    return mx.power(math.e, x) if slow_exponentials() else mx.exp(x)


def takes_attention(queries: mx.array, mask: Any, sinks: mx.array | None = None) -> bool:
    """Whether `attention` computes what `mx.fast.scaled_dot_product_attention` would with these arguments."""
    boolean = isinstance(mask, mx.array) and mask.dtype == mx.bool_ and mask.ndim in (2, 4)
    return slow_exponentials() and queries.dtype == mx.float32 and boolean and sinks is None


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array
) -> mx.array:
    """Attention [B, G * R, L, E] of queries [B, G * R, L, D] to keys [B, G, K, D] and values [B, G, K, E].

    All are float32. `mask`: boolean, [L, K] or [1, 1, L, K]; each query sees one key at least.
    """
    batch, heads, length, size = queries.shape
    groups = keys.shape[1]
    grouped = queries.reshape(batch, groups, heads // groups, length, size)
    out, *_ = _attention(scale)(grouped, keys, values, mask.reshape(mask.shape[-2:]))
    return cast(mx.array, out.flatten(1, 2))


@lru_cache
def _attention(scale: float) -> Any:
    """(queries [B, G, R, L, D], keys [B, G, K, D], values [B, G, K, E], mask [L, K]) -> (attention
    [B, G, R, L, E], powers of e, shares).

    Powers, and shares (1 / the sum of each row's), are returned since the gradient takes them. A row is
    divided by its sum where it has E numbers, not K. All queries of a group are one product.
    """

    @custom_function
    def forward(q: mx.array, k: mx.array, v: mx.array, mask: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        scores = (q * scale).flatten(2, 3) @ k.swapaxes(-1, -2)
        scores = mx.where(mask, scores.reshape(*q.shape[:4], k.shape[2]), -math.inf).flatten(2, 3)
        powers = mx.power(math.e, scores - mx.max(scores, axis=-1, keepdims=True))
        shares = 1.0 / mx.sum(powers, axis=-1, keepdims=True)
        return (powers @ v * shares).reshape(*q.shape[:4], v.shape[3]), powers, shares

    @forward.vjp
    def backward(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        q, k, v, mask = primals
        out, powers, shares = outputs
        flow = cotangents[0].flatten(2, 3) * shares
        # d softmax: p * (g - sum(g * p)), and that sum is out . d out.
        inner = mx.sum(out.flatten(2, 3) * flow, axis=-1, keepdims=True)
        scores = powers * (flow @ v.swapaxes(-1, -2) - inner)
        return (
            (scores @ (k * scale)).reshape(q.shape),
            scores.swapaxes(-1, -2) @ (q.flatten(2, 3) * scale),
            powers.swapaxes(-1, -2) @ flow,
            mx.zeros_like(mask),
        )

    return forward


@custom_function
def _swiglu(gate: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
    """`silu(gate) * x`, and the sigmoid of the gate, which the gradient takes."""
    sigmoid = 1.0 / (1.0 + mx.power(1.0 / math.e, gate))
    return gate * sigmoid * x, sigmoid


@_swiglu.vjp
def _swiglu_vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
    gate, x = primals
    flow, sigmoid = cotangents[0], outputs[1]
    silu = gate * sigmoid
    return flow * x * (sigmoid + silu * (1.0 - sigmoid)), flow * silu


# What each product of `swiglu` that Python still holds is made of, by its id.
_factors: dict[int, tuple[weakref.ref[mx.array], tuple[mx.array, ...]]] = {}
# Whether that is remembered.
_remembering = True


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """`silu(gate) * x`, as mlx-lm's function of that name, which it calls where they are not float32."""
    if gate.dtype != mx.float32 or x.dtype != mx.float32:
        return cast(mx.array, activations.swiglu(gate, x))
    out, sigmoid = cast("tuple[mx.array, mx.array]", _swiglu(gate, x))
    if _remembering:
        key = id(out)
        gone = weakref.ref(out, lambda _: _factors.pop(key, None))
        _factors[key] = gone, (gate, sigmoid, x)
    return out


def factors_of(x: mx.array) -> tuple[mx.array, ...]:
    """Arrays whose product, from the first to the last, is `x` to the bit, where `swiglu` made it; else none.

    They are kept for its gradient, so that who needs `x` in the backward pass can do without keeping it too.
    """
    _, factors = _factors.get(id(x), (None, ()))
    return factors


@contextmanager
def factors_forgotten() -> Iterator[None]:
    """While the context holds, no product of `swiglu` has factors: where none is kept for long."""
    global _remembering
    before, _remembering = _remembering, False
    try:
        yield
    finally:
        _remembering = before


def take_swiglu(model: nn.Module) -> None:
    """Have the model's layers call `swiglu` above instead of mlx-lm's, where MLX's exponential is slow."""
    if slow_exponentials():
        for module in _modules_of_swiglu(model, activations.swiglu):
            module.swiglu = swiglu


def takes_swiglu(model: nn.Module) -> bool:
    """Whether the model's layers call `swiglu` above."""
    return bool(_modules_of_swiglu(model, swiglu))


def _modules_of_swiglu(model: nn.Module, function: Any) -> list[Any]:
    """The Python modules of the model's layers in which `swiglu` is this function."""
    found = {inspect.getmodule(kind) for kind in {type(module) for module in model.modules()}}
    return [module for module in found if getattr(module, "swiglu", None) is function]
