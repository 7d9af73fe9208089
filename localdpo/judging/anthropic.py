"""Claude as a judge, through the anthropic package.

    ANTHROPIC_API_KEY      the key (or ANTHROPIC_AUTH_TOKEN)
    ANTHROPIC_BASE_URL     another address, if need be

The verdict comes as structured output (`output_config`), is validated here, and the reply is read by hand:
what a proxy may send with status 200 (HTML, half a JSON) is a failed try then, not a crash. Sampling options
(temperature and the like) are never sent, since newer models refuse them. The rubric is marked for the prompt
cache; the server caches it once it is long enough (some hundred to some thousand tokens, by model).
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, get_args

from localdpo.judging import prompts
from localdpo.judging.base import JudgeBusy, JudgeStopped, Question, Usage, Verdict
from localdpo.judging.failures import from_status
from localdpo.judging.prices import PriceTable, Tokens
from localdpo.judging.retry import within
from localdpo.judging.rubric import Rubric
from localdpo.judging.secrets import Secret, key_from, server_text

if TYPE_CHECKING:
    from anthropic import Anthropic

KEYS: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")
# Verdicts are short; the rest is room for models that think before they answer.
MAX_TOKENS: Final = 8192
TIMEOUT: Final = 180.0
CONCURRENCY: Final = 8
# Tokens that the server adds to ours (the schema, its own framing), rounded up generously.
_OVERHEAD: Final = 2000
_OPUS: Final = re.compile(r"claude-opus-(\d{1,2})(?:-(\d{1,2}))?")
_HINTS: Final = {
    401: f"the key is not accepted; set {KEYS[0]} to a valid one",
    402: "there is no credit; add some, then run the same command again",
    403: "the key may not do this; use one of a workspace that may",
    404: "no such model or address; look at the model's name and ANTHROPIC_BASE_URL",
    407: "a proxy wants a password; look at HTTPS_PROXY",
}
# Causes of a failed connection after which the server cannot have seen the request.
_NEVER_SENT: Final = {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "ProxyError"}


def newest_opus() -> str:
    """The default model: the Opus of the highest version among the ids that the package knows.

    Ids with a date are older names of the same models and are passed over.
    """
    from anthropic.types.model import Model

    ids = [name for part in get_args(Model) for name in get_args(part)]
    versions = {name: (int(match[1]), int(match[2] or 0)) for name in ids if (match := _OPUS.fullmatch(name))}
    return max(versions, key=lambda name: versions[name])


class AnthropicJudge:
    """One model under one rubric. The key is read when the first question is asked, not before.

    Args:
        model: an id, by default `newest_opus()`.
        max_tokens: most tokens of a reply, thoughts included.
        concurrency: questions at a time.
        timeout: seconds that a request may take in all.
    """

    def __init__(
        self,
        rubric: Rubric,
        prices: PriceTable,
        model: str | None = None,
        *,
        max_tokens: int = MAX_TOKENS,
        concurrency: int = CONCURRENCY,
        timeout: float = TIMEOUT,
    ) -> None:
        self.rubric = rubric
        self.model = model or newest_opus()
        self.name = f"anthropic {self.model}"
        self.concurrency = concurrency
        self.max_tokens = max_tokens
        self.timeout = timeout
        self.price = prices.of(self.model)
        self.identity: Mapping[str, str] = {
            "judge": "anthropic",
            "model": self.model,
            "max_tokens": str(max_tokens),
            **prompts.prompt_identity(rubric),
        }
        self.secret: Secret | None = None
        self._client: Anthropic | None = None
        self._lock = threading.Lock()

    # What this judge's verdicts are billed as; the batch judge overrides it.
    batch = False

    def ask(self, question: Question) -> Verdict:
        """One request, no retries (the runner does those)."""
        params = self.params(question)
        reply = self.call(lambda client: client.messages.with_raw_response.create(**params))
        if isinstance(reply, Verdict):
            return reply
        return self.read(reply)

    def find_key(self) -> None:
        """Raise JudgeStopped without a key."""
        self.client()

    def worst_case_usd(self, question: Question) -> float:
        """Every byte of the request a token, all of them the dearest kind, and the longest reply."""
        if self.price is None:
            return float("inf")
        sent = json.dumps(self.params(question), ensure_ascii=False).encode("utf-8", errors="replace")
        return self.price.worst(len(sent) + _OVERHEAD, self.max_tokens, self.batch)

    def params(self, question: Question) -> dict[str, Any]:
        """The request's body."""
        if prompts.mode_of(question) != self.rubric.mode:
            raise ValueError(f"the rubric {self.rubric.name} is for {self.rubric.mode} questions")
        rubric = {
            "type": "text",
            "text": prompts.instructions(self.rubric),
            "cache_control": {"type": "ephemeral"},
        }
        return {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "system": [rubric],
            "messages": [{"role": "user", "content": prompts.message(question)}],
            "output_config": {"format": {"type": "json_schema", "schema": prompts.SCHEMAS[self.rubric.mode]}},
        }

    def read(self, text: str) -> Verdict:
        """The verdict in a Message as JSON text. Raises JudgeBusy when it is something else."""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
        verdict = self.verdict_of(record)
        if verdict is None:
            words = server_text(text, self.secret, 80)
            raise JudgeBusy(f"{self.name}: a reply that is no message ({words})", billed=True)
        return verdict

    def verdict_of(self, message: Any) -> Verdict | None:
        """The verdict in a Message, or None when `message` is not one."""
        if not isinstance(message, dict) or message.get("type") != "message":
            return None
        content, usage = message.get("content"), self._usage(message.get("usage"))
        if not isinstance(content, list) or usage is None:
            return None
        blocks = [block for block in content if isinstance(block, dict) and block.get("type") == "text"]
        words = self._redact("".join(text for block in blocks if isinstance(text := block.get("text"), str)))
        return replace(self._verdict(message, words), usage=usage, principle=self.rubric.principle)

    def _verdict(self, message: dict[str, Any], words: str) -> Verdict:
        match message.get("stop_reason"):
            case "refusal":
                details = message.get("stop_details")
                why = details.get("explanation") if isinstance(details, dict) else None
                return Verdict("refused", reason=self._redact(why) if isinstance(why, str) else "", raw=words)
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
        tokens = Tokens(*counts)
        usd = self.price.usd(tokens, self.batch) if self.price is not None else 0.0
        return Usage(tokens.all_input, tokens.output, tokens.cache_read, usd)

    def call(self, send: Callable[[Anthropic], Any], hints: Mapping[int, str] | None = None) -> str | Verdict:
        """The body of the reply to one request, or the verdict "unanswered". `hints`: by HTTP status.

        Raises JudgeStopped and JudgeBusy; nothing of the package's own errors gets out, since they hold the
        request and with it the key.
        """
        client = self.client()
        from anthropic import APIConnectionError, APIStatusError, APITimeoutError

        failure: JudgeBusy | None = None
        status, headers, body = 200, {}, ""
        try:
            body = within(self.timeout, lambda: send(client).http_response.text)
        except APIStatusError as error:
            status, headers, body = error.status_code, dict(error.response.headers), error.response.text
        except APITimeoutError as error:
            failure = JudgeBusy(f"{self.name}: no reply in {self.timeout:g} s", billed=_was_sent(error))
        except TimeoutError:
            failure = JudgeBusy(f"{self.name}: no reply in {self.timeout:g} s", billed=True)
        except APIConnectionError as error:
            cause = type(error.__cause__).__name__
            failure = JudgeBusy(f"{self.name}: the connection failed ({cause})", billed=_was_sent(error))
        # Outside of the handlers, so that what is raised does not remember the package's error.
        if failure is not None:
            raise failure
        if status == 200:
            return self._redact(body)
        return from_status(self.name, status, headers, body, {**_HINTS, **(hints or {})}, self.secret)

    def client(self) -> Anthropic:
        """The package's client, made once. Raises JudgeStopped without a key."""
        with self._lock:
            if self._client is None:
                found = key_from(KEYS)
                if found is None:
                    raise JudgeStopped(f"no key for {self.name}: set {KEYS[0]} in the environment")
                name, self.secret = found
                self._client = _make_client(name, self.secret, self.timeout)
                # Its connections are closed with the judge; nobody has to remember to.
                weakref.finalize(self, self._client.close)
            return self._client

    def _redact(self, text: str) -> str:
        return self.secret.redact(text) if self.secret is not None else text


def _make_client(name: str, secret: Secret, timeout: float) -> Anthropic:
    # Its retries are off, for they honour any retry-after, hours too. So are redirects: the key stays here.
    from anthropic import Anthropic, DefaultHttpxClient

    key = {"api_key" if name == KEYS[0] else "auth_token": secret.reveal()}
    http = DefaultHttpxClient(follow_redirects=False)
    return Anthropic(**key, max_retries=0, timeout=timeout, http_client=http)  # type: ignore[arg-type]


def _was_sent(error: Exception) -> bool:
    return type(error.__cause__).__name__ not in _NEVER_SENT
