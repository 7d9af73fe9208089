"""Keeps a Mac awake while a process works. Its display may sleep, and had better (see `deaths`)."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from functools import lru_cache
from typing import Final

SWITCH: Final = "LOCALDPO_CAFFEINATE"
HELD: Final = "caffeinate"


@lru_cache(maxsize=1)
def keep_awake() -> str:
    """Hold off sleep for the life of this process; what to say of it, empty where it is no Mac.

    macOS' own `caffeinate` does it: -i against idle sleep, -s against every sleep on mains. With -w it ends
    when this process does, however that happens. It gets none of its descriptors, so it holds neither a run's
    lock nor a pipe. The environment variable LOCALDPO_CAFFEINATE=off lets the Mac sleep.
    """
    return _caffeinate() if sys.platform == "darwin" else ""


def _caffeinate() -> str:
    if os.environ.get(SWITCH, "").lower() in {"0", "off"}:
        return f"off ({SWITCH})"
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
