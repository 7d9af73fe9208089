from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo.core.errors import UserError
from localdpo.records.control import COMMANDS, Acknowledgement, CommandFile, send, take, wait_for
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir, RunLock

SENDER = """
import sys
from localdpo.records.control import send
from localdpo.records.rundir import RunDir
for _ in range(20):
    print(send(RunDir(sys.argv[1]), sys.argv[2]), flush=True)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "runs", "dpo", "model: a\n")


def put(run: RunDir, name: str, content: bytes) -> None:
    run.control.mkdir(exist_ok=True)
    (run.control / name).write_bytes(content)


def test_commands_come_in_the_order_of_sending_and_once(run: RunDir):
    with RunLock(run):
        ids = [send(run, command) for command in COMMANDS]
        last = send(run, "stop", save=False)
    assert take(run) == [
        *(CommandFile(id, command) for id, command in zip(ids, COMMANDS, strict=True)),
        CommandFile(last, "stop", save=False),
    ]
    assert take(run) == []
    assert os.listdir(run.control) == []


def test_nothing_is_sent_where_no_worker_runs(run: RunDir):
    with pytest.raises(UserError, match=r"no worker is running, so there is nothing to pause"):
        send(run, "pause")
    assert not run.control.exists()
    assert take(run) == []
    with RunLock(run), pytest.raises(UserError, match="dance: no such command"):
        send(run, "dance")  # type: ignore[arg-type]


def test_a_file_in_the_way_is_the_persons_mistake(run: RunDir):
    run.control.write_text("")
    with RunLock(run), pytest.raises(UserError, match="cannot be written"):
        send(run, "pause")
    assert take(run) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a command file"),
        (b"{", "not a command file"),
        (b"\xff\xfe", "not a command file"),
        (b"[" * 100_000, "longer than 4096 bytes"),
        (b"[" * 4000, "not a command file"),
        (b"[]", "expected a command"),
        (b'{"command": "dance"}', "expected a command, one of pause, resume"),
        (b'{"command": ["stop"]}', "expected a command"),
        (b'{"command": "stop", "save": "no"}', "save: expected true or false, got 'no'"),
    ],
)
def test_what_is_no_command_is_given_with_its_problem(content: bytes, problem: str, run: RunDir):
    put(run, "1.json", content)
    put(run, "2.json", b'{"command": "pause"}')
    bad, good = take(run)
    assert (bad.id, bad.command) == ("1", None)
    assert problem in str(bad.problem)
    assert good == CommandFile("2", "pause")
    assert take(run) == []


@given(st.binary(max_size=200))
def test_no_content_breaks_the_worker(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    run = RunDir(tmp_path_factory.mktemp("run"))
    put(run, "1.json", content)
    (found,) = take(run)
    assert (found.command is None) == (found.problem is not None)


def test_only_plain_files_are_taken(run: RunDir):
    put(run, ".1.json.tmp-0123456789ab", b'{"command": "stop"}')
    put(run, "notes.txt", b'{"command": "stop"}')
    (run.control / "2.json").symlink_to(run.recipe)
    (run.control / "3.json").mkdir()
    assert take(run) == []
    assert run.recipe.exists()


def test_a_file_that_cannot_be_deleted_is_not_obeyed(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    put(run, "1.json", b'{"command": "stop"}')

    def refuse(self: Path) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert take(run) == []


def test_two_senders_at_once_lose_nothing(run: RunDir):
    with RunLock(run):
        senders = [
            subprocess.Popen(
                [sys.executable, "-c", SENDER, str(run.path), command], stdout=subprocess.PIPE, text=True
            )
            for command in ("pause", "resume")
        ]
        found: list[CommandFile] = []
        while any(sender.poll() is None for sender in senders):
            found += take(run)
        found += take(run)
        sent = {
            command: sender.communicate()[0].split()
            for command, sender in zip(("pause", "resume"), senders, strict=True)
        }
    for command, ids in sent.items():
        assert len(ids) == 20
        assert [file.id for file in found if file.command == command] == ids


def test_the_answer_is_found_in_a_log_that_grows(run: RunDir):
    with RunLock(run), EventWriter(run.events) as log:
        log.write("control", id="other", command="pause", ok=True, message="x")
        assert wait_for(run, "mine", 0.0) is None
        log.write("notice", message="about mine")
        log.write("control", id="mine", command="pause", ok=False, message="no")
        assert wait_for(run, "mine", 0.0) == Acknowledgement("mine", "pause", False, "no")


def test_a_worker_that_ends_has_refused(run: RunDir):
    answer = wait_for(run, "mine", 60.0)
    assert answer is not None
    assert not answer.ok
    assert "ended before it saw the command" in answer.message


def test_a_torn_answer_is_not_read_yet(run: RunDir):
    line = {
        "v": 1,
        "time": 1.0,
        "type": "control",
        "id": "mine",
        "command": "stop",
        "ok": True,
        "message": "m",
    }
    text = json.dumps(line) + "\n"
    with RunLock(run):
        run.events.write_text(text[:-10])
        assert wait_for(run, "mine", 0.0) is None
        run.events.write_text(text)
        assert wait_for(run, "mine", 0.0) == Acknowledgement("mine", "stop", True, "m")
