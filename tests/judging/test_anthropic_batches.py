"""Message Batches: unordered results, failures, other origins. Kills are in test_judge_kill.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_judges import pairs, run_questions
from fake_server import FakeServer, Fault

from localdpo.core.errors import UserError
from localdpo.judging.anthropic import AnthropicJudge
from localdpo.judging.anthropic_batch import LEDGER, AnthropicBatchJudge
from localdpo.judging.base import JudgeStopped, both_orders
from localdpo.judging.cost import Budget, load_prices
from localdpo.judging.rubric import load_rubric
from localdpo.judging.run import Journal, Retry, preview
from localdpo.records.log import seal

pytestmark = pytest.mark.slow

QUESTIONS = both_orders(pairs(4))
FAST = Retry(tries=4, first=0.001, most=0.002, cap=300.0)
KEY = "sk-test-key-of-the-tests"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    with FakeServer() as fake:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", fake.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield fake


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "verdicts.jsonl") as one:
        yield one


def batch_judge() -> AnthropicBatchJudge:
    judge = AnthropicBatchJudge(load_rubric("helpful"), load_prices(), "claude-opus-5-5", timeout=20.0)
    judge.poll = 0.01
    return judge


def plain_judge() -> AnthropicJudge:
    return AnthropicJudge(load_rubric("helpful"), load_prices(), "claude-opus-5-5", timeout=20.0)


def test_one_batch_at_half_the_price_and_the_same_verdicts(server: FakeServer, journal: Journal):
    waits: list[str] = []
    judge = batch_judge()
    verdicts = run_questions(judge, QUESTIONS, journal, on_wait=lambda seconds, why: waits.append(why))
    assert len(server.batches) == 1
    assert waits == ["batch msgbatch_1: 8 of 8 in work"]
    requests = server.batches["msgbatch_1"]["requests"]
    assert all(len(request["custom_id"]) == 64 for request in requests)
    plain = run_questions(plain_judge(), QUESTIONS)
    assert [one.choice for one in verdicts] == [one.choice for one in plain]
    assert sum(one.usage.usd for one in verdicts) == pytest.approx(sum(one.usage.usd for one in plain) / 2)
    # They share the journal: a verdict is the same, however it was asked for.
    assert preview(plain_judge(), QUESTIONS, journal).questions == 0
    assert json.loads((journal.path.parent / LEDGER).read_text())["batches"] == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/v1/messages/batches/msgbatch_1/results",
        "https://example.org/results",
        "//example.org/results",
        "http://user@{host}/results",
        "http://{host}.example.org/results",
        "https://{host}/results",
        "http://[broken/results",
        "/v1/results",
    ],
)
def test_results_on_another_origin_are_refused(server: FakeServer, journal: Journal, url: str):
    server.results_url = url.format(host=server.url.removeprefix("http://"))
    with pytest.raises(JudgeStopped, match=r"results are said to be at .* refused") as error:
        run_questions(batch_judge(), QUESTIONS, journal)
    assert KEY not in str(error.value)
    # Nothing was lost: with the right address the same batch is used.
    server.results_url = None
    assert len(run_questions(batch_judge(), QUESTIONS, journal)) == len(QUESTIONS)
    assert len(server.batches) == 1


def test_requests_of_a_batch_that_failed_are_counted_and_asked_again_later(
    server: FakeServer, journal: Journal
):
    kinds = iter(["errored", "expired", "canceled", "odd"])

    def fail(key: str, message: dict[str, Any]) -> dict[str, Any] | None:
        kind = next(kinds, None)
        error = {"type": "error", "error": {"type": "invalid_request_error", "message": "too long"}}
        return None if kind is None else {"type": kind} | ({"error": error} if kind == "errored" else {})

    server.result_of = fail
    verdicts = run_questions(batch_judge(), QUESTIONS, journal)
    assert [one.status for one in verdicts] == ["ok"] * 4 + ["unanswered"] * 4
    assert "too long" in verdicts[-1].reason
    again = run_questions(batch_judge(), QUESTIONS, journal)
    assert [one.status for one in again] == ["ok"] * 8
    assert [len(batch["requests"]) for batch in server.batches.values()] == [8, 4]


def test_a_batch_that_failed_as_a_whole_stops(server: FakeServer, journal: Journal):
    server.result_of = lambda key, message: {"type": "expired"}
    with pytest.raises(JudgeStopped, match="the whole batch failed: the request was expired"):
        run_questions(batch_judge(), QUESTIONS, journal)
    server.result_of = lambda key, message: None
    assert len(run_questions(batch_judge(), QUESTIONS, journal)) == 8
    assert len(server.batches) == 2


def test_refusals_and_odd_messages_are_counted(server: FakeServer, journal: Journal):
    replies = iter(
        [{"stop_reason": "refusal", "content": []}, {"type": "else"}, {"stop_reason": "max_tokens"}]
    )
    server.reply = lambda body: next(replies, {})
    verdicts = run_questions(batch_judge(), QUESTIONS, journal)
    assert sorted(one.status for one in verdicts) == ["ok"] * 5 + ["refused", "truncated", "unparseable"]


def test_failures_on_the_way_are_tried_again(server: FakeServer, journal: Journal):
    faults = {0: Fault("status", 529), 1: Fault("status", 200, {}, "<html>"), 2: Fault("status", 429)}
    server.fault = lambda number, body: faults.get(number)
    assert len(run_questions(batch_judge(), QUESTIONS, journal, retry=FAST)) == 8
    assert len(server.batches) == 1


def test_a_server_that_is_down_stops_and_the_batch_is_sent_later(server: FakeServer, journal: Journal):
    server.fault = lambda number, body: Fault("status", 500)
    with pytest.raises(JudgeStopped, match="HTTP 500"):
        run_questions(batch_judge(), QUESTIONS, journal, retry=FAST)
    server.fault = lambda number, body: None
    assert len(run_questions(batch_judge(), QUESTIONS, journal, retry=FAST)) == 8
    assert len(server.batches) == 1


def test_a_batch_that_is_gone_names_what_to_delete(server: FakeServer, journal: Journal):
    server.polls_to_end = 10**9

    def stop(seconds: float, why: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_questions(batch_judge(), QUESTIONS, journal, on_wait=stop)
    server.batches.clear()
    with pytest.raises(
        JudgeStopped, match=r"HTTP 404 \(no such batch\); if batch msgbatch_1 .* delete .*batches.json"
    ):
        run_questions(batch_judge(), QUESTIONS, journal)


def test_the_worst_case_of_the_whole_batch_has_to_fit_the_limit(server: FakeServer, journal: Journal):
    worst = preview(batch_judge(), QUESTIONS, journal).worst_usd
    assert worst == pytest.approx(preview(plain_judge(), QUESTIONS).worst_usd / 2)
    with pytest.raises(JudgeStopped, match="limit"):
        run_questions(batch_judge(), QUESTIONS, journal, budget=Budget(worst * 0.99))
    assert server.requests == 0
    budget = Budget(worst * 1.01)
    run_questions(batch_judge(), QUESTIONS, journal, budget=budget)
    assert 0 < budget.spent < worst


def test_a_batch_needs_a_journal(server: FakeServer):
    with pytest.raises(ValueError, match="journal"):
        run_questions(batch_judge(), QUESTIONS)


SENT = seal(json.dumps({"v": 1, "batches": [{"time": 1.0, "keys": ["a" * 64], "id": "msgbatch_1"}]})).decode()


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"v": 2, "batches": []}', '{"v": 1, "batches": [{}]}', SENT.replace("aaa", "aab", 1)],
)
def test_a_damaged_ledger_is_not_taken_for_an_empty_one(server: FakeServer, journal: Journal, text: str):
    (journal.path.parent / LEDGER).write_text(text)
    with pytest.raises(UserError, match="damaged"):
        run_questions(batch_judge(), QUESTIONS, journal)
    assert server.requests == 0
