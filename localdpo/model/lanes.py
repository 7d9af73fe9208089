"""Work side by side on a CPU: each piece on a stream of its own, with a thread of its own.

MLX's CPU backend computes one operation after the other. Matrix products use all cores through BLAS, all the
rest uses one, and that is half of a training step or more. Pieces that do not depend on each other, such as
micro-batches, run on streams at the same time, and their products on fewer threads each.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import Any, Final, TypeVar

import mlx.core as mx

from localdpo.core.process import load_openblas
from localdpo.model.backend import device_name

# More pieces take more memory, and wait for it.
MOST_LANES: Final = 4

T = TypeVar("T")
R = TypeVar("R")


def lane_count() -> int:
    """Pieces of work that run at the same time: as many as BLAS has threads, 4 at most; 1 on a GPU."""
    return min(MOST_LANES, _threads()) if device_name() == "cpu" and load_openblas() else 1


def side_by_side(build: Callable[[T], R], items: Iterable[T], lanes: int) -> Iterator[R]:
    """`build` of every item, evaluated, in their order; `lanes` at the same time, `lane_count` at most.

    `build` makes a tree of arrays and evaluates nothing. It leaves no array of its graph where the next one
    finds it: their streams would wait for each other. Items that come together should be of about one length:
    the next ones begin when all are done.
    """
    rest = iter(items)
    while group := list(islice(rest, lanes)):
        if len(group) == 1:
            built = [build(group[0])]
            mx.eval(built)
        else:
            built = []
            for item, stream in zip(group, _streams()[: len(group)], strict=True):
                with mx.stream(stream):
                    built.append(build(item))
            with _blas_threads(max(1, _threads() // len(group))):
                mx.eval(built)
        yield from built


@cache
def _streams() -> tuple[Any, ...]:
    return tuple(mx.new_thread_local_stream(mx.cpu) for _ in range(MOST_LANES))


@cache
def _openblas() -> Any:
    return ctypes.CDLL(load_openblas())


@cache
def _threads() -> int:
    """Threads that OpenBLAS has from its environment or from the cores this process may use."""
    return int(_openblas().openblas_get_num_threads()) if load_openblas() else len(os.sched_getaffinity(0))


@contextmanager
def _blas_threads(count: int) -> Iterator[None]:
    """While the context holds, each matrix product runs on so many threads."""
    _openblas().openblas_set_num_threads(count)
    try:
        yield
    finally:
        _openblas().openblas_set_num_threads(_threads())
