from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from fake_judges import FakeJudge, always

from localdpo.core.errors import UserError
from localdpo.judging.base import Question
from localdpo.judging.registry import Hooks, JudgeRequest, judge_session
from localdpo.judging.run import Journal, JudgeSession, key_of
from localdpo.records.log import seal, unseal
from localdpo.records.verdicts import Usage, Verdict, damaged_verdicts, decode_verdict

JUDGE = FakeJudge(always("first"))
QUESTION = Question("7", "why?", ("because", "\udc80 damaged"))
OK = Verdict("ok", choice="second", reason="bet­ter", principle="brief", usage=Usage(5, 2, 1, 0.25), raw="r")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "verdicts.jsonl"


def test_a_verdict_is_found_again_by_a_later_reader(path: Path):
    with Journal(path) as journal:
        journal.add("k", JUDGE, QUESTION, OK)
        assert journal.get("k") == OK
    with Journal(path) as journal:
        assert journal.get("k") == OK
        assert journal.get("other") is None
    record = json.loads(path.read_text())
    assert record["judge"] == "fake"
    assert record["question"] == {"id": "7", "prompt": "why?", "answers": ["because", "? damaged"]}


@pytest.mark.parametrize("status", ["refused", "truncated", "unparseable"])
def test_failures_are_written_but_never_given_back(path: Path, status: str):
    with Journal(path) as journal:
        journal.add("k", JUDGE, QUESTION, Verdict(status, raw="?"))  # type: ignore[arg-type]
        assert journal.get("k") is None
    assert json.loads(path.read_text())["verdict"]["status"] == status
    with Journal(path) as journal:
        assert journal.get("k") is None


def test_what_was_never_answered_leaves_no_line(path: Path):
    with Journal(path) as journal:
        journal.add("k", JUDGE, QUESTION, Verdict("unanswered", reason="HTTP 500"))
    assert path.read_bytes() == b""


def test_a_verdict_that_was_changed_since_is_asked_again_and_told(path: Path):
    with Journal(path) as journal:
        journal.add("a", JUDGE, QUESTION, OK)
        journal.add("b", JUDGE, QUESTION, OK)
    assert damaged_verdicts(path) == []
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b'"choice":"first"', b'"choice":"secon"').replace(b"why", b"whz"))
    with Journal(path) as journal:
        assert journal.get("a") == OK
        assert journal.get("b") is None
    (line,) = damaged_verdicts(path)
    assert line.startswith(f"{path}:2: ")
    assert damaged_verdicts(path.with_name("none")) == []


def test_every_torn_tail_is_skipped_and_taken_away(path: Path):
    with Journal(path) as journal:
        journal.add("a", JUDGE, QUESTION, OK)
        whole = path.read_bytes()
    other = seal(unseal(whole).replace(b'"key":"a"', b'"key":"b"').decode())
    for cut in range(1, len(whole)):
        path.write_bytes(whole + other[:cut])
        with Journal(path) as journal:
            assert journal.get("a") == OK
            assert journal.get("b") is None
            journal.add("c", JUDGE, QUESTION, OK)
        with Journal(path) as journal:
            assert journal.get("a") == journal.get("c") == OK
        assert damaged_verdicts(path) == []


def test_one_write_and_one_flush_a_verdict(path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    write = __import__("os").write
    monkeypatch.setattr(
        "localdpo.records.log.os.write", lambda fd, data: calls.append("write") or write(fd, data)
    )
    monkeypatch.setattr("localdpo.records.log.fsync_fd", lambda fd: calls.append("flush"))
    with Journal(path) as journal:
        journal.add("a", JUDGE, QUESTION, OK)
        journal.add("b", JUDGE, QUESTION, OK)
    assert calls == ["write", "flush"] * 2
    calls.clear()
    with Journal(path, sync=False) as journal:
        journal.add("c", JUDGE, QUESTION, OK)
    assert calls == ["write"]


@pytest.mark.parametrize(
    "change",
    [
        {"status": "fine"},
        {"choice": "both"},
        {"choice": None},
        {"score": 3.0},
        {"score": 9, "choice": None},
        {"score": True, "choice": None},
        {"status": "refused"},
        {"reason": None},
        {"principle": 4},
        {"usage": {}},
        {"usage": {"input_tokens": -1, "output_tokens": 0, "cached_tokens": 0, "usd": 0}},
    ],
)
def test_a_line_that_no_judge_could_have_said_is_not_believed(path: Path, change: dict[str, object]):
    with Journal(path) as journal:
        journal.add("k", JUDGE, QUESTION, OK)
    record = json.loads(path.read_text())
    del record["crc"]  # as a line that is written by hand
    read = decode_verdict(json.dumps(record).encode())
    assert read is not None
    assert (read.key, read.verdict) == ("k", OK)
    record["verdict"] |= change
    path.write_text(json.dumps(record) + "\n")
    with Journal(path) as journal:
        assert journal.get("k") is None
    assert len(damaged_verdicts(path)) == 1


@pytest.mark.parametrize("line", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"v":2,"key":"k"}'])
def test_other_lines_are_no_verdicts(line: bytes):
    assert decode_verdict(line) is None


def test_the_key_holds_all_that_a_verdict_depends_on():
    identity = {"model": "m", "rubric": "r"}
    base = Question("1", "p", ("a", "b"), {"percent": 4})
    keys = {
        key_of(identity, base),
        key_of(identity | {"rubric": "other"}, base),
        key_of(identity | {"model": "other"}, base),
        key_of(identity, Question("1", "p", ("b", "a"), {"percent": 4})),
        key_of(identity, Question("1", "q", ("a", "b"), {"percent": 4})),
        key_of(identity, Question("1", "p", ("a",), {"percent": 4})),
        key_of(identity, Question("1", "p", ("a", "b"), {"percent": 5})),
    }
    assert len(keys) == 7
    # Not the id: the same text has the same verdict.
    assert key_of(identity, base) == key_of(identity, Question("2", "p", ("a", "b"), {"percent": 4}))


def test_a_closed_journal_takes_nothing(path: Path):
    journal = Journal(path)
    journal.close()
    with pytest.raises(ValueError, match="closed"):
        journal.add("k", JUDGE, QUESTION, OK)


def test_two_sessions_never_pay_for_the_same_questions(path: Path):
    """The second one is refused while the first may ask; a judge that costs nothing is nobody's business."""

    def session(worst: float) -> AbstractContextManager[JudgeSession]:
        judge = FakeJudge(always("first"), worst=worst)
        return judge_session(JudgeRequest(), path, [(judge, [QUESTION])], hooks=Hooks())

    with session(0.01), pytest.raises(UserError, match="another process writes this file; wait for it"):
        session(0.01).__enter__()
    with session(0.01):
        pass
    with session(0.0), session(0.0):
        pass
