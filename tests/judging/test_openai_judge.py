"""Any OpenAI-compatible server: a fake one with good and bad replies, and a real mlx_lm.server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_judges import pairs, run_questions
from fake_server import FakeServer, Fault
from ports import reserved_ports

import localdpo
from localdpo.core.errors import UserError
from localdpo.evals.figures import tally
from localdpo.judging import openai
from localdpo.judging.base import JudgeBusy, JudgeStopped, Question, both_orders, collect
from localdpo.judging.cost import Budget, load_prices
from localdpo.judging.openai import OpenAIJudge
from localdpo.judging.registry import Judges
from localdpo.judging.rubric import load_rubric
from localdpo.judging.run import Retry

pytestmark = pytest.mark.slow

PAIRS = pairs(4)
QUESTIONS = both_orders(PAIRS)
FAST = Retry(tries=4, first=0.001, most=0.002, cap=300.0)
SAID = '{"reason": "so", "choice": "second"}'
DEMO = Path(localdpo.__file__).parent / "demo" / "bundle" / "model"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.delenv("LOCALDPO_JUDGE_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-for-openai-alone")
    # A proxy that does not exist: a server on this machine is asked directly.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with FakeServer() as fake:
        yield fake


def judge(server: FakeServer, rubric: str = "helpful", **options: Any) -> OpenAIJudge:
    return OpenAIJudge(load_rubric(rubric), load_prices(), f"{server.url}/v1", "local", **options)


def answers(questions: list[Question]) -> list[str]:
    lengths = [(len(one.answers[0]), len(one.answers[1])) for one in questions]
    return ["first" if one > two else "second" if two > one else "tie" for one, two in lengths]


def test_a_refusal_that_arrives_after_another_thread_found_the_form_is_no_end(server: FakeServer):
    asked = judge(server)

    def refuse(number: int, body: dict[str, Any]) -> Fault | None:
        if number == 0:  # while this one is under way, another finds out that the schema is refused
            assert asked.ask(QUESTIONS[1]).status == "ok"
        return Fault("status", 400, body='{"error":"no"}') if "response_format" in body else None

    server.fault = refuse
    assert asked.ask(QUESTIONS[0]).status == "ok"
    assert ["response_format" in body for body in server.bodies] == [True, True, False, False]
    # What the form that works is refused for lies in the question.
    server.fault = lambda number, body: Fault("status", 400, body='{"error":"too long"}')
    assert asked.ask(QUESTIONS[2]).status == "unanswered"
    assert len(server.bodies) == 5


def test_only_openai_itself_needs_a_key(server: FakeServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    judge(server).find_key()
    theirs = OpenAIJudge(load_rubric("helpful"), load_prices(), "https://api.openai.com/v1", "gpt")
    with pytest.raises(JudgeStopped, match="no key for openai gpt: set OPENAI_API_KEY"):
        Judges(judge(server), theirs).find_keys()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-for-openai-alone")
    Judges(theirs).find_keys()


def test_good_replies_are_verdicts_and_a_local_server_costs_nothing(server: FakeServer):
    budget = Budget(0.0)
    verdicts = run_questions(judge(server), QUESTIONS, budget=budget)
    assert [verdict.choice for verdict in verdicts] == answers(QUESTIONS)
    assert budget.spent == 0.0
    body = server.bodies[0]
    assert body.keys() == {"model", "messages", "max_tokens", "response_format"}
    assert body["response_format"]["json_schema"]["strict"] is True
    assert verdicts[0].usage.input_tokens == 100


def test_scores(server: FakeServer):
    verdicts = run_questions(judge(server, "quality"), [Question("1", "p", ("xxx",))])
    assert verdicts[0].score == 4.0


def test_a_server_that_refuses_the_schema_is_asked_without_it(server: FakeServer):
    server.fault = lambda number, body: (
        Fault("status", 400, body='{"error": "response_format is not supported"}')
        if "response_format" in body
        else None
    )
    verdicts = run_questions(judge(server, concurrency=1), QUESTIONS)
    assert [verdict.choice for verdict in verdicts] == answers(QUESTIONS)
    # It is remembered.
    assert server.requests == len(QUESTIONS) + 1


def refusing(status: int, body: str, field: str) -> Any:
    """A server that refuses every request with `field` in it."""
    return lambda number, asked: Fault("status", status, {}, body) if field in asked else None


REFUSED = {
    "vLLM": (400, "response_format", '{"object":"error","message":"guided decoding failed","code":400}'),
    "pydantic": (
        422,
        "response_format",
        '{"detail":[{"type":"extra_forbidden","loc":["body","response_format"],"msg":"Extra inputs"}]}',
    ),
    "the model": (400, "response_format", '{"error":{"message":"json_schema is not supported"}}'),
    "router": (404, "response_format", '{"error":"no endpoint supports structured outputs"}'),
    "plain text": (400, "response_format", "unknown field"),
    "HTML": (501, "response_format", "<html><h1>Not Implemented</h1></html>"),
    "a list": (400, "response_format", '[{"error": {"code": 400, "message": "bad request"}}]'),
    "an empty body": (415, "response_format", ""),
    "engine": (500, "response_format", '{"error":"failed to parse grammar"}'),
    "o-series": (
        400,
        "max_tokens",
        '{"error":{"message":"Unsupported parameter: \'max_tokens\'. Use \'max_completion_tokens\'.",'
        '"param":"max_tokens","code":"unsupported_parameter"}}',
    ),
    "other words": (422, "max_tokens", '{"detail":"bad request"}'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_server_refuses_is_put_otherwise_and_remembered(server: FakeServer, name: str):
    status, field, body = REFUSED[name]
    server.fault = refusing(status, body, field)
    one = judge(server, concurrency=1)
    verdicts = run_questions(one, QUESTIONS, retry=FAST)
    assert [verdict.choice for verdict in verdicts] == answers(QUESTIONS)
    refused = server.requests - len(QUESTIONS)
    assert 1 <= refused <= 2
    assert [field in asked for asked in server.bodies] == [True] * refused + [False] * len(QUESTIONS)
    # The schema goes only when it is the schema that is refused, and so does the limit's name.
    kept = server.bodies[-1]
    assert ("response_format" in kept) == (field == "max_tokens")
    assert ("max_tokens" in kept) == (field != "max_tokens")


def test_a_server_that_refuses_both_is_asked_without_either(server: FakeServer):
    def fault(number: int, asked: dict[str, Any]) -> Fault | None:
        return Fault("status", 400, {}, "no") if {"response_format", "max_tokens"} & asked.keys() else None

    server.fault = fault
    verdicts = run_questions(judge(server, concurrency=1), QUESTIONS[:2])
    assert [verdict.choice for verdict in verdicts] == answers(QUESTIONS[:2])
    assert server.requests == 5


def test_a_refusal_that_lies_in_the_question_is_told_in_its_first_words(server: FakeServer):
    def fault(number: int, asked: dict[str, Any]) -> Fault | None:
        return Fault("status", 400, {}, '{"error": "the context is too long"}') if number else None

    server.fault = fault
    verdicts = run_questions(judge(server, concurrency=1), QUESTIONS[:2])
    assert [verdict.status for verdict in verdicts] == ["ok", "unanswered"]
    assert "HTTP 400 (the context is too long)" in verdicts[1].reason
    # The form has worked before, so it is not the form.
    assert server.requests == 2


def test_an_error_in_a_reply_of_status_200_is_that_error(server: FakeServer):
    server.fault = lambda number, body: Fault(
        "status", 200, {}, '{"error": {"code": 402, "message": "no credit"}}'
    )
    with pytest.raises(JudgeStopped, match=r"HTTP 402 \(no credit\)"):
        run_questions(judge(server, concurrency=1), QUESTIONS, retry=FAST)


PASSING = {
    "429": Fault("status", 429, {"Retry-After": "0"}),
    "500": Fault("status", 500),
    "503 HTML": Fault("status", 503, {}, "<html>"),
    "hang": Fault("hang"),
    "drop": Fault("drop"),
    "HTML": Fault("status", 200, {}, "<html>hello</html>"),
    "half": Fault("status", 200, {}, '{"choices": [{"mess'),
    "no choices": Fault("status", 200, {}, '{"choices": []}'),
    "odd choices": Fault("status", 200, {}, '{"choices": [{"message": "hello"}]}'),
    "a list": Fault("status", 200, {}, "[]"),
    "null": Fault("status", 200, {}, "null"),
    "content": Fault("status", 200, {}, '{"choices": [{"message": {"content": 4}}]}'),
}


@pytest.mark.parametrize("name", PASSING)
def test_nothing_is_lost_by_a_failure_that_passes(server: FakeServer, name: str):
    one = judge(server, timeout=20.0, concurrency=1)
    if name == "hang":
        # Made ahead, for the later requests.
        assert not one._client.is_closed
        one.timeout = 0.5

    def fault(number: int, body: dict[str, Any]) -> Fault | None:
        # Only the first request is to run out of time, however busy the machine.
        one.timeout = 20.0
        return PASSING[name] if number == 0 else None

    server.fault = fault
    verdicts = run_questions(one, QUESTIONS[:2], retry=FAST)
    assert [verdict.choice for verdict in verdicts] == answers(QUESTIONS[:2])
    assert server.requests == 3


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ({"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}, "truncated"),
        ({"choices": [{"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"}]}, "refused"),
        ({"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}, "refused"),
        ({"choices": [{"message": {"content": "[[A]]"}, "finish_reason": "stop"}]}, "unparseable"),
        ({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}, "unparseable"),
        ({"choices": [{"message": {}}], "usage": "much"}, "unparseable"),
        ({"choices": [{"message": {"content": None, "reasoning_content": SAID}}]}, "unparseable"),
        (
            {"choices": [{"message": {"content": "", "reasoning": "hm"}, "finish_reason": "length"}]},
            "truncated",
        ),
        ({"choices": [{"message": {"content": [{"type": "thinking", "text": SAID}]}}]}, "unparseable"),
    ],
)
def test_no_verdict_is_counted(server: FakeServer, reply: dict[str, Any], status: str):
    server.reply = lambda body: reply
    verdicts = run_questions(judge(server), QUESTIONS)
    assert tally(collect(PAIRS, verdicts))["statuses"] == {status: len(QUESTIONS)}


def test_thoughts_without_a_verdict_say_what_to_do(server: FakeServer):
    message = {"content": None, "reasoning_content": "first I look at ..."}
    server.reply = lambda body: {"choices": [{"message": message, "finish_reason": "length"}]}
    verdict = judge(server, max_tokens=64).ask(QUESTIONS[0])
    assert verdict.reason == "the model used up its 64 tokens, thoughts included; raise --judge-tokens"
    assert verdict.raw == "first I look at ..."
    server.reply = lambda body: {"choices": [{"message": message, "finish_reason": "stop"}]}
    assert "turn thinking off on the server" in judge(server).ask(QUESTIONS[0]).reason


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": SAID}],
        [{"type": "text", "text": SAID[:9]}, {"type": "output_text", "text": SAID[9:]}],
        [SAID],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": SAID}],
        f"hm, the second is longer</think>\n\n{SAID}",
        f"[THINK]hm[/THINK]{SAID}",
        f"Here is my verdict:\n```json\n{SAID}\n```",
        f"{SAID}\nI hope this helps.",
    ],
)
def test_a_verdict_in_parts_after_thoughts_or_in_prose_is_read(server: FakeServer, content: Any):
    server.reply = lambda body: {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
    assert judge(server).ask(QUESTIONS[0]).choice == "second"


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_server_that_drips_is_left_after_the_time_of_a_request(server: FakeServer, concurrency: int):
    server.fault = lambda number, body: Fault("drip")
    start = time.monotonic()
    with pytest.raises(JudgeStopped, match=r"no reply in 0\.3 s"):
        run_questions(
            judge(server, timeout=0.3, concurrency=concurrency), QUESTIONS, retry=Retry(tries=1, first=0.001)
        )
    assert time.monotonic() - start < 4


def test_a_reply_without_end_is_read_to_its_limit_and_never_compressed(server: FakeServer):
    server.fault = lambda number, body: Fault("status", 200, {}, "x" * (openai._MOST_BYTES + 10_000_000))
    one = judge(server)
    assert len(one._post(one.payload(QUESTIONS[0])).body) == openai._MOST_BYTES
    assert server.headers[-1]["accept-encoding"] == "identity"
    with pytest.raises(JudgeBusy, match="a reply that is no completion"):
        one.ask(QUESTIONS[0])


@pytest.mark.parametrize("code", [401, 402, 403, 404, 405, 301, 307])
def test_what_every_question_would_meet_stops_after_one_call(server: FakeServer, code: int):
    server.fault = lambda number, body: Fault("status", code, {"location": f"{server.url}/elsewhere"})
    with pytest.raises(JudgeStopped, match=f"HTTP {code}"):
        run_questions(judge(server, concurrency=1), QUESTIONS, retry=FAST)
    assert server.requests == 1


def test_a_server_that_is_not_there_is_named(server: FakeServer):
    one = OpenAIJudge(load_rubric("helpful"), load_prices(), "http://127.0.0.1:9/v1", "local", concurrency=1)
    with pytest.raises(JudgeStopped, match=r"http://127\.0\.0\.1:9/v1/chat/completions cannot be reached"):
        run_questions(one, QUESTIONS, retry=FAST)


def test_a_key_goes_only_to_the_server_it_is_for(server: FakeServer, monkeypatch: pytest.MonkeyPatch):
    run_questions(judge(server), QUESTIONS[:1])
    assert "authorization" not in server.headers[-1]
    monkeypatch.setenv("LOCALDPO_JUDGE_KEY", "key-of-this-server")
    run_questions(judge(server), QUESTIONS[:1])
    assert server.headers[-1]["authorization"] == "Bearer key-of-this-server"


def test_what_a_remote_server_costs(server: FakeServer):
    def remote(model: str) -> OpenAIJudge:
        return OpenAIJudge(load_rubric("helpful"), load_prices(), "https://api.example.org/v1", model)

    assert remote("unheard-of").worst_case_usd(QUESTIONS[0]) == float("inf")
    assert 0.04 < remote("claude-opus-5-5").worst_case_usd(QUESTIONS[0]) < 1


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080", "ftp://x/v1", "http://", "http://x:y/v1", "http://a b/v1", "http://[::1", ""]
)
def test_an_address_that_is_none(url: str):
    with pytest.raises(UserError, match="expected the address"):
        OpenAIJudge(load_rubric("helpful"), load_prices(), url, "m")


@pytest.mark.parametrize("host", ["host", "host:99999", "[::1", ""])
def test_an_address_with_a_password_is_refused_without_showing_it(host: str):
    with pytest.raises(UserError, match="password") as error:
        OpenAIJudge(load_rubric("helpful"), load_prices(), f"http://user:secret-word@{host}/v1", "m")
    assert "secret-word" not in str(error.value)


# --- a real server -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlx_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an mlx_lm.server with the demo's model."""
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(DEMO), "--port"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with (
        reserved_ports(1) as (port,),
        (tmp_path_factory.mktemp("mlx_server") / "log").open("w") as log,
        subprocess.Popen([*command, str(port)], stdout=log, stderr=log, env=environment) as process,
    ):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(600):
            try:
                with opener.open(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, Path(log.name).read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
        process.kill()


@pytest.mark.long
def test_a_real_server_with_a_model_that_knows_no_json(mlx_server: str):
    one = OpenAIJudge(
        load_rubric("helpful"),
        load_prices(),
        mlx_server,
        str(DEMO),
        max_tokens=24,
        concurrency=2,
        timeout=60.0,
    )
    verdicts = run_questions(one, QUESTIONS[:4])
    assert all(verdict.status in ("unparseable", "truncated") for verdict in verdicts)
    assert all(verdict.choice is None and verdict.raw for verdict in verdicts)
    assert all(verdict.usage.input_tokens > 100 and verdict.usage.output_tokens > 0 for verdict in verdicts)
    result = tally(collect(PAIRS[:2], verdicts))
    assert (result["valid"], sum(result["statuses"].values())) == (0, 4)


@pytest.mark.long
def test_a_real_server_asked_for_a_model_it_has_not(mlx_server: str):
    one = OpenAIJudge(load_rubric("helpful"), load_prices(), mlx_server, "/no/such/model", concurrency=1)
    with pytest.raises(JudgeStopped):
        run_questions(one, QUESTIONS[:4], retry=FAST)
