"""Which device MLX runs on, and what a person should know about it."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass

import mlx.core as mx

from localdpo.core.preload import find_openblas, load_openblas

OPENBLAS_HINT = (
    "OpenBLAS not found: training on this CPU is much slower without it "
    "(Debian: apt-get install libopenblas0-pthread)"
)
TOO_LATE_HINT = (
    "MLX was imported before localdpo, so OpenBLAS could not be put in front of it: import localdpo first"
)
COMPILER_HINT = "no C++ compiler (g++) found: MLX cannot compile its CPU kernels, so steps run uncompiled"


@dataclass(frozen=True)
class Backend:
    """What the process runs on.

    Attributes:
        device: "metal", "cuda" or "cpu".
        blas: file name of the OpenBLAS that was loaded ahead of MLX, None elsewhere.
        compiled: whether `mx.compile` can be used.
        hints: lines that a person should see once.
    """

    device: str
    blas: str | None
    compiled: bool
    hints: tuple[str, ...]

    @property
    def is_cpu(self) -> bool:
        return self.device == "cpu"


def prepare() -> Backend:
    """Look at the device, switch MLX's compilation off where it cannot work, and say what was found."""
    device, blas = device_name(), load_openblas()
    hints = []
    compiled = True
    if device == "cpu":
        if blas is None and sys.platform.startswith("linux"):
            hints.append(OPENBLAS_HINT if find_openblas() is None else TOO_LATE_HINT)
        if shutil.which("g++") is None:
            compiled = False
            mx.disable_compile()
            hints.append(COMPILER_HINT)
    return Backend(device, blas, compiled, tuple(hints))


def device_name() -> str:
    """ "metal", "cuda" or "cpu": where MLX evaluates by default."""
    if mx.default_device() == mx.Device(mx.cpu):
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def memory_limit(device: str) -> int:
    """Bytes that training can use: what Metal recommends at most, elsewhere the machine's memory."""
    if device == "metal":
        return int(mx.device_info()["max_recommended_working_set_size"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
