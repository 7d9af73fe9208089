"""What must be in place before MLX and transformers are imported. Standard library only.

The Linux CPU wheel of MLX links a reference BLAS. When OpenBLAS is in the process before MLX is
imported, its routines are found first, and float32 matrix products run about twenty times faster.
Every room that imports MLX calls `preload()` in its `__init__`, ahead of that import.

macOS ends a GPU command that holds up the display; its driver reads a switch that makes it patient when the
first command is sent.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from functools import lru_cache
from typing import Final

SWITCH: Final = "LOCALDPO_OPENBLAS"
PATIENCE: Final = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"


def find_openblas() -> str | None:
    """File name of the system's OpenBLAS, or None (always None off Linux, or when switched off).

    The environment variable LOCALDPO_OPENBLAS=off leaves it alone.
    """
    if not sys.platform.startswith("linux") or os.environ.get(SWITCH, "").lower() in {"0", "off"}:
        return None
    return ctypes.util.find_library("openblas")


def preload() -> None:
    """Load OpenBLAS if there is one, ask macOS for patience with the GPU, keep transformers from advising to
    install PyTorch. What the environment says already stays.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if sys.platform == "darwin":
        os.environ.setdefault(PATIENCE, "1")
    load_openblas()


@lru_cache(maxsize=1)
def load_openblas() -> str | None:
    """Load OpenBLAS ahead of MLX, once; its file name, or None when there is none or MLX came first."""
    name = find_openblas()
    if name is None or "mlx.core" in sys.modules:
        return None
    ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    return name
