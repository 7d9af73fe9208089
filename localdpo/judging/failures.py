"""What an HTTP answer that is no verdict means: stop, wait, or leave this question out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from localdpo.judging.base import JudgeBusy, JudgeStopped, Verdict
from localdpo.judging.retry import retry_after
from localdpo.judging.secrets import Secret, server_text

# The same for every question: asking on would only fail again.
_STOP: Final = (401, 402, 403, 404, 405, 407, 501)
# The server may have worked on it (and charge for it) although the reply did not come through.
_MAYBE_BILLED: Final = (408, 502, 504)
_BUSY: Final = (408, 409, 425, 429)


def from_status(
    name: str,
    status: int,
    headers: Mapping[str, str],
    body: str,
    hints: Mapping[int, str],
    secret: Secret | None,
) -> Verdict:
    """The verdict "unanswered" for an error that lies in the question (400, 413, 422, ...).

    Raises JudgeStopped for one that every question would meet, with the hint for its status, and JudgeBusy
    for one that passes (429 and 5xx, 529 "overloaded" included).
    """
    words = server_text(message_of(body), secret)
    said = f"{name}: HTTP {status}" + (f" ({words})" if words else "")
    if status in _STOP:
        raise JudgeStopped(f"{said}; {hints.get(status, 'look at the address of the server')}")
    if 300 <= status < 400:
        raise JudgeStopped(f"{said}: the server sends elsewhere, where no key is sent; set its real address")
    if status in _BUSY or status >= 500:
        raise JudgeBusy(said, retry_after(headers), billed=status in _MAYBE_BILLED)
    return Verdict("unanswered", reason=said)


def message_of(body: str) -> str:
    """The error's words in a JSON body (`error.message`, `error` or `message`), else the body itself."""
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        return body
    error = record.get("error", record) if isinstance(record, dict) else None
    words = error.get("message") if isinstance(error, dict) else error
    return words if isinstance(words, str) else body
