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
    """Every check of a device. `folder`: an empty one for what they write.

    On the CPU one way of tracing stands for all, since a trace is built by a C++ compiler there, and 16 bits
    are tried once, since training there is in float32.
    """
    every, can = numbers(backend), backend.compiled
    every += [
        (
            "optimizer step, float32",
            partial(working.optimizer_step, compiled=False, can_compile=backend.compiled),
        )
    ]
    if backend.compiled:
        every.append(
            (
                "optimizer step, float32, traced",
                partial(working.optimizer_step, compiled=True, can_compile=True),
            )
        )
    every += [
        ("save and load", partial(working.save_and_load, folder / "saved", can_compile=can)),
        ("DPO run on the demo", partial(working.dpo_run, folder / "run")),
        ("generation", partial(working.generation, can_compile=can)),
        ("cache of freed buffers", speed.memory),
    ]
    return every + measurements(backend)


def numbers(backend: Backend) -> list[Check]:
    """Log-probabilities and gradients."""
    of = Numbers(compiled=backend.compiled)
    cpu, every = backend.is_cpu, list[Check]()
    for kind, shared, checkpoint, compiled in _ways(backend):
        name = f"{kind}, {_path(shared)}" + ", checkpointed" * checkpoint + ", traced" * compiled
        every.append(
            (name, partial(of.compare, kind, shared=shared, checkpoint=checkpoint, compiled=compiled))
        )
    for kind in KINDS[:1] if cpu else KINDS:
        for shared in (True, False):
            for checkpoint in (False, True):
                name = f"answers of 1 to 9 tokens, {kind}, {_path(shared)}" + ", checkpointed" * checkpoint
                every.append((name, partial(of.short, kind, shared=shared, checkpoint=checkpoint)))
    for family in FAMILIES:
        for shared in (True, False):
            name = f"{family}, float32, {_path(shared)}, checkpointed"
            call = partial(of.compare, "float32", shared=shared, checkpoint=True, family=family)
            every.append((name, call))
            if not cpu:
                name = f"{family}, bfloat16, {_path(shared)}, finite"
                every.append((name, partial(of.runs, "bfloat16", shared=shared, family=family)))
    kind = "float32" if cpu else "bfloat16"
    every.append((f"gradients twice, {kind}", partial(of.repeated, kind)))
    return every


def _ways(backend: Backend) -> Iterator[tuple[Kind, bool, bool, bool]]:
    """(kind, shared, checkpointed, traced)"""
    for kind in KINDS:
        for shared in (True, False):
            for checkpoint in (False, True):
                if backend.is_cpu and kind == "bfloat16" and not (shared and checkpoint):
                    continue
                yield kind, shared, checkpoint, False
                if backend.compiled and (not backend.is_cpu or (kind == "float32" and shared and checkpoint)):
                    yield kind, shared, checkpoint, True


def measurements(backend: Backend) -> list[Check]:
    """Speed, and what the device does where nothing of ours depends on it."""
    can = backend.compiled
    every: list[Check] = [
        (f"matrix products, {name}", partial(speed.matmul, dtype)) for name, dtype in DTYPES.items()
    ]
    every.append(("gradients of 4 pairs", partial(speed.step_time, compiled=False, can_compile=can)))
    if can and not backend.is_cpu:
        every.append(
            ("gradients of 4 pairs, traced", partial(speed.step_time, compiled=True, can_compile=can))
        )
    every += [
        ("float32 products", questions.float32_products),
        ("adding by scatter", questions.scatter_add),
        ("cache when its limit falls", questions.cache_after_limit),
    ]
    if backend.is_cpu:
        return every
    for name, dtype in DTYPES.items():
        every.append((f"a mask in mx.checkpoint, {name}", partial(questions.mask_in_checkpoint, dtype)))
        for mask in ("none", "causal", "array", "causal and sinks"):
            call = partial(questions.attention, dtype, mask, can_compile=can)
            every.append((f"attention's gradient, {name}, mask {mask}", call))
    return every


def _path(shared: bool) -> str:
    return "shared prompt" if shared else "plain"
