"""Keys: read from the environment, sent to the one server they are for, shown nowhere.

A server can send a key back (in an error, a header, a reply), and then it would stand in the journal, on the
screen or in a log. So every text from a server goes through `Secret.redact`, and log records of the HTTP
packages do as well (ANTHROPIC_LOG=debug prints the headers of each reply).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import Any, Final

from localdpo.core.text import printable
from localdpo.judging.base import JudgeStopped

HIDDEN: Final = "[key]"
_LOGGERS: Final = ("anthropic", "httpx2", "httpcore2", "httpx", "httpcore", "urllib3")
_SHORTEST: Final = 8  # characters; replacing something shorter would garble ordinary text

_lock = threading.Lock()
_known: set[str] = set()


class Secret:
    """A key. Its text is only in `reveal()`, not in its repr, so no traceback shows it."""

    def __init__(self, value: str) -> None:
        self._value = value
        guard_logs(value)

    def reveal(self) -> str:
        """The key itself, for the header of a request."""
        return self._value

    def redact(self, text: str) -> str:
        """`text` without the key."""
        return text.replace(self._value, HIDDEN) if len(self._value) >= _SHORTEST else text

    def __repr__(self) -> str:
        return "Secret()"


def key_from(
    names: tuple[str, ...], environment: Mapping[str, str] = os.environ
) -> tuple[str, Secret] | None:
    """The first of the environment variables `names` that is set, and its key; None without any.

    Raises JudgeStopped when it holds what no header may hold; an HTTP package would quote it in its error.
    """
    for name in names:
        value = environment.get(name, "").strip()
        if value:
            if not value.isascii() or not value.isprintable() or " " in value:
                raise JudgeStopped(
                    f"{name}: the key holds a space or a character that no key has; set it again"
                )
            return name, Secret(value)
    return None


def guard_logs(value: str) -> None:
    """From now on no log record of an HTTP package shows `value`."""
    if len(value) < _SHORTEST:
        return
    with _lock:
        if not _known:
            logging.setLogRecordFactory(_Redacting(logging.getLogRecordFactory()))
        _known.add(value)


def server_text(text: str, secret: Secret | None, longest: int = 200) -> str:
    """Words of a server for one line of an error: no key, no control characters, not too long."""
    line = " ".join(printable(secret.redact(text) if secret else text).split())
    return line if len(line) <= longest else f"{line[:longest]}..."


class _Redacting:
    """Makes log records; those of the HTTP packages are put into words at once, without any key."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self.inner(*args, **kwargs)
        if record.name.split(".")[0] in _LOGGERS:
            if record.exc_info:
                record.exc_text = _hide(logging.Formatter().formatException(record.exc_info))
                record.exc_info = None
            record.msg, record.args = _hide(record.getMessage()), ()
        return record


def _hide(text: str) -> str:
    for value in tuple(_known):
        text = text.replace(value, HIDDEN)
    return text
