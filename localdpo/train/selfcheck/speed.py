"""How fast the device is, and what it does with memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from localdpo.model.backend import cache_limit, device_name, memory_limit
from localdpo.train.selfcheck.report import Finding
from localdpo.train.selfcheck.tiny import batch, measurer, on_cpu, twins

GB = 1e9


def matmul(dtype: mx.Dtype) -> Finding:
    """Square products, as many as a second or so takes."""
    cpu = device_name() == "cpu"
    size = 4096 if not cpu else 1024 if dtype == mx.float32 else 256
    a, b = (mx.random.normal((size, size)).astype(dtype) for _ in range(2))
    mx.eval(a @ b)
    repeats, seconds = 1, 0.0
    while seconds < 0.3 and repeats < 4096:
        repeats *= 2
        began = time.perf_counter()
        mx.eval([a @ b for _ in range(repeats)] if repeats < 8 else _chain(a, b, repeats))
        seconds = time.perf_counter() - began
    rate = 2 * size**3 * repeats / seconds
    return Finding("info", f"{rate / 1e12:.3g} TFLOP/s in products of {size} x {size}")


def _chain(a: mx.array, b: mx.array, repeats: int) -> mx.array:
    """One product after the other, so that no more than two results live."""
    for _ in range(repeats):
        a = (a @ b) * (1.0 / b.shape[0] ** 0.5)
    return a


def step_time(*, compiled: bool, can_compile: bool) -> Finding:
    """Gradients of a batch, the first time and the median of the next."""
    with on_cpu(compiled=can_compile):
        model = twins("bfloat16" if device_name() != "cpu" else "float32").model
    rows, measured = batch(4), measurer(model, shared=True, compiled=compiled)
    times = [_seconds(lambda: measured(rows)) for _ in range(5)]
    return Finding("info", f"{times[0]:.3f} s the first time, then {np.median(times[1:]):.3f} s")


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def memory() -> Finding:
    """What is held, and whether the cache of freed buffers keeps to its limit and can be emptied."""
    limit = cache_limit(memory_limit(device_name()))
    arrays = [mx.zeros((size * 2**20,), dtype=mx.uint8) + 1 for size in range(8, 72, 8)]
    mx.eval(arrays)
    active = mx.get_active_memory()
    del arrays
    cached = mx.get_cache_memory()
    mx.clear_cache()
    after = mx.get_cache_memory()
    value = (
        f"active {active / GB:.2f} GB, peak {mx.get_peak_memory() / GB:.2f} GB, "
        f"cache {cached / GB:.2f} GB of at most {limit / GB:.1f}, {after / GB:.2f} GB once emptied"
    )
    return Finding("ok" if cached <= limit and after <= cached else "differs", value)
