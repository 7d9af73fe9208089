"""Claude as a judge, through the anthropic package.

    ANTHROPIC_API_KEY      the key (or ANTHROPIC_AUTH_TOKEN)
    ANTHROPIC_BASE_URL     another address, if need be

The verdict comes as structured output (`output_config`), is validated here, and the reply is read by hand:
what a proxy may send with status 200 (HTML, half a JSON) is a failed try then, not a crash. Sampling options
(temperature and the like) are never sent, since newer models refuse them. The rubric is marked for the prompt
cache; the server caches it once it is long enough (some hundred to some thousand tokens, by model).

Newer models think before they answer unless they are told otherwise, as much as `effort` says (Opus 5.5 and
Haiku 5.5 "medium" by default, others "high"). Thoughts are billed as output and count within max_tokens.
https://platform.claude.com/docs/en/build-with-claude/effort
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, get_args

from localdpo.core.text import json_or_none
from localdpo.judging import prompts
from localdpo.judging.base import Effort, JudgeStopped, Question
from localdpo.judging.cost import PriceTable, TokenCounts
from localdpo.judging.remote import RemoteJudge, Reply, key_from, redact, server_address, server_text
from localdpo.judging.rubric import Rubric
from localdpo.records.verdicts import Usage, Verdict

if TYPE_CHECKING:
    from anthropic import Anthropic

KEYS: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")
BASE_URL: Final = "ANTHROPIC_BASE_URL"
# At these efforts thoughts are long.
_MORE_TOKENS: Final = {"xhigh": 32_768, "max": 32_768}
_FIRST_DEFAULT: Final = 8192
_ORDINAL: Final = re.compile(r"(\d)(st|nd|rd|th)\b")
_OPUS: Final = re.compile(r"claude-opus-(\d{1,2})(?:-(\d{1,2}))?")


def newest_opus() -> str:
    """The default model: the Opus of the highest version among the ids that the package knows.

    Ids with a date are older names of the same models and are skipped.
    """
    ids = known_models()
    versions = {name: (int(match[1]), int(match[2] or 0)) for name in ids if (match := _OPUS.fullmatch(name))}
    return max(versions, key=lambda name: versions[name])


def known_models() -> list[str]:
    """The ids in the package's types."""
    from anthropic.types.model import Model

    return [name for part in get_args(Model) for name in get_args(part)]


def _iso_day(text: str) -> str:
    """The day of the package's table, "November 30th, 2026", as 2026-11-30; in another form as it is."""
    try:
        return datetime.strptime(_ORDINAL.sub(r"\1", text), "%B %d, %Y").date().isoformat()
    except ValueError:
        return text


class ModelLife(NamedTuple):
    """How long a model can be asked: its stage ("active", "deprecated" or "retired") and the day it retires,
    where they are known, and who says so."""

    stage: str | None
    retires: str | None
    source: str


class AnthropicJudge(RemoteJudge):
    """One model under one rubric. The key is read when the first question is asked, not before.

    Args:
        model: an id, by default `newest_opus()`.
        effort: how much the model thinks; None leaves it to the model. Not every model takes every one, which
            the server says at the first question.
    """

    kind = "anthropic"
    hints: ClassVar[Mapping[int, str]] = {
        401: f"the key is not accepted; set {KEYS[0]} to a valid one",
        402: "there is no credit; add some, then run the same command again",
        403: "the key may not do this; use one of a workspace that may",
        404: f"no such model or address; look at the model's name and {BASE_URL}",
        407: "a proxy wants a password; look at HTTPS_PROXY",
    }
    # Verdicts are short; the rest is room for models that think before they answer, which takes time, too.
    max_tokens = 16_384
    concurrency = 8
    timeout = 600.0

    def __init__(
        self,
        rubric: Rubric,
        prices: PriceTable,
        model: str | None = None,
        *,
        effort: Effort | None = None,
        max_tokens: int | None = None,
        **limits: Any,
    ) -> None:
        room = max_tokens or _MORE_TOKENS.get(effort or "")
        super().__init__(rubric, prices, model or newest_opus(), max_tokens=room, **limits)
        self.effort = effort
        # More room changes no verdict that came, so those of the first default are still found in a journal.
        thinking = {} if effort is None else {"effort": effort}
        self.identity = {**self.identity, "max_tokens": str(max_tokens or _FIRST_DEFAULT), **thinking}
        self._client: Anthropic | None = None
        self._lock = threading.Lock()

    def ask(self, question: Question) -> Verdict:
        """One request, no retries (the session does those)."""
        payload = self.payload(question)
        reply = self.call(lambda client: client.messages.with_raw_response.create(**payload))
        return reply if isinstance(reply, Verdict) else self.read(reply)

    def find_key(self) -> None:
        self.client()

    def life(self) -> ModelLife:
        """By the API where there is a key, else by the package's table of models that retire.

        Raises JudgeStopped (no such model, say) and JudgeBusy.
        """
        if key_from(KEYS) is None:
            from anthropic.resources.messages.messages import DEPRECATED_MODELS

            source = "the anthropic package"
            if self.model not in DEPRECATED_MODELS:
                unknown = "" if self.model in known_models() else ", which does not know this model"
                return ModelLife(None, None, source + unknown)
            day = _iso_day(DEPRECATED_MODELS[self.model])
            is_over = day <= datetime.now(UTC).date().isoformat()
            return ModelLife("retired" if is_over else "deprecated", day, source)
        body = self.call(lambda client: client.models.with_raw_response.retrieve(self.model))
        record = None if isinstance(body, Verdict) else json_or_none(body)
        if not isinstance(record, dict):
            raise self.unreadable(body.reason if isinstance(body, Verdict) else body, "model")
        told = [record.get(name) for name in ("lifecycle", "retires_at")]
        stage, retires = (server_text(text) if isinstance(text, str) else None for text in told)
        return ModelLife(stage, retires and retires[: len("2026-11-30")], "the API")

    def payload(self, question: Question) -> dict[str, Any]:
        prompts.require_mode(question, self.rubric)
        cached = {"cache_control": {"type": "ephemeral"}}
        effort = {} if self.effort is None else {"effort": self.effort}
        return {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "system": [{"type": "text", "text": prompts.instructions(self.rubric), **cached}],
            "messages": [{"role": "user", "content": prompts.message(question)}],
            "output_config": {
                "format": {"type": "json_schema", "schema": prompts.SCHEMAS[self.rubric.mode]},
                **effort,
            },
        }

    def read(self, text: str) -> Verdict:
        """The verdict in a Message as JSON text. Raises JudgeBusy when it is something else."""
        verdict = self.verdict_of(json_or_none(text))
        if verdict is None:
            raise self.unreadable(text, "message")
        return verdict

    def verdict_of(self, message: Any) -> Verdict | None:
        """The verdict in a Message, or None when `message` is not one."""
        if not isinstance(message, dict) or message.get("type") != "message":
            return None
        content, usage = message.get("content"), self._usage(message.get("usage"))
        if not isinstance(content, list) or usage is None:
            return None
        blocks = [block for block in content if isinstance(block, dict) and block.get("type") == "text"]
        words = redact("".join(text for block in blocks if isinstance(text := block.get("text"), str)))
        return replace(self._verdict(message, words), usage=usage, principle=self.rubric.principle)

    def _verdict(self, message: dict[str, Any], words: str) -> Verdict:
        match message.get("stop_reason"):
            case "refusal":
                details = message.get("stop_details")
                names = ("explanation", "category")
                said = [details.get(name) if isinstance(details, dict) else None for name in names]
                why, category = (server_text(text) if isinstance(text, str) else "" for text in said)
                return Verdict("refused", reason=why, raw=words, category=category or None)
            case "max_tokens" | "model_context_window_exceeded":
                return Verdict("truncated", reason=prompts.used_up(self.max_tokens), raw=words)
            case _:
                return prompts.read_reply(words, self.rubric.mode)

    def _usage(self, usage: Any) -> Usage | None:
        if not isinstance(usage, dict):
            return None
        names = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        counts = [usage.get(name) or 0 for name in names]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            return None
        if not isinstance(usage.get("input_tokens"), int) or not isinstance(usage.get("output_tokens"), int):
            return None
        tokens = TokenCounts(*counts)
        return Usage(tokens.all_input, tokens.output, tokens.cache_read, self.usd(tokens))

    def unanswered(self, reply: Reply, hints: Mapping[int, str] | None = None) -> Verdict:
        """See RemoteJudge. Raises JudgeStopped for an effort that the model does not take."""
        verdict = super().unanswered(reply, hints)
        if self.effort is not None and "effort" in verdict.reason:
            raise JudgeStopped(f"{verdict.reason}; leave out --effort, or choose another one")
        return verdict

    def call(self, send: Callable[[Anthropic], Any], hints: Mapping[int, str] | None = None) -> str | Verdict:
        """The body of the reply to one request, or the verdict "unanswered". `hints`: by HTTP status.

        Raises JudgeStopped and JudgeBusy.
        """
        client = self.client()
        import httpx2
        from anthropic import APIConnectionError, APIStatusError

        def exchange() -> tuple[int, Mapping[str, str], str]:
            # The package wraps what its HTTP client raises and every reply that is no success.
            try:
                response = send(client).http_response
            except APIStatusError as error:
                response = error.response
            except APIConnectionError as error:
                cause = error.__cause__
                failed = cause if isinstance(cause, httpx2.RequestError) else httpx2.RequestError("failed")
                raise failed from None
            return response.status_code, response.headers, response.text

        reply = self.exchange(exchange)
        return reply.body if reply.status == 200 else self.unanswered(reply, hints)

    def client(self) -> Anthropic:
        """The package's client, made once. Raises JudgeStopped without a key, or for a wrong address."""
        with self._lock:
            if self._client is None:
                key = key_from(KEYS)
                if key is None:
                    raise JudgeStopped(f"no key for {self.name}: set {KEYS[0]} in the environment")
                # Its value is not shown: it may hold a password.
                if server_address(os.environ.get(BASE_URL, "https://default")) is None:
                    raise JudgeStopped(
                        f"{self.name}: {BASE_URL} is not the address of a server; expected one such as "
                        "https://api.anthropic.com, or unset it"
                    )
                from anthropic import Anthropic, DefaultHttpxClient

                name, secret = key
                credentials = {"api_key" if name == KEYS[0] else "auth_token": secret.get_secret_value()}
                # Its retries are off, for they honour any retry-after, hours too. So are redirects: the key
                # stays here.
                http = DefaultHttpxClient(follow_redirects=False)
                self._client = Anthropic(**credentials, max_retries=0, timeout=self.timeout, http_client=http)  # type: ignore[arg-type]
                self.address = self._client.base_url.host
                # Its connections are closed when the judge is garbage-collected.
                weakref.finalize(self, self._client.close)
            return self._client
