"""What MLX lacks for arrays: trees by name, checked array files, the random key, gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from safetensors import SafetensorError, safe_open

from localdpo.core.atomic import require_fetched
from localdpo.core.errors import UserError

# MLX's stubs give what custom_function returns no call's type.
custom_function = cast("Callable[[Any], Any]", mx.custom_function)


def named(tree: Any) -> dict[str, mx.array]:
    """The arrays of a parameter tree by their dotted names."""
    return dict(cast("list[tuple[str, mx.array]]", tree_flatten(tree)))


def float_types(model: nn.Module) -> set[mx.Dtype]:
    """The floating-point types among a model's parameters."""
    return {a.dtype for a in named(model.parameters()).values() if mx.issubdtype(a.dtype, mx.floating)}


def random_key() -> tuple[int, int]:
    """The two words of MLX's random key."""
    state = cast("list[mx.array]", mx.random.state)
    high, low = cast("list[int]", state[0].tolist())
    return high, low


def set_random_key(key: tuple[int, int]) -> None:
    """Put back what `random_key` returned; `mx.random.state` itself may refuse assignment."""
    mx.random.seed((key[0] << 32) | key[1])


@contextmanager
def weights_restored(module: nn.Module) -> Iterator[None]:
    """When the context ends, the module has the trainable parameters again that it has now.

    For whatever puts arrays of a function's graph into a module. Left there, they tie all that is computed
    with the module later to that graph: work that should run beside it waits for it.
    """
    before = module.trainable_parameters()
    try:
        yield
    finally:
        module.update(before)


def load_arrays(file: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, in memory: `mx.load` alone is lazy and finds damage late.

    Raises:
        UserError: the file cannot be read, or its header does not describe it exactly.
    """
    read_header(file)
    try:
        arrays = cast("dict[str, mx.array]", mx.load(str(file)))
        mx.eval(arrays)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {str(error).strip().splitlines()[0]}") from error
    return arrays


def is_finite(array: mx.array) -> bool:
    """Whether it holds floating-point numbers, none of them infinite or NaN."""
    return mx.issubdtype(array.dtype, mx.floating) and bool(mx.isfinite(array).all().item())


def read_header(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Name -> (dtype, shape) of the tensors of a safetensors file; dtypes are the format's own (F32, BF16).

    MLX reads a damaged header without an error and gives its tensors other values; safetensors' own reader
    makes sure that the tensors cover the file exactly.

    Raises:
        UserError: with what is wrong.
    """
    try:
        require_fetched(file)
        with safe_open(file, framework="numpy") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read: not a complete safetensors file: {error}") from error


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, of trees of arrays, with nothing but its arguments kept for the backward pass.

    `mx.checkpoint` lets intermediate arrays be rebuilt as soon as the forward pass is done, and MLX, which
    evaluates a graph depth first, then rebuilds those of several calls before it needs them. Here they wait
    for the cotangents, so that the intermediates of one call are alive at a time.

    What it reads besides its arguments gets no gradient, and neither do masks and token ids among them: they
    are constants of the function that is differentiated, since a fused attention kernel refuses a mask that
    wants a gradient. None comes back from results that are whole numbers.
    """
    wrapped = custom_function(function)

    @wrapped.vjp
    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        results = [_has_gradient(result) for result in _leaves(outputs)]
        flow = list(compress(_leaves(cotangents), results))
        leaves = mx.depends(_leaves(primals), flow)
        varied = [leaf for leaf in leaves if _has_gradient(leaf)]

        def flat(*arrays: mx.array) -> list[mx.array]:
            rest = iter(arrays)
            again = function(*_like(primals, [next(rest) if _has_gradient(a) else a for a in leaves]))
            return list(compress(_leaves(again), results))

        _, grads = mx.vjp(flat, varied, flow)
        # All at once, or the intermediates of this call would wait until some of them are asked for.
        grads = mx.depends(grads, grads)
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


# What RepeatableDropout takes its keys from; None is MLX's random state.
_keys: Iterator[mx.array] | None = None


class RepeatableDropout(nn.Dropout):
    """Dropout that a recomputed function draws again as it did at first (see `drawing_from`)."""

    @property
    def draws(self) -> bool:
        """Whether it drops anything now."""
        return bool(self.training and self._p_1 < 1)

    def __call__(self, x: mx.array) -> mx.array:
        if _keys is None or not self.draws:
            return super().__call__(x)
        return mx.random.bernoulli(self._p_1, x.shape, key=next(_keys)) * x / self._p_1


@contextmanager
def drawing_from(key: mx.array) -> Iterator[None]:
    """While the context holds, every RepeatableDropout takes the next key that follows from `key`."""
    global _keys

    def following(key: mx.array) -> Iterator[mx.array]:
        while True:
            key, own = mx.random.split(key)
            yield own

    before, _keys = _keys, following(key)
    try:
        yield
    finally:
        _keys = before
