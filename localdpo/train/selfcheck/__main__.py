"""`python -m localdpo.train.selfcheck FOLDER [NAME]`: every check (after NAME), between two lines of JSON.

FOLDER is for what the checks write; whoever names it removes it, since a check may crash the process.

{"facts": {...}}
{"begin": NAME}
{"name": NAME, "state": ..., "value": ..., "bar": ..., "seconds": ...}
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlx.core as mx

from localdpo import __version__
from localdpo.core.errors import USER_ERROR_EXIT, LocalDPOError
from localdpo.model.backend import Backend, keep_float32_exact, may_use_tf32, memory_limit, prepare
from localdpo.out import guard, json_text, say, say_errors
from localdpo.train.selfcheck import CheckResult, Differs, probes, working
from localdpo.train.selfcheck.numbers import FAMILIES, KINDS, Kind, Numbers

Check = tuple[str, Callable[[], CheckResult]]
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}
VERSIONED = ("mlx", "mlx-lm", "mlx-cuda-12", "mlx-cuda-13", "transformers", "numpy")
# Of a device: what is one machine's own is nobody's business.
PRIVATE = ("uuid", "pci_bus_id")


def main(arguments: list[str]) -> int:
    """Make the checks; the exit code says only whether it came to the end."""
    keep_float32_exact()
    backend = prepare()
    say(json_text({"facts": facts(backend)}))
    folder, *after = arguments
    # What an earlier process wrote there is not in the way.
    every = checks(backend, Path(tempfile.mkdtemp(dir=folder)))
    names = [name for name, _ in every]
    for check in every[names.index(after[0]) + 1 if after else 0 :]:
        say(json_text({"begin": check[0]}))
        say(json_text(outcome(check)))
    return 0


def outcome(check: Check) -> dict[str, object]:
    """What a check found, whatever happens in it."""
    name, call = check
    began = time.perf_counter()
    try:
        found = call()
    except Differs as error:
        found = CheckResult("differs", str(error))
    except Exception as error:
        # A device may raise anything anywhere, and the checks after this one are worth having.
        found = CheckResult("error", f"{type(error).__name__}: {error}")
    return {"name": name, **asdict(found), "seconds": round(time.perf_counter() - began, 2)}


def facts(backend: Backend) -> dict[str, object]:
    """What a reader of the report must know of the machine."""
    info = {name: value for name, value in mx.device_info().items() if name not in PRIVATE}
    return {
        "localdpo": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "macos": platform.mac_ver()[0],
        **{name: found for name in VERSIONED if (found := _version(name))},
        "device": backend.device,
        "blas": backend.blas,
        "traces": backend.compiled,
        "tf32": may_use_tf32(),
        "memory_limit_gb": round(memory_limit(backend.device) / 1e9, 2),
        "device_info": info,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


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
    yield "cache of freed buffers", probes.memory


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
        yield f"matrix products, {name}", partial(probes.matmul, dtype)
    timed = partial(probes.step_time, can_compile=backend.compiled)
    yield "gradients of 4 pairs", partial(timed, compiled=False)
    if backend.compiled and not backend.is_cpu:
        yield "gradients of 4 pairs, traced", partial(timed, compiled=True)


def _questions(backend: Backend) -> Iterator[Check]:
    """What the device does where nothing of ours depends on it."""
    yield "float32 products", probes.float32_products
    yield "adding by scatter", probes.scatter_add
    yield "cache when its limit falls", probes.cache_after_limit
    if backend.is_cpu:
        return
    for name, dtype in DTYPES.items():
        yield f"a mask in mx.checkpoint, {name}", partial(probes.mask_in_checkpoint, dtype)
        for mask in probes.MASKS:
            call = partial(probes.attention, dtype, mask, can_compile=backend.compiled)
            yield f"attention's gradient, {name}, mask {mask}", call


def _path(shared: bool) -> str:
    return "shared prompt" if shared else "plain"


if __name__ == "__main__":
    guard()
    try:
        sys.exit(main(sys.argv[1:]))
    except LocalDPOError as error:
        say_errors(error)
        sys.exit(USER_ERROR_EXIT)
