"""Who of the ranks is still there: a TCP connection from every rank to rank 0, on which nothing is sent.

A process that ends closes it, whatever ended it; a machine that is gone stops acknowledging, which the kernel
notices in some seconds. So a rank that was stopped or computes for long is not taken for lost. Two messages
exist, a line of JSON each, sent by who ends on purpose: {"error": [lines]} and {"end": true}.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from localdpo.core.errors import DEVICE_EXIT, LocalDPOError, UserError, UserErrors
from localdpo.out import flush, say, say_errors

# From a rank's end to that of this process: 10 s at most, of which the kernel may take the first 6.
_IDLE, _INTERVAL, _PROBES = 3, 1, 3
_GRACE_SECONDS: Final = 8.0
_GRACE_AFTER_SILENCE: Final = 2.0
_MEETING_SECONDS: Final = 15.0
# The pulse says who is lost within moments of MLX's own error.
_BLAME_SECONDS: Final = 5.0


class RankLost(RuntimeError):
    """A rank no longer answers: its process was killed or crashed, or its machine is gone."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} was lost")


def open_door() -> tuple[socket.socket, dict[str, Any]]:
    """Where rank 0 waits for the others, and what they need beside its address: the port, and a word by which
    they are known."""
    server = socket.create_server(("", 0))
    server.settimeout(_MEETING_SECONDS)
    return server, {"port": server.getsockname()[1], "token": secrets.token_hex(16)}


class Pulse:
    """One side of the connections."""

    def __init__(self, connections: dict[int, socket.socket], names: Sequence[str]) -> None:
        self._connections, self._names = connections, names
        self._over = False
        for connection in connections.values():
            _notice_silence(connection)
        self._thread = threading.Thread(target=self._watch, name="pulse", daemon=True)
        self._thread.start()

    def expect_end(self) -> None:
        """From now on ranks may end."""
        self._over = True

    def leave(self) -> None:
        """Say that the run ends here."""
        self.expect_end()
        self._send({"end": True})

    def fail(self, lines: Sequence[str]) -> None:
        """Say why this rank ends."""
        self._send({"error": list(lines)})

    def why_broken(self) -> Exception:
        """What to raise where MLX says that a connection broke."""
        raise NotImplementedError

    def await_end(self) -> None:
        """Return when the other side has gone, or after some seconds."""
        self._thread.join(_BLAME_SECONDS)

    def _send(self, message: dict[str, Any]) -> None:
        for connection in self._connections.values():
            try:
                connection.sendall(json.dumps(message).encode() + b"\n")
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                continue  # gone already

    def _watch(self) -> None:
        said = {rank: b"" for rank in self._connections}
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    rank, silent = key.data, False
                    try:
                        content = self._connections[rank].recv(65536)
                    except ConnectionResetError:
                        content = b""
                    except OSError:
                        content, silent = b"", True
                    said[rank] += content
                    if not content:
                        selector.unregister(key.fileobj)
                        self._gone(rank, json.loads(said[rank] or b"{}"), silent)

    def _gone(self, rank: int, message: dict[str, Any], silent: bool) -> None:
        """A connection was closed after `message`; `silent`: the machine does not answer."""
        raise NotImplementedError


class Followers(Pulse):
    """Rank 0's side: the first other rank that ends before the run does ends the run.

    The main thread has some seconds to notice, to save and to say so; after them this thread ends the
    process.
    """

    def __init__(self, server: socket.socket, token: str, names: Sequence[str]) -> None:
        self._error: Exception | None = None
        self._known, self._taken = threading.Event(), threading.Event()
        connections: dict[int, socket.socket] = {}
        with server:
            deadline = time.monotonic() + _MEETING_SECONDS
            while len(connections) < len(names) - 1:
                if time.monotonic() > deadline:
                    missing = [name for rank, name in enumerate(names) if rank and rank not in connections]
                    raise UserError(f"{missing[0]} cannot reach rank 0: is a firewall in the way?")
                try:
                    connection, _ = server.accept()
                    connection.settimeout(_MEETING_SECONDS)
                    word, _, rank = connection.makefile("rb").readline(128).strip().partition(b" ")
                except OSError:
                    continue
                if secrets.compare_digest(word, token.encode()):
                    connection.settimeout(None)
                    connections[int(rank)] = connection
        super().__init__(connections, names)

    def why_broken(self) -> Exception:
        self._known.wait(_BLAME_SECONDS)
        self._taken.set()
        return self._error or RankLost("a rank")

    def _gone(self, rank: int, message: dict[str, Any], silent: bool) -> None:
        if self._over or self._known.is_set():
            return
        name = self._names[rank]
        errors = [UserError(f"{name}: {line}") for line in message.get("error", ())]
        self._error = UserErrors(errors) if errors else RankLost(name)
        self._known.set()
        if self._taken.wait(_GRACE_AFTER_SILENCE if silent else _GRACE_SECONDS) or self._over:
            return
        if isinstance(self._error, LocalDPOError):
            say_errors(self._error)
        else:
            say(f"error: {self._error}", error=True)
        _exit(DEVICE_EXIT)


class Leader(Pulse):
    """Another rank's side: when rank 0 has gone there is nothing left to do, and nothing to save."""

    def __init__(self, offer: dict[str, Any], rank: int, names: Sequence[str]) -> None:
        places = [(address, offer["port"]) for address in offer["addresses"]]
        connection = None
        for place in places:
            with suppress(OSError):
                connection = socket.create_connection(place, timeout=_MEETING_SECONDS / 3)
                break
        if connection is None:
            tried = ", ".join(f"{address}:{port}" for address, port in places)
            raise UserError(f"{names[0]} cannot be reached (tried {tried}): is a firewall in the way?")
        connection.settimeout(None)
        connection.sendall(f"{offer['token']} {rank}\n".encode())
        super().__init__({0: connection}, names)

    def why_broken(self) -> Exception:
        # Rank 0 ends, since it sees what broke; this process then ends in `_gone`.
        self._thread.join(2 * _BLAME_SECONDS)
        return RankLost("a rank")

    def _gone(self, rank: int, message: dict[str, Any], silent: bool) -> None:
        if self._over:
            return
        if message.get("end"):
            _exit(0)
        say(f"error: {RankLost(self._names[0])}", error=True)
        _exit(DEVICE_EXIT)


def _notice_silence(connection: socket.socket) -> None:
    """Let the kernel ask after `_IDLE` seconds without a sign of the other machine, and give up soon."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS has another name for it.
    idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE")  # noqa: B009
    options = ((idle, _IDLE), (socket.TCP_KEEPINTVL, _INTERVAL), (socket.TCP_KEEPCNT, _PROBES))
    for option, value in options:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _exit(code: int) -> None:
    """End the process from this thread: the main one may be inside MLX, waiting without end."""
    flush()
    os._exit(code)
