"""Uploading, to a stand-in of the hub on loopback: nothing goes there unasked, and the export goes whole."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from exported_runs import make_run

from localdpo.core.atomic import MANIFEST
from localdpo.interop.folder import RECORD


class Hub(ThreadingHTTPServer):
    """Takes repositories and commits, and keeps what came; every file is sent in the commit itself."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refuses = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.answer({"id": "me/model", "sha": "0" * 40, "siblings": [], "private": True})

    def do_POST(self) -> None:
        self.server.requests.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.refuses:
            self.answer({"error": "You are not signed in"}, status=401)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.url}/me/model", "id": "me/model"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for file in files
                    ]
                }
            )
        elif "/commit/" in self.path:
            for line in body.splitlines():
                operation = json.loads(line)
                if operation["key"] == "file":
                    value = operation["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            self.answer(
                {
                    "commitUrl": f"{self.server.url}/me/model/commit/{'1' * 40}",
                    "commitOid": "1" * 40,
                    "success": True,
                }
            )
        else:
            self.answer({})

    def answer(self, value: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def push(
    hub: Hub, folder: Path, *arguments: str, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """`localdpo export --push` in a process of its own: huggingface_hub reads its address at import."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder / "hf"),
        "LOCALDPO_CACHE": str(folder / "cache"),
    }
    command = [sys.executable, "-m", "localdpo", "export", "r", "--to", "peft", "--push", "me/model"]
    command += ["--out", str(folder / "out"), "--runs-dir", str(folder / "runs"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.slow
def test_an_export_goes_to_the_hub_when_a_person_says_so(
    hub: Hub, tmp_path: Path, quantised_model: Path
) -> None:
    make_run(tmp_path, quantised_model)
    done = push(hub, tmp_path, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["url"] == f"{hub.url}/me/model"
    (created,) = hub.created
    assert (created["organization"], created["name"], created["visibility"]) == ("me", "model", "private")
    own = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != MANIFEST}
    assert hub.files == own
    assert b'"me/model")' in own["README.md"]
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", RECORD} <= own.keys()


@pytest.mark.slow
@pytest.mark.long
def test_a_refusal_is_a_line_and_the_export_stays(hub: Hub, tmp_path: Path, quantised_model: Path) -> None:
    make_run(tmp_path, quantised_model)
    hub.refuses = True
    done = push(hub, tmp_path, "--yes")
    assert done.returncode == 2
    assert "error: --push me/model: the hub says: " in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
