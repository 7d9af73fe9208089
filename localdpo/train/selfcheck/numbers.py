"""Log-probabilities and gradients of the device against those of the CPU in float32."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial

import mlx.core as mx
import numpy as np

from localdpo.data.types import Batch
from localdpo.model.arrays import float_types
from localdpo.model.backend import device_name, may_use_tf32
from localdpo.model.forward import Forward
from localdpo.train.selfcheck.report import Finding, compared
from localdpo.train.selfcheck.tiny import Kind, Measured, Twins, batch, measurer, on_cpu, twins
from localdpo.train.session import tolerance

# Distances of gradients, relative to their norm. float32: sums in another order on the CPU stay below 3e-5
# on models of all families; a GPU adds in yet another. TF32 has 10 bits of mantissa, bfloat16 7: on small
# models on the CPU bfloat16 gradients are 1 to 3 % off on either path. One that is wrong is off by 0.1 to 1.
EXACT_GRADIENT, TF32_GRADIENT, HALF_GRADIENT = 1e-4, 1e-2, 0.06

# `tolerance` is the distance of two orders of one 16-bit computation; from float32 it is up to twice that.
FROM_EXACT = 2.5


class Numbers:
    """Comparisons with truths, each of which is computed once. `compiled`: MLX may trace."""

    def __init__(self, *, compiled: bool) -> None:
        self.compiled = compiled
        self.twins = lru_cache(self._twins)
        self.truth = lru_cache(self._truth)

    def _twins(self, kind: Kind, family: str) -> Twins:
        # MLX's CPU kernels add up 16-bit quantised products in 16 bits, and training never uses them.
        half = device_name() != "cpu"
        with on_cpu(compiled=self.compiled):
            return twins(kind, family, half=half)

    def _truth(self, kind: Kind, family: str, tokens: int | None) -> Measured:
        """By the plain path, which is the model as mlx-lm runs it, without tracing or checkpoints."""
        exact = self.twins(kind, family).exact
        with on_cpu(compiled=self.compiled):
            return measurer(exact, shared=False)(rows_of(tokens))

    def compare(
        self,
        kind: Kind,
        *,
        shared: bool,
        checkpoint: bool = False,
        compiled: bool = False,
        family: str = "qwen3",
        tokens: int | None = None,
    ) -> Finding:
        """One way of computing against the truth. `tokens`: answers of so many; None: of spread lengths."""
        model, rows = self.twins(kind, family).model, rows_of(tokens)
        truth = self.truth(kind, family, tokens)
        measured = measurer(model, shared=shared, checkpoint=checkpoint, compiled=compiled)
        found = measured(rows)
        is_float32 = float_types(model) == {mx.float32}
        bars = tolerance(truth.logps, rows.lengths, Forward(model, shared=shared))
        bars *= 1.0 if is_float32 else FROM_EXACT
        worst = int(np.argmax(np.abs(found.logps - truth.logps) / bars))
        gap = float(np.linalg.norm(found.gradient - truth.gradient) / np.linalg.norm(truth.gradient))
        finding = compared(
            {
                "log-probability": (float(np.abs(found.logps - truth.logps)[worst]), float(bars[worst])),
                "gradient": (gap, gradient_bar(is_float32=is_float32)),
            }
        )
        return finding if device_name() == "cpu" else _timed(finding, partial(measured, rows))

    def short(self, kind: Kind, *, shared: bool, checkpoint: bool) -> Finding:
        """Answers of 1 to 9 tokens: the worst of nine comparisons."""
        found: list[tuple[int, Finding]] = []
        for tokens in range(1, 10):
            try:
                one = self.compare(kind, shared=shared, checkpoint=checkpoint, tokens=tokens)
            except (RuntimeError, ValueError) as error:
                # What MLX raises for a shape that a kernel does not take.
                one = Finding("error", f"{type(error).__name__}: {error}")
            found.append((tokens, one))
        bad = [(tokens, one) for tokens, one in found if one.state != "ok"]
        if not bad:
            return Finding("ok", f"1 to 9 tokens; of 9: {found[-1][1].value}", found[-1][1].bar)
        tokens, one = bad[0]
        lengths = ", ".join(str(length) for length, _ in bad)
        return Finding(one.state, f"not with answers of {lengths} tokens; {tokens}: {one.value}", one.bar)

    def runs(self, kind: Kind, *, shared: bool, family: str) -> Finding:
        """Whether there are numbers at all, where rounding decides too much to compare them."""
        found = measurer(self.twins(kind, family).model, shared=shared, checkpoint=True)(rows_of(None))
        finite = bool(np.isfinite(found.logps).all() and np.isfinite(found.gradient).all())
        return Finding("ok" if finite else "differs", "finite" if finite else "not finite")

    def repeated(self, kind: Kind) -> Finding:
        """Whether the same gradients come out twice, to the bit."""
        model, rows = self.twins(kind, "qwen3").model, rows_of(None)
        one, other = (measurer(model, shared=True)(rows) for _ in range(2))
        gap = float(np.abs(one.gradient - other.gradient).max())
        return Finding("info", "the same to the bit" if gap == 0 else f"up to {gap:.2g} apart")


def _timed(finding: Finding, again: Callable[[], object]) -> Finding:
    """With the time of a second call, whose kernels are there already."""
    began = time.perf_counter()
    again()
    return replace(finding, value=f"{finding.value}; again {time.perf_counter() - began:.3f} s")


def gradient_bar(*, is_float32: bool) -> float:
    """Of the distance between two vectors of gradients, relative to the norm."""
    if not is_float32:
        return HALF_GRADIENT
    return TF32_GRADIENT if may_use_tf32() else EXACT_GRADIENT


@lru_cache
def rows_of(tokens: int | None) -> Batch:
    """Three pairs of spread lengths, or two with answers of `tokens`."""
    return batch() if tokens is None else batch(2, seed=tokens, prompt=(1, 40), response=(tokens, tokens))
