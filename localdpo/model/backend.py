"""Which device MLX runs on, and what the CPU backend needs.

The Linux CPU wheel of MLX links a reference BLAS. When OpenBLAS is loaded into the process
before MLX, its faster routines are found first and float32 matrix products run about twenty
times faster. Call `prepare()` before anything imports `mlx.core`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import sys
from dataclasses import dataclass

OPENBLAS_HINT = "OpenBLAS not found: training on this CPU is much slower without it (Debian: apt-get install libopenblas0-pthread)"
COMPILER_HINT = "no C++ compiler (g++) found: MLX cannot compile its CPU kernels, so steps run uncompiled"
OPENBLAS_SWITCH = "LOCALDPO_OPENBLAS"


@dataclass(frozen=True)
class Backend:
    """What the process runs on.

    Attributes:
        device: "metal", "cuda" or "cpu".
        blas: file name of the OpenBLAS that was loaded, None elsewhere.
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


def find_openblas() -> str | None:
    """File name of the system's OpenBLAS, or None (always None off Linux, or when switched off).

    The environment variable LOCALDPO_OPENBLAS=off leaves it alone.
    """
    if not sys.platform.startswith("linux") or os.environ.get(OPENBLAS_SWITCH, "").lower() in {"0", "off"}:
        return None
    return ctypes.util.find_library("openblas")


def prepare() -> Backend:
    """Load OpenBLAS if there is one, then MLX; say what was found. Safe to call twice."""
    blas = find_openblas()
    if blas is not None and "mlx.core" not in sys.modules:
        ctypes.CDLL(blas, mode=ctypes.RTLD_GLOBAL)
    import mlx.core as mx

    device = device_name()
    hints = []
    compiled = True
    if device == "cpu":
        if blas is None and sys.platform.startswith("linux"):
            hints.append(OPENBLAS_HINT)
        if shutil.which("g++") is None:
            compiled = False
            mx.disable_compile()
            hints.append(COMPILER_HINT)
    return Backend(device, blas, compiled, tuple(hints))


def device_name() -> str:
    """ "metal", "cuda" or "cpu": where MLX evaluates by default."""
    import mlx.core as mx

    if mx.default_device() == mx.Device(mx.cpu):
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"
