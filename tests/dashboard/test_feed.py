from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
from pydantic_core import from_json

from localdpo.dashboard import feed as feed_module
from localdpo.dashboard.feed import RunFeed
from localdpo.records.events import EventTail, EventWriter, read_events
from localdpo.records.rundir import RunDir, RunLock


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "runs", "r", "model: m\n")


def write(run: RunDir, first: int, last: int) -> None:
    with EventWriter(run.events) as log:
        for step in range(first, last + 1):
            log.write("step", step, metrics={"loss": step / 10, "kl": float("nan")})


def test_it_reads_what_comes(run: RunDir):
    feed = RunFeed(run)
    assert feed.poll() is False
    write(run, 1, 3)
    assert feed.poll() is True
    assert feed.poll() is False
    write(run, 4, 5)
    assert feed.poll() is True
    assert feed.state.train["loss"].steps.tolist() == [1, 2, 3, 4, 5]
    assert feed.state.progress.step == 5


def test_a_long_log_is_read_in_pieces(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feed_module, "_PIECE", 200)
    write(run, 1, 50)
    feed = RunFeed(run)
    pieces = 0
    while True:
        assert feed.poll(0.0) is True
        pieces += 1
        if not feed.behind:
            break
    assert pieces > 5
    assert feed.state.train["loss"].steps.tolist() == list(range(1, 51))


def test_the_worker_s_life_and_death_are_seen(run: RunDir):
    feed = RunFeed(run)
    assert not feed.alive
    with RunLock(run):
        assert feed.poll() is True
        assert feed.alive
        assert feed.poll() is False
    assert feed.poll() is True
    assert not feed.alive


def test_the_collector_is_left_as_it_was(run: RunDir):
    write(run, 1, 3)
    RunFeed(run).poll()
    assert gc.isenabled()
    gc.disable()
    try:
        RunFeed(run).poll()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_tail_that_is_cut_anywhere_gives_every_event_once(run: RunDir):
    write(run, 1, 20)
    with run.events.open("ab") as log:
        log.write(b'not json\n{"v":1,"time":2.0,"type":"step","step":21}\n{"torn')
    for size in (1, 7, 64, 100, 10_000):
        tail, found = EventTail(run.events), []
        while True:
            found += tail.poll(size)
            if not tail.behind:
                break
        assert [event.step for event in found] == list(range(1, 22))
        assert tail.bad_lines == 1
        assert tail.poll(size) == []
        assert not tail.behind


def test_both_parsers_give_the_same_events(run: RunDir):
    lines = [
        '{"v":1,"time":1.5,"type":"step","step":1,"metrics":{"loss":0.1,"kl":null,"e":5e-324,"big":1e300}}',
        '{"v":1,"time":1,"type":"samples","step":2,"samples":[{"prompt":"a\\"\\u00e9 漢"}]}',
        '{"v":1,"time":1,"type":"step","step":true}',
        '{"v":2,"time":1,"type":"step"}',
        '{"v":1,"time":1e400,"type":"step"}',
        '{"v":1,"time":1,"type":"notice","level":"info"} trailing',
        "[1,2]",
        "",
        '{"v":1',
    ]
    run.events.write_text("\n".join(lines) + "\n")
    ours = EventTail(run.events, from_json)
    assert ours.poll() == read_events(run.events)
    plain = EventTail(run.events, json.loads)
    plain.poll()
    assert ours.bad_lines == plain.bad_lines == 6
