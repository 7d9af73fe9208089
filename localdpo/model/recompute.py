"""Gradient checkpointing: a function whose intermediate arrays are made again in the backward pass.

`mx.checkpoint` lets them be made as soon as the forward pass is done, and MLX, which evaluates a graph
depth first, then makes those of several calls before it needs them. Here they wait for the cotangents,
so that the intermediates of one call are alive at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

# MLX's stubs give what custom_function returns no call's type.
_custom_function = cast("Callable[[Any], Any]", mx.custom_function)


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, of trees of arrays, with nothing but its arguments kept for the backward pass.

    What it reads besides its arguments gets no gradient, and neither do masks and token ids among them: they
    are constants of the function that is differentiated, since a fused attention kernel refuses a mask that
    wants a gradient.
    """
    wrapped = _custom_function(function)

    @wrapped.vjp
    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        flow = _leaves(cotangents)
        leaves = mx.depends(_leaves(primals), flow)
        varied = [leaf for leaf in leaves if _has_gradient(leaf)]

        def flat(*arrays: mx.array) -> list[mx.array]:
            rest = iter(arrays)
            return _leaves(function(*_like(primals, [next(rest) if _has_gradient(a) else a for a in leaves])))

        _, grads = mx.vjp(flat, varied, flow)
        rest = iter(grads)
        return _like(primals, [next(rest) if _has_gradient(a) else mx.zeros_like(a) for a in leaves])

    return wrapped


def _has_gradient(array: mx.array) -> bool:
    return mx.issubdtype(array.dtype, mx.floating)


def _leaves(tree: Any) -> list[mx.array]:
    return [array for _, array in cast("list[tuple[str, mx.array]]", tree_flatten(tree))]


def _like(tree: Any, leaves: Any) -> Any:
    """A tree of the form of `tree` with these leaves."""
    rest = iter(leaves)
    return tree_map(lambda _: next(rest), tree)
