"""What a process needs of its system: signals that are never lost, no sleep, and a fast BLAS.

Every room that imports MLX calls `preload` in its `__init__`, ahead of that import. The Linux CPU wheel of
MLX links a reference BLAS. When OpenBLAS is in the process before MLX is imported, its routines are found
first, and float32 matrix products run about twenty times faster. macOS ends a GPU command that holds up the
display; its driver reads a switch that makes it patient when the first command is sent.
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, Final

OPENBLAS_SWITCH: Final = "LOCALDPO_OPENBLAS"
PATIENCE: Final = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"
CAFFEINATE_SWITCH: Final = "LOCALDPO_CAFFEINATE"
HELD: Final = "caffeinate"
# A system that shuts down signals worker and supervisor alike, and the supervisor passes its own on.
_ECHO_SECONDS: Final = 1.0
_RESETHAND: Final = 0x4 if sys.platform == "darwin" else 0x80000000


class StopRequests:
    """Counts the requests behind SIGINT and SIGTERM: the first asks to save and stop, the second to stop now.

    SIGTERM and SIGINT within a second are one request. Two of the same kind are two, however close: a person
    who presses Ctrl-C twice means it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first: tuple[int, float] | None = None

    def take(self, number: int, now: float) -> bool:
        """Whether the signal `number`, which came at the monotonic time `now`, is a new request."""
        if self._first is None:
            self._first = (number, now)
        else:
            kind, when = self._first
            if number != kind and now - when < _ECHO_SECONDS:
                return False
        self.count += 1
        return True


class SignalPipe:
    """The signals that come to this process, one by one and in order, read where it suits.

    Python runs a handler once for several signals of a kind that come within one call into C, and only after
    that call; the pipe has each of them at once. `handler` is what Python runs then, without arguments.
    One a process, from its main thread.
    """

    def __init__(self, numbers: Iterable[int], handler: Callable[[], None] = lambda: None) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)

        def handle(number: int, frame: FrameType | None) -> None:
            handler()

        self._before: dict[int, Any] = {number: signal.signal(number, handle) for number in numbers}

    def wait(self, timeout: float) -> None:
        """Return when there is a signal to read, or after `timeout` seconds."""
        select.select([self._reading], [], [], timeout)

    def read(self, timeout: float | None = 0.0) -> list[int]:
        """The signals since the last call; waits `timeout` seconds for the first, without end if None."""
        if not select.select([self._reading], [], [], timeout)[0]:
            return []
        return [number for number in os.read(self._reading, 4096) if number in self._before]

    def close(self) -> None:
        """Give the signals back to whom they belonged before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._reading)
        os.close(self._writing)


class _Action(ctypes.Structure):
    """`struct sigaction` of Linux (glibc and musl, 64 bits) and of macOS."""

    _fields_ = (
        [("handler", ctypes.c_void_p), ("mask", ctypes.c_uint32), ("flags", ctypes.c_uint32)]
        if sys.platform == "darwin"
        else [
            ("handler", ctypes.c_void_p),
            ("mask", ctypes.c_uint64 * 16),
            ("flags", ctypes.c_uint32),
            ("restorer", ctypes.c_void_p),
        ]
    )


def handle_once(number: int, handler: Callable[[int, FrameType | None], None]) -> None:
    """Handle the first signal `number`; the second ends the process, as if there were no handler.

    The kernel does that (SA_RESETHAND), so it works even in a call into C that never returns and holds the
    interpreter's lock. `signal.signal` has no such option.
    """
    signal.signal(number, handler)
    libc, action = ctypes.CDLL(None, use_errno=True), _Action()
    if libc.sigaction(number, None, ctypes.byref(action)) == 0:
        action.flags |= _RESETHAND
        if libc.sigaction(number, ctypes.byref(action), None) == 0:
            return
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# What `mlx.launch` and mpirun call a process's rank in its environment, the number of ranks, and the files
# that list them, which are empty for one.
_RANK_VARIABLES: Final = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_SIZE_VARIABLES: Final = ("MLX_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_FILE_VARIABLES: Final = ("MLX_HOSTFILE", "MLX_IBV_DEVICES")


def launched_rank() -> int | None:
    """The rank that `mlx.launch` or mpirun started this process as; None where it was started alone, or as
    the only one."""
    rank = next(filter(str.isdigit, _given(_RANK_VARIABLES)), None)
    several = any(size.isdigit() and int(size) > 1 for size in _given(_SIZE_VARIABLES))
    if rank is None or (
        rank == "0" and not several and not any(map(_says_something, _given(_FILE_VARIABLES)))
    ):
        return None
    return int(rank)


def _given(variables: Iterable[str]) -> list[str]:
    return [os.environ[name] for name in variables if name in os.environ]


def _says_something(file: str) -> bool:
    try:
        return bool(Path(file).read_text().strip())
    except OSError:
        # MLX says what is wrong with it.
        return True


def find_openblas() -> str | None:
    """File name of the system's OpenBLAS, or None (always None off Linux, or when switched off).

    The environment variable LOCALDPO_OPENBLAS=off leaves it alone.
    """
    if not sys.platform.startswith("linux") or os.environ.get(OPENBLAS_SWITCH, "").lower() in {"0", "off"}:
        return None
    return ctypes.util.find_library("openblas")


def preload() -> None:
    """Load OpenBLAS if there is one, ask macOS for patience with the GPU, keep transformers from advising to
    install PyTorch, and mlx_lm from loading trackers. What the environment says already stays.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if sys.platform == "darwin":
        os.environ.setdefault(PATIENCE, "1")
    if not any(isinstance(finder, _WithoutTrackers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WithoutTrackers())
    load_openblas()


class _WithoutTrackers:
    """Tells `mlx_lm.tuner.callbacks`, which everything in mlx_lm.tuner loads, that no tracker is installed.

    It would load wandb and swanlab where they are, for seconds; and one that is broken would end training.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        loading = sys.modules.get("mlx_lm.tuner.callbacks")
        if name in ("wandb", "swanlab") and loading is not None and not hasattr(loading, "TrainingCallback"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@lru_cache(maxsize=1)
def load_openblas() -> str | None:
    """Load OpenBLAS ahead of MLX, once; its file name, or None when there is none or MLX came first."""
    name = find_openblas()
    if name is None or "mlx.core" in sys.modules:
        return None
    ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    return name


def c_function(name: str) -> Callable[..., int] | None:
    """A function of Linux's C library; None where it has none of this name, as musl of glibc's."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def give_back_freed() -> None:
    """Have the C library give back to the system what was freed within its heap."""
    if (trim := c_function("malloc_trim")) is not None:
        trim(0)


@lru_cache(maxsize=1)
def keep_awake() -> str:
    """Hold off sleep for the life of this process; what to say of it, empty where it is no Mac.

    macOS' own `caffeinate` does it: -i against idle sleep, -s against every sleep on mains. With -w it ends
    when this process does, however that happens. It gets none of its descriptors, so it holds neither a run's
    lock nor a pipe. The environment variable LOCALDPO_CAFFEINATE=off lets the Mac sleep.
    """
    return _caffeinate() if sys.platform == "darwin" else ""


def _caffeinate() -> str:
    if os.environ.get(CAFFEINATE_SWITCH, "").lower() in {"0", "off"}:
        return f"off ({CAFFEINATE_SWITCH})"
    command = [HELD, "-i", "-s", "-w", str(os.getpid())]
    try:
        helper = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=True,
            start_new_session=True,
        )
    except OSError as error:
        return f"off ({HELD}: {error.strerror})"
    atexit.register(_end, helper)
    return HELD


def _end(helper: subprocess.Popen[bytes]) -> None:
    helper.kill()
    helper.wait()
