"""A judge behind any OpenAI-compatible server: mlx_lm.server, LM Studio, Ollama, vLLM, OpenAI itself.

    openai:http://127.0.0.1:8080/v1#MODEL

LOCALDPO_JUDGE_KEY is sent as the key if it is set; OPENAI_API_KEY only to api.openai.com, so that a key for
one server does not reach another. Sampling options are left to the server.

The reply is asked for by a JSON schema and a limit of tokens. Servers refuse either in many words and under
many statuses, so a refused request is sent again in another form: without the schema, or with the limit under
its other name. The form that was answered is kept for the session. Without the schema the reply still has to
hold the JSON object, and nothing else that looks like one.
"""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from localdpo.core.errors import UserError
from localdpo.judging import prompts
from localdpo.judging.base import JudgeBusy, JudgeStopped, Question, Usage, Verdict
from localdpo.judging.failures import from_status
from localdpo.judging.prices import PriceTable, Tokens
from localdpo.judging.retry import within
from localdpo.judging.rubric import Rubric
from localdpo.judging.secrets import Secret, key_from, server_text

OWN_KEY: Final = "LOCALDPO_JUDGE_KEY"
OPENAI_KEY: Final = "OPENAI_API_KEY"
OPENAI_HOST: Final = "api.openai.com"
MAX_TOKENS: Final = 2048
TIMEOUT: Final = 300.0
CONCURRENCY: Final = 4
_OVERHEAD: Final = 2000
_MOST_BYTES: Final = 8 * 1024 * 1024
_HINTS: Final = {
    401: f"the key is not accepted; set {OWN_KEY}",
    402: "there is no credit",
    403: f"the key may not do this; set another in {OWN_KEY}",
    404: "no such model or address; the address usually ends in /v1",
}
# Statuses under which servers refuse a request for what is in it.
_REFUSALS: Final = (400, 415, 422, 501)
_SPEAKS_OF_SCHEMA: Final = re.compile(
    "response.?format|schema|structured.?output|grammar|guided|json.?(mode|object)", re.IGNORECASE
)
_SPEAKS_OF_LIMIT: Final = re.compile("max_(completion_)?tokens", re.IGNORECASE)
_LIMITS: Final = ("max_tokens", "max_completion_tokens")
# Parts of a message that are not what the model says in the end.
_THOUGHTS: Final = ("thinking", "reasoning", "redacted_thinking")


class _Form(NamedTuple):
    """How a question is put: with the schema or without, the limit under one name or the other."""

    schema: bool
    limit: str


class _Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: str


class OpenAIJudge:
    """One model of one server under one rubric.

    Args:
        url: the base address, to which /chat/completions is added.
        model: its name on that server.
        max_tokens: most tokens of a reply.
        concurrency: questions at a time.
        timeout: seconds that a request may take in all.

    Raises UserError for an address that is none.
    """

    def __init__(
        self,
        rubric: Rubric,
        prices: PriceTable,
        url: str,
        model: str,
        *,
        max_tokens: int = MAX_TOKENS,
        concurrency: int = CONCURRENCY,
        timeout: float = TIMEOUT,
    ) -> None:
        self.rubric = rubric
        self.url, self.host = _address(url)
        self.model = model
        self.name = f"openai {model}"
        self.concurrency = concurrency
        self.max_tokens = max_tokens
        self.timeout = timeout
        self.local = _is_loopback(self.host)
        self.price = prices.of(model)
        self.identity: Mapping[str, str] = {
            "judge": "openai",
            "server": self.url,
            "model": model,
            "max_tokens": str(max_tokens),
            **prompts.prompt_identity(rubric),
        }
        # OpenAI's own models refuse the older name of the limit; other servers may not know the newer one.
        self._form = _Form(True, _LIMITS[self.host == OPENAI_HOST])
        self._form_works = False
        # A server on this machine is never asked through a proxy.
        proxies = [urllib.request.ProxyHandler({})] if self.local else []
        self._opener = urllib.request.build_opener(_AsItComes, *proxies)

    def ask(self, question: Question) -> Verdict:
        """One request, no retries (the runner does those); more while the server refuses its form."""
        secret = self._key()
        form: _Form | None = self._form
        tried: list[_Form] = []
        first: _Reply | None = None
        while form is not None:
            reply = self._post(self._payload(question, form), secret)
            if 200 <= reply.status < 300:
                self._form, self._form_works = form, True
                return self._verdict(reply, question, secret)
            tried.append(form)
            first = first or reply
            form = self._other_form(reply, tried)
        assert first is not None
        return from_status(self.name, *first, _HINTS, secret)

    def _other_form(self, refused: _Reply, tried: list[_Form]) -> _Form | None:
        """The form to ask in next: what the refusal speaks of changes, then the form that works, or any."""
        schema, limit = tried[-1]
        other = _LIMITS[1 - _LIMITS.index(limit)]
        changes = []
        if refused.status >= 400:
            if schema and _SPEAKS_OF_SCHEMA.search(refused.body):
                changes.append(_Form(False, limit))
            if _SPEAKS_OF_LIMIT.search(refused.body):
                changes.append(_Form(schema, other))
        if refused.status in _REFUSALS and self._form_works:
            # Found by another thread since this question was sent.
            changes.append(self._form)
        elif refused.status in _REFUSALS:
            changes += [_Form(kept, name) for name in (limit, other) for kept in (True, False)]
        return next((form for form in changes if form not in tried), None)

    def _verdict(self, reply: _Reply, question: Question, secret: Secret | None) -> Verdict:
        verdict = self._read(reply.body, question)
        if verdict is None:
            words = server_text(reply.body, secret, 80)
            raise JudgeBusy(f"{self.name}: a reply that is no completion ({words})", billed=True)
        return verdict

    def find_key(self) -> None:
        """Raise JudgeStopped without a key for OpenAI itself; other servers may do without one."""
        if self.host == OPENAI_HOST and self._key() is None:
            raise JudgeStopped(f"no key for {self.name}: set {OPENAI_KEY} in the environment")

    def worst_case_usd(self, question: Question) -> float:
        """0 for a server on this machine; else by the table of prices, infinite if it lacks the model."""
        if self.local:
            return 0.0
        if self.price is None:
            return float("inf")
        sent = json.dumps(self._payload(question, self._form), ensure_ascii=False)
        return self.price.worst(len(sent.encode("utf-8", errors="replace")) + _OVERHEAD, self.max_tokens)

    def _key(self) -> Secret | None:
        names = (OWN_KEY, OPENAI_KEY) if self.host == OPENAI_HOST else (OWN_KEY,)
        found = key_from(names)
        return found[1] if found else None

    def _payload(self, question: Question, form: _Form) -> dict[str, Any]:
        mode = prompts.mode_of(question)
        if mode != self.rubric.mode:
            raise ValueError(f"the rubric {self.rubric.name} is for {self.rubric.mode} questions")
        payload: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": prompts.instructions(self.rubric)},
                {"role": "user", "content": prompts.message(question)},
            ],
            form.limit: self.max_tokens,
        }
        if form.schema:
            described = {"name": "verdict", "strict": True, "schema": prompts.SCHEMAS[mode]}
            payload["response_format"] = {"type": "json_schema", "json_schema": described}
        return payload

    def _post(self, payload: dict[str, Any], secret: Secret | None) -> _Reply:
        """The reply, names of headers in lower case, the key taken out of its body. Raises JudgeBusy."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret.reveal()}"
        request = urllib.request.Request(self.url, json.dumps(payload).encode(), headers, method="POST")
        failure: JudgeBusy
        try:
            status, received, body = within(self.timeout, lambda: self._exchange(request))
            text = body.decode("utf-8", errors="replace")
            text = secret.redact(text) if secret is not None else text
            return _Reply(_status_inside(text) or status, received, text)
        except TimeoutError:
            failure = JudgeBusy(f"{self.name}: no reply in {self.timeout:g} s", billed=True)
        except urllib.error.URLError as error:
            # The connection could not be made.
            failure = JudgeBusy(f"{self.name}: {self.url} cannot be reached ({error.reason})")
        except (OSError, http.client.HTTPException) as error:
            failure = JudgeBusy(f"{self.name}: the connection broke ({type(error).__name__})", billed=True)
        raise failure

    def _exchange(self, request: urllib.request.Request) -> tuple[int, dict[str, str], bytes]:
        with self._opener.open(request, timeout=self.timeout) as reply:
            lower = {name.lower(): value for name, value in reply.headers.items()}
            return reply.status, lower, reply.read(_MOST_BYTES)

    def _read(self, body: str, question: Question) -> Verdict | None:
        """The verdict in a chat completion, or None when `body` is not one."""
        try:
            record = json.loads(body)
            choice = record["choices"][0]
            message = choice["message"]
            words, refusal = _text(message.get("content")), message.get("refusal")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return None
        if words is None:
            return None
        if refusal is not None or choice.get("finish_reason") == "content_filter":
            verdict = Verdict("refused", reason=str(refusal or ""), raw=words)
        elif not words.strip() and any(message.get(name) for name in ("reasoning_content", "reasoning")):
            verdict = self._thoughts_alone(message, choice.get("finish_reason"))
        elif choice.get("finish_reason") == "length":
            verdict = Verdict("truncated", reason=prompts.used_up(self.max_tokens), raw=words)
        else:
            verdict = prompts.read_reply(words, self.rubric.mode, question)
        return replace(verdict, usage=self._usage(record.get("usage")), principle=self.rubric.principle)

    def _thoughts_alone(self, message: dict[str, Any], finish: object) -> Verdict:
        """Thoughts are never read as a verdict: they may weigh one and end with the other."""
        raw = str(message.get("reasoning_content") or message.get("reasoning"))[: prompts.LONGEST_RAW]
        if finish == "length":
            return Verdict("truncated", reason=prompts.used_up(self.max_tokens), raw=raw)
        why = (
            "the reply holds thoughts and no verdict; turn thinking off on the server or raise --judge-tokens"
        )
        return Verdict("unparseable", reason=why, raw=raw)

    def _usage(self, usage: Any) -> Usage:
        """Tokens as the server counts them; 0 where it does not say."""
        counts = usage if isinstance(usage, dict) else {}
        details = counts.get("prompt_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
        sent, said = _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
        tokens = Tokens(max(0, sent - cached), said, cache_read=cached)
        known = self.price is not None and not self.local
        return Usage(sent, said, cached, self.price.usd(tokens) if known and self.price else 0.0)


class _AsItComes(urllib.request.HTTPErrorProcessor):
    """Hands on replies of any status. So there are no redirects, which would take the key elsewhere."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


def _text(content: object) -> str | None:
    """The text of a message's content, which may come in parts; None for what is no content."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    said = []
    for part in content:
        if isinstance(part, dict) and part.get("type") not in _THOUGHTS:
            part = part.get("text")
        if isinstance(part, str):
            said.append(part)
    return "".join(said)


def _status_inside(body: str) -> int | None:
    """The status that stands in the body: some routers send the error of a server behind them with a 200."""
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        return None
    error = record.get("error") if isinstance(record, dict) and "choices" not in record else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _address(url: str) -> tuple[str, str]:
    """The address of chat completions, and the host. Raises UserError."""
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise UserError(f"an address with a password in it would be shown; set {OWN_KEY} instead")
    try:
        right = parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        right = False
    # Labels of a host have 63 bytes at most; a longer one is an error deep in the connection.
    long = max(map(len, (parts.hostname or "").split("."))) > 63
    if not right or not parts.hostname or long or not url.isascii() or not url.isprintable() or " " in url:
        raise UserError(f"{url}: expected the address of a server, such as http://127.0.0.1:8080/v1")
    return f"{url.rstrip('/')}/chat/completions", parts.hostname


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
