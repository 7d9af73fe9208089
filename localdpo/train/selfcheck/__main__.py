"""`python -m localdpo.train.selfcheck FOLDER [NAME]`: every check (after NAME), between two lines of JSON.

The checks write into FOLDER; the caller removes it, since a check may crash the process.

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
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path

import mlx.core as mx

from localdpo import __version__
from localdpo.core.errors import USER_ERROR_EXIT, LocalDPOError
from localdpo.model.backend import Backend, keep_float32_exact, may_use_tf32, memory_limit, prepare
from localdpo.out import guard, json_text, say, say_errors
from localdpo.train.selfcheck import CheckResult, Differs, numbers, probes, working
from localdpo.train.selfcheck.numbers import FAMILIES, KINDS, Kind

Check = tuple[str, Callable[[], CheckResult]]
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}
VERSIONED = ("mlx", "mlx-lm", "mlx-cuda-12", "mlx-cuda-13", "transformers", "numpy")
# Facts of a device that identify a single machine: never shown.
PRIVATE = ("uuid", "pci_bus_id")


def main(arguments: list[str]) -> int:
    """Run the checks; the exit code is 0 whatever they find."""
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
    """The result of a check, also where it raises."""
    name, call = check
    began = time.perf_counter()
    try:
        result = call()
    except Differs as error:
        result = CheckResult("differs", str(error))
    except Exception as error:
        # A device may raise anything anywhere, and the checks after this one are worth having.
        result = CheckResult("error", f"{type(error).__name__}: {error}")
    return {"name": name, **asdict(result), "seconds": round(time.perf_counter() - began, 2)}


def facts(backend: Backend) -> dict[str, object]:
    """What a reader of the report must know about the machine."""
    info = {name: value for name, value in mx.device_info().items() if name not in PRIVATE}
    versions: dict[str, object] = {}
    for name in VERSIONED:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "localdpo": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "macos": platform.mac_ver()[0],
        **versions,
        "device": backend.device,
        "blas": backend.blas,
        "traces": backend.compiled,
        "tf32": may_use_tf32(),
        "memory_limit_gb": round(memory_limit(backend.device) / 1e9, 2),
        "device_info": info,
    }


def checks(backend: Backend, folder: Path) -> list[Check]:
    """Every check of a device, those that matter most first. `folder`: an empty one for what they write."""
    return [
        *_every_precision(backend),
        *_run_parts(backend, folder),
        *_unusual_shapes(backend),
        *_measurements(backend),
    ]


def _every_precision(backend: Backend) -> Iterator[Check]:
    """Log-probabilities and gradients in every precision, on every way through the model.

    Few ways are traced: a trace makes new kernels, which a compiler builds for long on CUDA and on the CPU.
    On the CPU 16 bits are tried once, since training there is in float32.
    """
    for kind, shared, checkpoint in product(KINDS, (True, False), (False, True)):
        if backend.is_cpu and kind == "bfloat16" and not (shared and checkpoint):
            continue
        name = f"{kind}, {_path(shared)}" + ", checkpointed" * checkpoint
        compare = partial(numbers.compare, kind, shared=shared, checkpoint=checkpoint)
        yield name, compare
        # The traces of a kind and path differ in little, so one of each kind is enough.
        traced = shared and (checkpoint if backend.is_cpu else checkpoint == (kind == "4-bit"))
        if backend.compiled and traced and not (backend.is_cpu and kind != "float32"):
            yield f"{name}, traced", partial(compare, compiled=True)


def _run_parts(backend: Backend, folder: Path) -> Iterator[Check]:
    yield "optimizer step, float32", partial(working.optimizer_step, "float32", compiled=False)
    kind: Kind = "float32" if backend.is_cpu else "4-bit"
    if backend.compiled:
        yield f"optimizer step, {kind}, traced", partial(working.optimizer_step, kind, compiled=True)
    yield "save and load", partial(working.save_and_load, folder / "saved")
    yield "DPO run on the demo", partial(working.dpo_run, folder / "run")
    yield "generation", working.generation
    yield "cache of freed buffers", probes.memory


def _unusual_shapes(backend: Backend) -> Iterator[Check]:
    """Short answers, and families whose attention is of another kind."""
    for kind, shared, checkpoint in product(
        KINDS[:1] if backend.is_cpu else KINDS, (True, False), (False, True)
    ):
        name = f"answers of 1 to 9 tokens, {kind}, {_path(shared)}" + ", checkpointed" * checkpoint
        yield name, partial(numbers.short, kind, shared=shared, checkpoint=checkpoint)
    for family, shared in product(FAMILIES, (True, False)):
        name = f"{family}, float32, {_path(shared)}, checkpointed"
        yield name, partial(numbers.compare, "float32", shared=shared, checkpoint=True, family=family)
        if not backend.is_cpu:
            name = f"{family}, bfloat16, {_path(shared)}, finite"
            yield name, partial(numbers.runs, "bfloat16", shared=shared, family=family)
    half: Kind = "float32" if backend.is_cpu else "bfloat16"
    yield f"gradients twice, {half}", partial(numbers.repeated, half)


def _measurements(backend: Backend) -> Iterator[Check]:
    """How fast the device is, and what it does where nothing of ours depends on it."""
    for name, dtype in DTYPES.items():
        yield f"matrix products, {name}", partial(probes.matmul, dtype)
    yield "gradients of 4 pairs", partial(probes.step_time, compiled=False)
    if backend.compiled and not backend.is_cpu:
        yield "gradients of 4 pairs, traced", partial(probes.step_time, compiled=True)
    yield "float32 products", probes.float32_products
    yield "adding by scatter", probes.scatter_add
    yield "cache when its limit falls", probes.cache_after_limit
    if backend.is_cpu:
        return
    for name, dtype in DTYPES.items():
        yield f"a mask in mx.checkpoint, {name}", partial(probes.mask_in_checkpoint, dtype)
        for mask in probes.MASKS:
            yield f"attention's gradient, {name}, mask {mask}", partial(probes.attention, dtype, mask)


def _path(shared: bool) -> str:
    return "shared prompt" if shared else "plain"


if __name__ == "__main__":
    guard()
    try:
        sys.exit(main(sys.argv[1:]))
    except LocalDPOError as error:
        say_errors(error)
        sys.exit(USER_ERROR_EXIT)
