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

import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from pydantic import SecretStr

from localdpo.core.errors import UserError
from localdpo.core.text import json_or_none
from localdpo.judging import prompts
from localdpo.judging.base import JudgeStopped, Question
from localdpo.judging.cost import PriceTable, TokenCounts
from localdpo.judging.remote import RemoteJudge, Reply, key_from, server_address
from localdpo.judging.rubric import Rubric
from localdpo.records.verdicts import Usage, Verdict

if TYPE_CHECKING:
    import httpx2

OWN_KEY: Final = "LOCALDPO_JUDGE_KEY"
OPENAI_KEY: Final = "OPENAI_API_KEY"
OPENAI_HOST: Final = "api.openai.com"
_MOST_BYTES: Final = 8 * 1024 * 1024
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


class OpenAIJudge(RemoteJudge):
    """One model of one server under one rubric.

    Args:
        url: the base address, to which /chat/completions is added.
        model: its name on that server.

    Raises UserError for an invalid address.
    """

    kind = "openai"
    hints: ClassVar[Mapping[int, str]] = {
        401: f"the key is not accepted; set {OWN_KEY}",
        402: "there is no credit",
        403: f"the key may not do this; set another in {OWN_KEY}",
        404: "no such model or address; the address usually ends in /v1",
    }
    max_tokens = 2048
    concurrency = 4
    timeout = 300.0

    def __init__(self, rubric: Rubric, prices: PriceTable, url: str, model: str, **limits: Any) -> None:
        # Before anything is said of an address, right or wrong: it would be shown.
        if "@" in url.partition("//")[2].partition("/")[0]:
            raise UserError(f"an address with a password in it would be shown; set {OWN_KEY} instead")
        parts = server_address(url)
        if parts is None:
            raise UserError(f"{url}: expected the address of a server, such as http://127.0.0.1:8080/v1")
        self.url, self.host = f"{url.rstrip('/')}/chat/completions", parts.hostname or ""
        super().__init__(rubric, prices, model, server={"server": self.url}, **limits)
        self.address = self.url
        # A server on this machine is free, unless a price is given.
        self.local = _is_loopback(self.host) and limits.get("price") is None
        # OpenAI's own models refuse the older name of the limit; other servers may not know the newer one.
        self._form = _Form(True, _LIMITS[self.host == OPENAI_HOST])
        self._form_works = False

    def ask(self, question: Question) -> Verdict:
        """One request, no retries (the session does those); more while the server refuses its form."""
        form: _Form | None = self._form
        tried: list[_Form] = []
        first: Reply | None = None
        while form is not None:
            reply = self._post(self._payload(question, form))
            if 200 <= reply.status < 300:
                self._form, self._form_works = form, True
                verdict = self._read(reply.body, question)
                if verdict is None:
                    raise self.unreadable(reply.body, "completion")
                return verdict
            tried.append(form)
            first = first or reply
            form = self._other_form(reply, tried)
        assert first is not None
        return self.unanswered(first)

    def _other_form(self, refused: Reply, tried: list[_Form]) -> _Form | None:
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

    def find_key(self) -> None:
        """Raise JudgeStopped without a key for OpenAI itself; other servers may do without one."""
        if self.host == OPENAI_HOST and self._key() is None:
            raise JudgeStopped(f"no key for {self.name}: set {OPENAI_KEY} in the environment")

    def worst_case_usd(self, question: Question) -> float:
        """0 for a server on this machine; else by the table of prices, infinite if it lacks the model."""
        return 0.0 if self.local else super().worst_case_usd(question)

    def usd(self, tokens: TokenCounts) -> float:
        """See RemoteJudge; 0 for a server on this machine."""
        return 0.0 if self.local else super().usd(tokens)

    def payload(self, question: Question) -> dict[str, Any]:
        """See RemoteJudge; in the form that is tried first now."""
        return self._payload(question, self._form)

    def _key(self) -> SecretStr | None:
        names = (OWN_KEY, OPENAI_KEY) if self.host == OPENAI_HOST else (OWN_KEY,)
        key = key_from(names)
        return key[1] if key else None

    def _payload(self, question: Question, form: _Form) -> dict[str, Any]:
        prompts.require_mode(question, self.rubric)
        payload: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": prompts.instructions(self.rubric)},
                {"role": "user", "content": prompts.message(question)},
            ],
            form.limit: self.max_tokens,
        }
        if form.schema:
            described = {"name": "verdict", "strict": True, "schema": prompts.SCHEMAS[self.rubric.mode]}
            payload["response_format"] = {"type": "json_schema", "json_schema": described}
        return payload

    @cached_property
    def _client(self) -> httpx2.Client:
        import httpx2

        # No connection is kept: one that the server closed meanwhile would look like a reply that was lost. A
        # server on this machine is never asked through a proxy, and no redirect takes the key elsewhere.
        return httpx2.Client(
            verify=ssl.create_default_context(),
            timeout=self.timeout,
            limits=httpx2.Limits(max_keepalive_connections=0),
            trust_env=not self.local,
            follow_redirects=False,
        )

    def _post(self, payload: dict[str, Any]) -> Reply:
        """The reply, with the status in its body where there is one. Raises JudgeBusy."""
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            # What is compressed could be of any length.
            "Accept-Encoding": "identity",
        }
        if (key := self._key()) is not None:
            headers["Authorization"] = f"Bearer {key.get_secret_value()}"
        content = json.dumps(payload).encode()

        def exchange() -> tuple[int, Mapping[str, str], str]:
            body = bytearray()
            with self._client.stream("POST", self.url, content=content, headers=headers) as response:
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) >= _MOST_BYTES:
                        break
            text = body[:_MOST_BYTES].decode("utf-8", errors="replace")
            return response.status_code, response.headers, text

        reply = self.exchange(exchange)
        return reply._replace(status=_status_inside(reply.body) or reply.status)

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
        # Thoughts are never read as a verdict: they may weigh one and end with the other.
        thoughts = message.get("reasoning_content") or message.get("reasoning")
        are_alone = bool(thoughts) and not words.strip()
        raw = str(thoughts)[: prompts.LONGEST_RAW] if are_alone else words
        if refusal is not None or choice.get("finish_reason") == "content_filter":
            verdict = Verdict("refused", reason=str(refusal or ""), raw=words)
        elif choice.get("finish_reason") == "length":
            verdict = Verdict("truncated", reason=prompts.used_up(self.max_tokens), raw=raw)
        elif are_alone:
            hint = "turn thinking off on the server or raise --judge-tokens"
            why = f"the reply holds thoughts and no verdict; {hint}"
            verdict = Verdict("unparseable", reason=why, raw=raw)
        else:
            verdict = prompts.read_reply(words, self.rubric.mode, question)
        return replace(verdict, usage=self._usage(record.get("usage")), principle=self.rubric.principle)

    def _usage(self, usage: Any) -> Usage:
        """Tokens as the server counts them; 0 where it does not say."""
        counts = usage if isinstance(usage, dict) else {}
        details = counts.get("prompt_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
        sent, said = _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
        usd = self.usd(TokenCounts(max(0, sent - cached), said, cache_read=cached))
        return Usage(sent, said, cached, usd)


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
    """The status that the body names: some routers send the error of a server behind them with a 200."""
    record = json_or_none(body)
    error = record.get("error") if isinstance(record, dict) and "choices" not in record else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
