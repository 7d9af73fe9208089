"""The answers file: what is written is read, torn ends go away, one writer at a time."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from localdpo.core.errors import UserError
from localdpo.records.answers import (
    AnswerRecord,
    AnswersRequest,
    AnswersTail,
    AnswersWriter,
    Header,
    Sampling,
    answers_files,
    answers_path,
    read_answers,
    rows_of,
)

HEADER = Header(
    key="k1",
    run="demo",
    sampling=Sampling(8, 0.5, 3),
    contestants=(
        {"name": "base", "label": "base", "role": "base"},
        {"name": "dpo", "label": "DPO", "role": "trained"},
    ),
    prompts=({"id": "a", "text": "One?"}, {"id": "b", "text": "Zwei: ä?"}),
    source="file.jsonl",
    depends={"base": "f"},
)


def answer(prompt: int, name: str, text: str = "yes\nno\x1b\ud800") -> AnswerRecord:
    return AnswerRecord(prompt, name, text, 2, True, ids=(4, 5, 2))


def logps(value: float) -> dict[str, dict[str, float]]:
    return {"base": {"base": value, "dpo": -2.0}, "dpo": {"base": -3.0, "dpo": -1.0}}


def written(path: Path) -> bytes:
    with AnswersWriter(path, HEADER) as writer:
        for prompt in (0, 1):
            for name in HEADER.names:
                writer.answers(answer(prompt, name))
            writer.scores(prompt, logps(-0.5))
    return path.read_bytes()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = answers_path(tmp_path, "k1")
    written(path)
    tail = read_answers(path)
    assert tail.header == HEADER
    assert tail.header.named("trained") == "dpo"
    assert tail.header.named("start") is None
    assert tail.complete
    rows = rows_of(tail)
    assert list(rows[0]) == ["base", "dpo"]
    assert rows[1]["dpo"] == replace(answer(1, "dpo", "yes\nno\x1b?"), logps={"base": -3.0, "dpo": -1.0})


def test_a_tail_follows_a_growing_file(tmp_path: Path) -> None:
    path = answers_path(tmp_path, "k1")
    tail = AnswersTail(path)
    assert not tail.poll()
    assert rows_of(tail) == []
    assert (tail.missing, tail.complete) == (0, False)
    with AnswersWriter(path, HEADER) as writer:
        assert tail.poll()
        assert tail.missing == 4
        writer.answers(answer(0, "dpo"))
        assert tail.poll()
        assert [list(row) for row in rows_of(tail)] == [["dpo"], []]
        assert not tail.poll()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_end_is_taken_away_and_nothing_is_written_twice(cut: int, tmp_path: Path) -> None:
    path = answers_path(tmp_path, "k1")
    whole = written(path)
    for end in range(cut, len(whole), 61):
        path.write_bytes(whole[:end])
        assert AnswersTail(path).poll() == (b"\n" in whole[:end])
        assert written(path) == whole


def test_only_one_process_writes(tmp_path: Path) -> None:
    path = answers_path(tmp_path, "k1")
    with AnswersWriter(path, HEADER), pytest.raises(UserError, match="another process writes this file"):
        AnswersWriter(path, HEADER)
    AnswersWriter(path, HEADER).__exit__(None, None, None)


def test_a_file_of_other_answers_is_refused(tmp_path: Path) -> None:
    path = answers_path(tmp_path, "k1")
    written(path)
    with pytest.raises(UserError, match="holds other answers than its name says"):
        AnswersWriter(path, replace(HEADER, key="k2"))


@pytest.mark.parametrize(
    "line",
    [
        *(b"nonsense", b"{}", b"[1]", b'{"v":2}', b'{"prompt":7,"logps":{"base":{"base":1}}}'),
        b'{"prompt":7,"contestant":"base","text":"yes","tokens":1,"finished":true,"ids":[]}',
        b'{"prompt":0,"contestant":"ipo","text":"yes","tokens":1,"finished":true,"ids":[]}',
    ],
)
def test_damage_is_said(line: bytes, tmp_path: Path) -> None:
    path = answers_path(tmp_path, "k1")
    whole = written(path)
    first = whole.index(b"\n") + 1
    for text in (line + b"\n" + whole, whole[:first] + line + b"\n"):
        path.write_bytes(text)
        number = 1 if text.startswith(line) else 2
        with pytest.raises(UserError, match=rf"k1\.jsonl:{number}: damaged .*; remove th"):
            read_answers(path)


def test_an_answer_that_was_changed_since_is_never_shown_and_can_be_made_again(tmp_path: Path) -> None:
    path = answers_path(tmp_path, "k1")
    lines = written(path).splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if b'"text":"' in line and b'"contestant":"' in line)
    text = json.loads(lines[place])["text"]
    changed = lines[place].replace(f'"text":"{text[:1]}'.encode(), b'"text":"~', 1)
    path.write_bytes(b"".join([*lines[:place], changed, *lines[place + 1 :]]))
    with pytest.raises(UserError, match=rf"k1\.jsonl:{place + 1}: damaged .*remove this line"):
        read_answers(path)
    before = AnswersTail(path)
    path.write_bytes(b"".join([*lines[:place], *lines[place + 1 :]]))
    before.poll()
    assert before.missing >= 1
    assert not before.complete


def test_no_answers_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no answers in it"):
        read_answers(tmp_path / "none.jsonl")


def test_the_files_of_a_run_come_newest_first(tmp_path: Path) -> None:
    import os

    assert answers_files(tmp_path) == []
    for number, key in enumerate(("x", "y")):
        path = answers_path(tmp_path, key)
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}\n")
        os.utime(path, (number, number))
    assert [path.stem for path in answers_files(tmp_path)] == ["y", "x"]


def test_an_empty_file_holds_no_answers(tmp_path: Path) -> None:
    path = answers_path(tmp_path, "x")
    path.parent.mkdir()
    path.touch()
    assert answers_files(tmp_path) == []


def test_a_request_survives_its_json() -> None:
    request = AnswersRequest(
        run=Path("runs/a"),
        prompts="p.jsonl",
        texts=("Why?", "ü\n"),
        limit=None,
        with_runs=(Path("runs/b"),),
        sampling=Sampling(3, 0.25, 9),
    )
    assert AnswersRequest.from_json(request.to_json()) == request


def test_several_answers_go_in_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [answer(0, name) for name in HEADER.names]
    with AnswersWriter(tmp_path / "one.jsonl", HEADER) as writer:
        writer.answers(both[0])
        sizes: list[int] = []
        write = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: sizes.append(len(data)) or write(fd, data))
        writer.answers(*both, answer(1, "base"))
        assert len([size for size in sizes if size]) == 1
        assert [(one.prompt, one.contestant) for one in writer.tail.records.values()] == [
            (0, "base"),
            (0, "dpo"),
            (1, "base"),
        ]
    with AnswersWriter(tmp_path / "other.jsonl", HEADER) as writer:
        for record in [*both, answer(1, "base")]:
            writer.answers(record)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "other.jsonl").read_bytes()
