"""A loopback server that speaks Anthropic's Messages and Batches and OpenAI's chat completions.

Its verdicts depend on the material alone, so every client that asks the same gets the same. It counts how
often each question was asked and what it would have billed, and misbehaves as told: `fault(number, body)` is
called for each request, and names what to do with it instead of answering
(or None).
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BLOCK = re.compile(r"=== (.+) begins ([0-9a-f]{16}) ===\n(.*)\n=== \1 ends \2 ===", re.DOTALL)
FIRST_CODE = re.compile(r"\A=== conversation begins ([0-9a-f]{16}) ===\n")


@dataclass
class Fault:
    """What to send instead of a verdict.

    kind: "status" (with code, headers, body), "hang", "drop" (no reply), "cut" (half of the reply), "drip" (a
    byte of the headers now and then).
    """

    kind: str
    code: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"type":"error","error":{"type":"api_error","message":"on purpose"}}'
    billed: bool = False


Faults = Callable[[int, dict[str, Any]], Fault | None]


def blocks_of(message: str) -> dict[str, str]:
    """Name and text of every block of a user's message, found by the code of its first line alone."""
    code = FIRST_CODE.match(message)[1]  # type: ignore[index]
    pattern = re.compile(rf"=== ([a-z ]+) begins {code} ===\n(.*?)\n=== \1 ends {code} ===", re.DOTALL)
    return dict(pattern.findall(message))


def by_length(blocks: dict[str, str]) -> dict[str, Any]:
    """The longer answer is better; one answer scores by its length."""
    if "answer" in blocks:
        return {"reason": "by length", "score": 1 + len(blocks["answer"]) % 5}
    first, second = len(blocks["first answer"]), len(blocks["second answer"])
    return {
        "reason": "by length",
        "choice": "first" if first > second else "second" if second > first else "tie",
    }


def by_hash(blocks: dict[str, str]) -> dict[str, Any]:
    """As good as random, but consistent over both orders for four prompts of five."""
    digest = hashlib.sha256(blocks["conversation"].encode()).digest()
    if digest[0] % 5 == 0:
        return {"reason": "I like what comes first", "choice": "first"}
    first, second = (
        hashlib.sha256(blocks[name].encode()).digest() for name in ("first answer", "second answer")
    )
    return {"reason": "by hash", "choice": "first" if first < second else "second"}


class FakeServer:
    """`with FakeServer() as server:` listens on 127.0.0.1, at `server.url`."""

    def __init__(self, decide: Callable[[dict[str, str]], dict[str, Any]] = by_length) -> None:
        self.decide = decide
        self.fault: Faults = lambda number, body: None
        self.reply: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: {}
        self.output_tokens: Callable[[int], int] = lambda number: 40
        self.requests = 0
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.billed: list[tuple[int, int]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.batches: dict[str, dict[str, Any]] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.polls_to_end = 2
        self.results_url: str | None = None
        self.result_of: Callable[[str, dict[str, Any]], dict[str, Any] | None] = lambda key, message: None
        self.lock = threading.Lock()
        self.released = threading.Event()
        handler = type("Handler", (_Handler,), {"fake": self})
        self.http = _listening(handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    @contextmanager
    def flight(self) -> Iterator[None]:
        with self.lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            yield
        finally:
            with self.lock:
                self.in_flight -= 1

    def message(self, body: dict[str, Any], number: int, bill: bool = True) -> dict[str, Any]:
        """The Message that answers a request's body."""
        said = json.dumps(self.decide(blocks_of(body["messages"][-1]["content"])))
        usage = (len(json.dumps(body)) // 4, self.output_tokens(number))
        if bill:
            with self.lock:
                self.billed.append(usage)
        return {
            "id": f"msg_{number}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": said},
            ],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": usage[0], "output_tokens": usage[1], "cache_read_input_tokens": 0},
        } | self.reply(body)

    def make_batch(self, body: dict[str, Any]) -> str:
        """Take a batch; returns its id."""
        with self.lock:
            name = f"msgbatch_{len(self.batches) + 1}"
            created = datetime.now(UTC).isoformat()
            self.batches[name] = {"requests": body["requests"], "polls": 0, "created_at": created}
        return name

    def completion(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        """The chat completion that answers a request's body."""
        said = json.dumps(self.decide(blocks_of(body["messages"][-1]["content"])))
        return {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20},
        } | self.reply(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news."""


_PORTS: set[int] = set()


def _listening(handler: type[BaseHTTPRequestHandler]) -> _Server:
    """A server on a port that none of this process had: verdicts are kept under the server's address, so one
    that got an earlier server's port would not be asked what that one was asked.
    """
    server = _Server(("127.0.0.1", 0), handler)
    if server.server_port in _PORTS:
        # The port stays taken until another is found.
        with server:
            return _listening(handler)
    _PORTS.add(server.server_port)
    return server


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with fake.lock:
            number = fake.requests
            fake.requests += 1
            fake.bodies.append(body)
            fake.headers.append({name.lower(): value for name, value in self.headers.items()})
        with fake.flight():
            self.answer(number, body)

    def answer(self, number: int, body: dict[str, Any]) -> None:
        fake = self.fake
        fault = fake.fault(number, body)
        if fault is not None:
            self.misbehave(fault, number, body)
            return
        if self.path == "/v1/messages":
            self.count(body)
            self.send(fake.message(body, number))
        elif self.path == "/v1/messages/batches":
            self.send(self.batch(fake.make_batch(body)))
        else:
            self.count(body)
            self.send(fake.completion(body, number))

    def count(self, body: dict[str, Any]) -> None:
        with self.fake.lock:
            self.fake.asked[body["messages"][-1]["content"]] += 1

    def misbehave(self, fault: Fault, number: int, body: dict[str, Any]) -> None:
        if fault.kind == "status":
            self.send(fault.body, fault.code, fault.headers)
            return
        if fault.kind == "hang":
            if fault.billed:
                self.fake.message(body, number)
            self.fake.released.wait(20)
        elif fault.kind == "drip":
            for byte in b"HTTP/1.1 200 OK\r\nx-padding: " + b"x" * 400:
                self.wfile.write(bytes([byte]))
                if self.fake.released.wait(0.05):
                    break
        elif fault.kind == "cut":
            text = json.dumps(self.fake.message(body, number)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text[: len(text) // 2])
            self.wfile.flush()
        elif fault.billed:
            self.fake.message(body, number)
        self.close_connection = True
        self.connection.close()

    def send(self, content: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        text = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(code)
        for name, value in ({"content-type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    # --- batches -------------------------------------------------------------------------------------

    def batch(self, name: str) -> dict[str, Any]:
        fake, batch = self.fake, self.fake.batches[name]
        ended = batch["polls"] >= fake.polls_to_end
        size = len(batch["requests"])
        own = f"{fake.url}/v1/messages/batches/{name}/results"
        return {
            "id": name,
            "type": "message_batch",
            "created_at": batch["created_at"],
            "expires_at": batch["created_at"],
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {
                "processing": 0 if ended else size,
                "succeeded": size if ended else 0,
                "errored": 0,
                "canceled": 0,
                "expired": 0,
            },
            "results_url": (fake.results_url or own) if ended else None,
        }

    def do_GET(self) -> None:
        fake = self.fake
        with fake.lock:
            fake.headers.append({name.lower(): value for name, value in self.headers.items()})
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["v1", "models"] and parts[2] in fake.models:
            self.send(fake.models[parts[2]])
            return
        if parts[:3] != ["v1", "messages", "batches"]:
            self.send("not here", 404)
        elif len(parts) == 3:
            self.send({"data": [self.batch(name) for name in fake.batches], "has_more": False})
        elif parts[3] not in fake.batches:
            self.send({"error": {"message": "no such batch"}}, 404)
        elif len(parts) == 4:
            fake.batches[parts[3]]["polls"] += 1
            self.send(self.batch(parts[3]))
        else:
            self.send(self.results(parts[3]), headers={"content-type": "application/binary"})

    def results(self, name: str) -> str:
        lines = []
        # Unordered, as the service says: here from the last to the first.
        for number, request in reversed(list(enumerate(self.fake.batches[name]["requests"]))):
            message = self.fake.message(request["params"], number)
            own = self.fake.result_of(request["custom_id"], message)
            result = own or {"type": "succeeded", "message": message}
            lines.append(json.dumps({"custom_id": request["custom_id"], "result": result}))
        return "\n".join(lines) + "\n"
