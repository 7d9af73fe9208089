"""`localdpo eval` with servers that answer in ways of their own, or with malice: the whole command."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Fault
from tiny_folders import make_adapter, recipe_text, write_pairs, write_rows

from localdpo.cli.main import run
from localdpo.core.atomic import write_manifest
from localdpo.core.text import escaped
from localdpo.evals.table import read_record
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow

HOSTILE = "\x1b[31m\x1b]52;c;SEVZ\x07\x9b2J\u202e[red]"
GOOD = json.dumps({"reason": "short", "choice": "first"})
Eval = Callable[..., tuple[object, str, dict[str, Any] | None]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> RunDir:
    folder = tmp_path_factory.mktemp("judged")
    pairs = write_pairs(folder / "pairs.jsonl", 2)
    prompts = write_rows(
        folder / "prompts.jsonl", [{"prompt": f"What is question number {n}?"} for n in (1, 2)]
    )
    tiny = RunDir.create(
        folder / "runs", "tiny", recipe_text(tiny_model, pairs, eval={"prompts": str(prompts)})
    )
    make_adapter(tiny.checkpoint_path(3), tiny_model, seed=77)
    write_manifest(tiny.checkpoint_path(3))
    return tiny


@pytest.fixture
def evaluate(tiny: RunDir, monkeypatch: pytest.MonkeyPatch) -> Eval:
    """Runs the command against a server; its exit code, what it printed, and the record if there is one."""
    monkeypatch.setenv("LOCALDPO_JUDGE_KEY", "")

    def evaluated(server: FakeServer, name: str) -> tuple[object, str, dict[str, Any] | None]:
        printed = io.StringIO()
        words = ["eval", "tiny", "--judge", f"openai:{server.url}/v1#m", "--name", name, "--max-tokens", "4"]
        monkeypatch.setattr(sys, "argv", ["localdpo", *words, "--runs-dir", str(tiny.path.parent)])
        for stream in ("stdout", "stderr"):
            monkeypatch.setattr(sys, stream, printed)
        try:
            run()
            code: object = 0
        except SystemExit as end:
            code = end.code
        shown = printed.getvalue()
        assert escaped(shown) == shown
        assert "Traceback" not in shown
        path = tiny.path / "eval" / f"{name}.json"
        return code or 0, shown, read_record(path) if path.exists() else None

    return evaluated


def refusing(field: str, code: int, body: object) -> Callable[[int, dict[str, Any]], Fault | None]:
    return lambda number, asked: Fault("status", code, body=json.dumps(body)) if field in asked else None


def message(**fields: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **fields}}
    return lambda body: {"choices": [choice]}


REFUSALS = {
    "noschema422": refusing("response_format", 422, {"detail": [{"msg": "extra fields not permitted"}]}),
    "noschema400": refusing("response_format", 400, {"error": {"message": "not supported by this model"}}),
    "newlimit": refusing(
        "max_tokens",
        400,
        {"error": {"message": "Use 'max_completion_tokens'.", "code": "unsupported_parameter"}},
    ),
}
REPLIES = {
    "parts": message(content=[{"type": "thinking", "text": "hm"}, {"type": "text", "text": GOOD}]),
    "prose": message(content=f"Here is my verdict:\n```json\n{GOOD}\n```"),
    "thoughts before": message(content=f"I weigh both.\n</think>\n\n{GOOD}"),
}
# Replies from which no verdict may be read.
NO_VERDICTS = {
    "thoughts-alone": message(content=None, reasoning_content=GOOD),
    "deep": message(content='{"choice":' + "[" * 50_000),
    "hostile-choice": message(content=json.dumps({"reason": HOSTILE, "choice": HOSTILE})),
    "hostile-words": message(content=HOSTILE * 500),
    "hostile-refusal": message(content="", refusal=HOSTILE),
    "two-verdicts": message(content=GOOD + GOOD.replace("first", "second")),
}


@pytest.mark.parametrize("how", [*REFUSALS, *REPLIES])
def test_a_server_with_ways_of_its_own_judges(how: str, evaluate: Eval) -> None:
    with FakeServer() as server:
        server.fault = REFUSALS.get(how, server.fault)
        server.reply = REPLIES.get(how, server.reply)
        code, shown, record = evaluate(server, how.replace(" ", "-"))
    assert code == 0, shown
    assert record is not None
    assert [duel["valid"] for duel in record["duels"]] == [2]


@pytest.mark.parametrize("how", NO_VERDICTS)
def test_from_a_reply_without_a_verdict_none_is_read(how: str, evaluate: Eval) -> None:
    with FakeServer() as server:
        server.reply = NO_VERDICTS[how]
        code, shown, record = evaluate(server, how)
    assert code == 0, shown
    assert record is not None
    assert [(duel["valid"], sum(duel["statuses"].values())) for duel in record["duels"]] == [(0, 4)]


@pytest.mark.parametrize("body", [HOSTILE, json.dumps({"error": {"message": HOSTILE}}), "[" * 50_000])
@pytest.mark.parametrize("code", [401, 404, 302])
def test_a_server_that_says_no_ends_the_command_in_one_line(code: int, body: str, evaluate: Eval) -> None:
    with FakeServer() as server:
        server.fault = lambda number, asked: Fault("status", code, body=body)
        exit_code, shown, record = evaluate(server, "none")
    assert (exit_code, record) == (2, None)
    (line,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert f"HTTP {code}" in line
    assert ("\\x1b[31m" in line) == (HOSTILE in body or "u001b" in body)


def test_a_hostile_count_of_tokens_is_none(evaluate: Eval) -> None:
    usage = {"prompt_tokens": 10**400, "completion_tokens": -7, "prompt_tokens_details": HOSTILE}
    with FakeServer() as server:
        server.reply = lambda body: {"usage": usage, "model": HOSTILE, "id": HOSTILE}
        code, shown, record = evaluate(server, "counts")
    assert code == 0, shown
    assert record is not None
