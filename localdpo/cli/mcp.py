"""`localdpo mcp`: runs as tools of a program that speaks the Model Context Protocol."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from localdpo.cli.options import RunsDirOption
from localdpo.core.errors import UserError
from localdpo.out import raw_stdout

_PATIENCE_SECONDS: Final = 2.0


def mcp(runs_dir: RunsDirOption = Path("runs")) -> None:
    """Serve the runs to a program that speaks MCP.

    It reads, starts, steers, compares and evaluates them over stdin and stdout.
    """
    if find_spec("mcp") is None:
        raise UserError("mcp needs the package mcp: pip install 'localdpo[mcp]'")
    from localdpo.api.tools import make_server

    when_closed(os.dup(0), _end)
    with raw_stdout():
        make_server(runs_dir).run()


def when_closed(fd: int, act: Callable[[], None]) -> None:
    """Call `act`, in a thread, when the writing end of the pipe `fd` is closed; nothing is read here."""
    poll = select.poll()
    poll.register(fd, 0)  # poll always reports that the other end closed

    def wait() -> None:
        poll.poll()
        act()

    threading.Thread(target=wait, daemon=True).start()


def _end() -> None:
    """End this process although a tool may still work: its answer has no reader, and all that it wrote can be
    resumed. Runs train on.
    """
    time.sleep(_PATIENCE_SECONDS)  # mostly the server has ended by then
    os._exit(0)
