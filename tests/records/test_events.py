from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from localdpo.core.errors import UserError
from localdpo.records.events import (
    Event,
    EventTail,
    EventWriter,
    decode_event,
    effective,
    encode_event,
    read_events,
)


def event(type: str, step: int | None = None, **data: object) -> Event:
    return Event(v=1, time=0.0, type=type, step=step, data=data)


def test_what_is_written_is_read(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as writer:
        first = writer.write("run.started", total_steps=3, device="cpu")
        second = writer.write("step", 1, metrics={"loss": 0.5})
    assert read_events(path) == [first, second]
    line = path.read_text().splitlines()[1]
    assert list(json.loads(line)) == ["v", "time", "type", "step", "metrics", "crc"]


def test_numbers_that_json_lacks_become_null_at_any_depth(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as writer:
        writer.write(
            "step", 1, metrics={"loss": float("nan"), "kl": float("inf"), "rows": [1.0, float("-inf")]}
        )
    assert "NaN" not in path.read_text()
    assert read_events(path)[0].data["metrics"] == {"loss": None, "kl": None, "rows": [1.0, None]}


def test_each_event_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: sizes.append(len(data)) or write(fd, data))
    with EventWriter(tmp_path / "e") as writer:
        writer.write("samples", 0, samples=[{"prompt": "x" * 100_000}])
        writer.write("step", 1)
    assert len(sizes) == 2


def test_unknown_types_and_reserved_fields_are_the_callers_mistake(tmp_path: Path):
    with EventWriter(tmp_path / "e") as writer:
        with pytest.raises(ValueError, match="unknown event type"):
            writer.write("steps", 1)
        with pytest.raises(ValueError, match="reserved"):
            writer.write("step", 1, time=3)
    with pytest.raises(ValueError, match="closed"):
        writer.write("step", 1)


def test_a_torn_tail_is_ignored_then_taken_away_by_the_next_writer(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as writer:
        writer.write("step", 1)
    path.write_bytes(path.read_bytes() + b'{"v":1,"time":1.0,"type":"st')
    tail = EventTail(path)
    assert [e.step for e in tail.poll()] == [1]
    assert tail.poll() == []
    with EventWriter(path) as writer:
        writer.write("run.resumed", 1)
    assert [e.type for e in tail.poll()] == ["run.resumed"]
    assert tail.bad_lines == 0
    assert [e.type for e in read_events(path)] == ["step", "run.resumed"]


def test_damaged_lines_are_told_with_the_number_of_the_first(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as writer:
        for step in range(4):
            writer.write("step", step)
    assert damage_in(path) is None
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"step":1', b'"step":7')
    path.write_bytes(b"".join(lines))
    assert [event.step for event in read_events(path)] == [0, 2, 3]
    assert damage_in(path) == f"{path}: 1 damaged line is skipped (line 2)"
    lines[3] = b"not JSON\n"
    path.write_bytes(b"".join(lines))
    assert damage_in(path) == f"{path}: 2 damaged lines are skipped (first: line 2)"


def damage_in(path: Path, *, alive: bool = False) -> str | None:
    tail = EventTail(path)
    tail.poll()
    return tail.damage(alive=alive)


def test_a_log_cut_at_any_byte_gives_the_events_before_the_cut_and_says_so(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as writer:
        for step in range(3):
            writer.write("step", step, metrics={"loss": 0.5, "text": "é"})
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        assert len(read_events(path)) == whole[:cut].count(b"\n")
        is_whole = whole[:cut].endswith(b"\n") or not cut
        assert damage_in(path) == (
            None
            if is_whole
            else f"{path}: its last line is cut off: it was damaged, or its writer was killed"
        )
        # A writer that lives may be in the middle of it.
        assert damage_in(path, alive=True) is None


def test_a_tail_gives_each_event_once_while_two_read_and_one_writes(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    code = (
        "import sys; from localdpo.records.events import EventWriter\n"
        "with EventWriter(sys.argv[1]) as w:\n"
        "    for step in range(2000): w.write('step', step, metrics={'loss': 0.5})\n"
        "    w.write('run.finished')\n"
    )
    tails = [EventTail(path), EventTail(path)]
    seen: list[list[Event]] = [[], []]
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as writer:
        ended = False
        while not ended:
            ended = writer.poll() is not None
            for tail, events in zip(tails, seen, strict=True):
                events.extend(tail.poll())
    assert writer.returncode == 0
    for events in seen:
        assert [e.step for e in events[:-1]] == list(range(2000))
        assert events[-1].type == "run.finished"
    assert [tail.bad_lines for tail in tails] == [0, 0]


def test_a_tail_can_pass_over_what_is_there(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    tail.skip()
    with EventWriter(path) as writer:
        writer.write("step", 1)
        tail.skip()
        writer.write("step", 2)
        assert [e.step for e in tail.poll()] == [2]


def test_a_resume_drops_what_it_does_again():
    log = [
        event("run.started"),
        event("eval", 0),
        event("step", 1),
        event("checkpoint", 1),
        event("step", 2),
        event("eval", 2),
        event("samples", 2),
        event("checkpoint", 2),
        event("notice", 2),
        event("run.resumed", 1),
        event("step", 2, again=True),
    ]
    kept = [(e.type, e.step) for e in effective(log)]
    assert kept == [
        ("run.started", None),
        ("eval", 0),
        ("step", 1),
        ("checkpoint", 1),
        ("notice", 2),
        ("run.resumed", 1),
        ("step", 2),
    ]


def test_resuming_twice_keeps_the_last_of_each_step():
    log = []
    for life in range(3):
        if life:
            log.append(event("run.resumed", 2))
        log += [event("step", step, life=life) for step in range(1 if life == 0 else 3, 5)]
    steps = [(e.step, e.data["life"]) for e in effective(log) if e.type == "step"]
    assert steps == [(1, 0), (2, 0), (3, 2), (4, 2)]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe",
        b"{" * 100_000,
        b'{"v":2,"time":1.0,"type":"step"}',
        b'{"v":1,"time":"now","type":"step"}',
        b'{"v":1,"time":NaN,"type":"step"}',
        b'{"v":1,"time":1' + b"0" * 400 + b',"type":"step"}',
        b'{"v":1,"time":1.0,"type":7}',
        b'{"v":1,"time":1.0,"type":"step","step":true}',
        b'{"v":1,"time":1.0,"type":"step","step":1.5}',
    ],
)
def test_a_line_that_is_no_event_is_none(line: bytes):
    assert decode_event(line) is None


def test_a_damaged_line_is_skipped_and_counted(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    good = encode_event("step", 1, 1.0, {})
    path.write_bytes(good + b"\x00\xff damage\n\n" + good)
    tail = EventTail(path)
    assert len(tail.poll()) == 2
    assert tail.bad_lines == 1


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(data: bytes):
    for line in data.split(b"\n"):
        decode_event(line)


@given(st.text(max_size=40))
def test_any_text_fits_one_readable_line(text: str):
    line = encode_event("samples", 1, 1.0, {"text": text})
    assert line.count(b"\n") == 1
    decoded = decode_event(line)
    assert decoded is not None
    assert decoded.data["text"] == text


def test_half_a_character_does_not_stop_the_log():
    decoded = decode_event(encode_event("samples", 1, 1.0, {"text": "a\udc80b"}))
    assert decoded is not None
    assert decoded.data["text"] == "a?b"


def test_a_full_disk_is_one_line_and_the_next_event_stands_on_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "events.jsonl"
    write = os.write
    with EventWriter(path) as writer:
        writer.write("step", 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
            with pytest.raises(UserError, match=r"no space left .* bytes needed, .* free"):
                writer.write("step", 2)
            patch.setattr(os, "write", _raise_enospc)
            with pytest.raises(UserError, match="no space left"):
                writer.write("step", 2)
        writer.write("step", 3)
    assert [e.step for e in read_events(path)] == [1, 3]


def _raise_enospc(fd: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("loads", [json.loads, from_json])
@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999", b"9" * 400])
def test_numbers_that_json_has_not_are_a_gap(number: bytes, loads: Callable[[bytes], Any]) -> None:
    line = b'{"v":1,"time":1.0,"type":"step","step":1,"metrics":{"loss":' + number + b',"kl":0.5}}'
    event = decode_event(line, loads)
    assert event is not None
    assert event.data == {"metrics": {"loss": None, "kl": 0.5}}


@pytest.mark.parametrize("loads", [json.loads, from_json])
def test_half_of_a_surrogate_pair_is_replaced(loads: Callable[[bytes], Any]) -> None:
    line = rb'{"v":1,"time":1.0,"type":"samples","text":"\ud800 \ud83d\ude00"}'
    event = decode_event(line, loads)
    assert event is not None
    assert event.data == {"text": "? \U0001f600"}
