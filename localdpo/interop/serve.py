"""A run behind mlx-lm's server, and the proof that the adapter answers.

A server that ignores its adapter answers like any other. So the log-probabilities that it gives for the first
token of an answer are compared with those of base + adapter and of the base alone, computed here, for the
prompt of PROBES in which these two differ most.

Shape legend: V vocabulary.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import mlx.core as mx
import numpy as np

from localdpo.core.errors import UserError
from localdpo.core.names import command_line
from localdpo.core.text import counted
from localdpo.data.encode import encode_prompt
from localdpo.data.render import Renderer
from localdpo.interop.trained import Trained
from localdpo.model import lora
from localdpo.out import say
from localdpo.records.wording import run_words

PROBES: Final = (
    "Hello",
    "Who are you?",
    "Write a short poem about the sea.",
    "Explain what a hash table is.",
    "Summarise this: the meeting is moved to Friday, and the report is due on Monday.",
    "Is it safe to eat raw potatoes?",
    "2, 4, 8, 16,",
    "I think you are wrong.",
)
# What the server tells at most of a token's alternatives.
_TOP: Final = 10
_START_SECONDS: Final = 600.0
_DIED: Final = "generation thread died: "


@dataclass(frozen=True)
class Probe:
    """A prompt, and log-probabilities [V] of the first token of its answer, nats, float32.

    Attributes:
        is_chat: whether it is put into the chat template.
        tokens: how many the prompt has in the template of training.
        adapter, base: under base + adapter, and under the base.
    """

    text: str
    is_chat: bool
    tokens: int
    adapter: np.ndarray
    base: np.ndarray

    @property
    def difference(self) -> float:
        """The largest among the tokens that the adapter finds likeliest."""
        likeliest = np.argsort(-self.adapter)[:_TOP]
        return float(np.abs(self.adapter - self.base)[likeliest].max())


def strongest_probe(trained: Trained) -> Probe:
    """The probe in which base and base + adapter differ most. Loads the model, and lets it go."""
    data, loaded = trained.recipe.data, trained.as_trained()
    tokenizer = loaded.tokenizer._tokenizer
    is_chat = Renderer(tokenizer, data.template).chat
    every = [
        encode_prompt(tokenizer, text, data.template, template_kwargs=data.chat_template_kwargs)
        for text in PROBES
    ]

    def first_tokens() -> list[np.ndarray]:
        logits = [loaded.model(mx.array(ids)[None])[0, -1].astype(mx.float32) for ids in every]
        return [np.array(row - mx.logsumexp(row)) for row in logits]

    adapter = first_tokens()
    lora.detach(loaded.model)
    rows = zip(PROBES, every, adapter, first_tokens(), strict=True)
    probes = [Probe(text, is_chat, len(ids), tuned, plain) for text, ids, tuned, plain in rows]
    return max(probes, key=lambda probe: probe.difference)


@dataclass(frozen=True)
class Distances:
    """How far what was served is from base + adapter and from the base: largest difference, nats."""

    from_adapter: float
    from_base: float

    @property
    def answers(self) -> str:
        """Who answers: "adapter", "base", or "neither" where that cannot be told."""
        near, far = sorted((self.from_adapter, self.from_base))
        if far < 2.0 * near:
            return "neither"
        return "adapter" if self.from_adapter < self.from_base else "base"


def compare(probe: Probe, served: list[dict[str, Any]]) -> Distances:
    """The distances of the server's likeliest tokens: `{id, logprob}` of each."""
    ids = [token["id"] for token in served]
    logps = np.array([token["logprob"] for token in served])
    distances = [float(np.abs(row[ids] - logps).max()) for row in (probe.adapter, probe.base)]
    return Distances(*distances)


class Served:
    """mlx-lm's server with a run's adapter, as a process that ends with this one.

    Attributes:
        url: where it listens.
    """

    def __init__(self, trained: Trained, host: str, port: int, options: list[str]) -> None:
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._trained = trained
        self.model = str(trained.base.resolve())
        recipe = trained.recipe
        names = [self.model, str(trained.base), recipe.model, trained.run.name]
        command = [sys.executable, "-m", "localdpo.interop.server", json.dumps(names)]
        command += ["--model", str(trained.base), "--adapter-path", str(trained.adapter)]
        command += ["--host", host, "--port", str(port), *options]
        if recipe.data.chat_template_kwargs:
            command += ["--chat-template-args", json.dumps(recipe.data.chat_template_kwargs)]
        if recipe.trust_remote_code:
            command += ["--trust-remote-code"]
        self._lines: list[str] = []
        self._is_open = False
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def check(self, probe: Probe) -> str:
        """Ask the server once; what came of it, in one line.

        Raises UserError where mlx-lm cannot load model or adapter, and where the base answers.
        """
        asked: dict[str, Any] = (
            {"messages": [{"role": "user", "content": probe.text}]}
            if probe.is_chat
            else {"prompt": probe.text}
        )
        asked |= {"model": self.model, "max_tokens": 1, "temperature": 0.0, "top_logprobs": _TOP}
        answer = self._ask("/v1/chat/completions" if probe.is_chat else "/v1/completions", asked)
        distances = compare(probe, answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"])
        numbers = (
            f"log-probabilities of its first token are within {distances.from_adapter:.2g} nats of "
            f"base + adapter and {distances.from_base:.2g} of the base"
        )
        if distances.answers == "base":
            export = command_line("export", *run_words(self._trained.run), "--to", "mlx")
            raise UserError(
                f"{self._trained.adapter}: mlx-lm's server does not apply this adapter, the base answers "
                f"({numbers}); update mlx-lm, or write the model with it ({export}) and serve that"
            )
        tokens = answer["usage"]["prompt_tokens"]
        rendered = (
            f"; it makes {counted(tokens, 'token')} of a prompt that had {probe.tokens} in training"
            if tokens != probe.tokens
            else ""
        )
        if distances.answers == "neither":
            return f"not certain that the adapter answers: the {numbers}{rendered}"
        return f"checked: the adapter answers: the {numbers}{rendered}"

    def wait(self) -> int:
        """Pass on what the server prints until it ends; its exit code."""
        self._is_open = True
        return self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if self._is_open:
                say(line.rstrip("\n"), error=True)
            else:
                self._lines.append(line.rstrip("\n"))

    def _ask(self, path: str, asked: dict[str, Any]) -> Any:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                # Never through a proxy.
                response = httpx2.post(self.url + path, json=asked, timeout=None, trust_env=False)
            except httpx2.TransportError as error:  # it does not listen yet
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise self._failed(error) from error
                time.sleep(0.1)
                continue
            if response.is_error:
                raise self._failed(response.json().get("error"))
            return response.json()

    def _failed(self, why: object) -> UserError:
        died = [line.partition(_DIED)[2] for line in self._lines if _DIED in line]
        last = self._lines[-1:] if self._process.poll() is not None else []
        reason = next(iter([*died, *last]), why)
        return UserError(
            f"{self._trained.adapter}: mlx-lm's server cannot answer with this adapter: {reason}"
        )


def require_free(host: str, port: int) -> None:
    """Raise UserError where nothing can listen on a port, as another program does."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot be used ({error.strerror}); give another"
        ) from error
