"""The checks by name, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import mlx.core as mx

from localdpo.model.backend import Backend
from localdpo.train.selfcheck import questions, speed, working
from localdpo.train.selfcheck.numbers import Numbers
from localdpo.train.selfcheck.report import Finding
from localdpo.train.selfcheck.tiny import FAMILIES, KINDS, Kind

Check = tuple[str, Callable[[], Finding]]
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}


def checks(backend: Backend, folder: Path) -> list[Check]:
    """Every check of a device, those that matter most first. `folder`: an empty one for what they write.

    Few ways are traced: a trace makes new kernels, which a compiler builds for long on CUDA and on the CPU.
    On the CPU 16 bits are tried once, since training there is in float32.
    """
    of = Numbers(compiled=backend.compiled)
    return [
        *_numbers(backend, of),
        *_working(backend, folder),
        *_shapes(backend, of),
        *_measurements(backend),
        *_questions(backend),
    ]


def _numbers(backend: Backend, of: Numbers) -> Iterator[Check]:
    """Log-probabilities and gradients in every precision, on every way through the model."""
    for kind, shared, checkpoint, compiled in _ways(backend):
        name = f"{kind}, {_path(shared)}" + ", checkpointed" * checkpoint + ", traced" * compiled
        yield name, partial(of.compare, kind, shared=shared, checkpoint=checkpoint, compiled=compiled)


def _working(backend: Backend, folder: Path) -> Iterator[Check]:
    """What a run is made of, and a run."""
    can = backend.compiled
    step = partial(working.optimizer_step, can_compile=can)
    yield "optimizer step, float32", partial(step, "float32", compiled=False)
    kind: Kind = "float32" if backend.is_cpu else "4-bit"
    if can:
        yield f"optimizer step, {kind}, traced", partial(step, kind, compiled=True)
    yield "save and load", partial(working.save_and_load, folder / "saved", can_compile=can)
    yield "DPO run on the demo", partial(working.dpo_run, folder / "run")
    yield "generation", partial(working.generation, can_compile=can)
    yield "cache of freed buffers", speed.memory


def _shapes(backend: Backend, of: Numbers) -> Iterator[Check]:
    """Short answers, and families whose attention is of another kind."""
    for kind in KINDS[:1] if backend.is_cpu else KINDS:
        for shared in (True, False):
            for checkpoint in (False, True):
                name = f"answers of 1 to 9 tokens, {kind}, {_path(shared)}" + ", checkpointed" * checkpoint
                yield name, partial(of.short, kind, shared=shared, checkpoint=checkpoint)
    for family in FAMILIES:
        for shared in (True, False):
            name = f"{family}, float32, {_path(shared)}, checkpointed"
            yield name, partial(of.compare, "float32", shared=shared, checkpoint=True, family=family)
            if not backend.is_cpu:
                name = f"{family}, bfloat16, {_path(shared)}, finite"
                yield name, partial(of.runs, "bfloat16", shared=shared, family=family)
    kind = "float32" if backend.is_cpu else "bfloat16"
    yield f"gradients twice, {kind}", partial(of.repeated, kind)


def _ways(backend: Backend) -> Iterator[tuple[Kind, bool, bool, bool]]:
    """(kind, shared, checkpointed, traced)"""
    for kind in KINDS:
        for shared in (True, False):
            for checkpoint in (False, True):
                if backend.is_cpu and kind == "bfloat16" and not (shared and checkpoint):
                    continue
                yield kind, shared, checkpoint, False
                # The traces of a kind and path differ in little, so one of each kind is enough.
                traced = shared and (checkpoint if backend.is_cpu else checkpoint == (kind == "4-bit"))
                if backend.compiled and traced and not (backend.is_cpu and kind != "float32"):
                    yield kind, shared, checkpoint, True


def _measurements(backend: Backend) -> Iterator[Check]:
    """How fast it is."""
    for name, dtype in DTYPES.items():
        yield f"matrix products, {name}", partial(speed.matmul, dtype)
    timed = partial(speed.step_time, can_compile=backend.compiled)
    yield "gradients of 4 pairs", partial(timed, compiled=False)
    if backend.compiled and not backend.is_cpu:
        yield "gradients of 4 pairs, traced", partial(timed, compiled=True)


def _questions(backend: Backend) -> Iterator[Check]:
    """What the device does where nothing of ours depends on it."""
    yield "float32 products", questions.float32_products
    yield "adding by scatter", questions.scatter_add
    yield "cache when its limit falls", questions.cache_after_limit
    if backend.is_cpu:
        return
    for name, dtype in DTYPES.items():
        yield f"a mask in mx.checkpoint, {name}", partial(questions.mask_in_checkpoint, dtype)
        for mask in questions.MASKS:
            call = partial(questions.attention, dtype, mask, can_compile=backend.compiled)
            yield f"attention's gradient, {name}, mask {mask}", call


def _path(shared: bool) -> str:
    return "shared prompt" if shared else "plain"
