"""Claude as a judge, against a loopback server that misbehaves in every way we know of."""

from __future__ import annotations

import email.utils
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_judges import pairs, run_questions
from fake_server import FakeServer, Fault, by_hash

from localdpo.cli.doctor import judge_model
from localdpo.core.errors import UserError
from localdpo.evals.figures import tally
from localdpo.judging.anthropic import AnthropicJudge, newest_opus
from localdpo.judging.base import JudgeStopped, Question, both_orders, collect
from localdpo.judging.cost import Budget, load_prices
from localdpo.judging.panel import Jury
from localdpo.judging.rubric import load_rubric
from localdpo.judging.run import Journal, Retry, preview

pytestmark = pytest.mark.slow

MODEL = "claude-opus-5-5"
PAIRS = pairs(6)
QUESTIONS = both_orders(PAIRS)
FAST = Retry(tries=6, first=0.001, most=0.002, cap=300.0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    with FakeServer() as fake:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", fake.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test-key-of-the-tests")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield fake


def judge(concurrency: int = 4, **options: Any) -> AnthropicJudge:
    rubric = load_rubric(options.pop("rubric", "helpful"))
    return AnthropicJudge(rubric, load_prices(), MODEL, concurrency=concurrency, timeout=20.0, **options)


def answers(questions: list[Question]) -> list[str]:
    lengths = [(len(one.answers[0]), len(one.answers[1])) for one in questions]
    return ["first" if one > two else "second" if two > one else "tie" for one, two in lengths]


def choices(verdicts: list[Any]) -> list[str]:
    return [verdict.choice for verdict in verdicts]


def test_the_default_is_the_newest_opus():
    assert newest_opus().startswith("claude-opus-")
    assert AnthropicJudge(load_rubric("helpful"), load_prices()).model == newest_opus()
    # And its price is known, so that a limit can be kept by default.
    assert load_prices().of(newest_opus()) is not None


def test_a_request_holds_what_it_should_and_no_sampling_options(server: FakeServer):
    verdicts = run_questions(judge(), QUESTIONS)
    assert choices(verdicts) == answers(QUESTIONS)
    body = server.bodies[0]
    assert body.keys() == {"model", "max_tokens", "system", "messages", "output_config"}
    assert body["output_config"]["format"]["schema"]["additionalProperties"] is False
    assert body["system"][0]["cache_control"] == {"type": "ephemeral"}
    # The cached part is the same in every request.
    assert len({json.dumps(one["system"]) for one in server.bodies}) == 1
    assert "retry-count" in " ".join(server.headers[0])
    assert all(one["authorization"] == "Bearer sk-test-key-of-the-tests" for one in server.headers)


def test_an_effort_is_sent_and_makes_other_verdicts(server: FakeServer):
    run_questions(judge(effort="low"), QUESTIONS[:1])
    assert server.bodies[0]["output_config"]["effort"] == "low"
    assert server.bodies[0]["max_tokens"] == judge().max_tokens
    assert judge(effort="max").max_tokens > judge(effort="high").max_tokens == judge().max_tokens
    assert judge(effort="max", max_tokens=500).max_tokens == 500
    assert judge(effort="low").identity != judge().identity
    assert "effort" not in judge().identity  # so that verdicts from before there was one are still found


@pytest.mark.parametrize("url", ["", "localhost:80", "ftp://x", "http://127.0.0.1:99999", "http://[::1"])
def test_an_address_that_is_none_stops_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
    with pytest.raises(JudgeStopped, match="ANTHROPIC_BASE_URL is not the address of a server"):
        judge().find_key()


def test_an_effort_that_the_model_does_not_take_stops(server: FakeServer):
    body = json.dumps({"error": {"message": "This model does not support the effort parameter."}})
    server.fault = lambda number, body_: Fault("status", 400, {}, body)
    with pytest.raises(JudgeStopped, match=r"does not support the effort .*leave out --effort"):
        run_questions(judge(effort="low", concurrency=1), QUESTIONS)
    assert server.requests == 1


def test_how_long_a_model_lives(server: FakeServer, monkeypatch: pytest.MonkeyPatch):
    day = {"lifecycle": "deprecated", "retires_at": "2026-11-30T00:00:00Z"}
    server.models = {MODEL: {"id": MODEL, "type": "model", **day}, "claude-new": {"lifecycle": "active"}}
    assert judge().life() == ("deprecated", "2026-11-30", "the API")
    fact = judge_model("anthropic:claude-new")
    assert (fact.value, fact.state) == ("active, no date of its end, says the API", "ok")
    fact = judge_model("anthropic:claude-none")
    assert fact.state == "missing"
    assert "no such model" in str(fact.hint)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    fact = judge_model("anthropic:claude-sonnet-4-5")
    assert re.fullmatch(r"(deprecated, retires|retired) 2026-11-30, says the anthropic package", fact.value)
    assert judge_model("anthropic:claude-mythos-preview").value.startswith("retired 2026-06-30, says")
    fact = judge_model(f"anthropic:{MODEL}")
    assert (fact.value, fact.state) == ("no date of its end, says the anthropic package", "info")
    assert judge_model("anthropic:claude-none").value.endswith("package, which does not know this model")
    with pytest.raises(UserError, match=r"expected anthropic\[:MODEL\]"):
        judge_model("rules")


def test_what_it_cost_and_what_the_cache_saved_is_in_the_verdict(server: FakeServer):
    server.reply = lambda body: {
        "usage": {
            "input_tokens": 100,
            "output_tokens": 50,
            "cache_read_input_tokens": 1000,
            "cache_creation_input_tokens": 10,
        }
    }
    usage = run_questions(judge(), QUESTIONS[:1])[0].usage
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens) == (1110, 50, 1000)
    assert usage.usd == pytest.approx((100 * 4 + 10 * 5 + 1000 * 0.2 + 50 * 20) / 1e6)


def test_scores(server: FakeServer):
    questions = [Question(str(number), f"p{number}", ("x" * number,)) for number in range(7)]
    verdicts = run_questions(judge(rubric="quality"), questions)
    assert [verdict.score for verdict in verdicts] == [1.0 + number % 5 for number in range(7)]
    with pytest.raises(ValueError, match="for pairwise questions"):
        run_questions(judge(), questions)


PASSING = {
    "429 seconds": Fault("status", 429, {"retry-after": "0"}),
    "429 milliseconds": Fault("status", 429, {"retry-after-ms": "3"}),
    "429 date": Fault("status", 429, {"retry-after": email.utils.formatdate(time.time() - 60, usegmt=True)}),
    "529": Fault("status", 529),
    "500": Fault("status", 500),
    "502 HTML": Fault("status", 502, {"content-type": "text/html"}, "<html>bad gateway</html>"),
    "503": Fault("status", 503, {"retry-after": "soon"}),
    "408": Fault("status", 408),
    "hang": Fault("hang"),
    "drop": Fault("drop"),
    "cut": Fault("cut"),
    "HTML": Fault("status", 200, {"content-type": "text/html"}, "<html>please log in</html>"),
    "half a JSON": Fault("status", 200, {}, '{"id": "msg", "type": "mess'),
    "empty": Fault("status", 200, {}, ""),
    "another shape": Fault("status", 200, {}, '{"ok": true}'),
    "a list": Fault("status", 200, {}, "[1]"),
    "null": Fault("status", 200, {}, "null"),
    "no usage": Fault("status", 200, {}, '{"type": "message", "content": [], "stop_reason": "end_turn"}'),
    "no content": Fault(
        "status",
        200,
        {},
        '{"type": "message", "content": 3, "usage": {"input_tokens": 1, "output_tokens": 1}}',
    ),
}


@pytest.mark.parametrize("name", PASSING)
def test_nothing_is_lost_by_a_failure_that_passes(server: FakeServer, name: str, tmp_path):
    # The first try of each question fails.
    questions = QUESTIONS[:4]
    one = judge()
    if name == "hang":
        # Made ahead, for the later tries.
        one.client()
        one.timeout = 0.5
    seen: set[str] = set()

    def fault(number: int, body: dict[str, Any]) -> Fault | None:
        message = body["messages"][-1]["content"]
        with server.lock:
            first = message not in seen
            seen.add(message)
            if len(seen) == len(questions):
                # Only the first tries are to run out of time, however busy the machine.
                one.timeout = 20.0
        return PASSING[name] if first else None

    server.fault = fault
    with Journal(tmp_path / "v.jsonl") as journal:
        verdicts = run_questions(one, questions, journal, retry=FAST)
    assert choices(verdicts) == answers(questions)
    assert server.requests == 2 * len(questions)
    assert set(server.asked.values()) == {1}


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (401, "set ANTHROPIC_API_KEY to a valid one"),
        (402, "add some"),
        (403, "may not do this"),
        (404, "look at the model's name"),
        (302, "set its real address"),
    ],
)
def test_what_every_question_would_meet_stops_after_one_call(server: FakeServer, code: int, hint: str):
    server.fault = lambda number, body: Fault("status", code, {"location": "http://127.0.0.1:1/elsewhere"})
    with pytest.raises(JudgeStopped) as error:
        run_questions(judge(concurrency=1), QUESTIONS, retry=FAST)
    assert server.requests == 1
    assert f"HTTP {code} (on purpose)" in str(error.value)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_no_key_is_said_before_anything_is_sent(server: FakeServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    # A look at the cost needs no key.
    assert preview(judge(), QUESTIONS).questions == len(QUESTIONS)
    for ask in (lambda: run_questions(judge(), QUESTIONS), Jury([judge(), judge()]).find_key):
        with pytest.raises(JudgeStopped, match="set ANTHROPIC_API_KEY"):
            ask()
    assert server.requests == 0


def test_a_day_to_wait_stops_cleanly_and_the_rest_is_asked_later(server: FakeServer, tmp_path):
    server.fault = lambda number, body: (
        Fault("status", 429, {"retry-after": "86400"}) if number >= 5 else None
    )
    with Journal(tmp_path / "v.jsonl") as journal:
        with pytest.raises(JudgeStopped, match="asks to wait 24h 00m"):
            run_questions(judge(concurrency=1), QUESTIONS, journal)
        assert server.requests == 6
        server.fault = lambda number, body: None
        assert choices(run_questions(judge(), QUESTIONS, journal)) == answers(QUESTIONS)
    assert set(server.asked.values()) == {1}


def test_a_question_the_server_will_not_have_is_counted_and_the_others_go_on(server: FakeServer):
    bad = both_orders(PAIRS[3:4])[0].prompt
    server.fault = lambda number, body: (
        Fault("status", 400, body='{"error": {"message": "prompt is too long"}}')
        if f"\n{bad}\n" in body["messages"][-1]["content"]
        else None
    )
    verdicts = run_questions(judge(concurrency=1), QUESTIONS, retry=FAST)
    assert [verdict.status for verdict in verdicts].count("unanswered") == 2
    assert "prompt is too long" in verdicts[6].reason
    assert server.requests == len(QUESTIONS)


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ({"stop_reason": "refusal", "content": [], "stop_details": {"explanation": "no"}}, "refused"),
        ({"stop_reason": "refusal", "content": [], "stop_details": {"category": "bio"}}, "refused (bio)"),
        ({"stop_reason": "refusal", "content": [], "stop_details": {"category": 3}}, "refused"),
        ({"stop_reason": "refusal", "content": []}, "refused"),
        ({"stop_reason": "max_tokens"}, "truncated"),
        ({"stop_reason": "model_context_window_exceeded", "content": []}, "truncated"),
        ({"content": []}, "unparseable"),
        ({"content": [{"type": "text", "text": "The first one."}]}, "unparseable"),
        ({"content": [{"type": "thinking", "thinking": '{"reason": "", "choice": "first"}'}]}, "unparseable"),
        ({"content": [None, 3, {"type": "text"}]}, "unparseable"),
    ],
)
def test_no_verdict_is_counted_paid_and_asked_again_in_a_later_run(
    server: FakeServer, tmp_path, reply: dict[str, Any], status: str
):
    server.reply = lambda body: reply
    budget = Budget(5.0)
    with Journal(tmp_path / "v.jsonl") as journal:
        verdicts = run_questions(judge(), QUESTIONS, journal, budget=budget)
        assert {verdict.label for verdict in verdicts} == {status}
        assert budget.spent > 0
        assert tally(collect(PAIRS, verdicts))["statuses"] == {status: len(QUESTIONS)}
        server.reply = lambda body: {}
        assert choices(run_questions(judge(), QUESTIONS, journal)) == answers(QUESTIONS)


def table(verdicts: list[Any]) -> str:
    """A table as an evaluation would print one."""
    result = collect(PAIRS, verdicts)
    lines = [f"{one.id} {one.score} {one.first.reason} {one.second.reason}" for one in result]
    return "\n".join([*lines, repr(tally(result)), str(sum(one.usage.usd for one in verdicts))])


def test_one_at_a_time_and_sixteen_give_the_same_table(server: FakeServer, tmp_path):
    server.decide = by_hash
    server.reply = lambda body: {"stop_reason": "refusal"} if "question 3\n" in str(body["messages"]) else {}
    together = threading.Barrier(12)
    tables = set()
    for concurrency in (1, 16):
        start = server.requests

        def fault(number: int, body: dict[str, Any]) -> Fault | None:
            if concurrency == 16 and number - start < 12:  # noqa: B023
                together.wait(20)
            return Fault("status", 529) if number % 7 == 3 else None

        server.fault = fault
        with Journal(tmp_path / f"{concurrency}.jsonl") as journal:
            tables.add(table(run_questions(judge(concurrency), QUESTIONS, journal, retry=FAST)))
    assert len(tables) == 1
    assert server.most_in_flight >= 12


@pytest.mark.parametrize("limit", [0.8, 2.0, 5.0])
def test_the_server_never_bills_more_than_the_limit_with_sixteen_in_flight(server: FakeServer, limit: float):
    # Some replies cost all that they may; some are lost after the work was done.
    server.output_tokens = lambda number: AnthropicJudge.max_tokens if number % 3 == 0 else 600
    lost = {4: Fault("drop", billed=True), 9: Fault("cut"), 13: Fault("drop", billed=True)}
    server.fault = lambda number, body: lost.get(number)
    questions = both_orders(pairs(40))
    budget = Budget(limit)
    with pytest.raises(JudgeStopped, match="limit"):
        run_questions(judge(16), questions, budget=budget, retry=FAST)
    price = load_prices().of(MODEL)
    assert price is not None
    billed = sum((sent * price.input + said * price.output) / 1e6 for sent, said in server.billed)
    assert 0 < billed <= limit
    assert billed <= budget.spent + 1e-9 <= limit + 1e-9
    assert len(server.billed) > 1


def test_the_preview_is_an_upper_bound_and_free(server: FakeServer):
    server.output_tokens = lambda number: AnthropicJudge.max_tokens
    seen = preview(judge(), QUESTIONS)
    assert server.requests == 0
    verdicts = run_questions(judge(), QUESTIONS)
    assert sum(verdict.usage.usd for verdict in verdicts) <= seen.worst_usd


def test_a_model_without_a_price_works_but_not_with_a_limit(server: FakeServer):
    one = AnthropicJudge(load_rubric("helpful"), load_prices(), "claude-unheard-of")
    assert preview(one, QUESTIONS).worst_usd == float("inf")
    assert choices(run_questions(one, QUESTIONS)) == answers(QUESTIONS)
    with pytest.raises(JudgeStopped, match="price"):
        run_questions(one, QUESTIONS, budget=Budget(1.0))
