"""A judge behind any OpenAI-compatible server: mlx_lm.server, LM Studio, Ollama, vLLM, OpenAI itself.

    openai:http://127.0.0.1:8080/v1#MODEL

LOCALDPO_JUDGE_KEY is sent as the key if it is set; OPENAI_API_KEY only to api.openai.com, so that a key for
one server does not reach another. The reply is asked for by a JSON schema; a server that does not know
`response_format` is asked without, and its reply has to be the JSON object all the same. Sampling options are
left to the server.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from localdpo.core.errors import UserError
from localdpo.judge import prompts
from localdpo.judge.base import JudgeBusy, JudgeStopped, Question, Usage, Verdict
from localdpo.judge.failures import from_status
from localdpo.judge.prices import PriceTable, Tokens
from localdpo.judge.rubric import Rubric
from localdpo.judge.secrets import Secret, key_from, server_text

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


class OpenAIJudge:
    """One model of one server under one rubric.

    Args:
        url: the base address, to which /chat/completions is added.
        model: its name on that server.
        max_tokens: most tokens of a reply.
        concurrency: questions at a time.
        timeout: seconds that the server may be silent.

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
        self._schema_refused = False
        # A server on this machine is never asked through a proxy.
        proxies = [urllib.request.ProxyHandler({})] if self.local else []
        self._opener = urllib.request.build_opener(_AsItComes, *proxies)

    def ask(self, question: Question) -> Verdict:
        """One request, no retries (the runner does those); two when the server refuses the schema."""
        schema = not self._schema_refused
        secret = self._key()
        status, headers, body = self._post(self._payload(question, schema), secret)
        if status == 400 and schema and "response_format" in body:
            self._schema_refused = True
            status, headers, body = self._post(self._payload(question, schema=False), secret)
        if not 200 <= status < 300:
            return from_status(self.name, status, headers, body, _HINTS, secret)
        verdict = self._read(body)
        if verdict is None:
            raise JudgeBusy(
                f"{self.name}: a reply that is no completion ({server_text(body, secret, 80)})", billed=True
            )
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
        sent = json.dumps(self._payload(question, schema=True), ensure_ascii=False)
        return self.price.worst(len(sent.encode("utf-8", errors="replace")) + _OVERHEAD, self.max_tokens)

    def _key(self) -> Secret | None:
        names = (OWN_KEY, OPENAI_KEY) if self.host == OPENAI_HOST else (OWN_KEY,)
        found = key_from(names)
        return found[1] if found else None

    def _payload(self, question: Question, schema: bool) -> dict[str, Any]:
        mode = prompts.mode_of(question)
        if mode != self.rubric.mode:
            raise ValueError(f"the rubric {self.rubric.name} is for {self.rubric.mode} questions")
        # OpenAI's own models refuse the older name of the limit; other servers may not know the newer one.
        limit = "max_completion_tokens" if self.host == OPENAI_HOST else "max_tokens"
        payload: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": prompts.instructions(self.rubric)},
                {"role": "user", "content": prompts.message(question)},
            ],
            limit: self.max_tokens,
        }
        if schema:
            described = {"name": "verdict", "strict": True, "schema": prompts.SCHEMAS[mode]}
            payload["response_format"] = {"type": "json_schema", "json_schema": described}
        return payload

    def _post(self, payload: dict[str, Any], secret: Secret | None) -> tuple[int, Mapping[str, str], str]:
        """Status, headers (names in lower case) and body, the key taken out of it. Raises JudgeBusy."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret.reveal()}"
        request = urllib.request.Request(self.url, json.dumps(payload).encode(), headers, method="POST")
        failure: JudgeBusy
        try:
            with self._opener.open(request, timeout=self.timeout) as reply:
                return self._received(reply.status, reply.headers, reply.read(_MOST_BYTES), secret)
        except TimeoutError:
            failure = JudgeBusy(f"{self.name}: no reply in {self.timeout:g} s", billed=True)
        except urllib.error.URLError as error:
            # The connection could not be made.
            failure = JudgeBusy(f"{self.name}: {self.url} cannot be reached ({error.reason})")
        except (OSError, http.client.HTTPException) as error:
            failure = JudgeBusy(f"{self.name}: the connection broke ({type(error).__name__})", billed=True)
        raise failure

    def _received(
        self, status: int, headers: Any, body: bytes, secret: Secret | None
    ) -> tuple[int, Mapping[str, str], str]:
        text = body.decode("utf-8", errors="replace")
        lower = {name.lower(): value for name, value in headers.items()}
        return status, lower, secret.redact(text) if secret is not None else text

    def _read(self, body: str) -> Verdict | None:
        """The verdict in a chat completion, or None when `body` is not one."""
        try:
            record = json.loads(body)
            choice = record["choices"][0]
            message = choice["message"]
            words, refusal = message.get("content") or "", message.get("refusal")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return None
        if not isinstance(words, str):
            return None
        if refusal is not None or choice.get("finish_reason") == "content_filter":
            verdict = Verdict("refused", reason=str(refusal or ""), raw=words)
        elif choice.get("finish_reason") == "length":
            verdict = Verdict("truncated", raw=words)
        else:
            verdict = prompts.read_reply(words, self.rubric.mode)
        return replace(verdict, usage=self._usage(record.get("usage")), principle=self.rubric.principle)

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
    if not right or not parts.hostname or any(char.isspace() for char in url):
        raise UserError(f"{url}: expected the address of a server, such as http://127.0.0.1:8080/v1")
    return f"{url.rstrip('/')}/chat/completions", parts.hostname


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
