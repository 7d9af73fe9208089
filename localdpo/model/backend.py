"""Which device MLX runs on, and what a person should know about it."""

from __future__ import annotations

import gc
import math
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from localdpo.core.errors import UserError
from localdpo.core.process import c_function, find_openblas, give_back_freed, keep_awake, load_openblas

OPENBLAS_HINT = (
    "OpenBLAS not found: training on this CPU is much slower without it "
    "(Debian: apt-get install libopenblas0-pthread)"
)
TOO_LATE_HINT = (
    "MLX was imported before localdpo, so OpenBLAS could not be put in front of it: import localdpo first"
)
# The environment variable that says how many GB training may use.
MEMORY_SWITCH = "LOCALDPO_MEMORY_GB"
# The environment variable that, set to off, lets macOS page the GPU's memory out.
WIRED_SWITCH = "LOCALDPO_WIRED"
# The environment variable that says where MLX computes, and what it may say. Child processes inherit it.
DEVICE_SWITCH = "LOCALDPO_DEVICE"
DEVICES = ("auto", "cpu", "gpu")
# Whether GPUs may take float32 products with 10-bit mantissas (TF32): MLX's default where the chip can.
TF32_SWITCH = "MLX_ENABLE_TF32"
# The width up to which MLX evaluates a graph breadth first; read at its first evaluation.
BREADTH_SWITCH = "MLX_BFS_MAX_WIDTH"
# Options of glibc's mallopt: bytes of its heap's free end that it keeps, and of an array that is mapped by
# itself; and the most that it takes for the second.
TRIM_THRESHOLD, MMAP_THRESHOLD, MOST_UNMAPPED = -1, -3, 32 * 2**20
COMPILER_HINT = "no C++ compiler (g++) found: MLX cannot compile its CPU kernels, so steps run uncompiled"


@dataclass(frozen=True)
class Backend:
    """What the process runs on.

    Attributes:
        device: "metal", "cuda" or "cpu".
        blas: file name of the OpenBLAS that was loaded ahead of MLX, None elsewhere.
        compiled: whether `mx.compile` can be used.
        hints: lines that a person should see once.
        awake: what keeps the machine from falling asleep, or why nothing does; empty where it is no Mac.
    """

    device: str
    blas: str | None
    compiled: bool
    hints: tuple[str, ...]
    awake: str = ""

    @property
    def is_cpu(self) -> bool:
        return self.device == "cpu"


def prepare(note: Callable[[str], None] | None = None) -> Backend:
    """Choose the device, switch MLX's compilation off where it cannot work, and say what was found.

    Whatever computes with MLX calls this first. `note` gets each of the hints.

    MLX's cache of freed buffers gets a limit (see `cache_limit`): its own is nearly all memory, and batches
    of many lengths fill it, since a buffer is only used again for an array of about its size. On Linux
    without a GPU it keeps none: the C library does, for arrays of any size (see `keep_freed`). MLX's limit on
    memory in use, which makes it wait for work that is under way before it begins more, is what training may
    use: a GPU is sent work so far ahead that a step took five times what it needs on a large one.

    Raises:
        UserError: LOCALDPO_DEVICE or LOCALDPO_MEMORY_GB says what cannot be.
    """
    choose_device()
    device, blas = device_name(), load_openblas()
    memory = memory_limit(device)
    if device != "cpu":
        mx.set_memory_limit(memory)
    limit = cache_limit(memory)
    mx.set_cache_limit(0 if keep_freed(limit) else limit)
    wire(device)
    hints = []
    compiled = can_compile()
    if device == "cpu":
        # So many operations of a graph are looked at before MLX goes on depth first: with its own 20 it would
        # send all work of one stream before any of the next (see `lanes`).
        os.environ.setdefault(BREADTH_SWITCH, "1000")
        if blas is None and sys.platform.startswith("linux"):
            hints.append(OPENBLAS_HINT if find_openblas() is None else TOO_LATE_HINT)
        if not compiled:
            mx.disable_compile()
            hints.append(COMPILER_HINT)
    if note is not None:
        for hint in hints:
            note(hint)
    return Backend(device, blas, compiled, tuple(hints), keep_awake())


def can_compile() -> bool:
    """Whether MLX can trace: on a CPU it compiles the kernels of its traces."""
    return device_name() != "cpu" or shutil.which("g++") is not None


def choose_device() -> None:
    """Let MLX compute where the environment variable LOCALDPO_DEVICE says: cpu, gpu or auto (a GPU if any).

    Raises:
        UserError: it says something else, or gpu where MLX has none.
    """
    wanted = os.environ.get(DEVICE_SWITCH, "auto")
    if wanted not in DEVICES:
        raise UserError(f"{DEVICE_SWITCH}: expected cpu, gpu or auto, got {wanted!r}")
    if wanted == "auto":
        return
    try:
        mx.set_default_device(mx.cpu if wanted == "cpu" else mx.gpu)
    except ValueError as error:
        raise UserError(
            f"{DEVICE_SWITCH}=gpu: MLX as it is installed here has no GPU; expected cpu or auto"
        ) from error


def device_name() -> str:
    """ "metal", "cuda" or "cpu": where MLX evaluates by default."""
    if mx.default_device() == mx.Device(mx.cpu):
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def memory_limit(device: str) -> int:
    """Bytes that training can use: what Metal recommends at most; of a CUDA device what is free, and what
    this process holds; elsewhere the machine's memory.

    The environment variable LOCALDPO_MEMORY_GB overrides it.
    """
    given = os.environ.get(MEMORY_SWITCH)
    if given is not None:
        try:
            size = float(given)
        except ValueError:
            size = math.nan
        if not 0 < size < math.inf:
            raise UserError(f"{MEMORY_SWITCH}: expected a number of GB above 0, got {given!r}")
        return int(size * 1e9)
    if device == "metal":
        return int(mx.device_info()["max_recommended_working_set_size"])
    if device == "cuda":
        # Others may use the device too, so its size alone promises too much.
        info = mx.device_info()
        held = mx.get_active_memory() + mx.get_cache_memory()
        return min(int(info["total_memory"]), int(info["free_memory"]) + held)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cache_limit(memory: int) -> int:
    """Bytes of freed buffers that MLX may keep: a sixteenth of the memory, 1 GB at least and 2 GB at most."""
    return min(2 * 10**9, max(10**9, memory // 16))


def keep_freed(limit: int) -> bool:
    """Have the C library keep up to `limit` bytes of what MLX frees; False where MLX asks another for memory.

    glibc gives the end of its heap back to the system once 64 MB of it are free, and gets it back zeroed page
    by page: 100 MB of a training step of 350 MB.
    """
    mallopt = c_function("mallopt")
    if mallopt is None or mx.cuda.is_available():
        return False
    return all([mallopt(TRIM_THRESHOLD, limit), mallopt(MMAP_THRESHOLD, MOST_UNMAPPED)])


def give_back_memory() -> None:
    """Give back to the system what models took that nothing refers to any more.

    Models are in cycles, and what the C library was told to keep (`keep_freed`) it gives back when asked.
    """
    gc.collect()
    mx.clear_cache()
    give_back_freed()


def wire(device: str) -> None:
    """Keep the GPU's arrays in memory, as far as Metal recommends and training may use (macOS 15 or newer).

    Without it macOS pages out weights that a step has not touched for a moment. More than is recommended has
    been reported to bring the kernel down. mlx-lm's generator sets the recommended limit while it lives, so
    this is called again once it has been made. The environment variable LOCALDPO_WIRED=off switches it off.
    """
    if device != "metal" or int(platform.mac_ver()[0].partition(".")[0] or 0) < 15:
        return
    if os.environ.get(WIRED_SWITCH, "").lower() in {"0", "off"}:
        mx.set_wired_limit(0)
        return
    recommended = int(mx.device_info()["max_recommended_working_set_size"])
    mx.set_wired_limit(min(recommended, memory_limit(device)))


def keep_float32_exact() -> None:
    """Switch TF32 off for this process, unless the environment says otherwise.

    MLX reads the switch at its first product, so this comes before any.
    """
    os.environ.setdefault(TF32_SWITCH, "0")


def may_use_tf32() -> bool:
    """Whether float32 products may be taken with TF32: on a GPU, unless it is switched off."""
    return device_name() != "cpu" and os.environ.get(TF32_SWITCH, "1") != "0"
