"""How fast the device is, what it does with memory, and what only it can show of MLX itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from localdpo.model.backend import cache_limit, device_name, memory_limit
from localdpo.model.load import first_line
from localdpo.train.selfcheck import CheckResult
from localdpo.train.selfcheck.numbers import batch, measurer, on_cpu, random_pairs, twins

GB = 1e9


def matmul(dtype: mx.Dtype) -> CheckResult:
    """Square products, as many as a second or so takes."""
    rate, size = matmul_rate(dtype)
    return CheckResult("info", f"{rate / 1e12:.3g} TFLOP/s in products of {size} x {size}")


def matmul_rate(dtype: mx.Dtype) -> tuple[float, int]:
    """(operations a second of square products, their size)."""
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
    return 2 * size**3 * repeats / seconds, size


def _chain(a: mx.array, b: mx.array, repeats: int) -> mx.array:
    """One product after the other, so that no more than two results live."""
    for _ in range(repeats):
        a = (a @ b) * (1.0 / b.shape[0] ** 0.5)
    return a


def step_time(*, compiled: bool) -> CheckResult:
    """Gradients of a batch, the first time and the median of the next."""
    model = twins("bfloat16" if device_name() != "cpu" else "float32").model
    rows, measured = batch(random_pairs(4)), measurer(model, shared=True, compiled=compiled)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        measured(rows)
        times.append(time.perf_counter() - began)
    return CheckResult("info", f"{times[0]:.3f} s the first time, then {np.median(times[1:]):.3f} s")


def memory() -> CheckResult:
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
    return CheckResult("ok" if cached <= limit and after <= cached else "differs", value)


# --- MLX itself: training does not depend on the answers -----------------------------------------------

HEADS, KEY_HEADS, SIZE = 4, 2, 64
MASKS = ("none", "causal", "array", "causal and sinks")
QUERIES = (*range(1, 10), 16, 100, 128)


def float32_products() -> CheckResult:
    """The error of a float32 product against float64: 1e-3 is TF32, 1e-6 is float32."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(512, 512)).astype(np.float32) for _ in range(2))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    gap = np.linalg.norm(np.array(mx.array(a) @ mx.array(b)) - exact) / np.linalg.norm(exact)
    return CheckResult("info", f"relative error {gap:.1g}: {'float32' if gap < 1e-5 else 'TF32'}")


def scatter_add() -> CheckResult:
    """Whether adding by scatter gives the same sums each time."""
    rng = np.random.default_rng(0)
    owner = mx.array(rng.integers(0, 8, 100_000).astype(np.int32))
    values = mx.array(rng.normal(size=100_000).astype(np.float32))
    sums = [np.array(mx.zeros((8,)).at[owner].add(values)) for _ in range(8)]
    same = all(np.array_equal(sums[0], other) for other in sums)
    return CheckResult("info", "the same each time" if same else "another sum each time")


def attention(dtype: mx.Dtype, mask: str) -> CheckResult:
    """Gradients of fused attention with 1 to 128 queries against the CPU's in float32."""
    agreeing = 0
    others: list[str] = []
    for queries in QUERIES:
        try:
            gap = _attention_gap(dtype, mask, queries)
        except (RuntimeError, ValueError) as error:
            others.append(f"{queries}: raises {first_line(error)}")
            continue
        if gap < (1e-4 if dtype == mx.float32 else 0.03):
            agreeing += 1
        else:
            others.append(f"{queries}: {gap:.1g}")
    summary = f"agree with {agreeing} of {len(QUERIES)} numbers of queries"
    return CheckResult("info", "; ".join([summary, *others]))


def _attention_gap(dtype: mx.Dtype, mask: str, queries: int) -> float:
    rng = np.random.default_rng(queries)
    shapes = [(2, HEADS, queries, SIZE), *[(2, KEY_HEADS, queries, SIZE)] * 2]
    inputs = [mx.array(rng.normal(size=shape).astype(np.float32)).astype(dtype) for shape in shapes]
    flow = mx.array(rng.normal(size=shapes[0]).astype(np.float32))
    sinks = mx.array(rng.normal(size=HEADS).astype(np.float32))
    allowed = np.tril(np.ones((queries, queries), dtype=bool))
    masks: dict[str, Any] = {
        "none": None,
        "causal": "causal",
        "causal and sinks": "causal",
        "array": mx.array(np.broadcast_to(allowed, (2, 1, queries, queries)).copy()),
    }

    def total(arrays: list[mx.array]) -> mx.array:
        q, k, v = arrays
        more = sinks.astype(q.dtype) if "sinks" in mask else None
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125, mask=masks[mask], sinks=more)
        return (out.astype(mx.float32) * flow).sum()

    own = [np.array(g.astype(mx.float32)) for g in mx.grad(total)(inputs)]
    with on_cpu():
        exact = [np.array(g) for g in mx.grad(total)([a.astype(mx.float32) for a in inputs])]
    norm = max(float(np.linalg.norm(e)) for e in exact)
    return max(float(np.linalg.norm(o - e)) for o, e in zip(own, exact, strict=True)) / max(norm, 1e-3)


def mask_in_checkpoint(dtype: mx.Dtype) -> CheckResult:
    """What becomes of a boolean mask that is an argument of `mx.checkpoint`."""
    rng = np.random.default_rng(0)
    x = mx.array(rng.normal(size=(1, 4, 128, 64)).astype(np.float32)).astype(dtype)
    mask = mx.array(np.tril(np.ones((128, 128), dtype=bool)))[None, None]

    def attend(x: mx.array, mask: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(x, x, x, scale=0.125, mask=mask)

    checkpointed: Callable[..., mx.array] = mx.checkpoint(attend)
    try:
        mx.eval(mx.grad(lambda x: checkpointed(x, mask).astype(mx.float32).sum())(x))
    except (RuntimeError, ValueError) as error:
        return CheckResult("info", f"raises {first_line(error)}")
    return CheckResult("info", "works")


def cache_after_limit() -> CheckResult:
    """What is in the cache of freed buffers before and after its limit is lowered to nothing."""
    kept = mx.zeros((64 * 2**20,), dtype=mx.uint8) + 1
    mx.eval(kept)
    del kept
    before = mx.get_cache_memory()
    limit = mx.set_cache_limit(0)
    lowered = mx.get_cache_memory()
    mx.set_cache_limit(limit)
    return CheckResult("info", f"{before / 1e6:.0f} MB before, {lowered / 1e6:.0f} MB after")
