"""A judge's server: the key for it, one request, and what its reply means.

Keys are read from the environment, sent to the one server they are for, and shown nowhere. A server can send
a key back (in an error, a header, a reply), and then it would be in the journal, on the screen or in a log.
So every text from a server goes through `redact`, and log records of the HTTP packages do as well
(ANTHROPIC_LOG=debug prints the headers of each reply).
"""

from __future__ import annotations

import email.utils
import json
import logging
import math
import os
import queue
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from datetime import UTC
from typing import Any, ClassVar, Final, NamedTuple, TypeVar, cast
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from localdpo.core.text import json_or_none, printable
from localdpo.judging import prompts
from localdpo.judging.base import Judge, JudgeBusy, JudgeStopped, Question
from localdpo.judging.cost import Price, PriceTable, TokenCounts
from localdpo.judging.rubric import Rubric
from localdpo.records.verdicts import Verdict

T = TypeVar("T")
HIDDEN: Final = "[key]"
_LOGGERS: Final = ("anthropic", "httpx2", "httpcore2", "httpx", "httpcore", "urllib3")
_SHORTEST: Final = 8  # characters; replacing something shorter would garble ordinary text
# Tokens that a server adds to ours (the schema, its own framing), rounded up generously.
_OVERHEAD: Final = 2000
# The same for every question: asking again would only fail again.
_STOP: Final = (401, 402, 403, 404, 405, 407, 501)
# The server may have worked on it (and charge for it) although the reply did not come through.
_MAYBE_BILLED: Final = (408, 502, 504)
_BUSY: Final = (408, 409, 425, 429)
# Errors of httpx after which the server cannot have seen the request.
_NEVER_SENT: Final = {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "ProxyError"}

_lock = threading.Lock()
_keys: set[str] = set()


class Reply(NamedTuple):
    """A reply of any status. `headers` has lower-case names; the key is taken out of `body`."""

    status: int
    headers: Mapping[str, str]
    body: str


class RemoteJudge(Judge):
    """What judges behind a server share: one model under one rubric, its price, and one request.

    Attributes:
        max_tokens: most tokens of a reply, thoughts included.
        timeout: seconds that a request may take in all.
        price: of the model; None where it is not known.
        batch: whether verdicts are billed at the price of a batch.
        hints: what to do about an HTTP status, for people.
        address: of the server, for people.
    """

    kind: ClassVar[str]
    hints: ClassVar[Mapping[int, str]]
    batch: ClassVar[bool] = False
    # The defaults of a kind, with `concurrency`.
    max_tokens: int
    timeout: float

    def __init__(
        self,
        rubric: Rubric,
        prices: PriceTable,
        model: str,
        *,
        max_tokens: int | None = None,
        concurrency: int | None = None,
        timeout: float | None = None,
        server: Mapping[str, str] | None = None,
        price: Price | None = None,
    ) -> None:
        self.rubric = rubric
        self.model = model
        self.name = f"{self.kind} {model}"
        self.concurrency = concurrency or self.concurrency
        self.max_tokens = max_tokens or self.max_tokens
        self.timeout = timeout or self.timeout
        self.price = price or prices.of(model)
        self.identity: Mapping[str, str] = {
            "judge": self.kind,
            **(server or {}),
            "model": model,
            "max_tokens": str(self.max_tokens),
            **prompts.prompt_identity(rubric),
        }
        self.address = ""

    @abstractmethod
    def payload(self, question: Question) -> dict[str, Any]:
        """The body of the request that asks `question`. Raises ValueError for one of another mode."""

    def worst_case_usd(self, question: Question) -> float:
        """Every byte of the request a token, all of them the dearest kind, and the longest reply."""
        if self.price is None:
            return math.inf
        sent = json.dumps(self.payload(question), ensure_ascii=False).encode("utf-8", errors="replace")
        return self.price.worst(len(sent) + _OVERHEAD, self.max_tokens, self.batch)

    def usd(self, tokens: TokenCounts) -> float:
        """What a reply cost; 0 where the price is not known."""
        return 0.0 if self.price is None else self.price.usd(tokens, self.batch)

    def exchange(self, send: Callable[[], tuple[int, Mapping[str, str], str]]) -> Reply:
        """The reply to one request; `send` returns its status, headers and body.

        Raises JudgeBusy without a complete reply in time. No error of the HTTP package gets out, since it
        holds the request and with it the key.
        """
        import httpx2

        try:
            status, headers, body = within(self.timeout, send)
            lower = {name.lower(): value for name, value in headers.items()}
            return Reply(status, lower, redact(body))
        except (TimeoutError, httpx2.RequestError) as error:
            kind = type(error).__name__
            slow = isinstance(error, TimeoutError | httpx2.TimeoutException)
        # Outside of the handler, so that what is raised does not remember the package's error.
        billed = kind not in _NEVER_SENT
        if slow:
            raise JudgeBusy(f"{self.name}: no reply in {self.timeout:g} s", billed=billed)
        if billed:
            raise JudgeBusy(f"{self.name}: the connection broke ({kind})", billed=True)
        raise JudgeBusy(f"{self.name}: {self.address} cannot be reached ({kind})")

    def unanswered(self, reply: Reply, hints: Mapping[int, str] | None = None) -> Verdict:
        """The verdict "unanswered" for an error that lies in the question (400, 413, 422, ...).

        Raises JudgeStopped for one that every question would meet, with the hint for its status, and
        JudgeBusy for one that passes (429 and 5xx, 529 "overloaded" included).
        """
        status = reply.status
        words = server_text(message_of(reply.body))
        said = f"{self.name}: HTTP {status}" + (f" ({words})" if words else "")
        if status in _STOP:
            hint = {**self.hints, **(hints or {})}.get(status, "look at the address of the server")
            raise JudgeStopped(f"{said}; {hint}")
        if 300 <= status < 400:
            raise JudgeStopped(
                f"{said}: the server sends elsewhere, where no key is sent; set its real address"
            )
        if status in _BUSY or status >= 500:
            raise JudgeBusy(said, retry_after(reply.headers), billed=status in _MAYBE_BILLED)
        return Verdict("unanswered", reason=said)

    def unreadable(self, body: str, expected: str) -> JudgeBusy:
        """The error for a reply of status 200 that is not what was `expected`, such as HTML of a proxy."""
        words = server_text(body, 80)
        return JudgeBusy(f"{self.name}: a reply that is no {expected} ({words})", billed=True)


def server_address(url: str) -> SplitResult | None:
    """The parts of a server's address (http or https, a host, perhaps a port); None for anything else."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    # Labels of a host have 63 bytes at most; a longer one is an error deep in the connection.
    long = max(map(len, (parts.hostname or "").split("."))) > 63
    plain = url.isascii() and url.isprintable() and " " not in url
    return parts if right and plain and not long else None


def message_of(body: str) -> str:
    """The error's words in a JSON body (`error.message`, `error` or `message`), else the body itself."""
    record = json_or_none(body)
    error = record.get("error", record) if isinstance(record, dict) else None
    words = error.get("message") if isinstance(error, dict) else error
    return words if isinstance(words, str) else body


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises, or TimeoutError after `seconds` in all.

    A socket's own timeout begins anew with every byte, and a server that sends one now and then would hold
    us forever. So the call runs in a thread of its own, a daemon that is left behind when time is up or
    Ctrl-C comes; what it still brings is dropped.
    """
    arrived: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            arrived.put((call(), None))
        except BaseException as error:
            # Whatever it is, it is raised again in the thread that waits.
            arrived.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = arrived.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return cast("T", value)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """The seconds that a reply asks to wait, or None; never below 0.

    Reads `retry-after-ms` (milliseconds), then `retry-after`: seconds, or the date of RFC 9110, 10.2.3.
    `headers` has lower-case names or ignores case; `now` is the Unix time that a date is measured from.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000.0
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, when.timestamp() - (time.time() if now is None else now))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None


def key_from(
    names: tuple[str, ...], environment: Mapping[str, str] = os.environ
) -> tuple[str, SecretStr] | None:
    """The first of the environment variables `names` that is set, and its key; None without any.

    From then on `redact` hides the key, and no log record of an HTTP package shows it. Raises JudgeStopped
    when it holds what no header may hold; an HTTP package would quote it in its error.
    """
    for name in names:
        value = environment.get(name, "").strip()
        if value:
            if not value.isascii() or not value.isprintable() or " " in value:
                raise JudgeStopped(
                    f"{name}: the key holds a space or a character that no key has; set it again"
                )
            if len(value) >= _SHORTEST:
                with _lock:
                    if not _keys:
                        logging.setLogRecordFactory(_Redacting(logging.getLogRecordFactory()))
                    _keys.add(value)
            return name, SecretStr(value)
    return None


def redact(text: str) -> str:
    """`text` without the keys that were read."""
    for value in tuple(_keys):
        text = text.replace(value, HIDDEN)
    return text


def server_text(text: str, longest: int = 200) -> str:
    """Words of a server for one line of an error: no key, no control characters, not too long."""
    line = " ".join(printable(redact(text)).split())
    return line if len(line) <= longest else f"{line[:longest]}..."


class _Redacting:
    """Makes log records; those of the HTTP packages are put into words at once, without any key."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self.inner(*args, **kwargs)
        if record.name.split(".")[0] in _LOGGERS:
            if record.exc_info:
                record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
                record.exc_info = None
            record.msg, record.args = redact(record.getMessage()), ()
        return record
