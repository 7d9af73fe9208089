"""The runner with judges that need no server: order, budget, patience, interruption."""

from __future__ import annotations

import threading
import time

import pytest
from fake_judges import FakeJudge, longer, pairs, run_questions

from localdpo.judging import run
from localdpo.judging.base import JudgeBusy, JudgeStopped, Question, both_orders
from localdpo.judging.cost import Budget
from localdpo.judging.remote import retry_after
from localdpo.judging.run import Journal, Patience, Retry, preview
from localdpo.records.verdicts import Usage, Verdict

FAST = Retry(tries=4, first=0.001, most=0.002, cap=300.0)
QUESTIONS = both_orders(pairs(20))


def test_verdicts_come_in_the_questions_order_and_nothing_is_asked_twice(tmp_path):
    judge = FakeJudge(longer, concurrency=8)
    twice = [*QUESTIONS, *QUESTIONS]
    seen: list[str] = []
    with Journal(tmp_path / "v.jsonl") as journal:
        assert preview(judge, twice, journal) == (40, 0, 0.0)
        verdicts = run_questions(
            judge, twice, journal, on_verdict=lambda question, _: seen.append(question.id)
        )
        assert preview(judge, twice, journal) == (0, 40, 0.0)
        again = run_questions(judge, twice, journal)
    assert verdicts == again == [longer(question) for question in twice]
    assert sorted(seen) == sorted(question.id for question in twice)
    assert len(judge.asked) == 40


@pytest.mark.parametrize("concurrency", [1, 3, 16, None])
def test_never_more_at_a_time_than_the_judge_takes(concurrency):
    threads: set[str] = set()
    now, most = 0, 0
    lock = threading.Lock()

    def decide(question: Question) -> Verdict:
        nonlocal now, most
        with lock:
            threads.add(threading.current_thread().name)
            now += 1
            most = max(most, now)
        time.sleep(0.002)
        with lock:
            now -= 1
        return longer(question)

    judge = FakeJudge(decide, concurrency=5)
    assert run_questions(judge, QUESTIONS, concurrency=concurrency) == [longer(one) for one in QUESTIONS]
    assert most <= min(concurrency or 5, 5)
    if concurrency == 1:
        assert threads == {threading.current_thread().name}


def test_a_busy_judge_is_asked_again_and_told_why():
    tries: dict[str, int] = {}
    waits: list[tuple[float, str]] = []

    def decide(question: Question) -> Verdict:
        tries[question.prompt] = tries.get(question.prompt, 0) + 1
        if tries[question.prompt] < 3:
            raise JudgeBusy("HTTP 529")
        return longer(question)

    questions = [Question(str(number), str(number), ("a", "bb")) for number in range(3)]
    verdicts = run_questions(
        FakeJudge(decide), questions, retry=FAST, on_wait=lambda seconds, why: waits.append((seconds, why))
    )
    assert [verdict.choice for verdict in verdicts] == ["second"] * 3
    assert len(waits) == 6
    assert {why for _, why in waits} == {"HTTP 529"}


def test_one_question_without_an_answer_is_counted_and_three_in_a_row_stop(tmp_path):
    def decide(question: Question) -> Verdict:
        if question.prompt in bad:
            raise JudgeBusy("HTTP 500")
        return longer(question)

    questions = [Question(str(number), str(number), ("a", "bb")) for number in range(10)]
    bad = {"2", "5", "9"}
    with Journal(tmp_path / "v.jsonl") as journal:
        verdicts = run_questions(FakeJudge(decide), questions, journal, retry=FAST)
        assert [verdict.status for verdict in verdicts].count("unanswered") == 3
        assert verdicts[2].reason == "HTTP 500, 4 tries"
        bad = {"2", "5", "9", "4", "3"}
        # What is known is not asked; the three that are open are in a row now.
        judge = FakeJudge(decide)
        with pytest.raises(JudgeStopped, match="3 questions in a row got no answer"):
            run_questions(judge, questions, journal, retry=FAST)
        assert {question.prompt for question in judge.asked} == {"2", "5", "9"}


def test_a_wait_beyond_the_cap_stops_after_one_call_and_can_go_on(tmp_path):
    judge = FakeJudge(lambda question: (_ for _ in ()).throw(JudgeBusy("HTTP 429", after=86400.0)))
    with Journal(tmp_path / "v.jsonl") as journal:
        with pytest.raises(JudgeStopped, match="24h 00m"):
            run_questions(judge, QUESTIONS, journal)
        assert len(judge.asked) == 1
        assert len(run_questions(FakeJudge(longer), QUESTIONS, journal)) == len(QUESTIONS)


def test_a_server_that_asks_to_wait_is_left_alone_by_all_threads():
    asked: list[float] = []
    lock, waiting = threading.Lock(), threading.Event()

    def decide(question: Question) -> Verdict:
        with lock:
            asked.append(time.monotonic())
            first = len(asked) == 1
        if first:
            raise JudgeBusy("HTTP 429", after=0.3)
        waiting.wait(20)
        return longer(question)

    run_questions(FakeJudge(decide, concurrency=4), QUESTIONS, on_wait=lambda *_: waiting.set())
    start = min(asked)
    # Only what was already under way when the first one was turned away.
    assert sum(when < start + 0.28 for when in asked) <= 4
    assert len(asked) == len(QUESTIONS) + 1


def test_an_error_stops_the_other_threads_and_keeps_what_was_answered(tmp_path):
    failing, failed = list[threading.Thread](), threading.Event()

    def decide(question: Question) -> Verdict:
        if question.id == "7":
            failing.append(threading.current_thread())
            failed.set()
            raise JudgeStopped("no credit")
        if int(question.id) > 7:
            # The thread that failed tells the others before it ends.
            failed.wait(20)
            failing[0].join(20)
        return longer(question)

    judge = FakeJudge(decide, concurrency=4)
    with Journal(tmp_path / "v.jsonl") as journal:
        with pytest.raises(JudgeStopped, match="no credit"):
            run_questions(judge, QUESTIONS, journal)
        answered = [question for question in judge.asked if question.id != "7"]
        assert len(answered) < len(QUESTIONS) - 2
        assert preview(judge, QUESTIONS, journal).cached == len(answered)


def test_a_bug_of_a_judge_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_questions(FakeJudge(lambda question: 1 / 0, concurrency=4), QUESTIONS)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_ctrl_c_keeps_what_is_in_flight(tmp_path, concurrency: int, monkeypatch: pytest.MonkeyPatch):
    # A disk may take its time over a verdict.
    monkeypatch.setattr(run, "GRACE_SECONDS", 30.0)
    judge = FakeJudge(longer, concurrency=concurrency)

    def press(question: Question, verdict: Verdict) -> None:
        raise KeyboardInterrupt

    with Journal(tmp_path / "v.jsonl") as journal:
        with pytest.raises(KeyboardInterrupt):
            run_questions(judge, QUESTIONS, journal, on_verdict=press)
        assert preview(judge, QUESTIONS, journal).cached == len(judge.asked)
        verdicts = run_questions(judge, QUESTIONS, journal)
    assert verdicts == [longer(question) for question in QUESTIONS]
    assert len(judge.asked) == len(QUESTIONS)


def test_ctrl_c_does_not_wait_for_a_judge_that_hangs(tmp_path):
    released = threading.Event()

    def decide(question: Question) -> Verdict:
        if question.id != "0":
            released.wait(20)
        return longer(question)

    def press(question: Question, verdict: Verdict) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with Journal(tmp_path / "v.jsonl") as journal:
        with pytest.raises(KeyboardInterrupt):
            run_questions(FakeJudge(decide, concurrency=4), QUESTIONS, journal, on_verdict=press)
        assert time.monotonic() - start < 5
        assert preview(FakeJudge(longer), QUESTIONS, journal).cached >= 1
    released.set()


# --- the budget ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("limit", [0.0, 0.05, 0.5, 1.0, 100.0])
def test_spent_and_set_aside_never_exceed_the_limit(concurrency: int, limit: float):
    worst, spent, reserved, most = 0.1, 0.0, 0.0, 0.0
    lock = threading.Lock()

    def decide(question: Question) -> Verdict:
        nonlocal spent, reserved, most
        usd = 0.1 if int(question.id) % 3 == 0 else 0.02
        with lock:
            reserved += worst
            most = max(most, spent + reserved)
        time.sleep(0.001)
        with lock:
            reserved -= worst
            spent += usd
        return Verdict("ok", choice="tie", usage=Usage(usd=usd))

    budget = Budget(limit)
    judge = FakeJudge(decide, concurrency=16, worst=worst)
    if limit < 100:
        with pytest.raises(JudgeStopped, match=r"the limit of \$"):
            run_questions(judge, QUESTIONS, concurrency=concurrency, budget=budget)
        assert spent > limit - worst
    else:
        run_questions(judge, QUESTIONS, concurrency=concurrency, budget=budget)
    assert most <= limit + 1e-9
    assert budget.spent == pytest.approx(spent)


def test_a_failed_try_that_may_have_been_billed_counts_in_full():
    replies = iter([JudgeBusy("cut", billed=True), JudgeBusy("HTTP 429"), None])

    def decide(question: Question) -> Verdict:
        reply = next(replies)
        if reply is not None:
            raise reply
        return Verdict("ok", choice="tie", usage=Usage(usd=0.25))

    budget = Budget(10.0)
    run_questions(FakeJudge(decide, worst=1.0), QUESTIONS[:1], budget=budget, retry=FAST)
    assert budget.spent == pytest.approx(1.25)
    assert budget.words() == "at most $1.2500, $1.0000 of it for replies that did not come through"


def test_an_unknown_price_cannot_be_limited():
    judge = FakeJudge(longer, worst=float("inf"))
    assert preview(judge, QUESTIONS).worst_usd == float("inf")
    with pytest.raises(JudgeStopped, match="price of this model is not known"):
        run_questions(judge, QUESTIONS, budget=Budget(5.0))
    budget = Budget()
    run_questions(judge, QUESTIONS, budget=budget)
    assert budget.spent == pytest.approx(0.4)


@pytest.mark.parametrize("limit", [-1.0, float("nan"), float("inf")])
def test_a_limit_is_a_number(limit: float):
    with pytest.raises(ValueError, match="max_usd"):
        Budget(limit)


# --- waiting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:10 GMT"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:10 -0000"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": ""}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None):
    assert retry_after(headers, now=1445412480.0) == seconds


def test_waits_double_are_spread_and_have_a_ceiling():
    patience = Patience(Retry(first=1.0, most=60.0), threading.Event())
    for attempt in range(12):
        full = min(60.0, 2.0**attempt)
        waits = {patience.delay(JudgeBusy("x"), attempt) for _ in range(50)}
        assert len(waits) > 40
        assert full / 2 <= min(waits) <= max(waits) <= full
    assert 10.0 <= patience.delay(JudgeBusy("x", after=10.0), 0) <= 10.5
