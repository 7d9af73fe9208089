"""Ports for servers that cannot be told to choose one."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Ports of 127.0.0.1 that nobody is given meanwhile; each refuses until a server takes it by its number.

    A socket holds each. On Linux it gives way to a server with SO_REUSEADDR, as they all have it; on macOS it
    would not, so there the ports are only free at first.
    """
    with ExitStack() as holders:
        places = [holders.enter_context(socket.socket()) for _ in range(count)]
        for place in places:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind(("127.0.0.1", 0))
        ports = [place.getsockname()[1] for place in places]
        if sys.platform == "darwin":
            holders.close()
        yield ports
