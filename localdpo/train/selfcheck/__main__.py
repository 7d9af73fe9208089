"""`python -m localdpo.train.selfcheck FOLDER [NAME]`: every check (after NAME), between two lines of JSON.

FOLDER is for what the checks write; whoever names it takes it away, since a check may take the process along.

{"facts": {...}}
{"begin": NAME}
{"name": NAME, "state": ..., "value": ..., "bar": ..., "seconds": ...}
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlx.core as mx

from localdpo import __version__
from localdpo.core.errors import USER_ERROR_EXIT, LocalDPOError
from localdpo.model.backend import Backend, keep_float32_exact, may_use_tf32, memory_limit, prepare
from localdpo.out import guard, json_text, say, say_errors
from localdpo.train.selfcheck.checks import Check, checks
from localdpo.train.selfcheck.report import Differs, Finding

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
        found = Finding("differs", str(error))
    except Exception as error:
        # A device may raise anything anywhere, and the checks after this one are worth having.
        found = Finding("error", f"{type(error).__name__}: {error}")
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


if __name__ == "__main__":
    guard()
    try:
        sys.exit(main(sys.argv[1:]))
    except LocalDPOError as error:
        say_errors(error)
        sys.exit(USER_ERROR_EXIT)
