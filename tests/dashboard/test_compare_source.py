"""The process that generates, and the file that is followed; a small script stands in for the process."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from made_answers import write_answers

from localdpo.dashboard import compare_state
from localdpo.dashboard.compare_state import AnswersJob, AnswersSource
from localdpo.records.answers import ANNOUNCEMENT, AnswersRequest, Sampling, answers_path
from localdpo.records.rundir import RunDir

SLEEP = "import time; time.sleep(60)"


def job(run: Path, program: str) -> AnswersJob:
    return AnswersJob(AnswersRequest(run), (sys.executable, "-c", program))


def ended(job: AnswersJob) -> AnswersJob:
    wait_for(lambda: not job.is_running)
    job.poll()
    return job


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "nothing happened for 30 s"
        time.sleep(0.01)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[AnswersRequest]]:
    """Sets the program that answers; gives the list of requests that it was started with."""

    def set_program(program: str) -> list[AnswersRequest]:
        asked: list[AnswersRequest] = []

        class Job(AnswersJob):
            def __init__(self, request: AnswersRequest, command: Sequence[str] = ()) -> None:
                asked.append(request)
                super().__init__(request, (sys.executable, "-c", program))

        monkeypatch.setattr(compare_state, "AnswersJob", Job)
        return asked

    return set_program


def test_a_job_tells_its_file(tmp_path: Path) -> None:
    done = ended(job(tmp_path, "print('hint: slow'); print('answers \"/a b/\\\\u001bc.jsonl\"')"))
    assert done.path == Path("/a b/\x1bc.jsonl")
    assert done.problem() is None


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("print('error: no such file'); print('error: nor that'); exit(2)", "no such file; nor that"),
        ("exit(2)", "generation failed; see "),
        ("raise ValueError('out of luck')", "failed (exit code 1); ValueError: out of luck (more in "),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL (more in "),
        ("print('error: no room (x)'); raise SystemExit(4)", "no room (x)"),
        ("import os; print('[METAL] Insufficient Memory', flush=True); os.abort()", "lower --max-tokens"),
    ],
)
def test_why_a_job_ended_is_one_line(program: str, problem: str, tmp_path: Path) -> None:
    said = ended(job(tmp_path, program)).problem()
    assert said is not None
    assert problem in said
    assert "\n" not in said


def test_a_job_is_stopped(tmp_path: Path) -> None:
    running = job(tmp_path, SLEEP)
    assert running.is_running
    assert running.problem() is None
    running.stop()
    assert not running.is_running
    running.stop()


def test_without_a_request_the_newest_file_is_shown(tmp_path: Path) -> None:
    source = AnswersSource(RunDir(tmp_path))
    assert source.state is None
    assert source.next_file() == "the run has no other file of answers"
    write_answers(tmp_path)
    source = AnswersSource(RunDir(tmp_path))
    assert source.state is not None
    assert not source.poll()
    assert not source.generating
    before = source.state
    assert source.next_file() is not None
    assert source.state is before
    for key, age in (("older", 1), ("newer", 2e9)):
        os.utime(write_answers(tmp_path, key=key), (age, age))
        assert source.next_file() is None
        assert source.state is not before
        before = source.state


def test_the_file_of_the_process_is_followed(
    tmp_path: Path, stand_in: Callable[[str], list[AnswersRequest]]
) -> None:
    write_answers(tmp_path, key="old")
    path = answers_path(tmp_path, "k1")
    asked = stand_in(f"print({ANNOUNCEMENT + json.dumps(str(path))!r}, flush=True); {SLEEP}")
    request = AnswersRequest(tmp_path, sampling=Sampling(temperature=1.0, seed=4))
    source = AnswersSource(RunDir(tmp_path), request)
    assert source.generating
    assert source.state is None
    assert source.again(next_seed=False) == "answers are being generated already"
    assert source.next_file() == "another file can be opened when generation is done"
    write_answers(tmp_path, prompts=1)
    wait_for(source.poll)
    assert source.state is not None
    assert source.state.tail.path == path
    assert len(source.state.tail.records) == 3
    source.stop()
    assert not source.generating
    assert source.again(next_seed=True) is None
    source.stop()
    assert [each.sampling.seed for each in asked] == [4, 5]


def test_a_process_that_failed_is_said_and_can_be_started_again(
    tmp_path: Path, stand_in: Callable[[str], list[AnswersRequest]]
) -> None:
    asked = stand_in("print('error: no checkpoint to use yet'); exit(2)")
    source = AnswersSource(RunDir(tmp_path))
    assert source.again(next_seed=False) is None
    wait_for(source.poll)
    assert source.problem == "no checkpoint to use yet"
    assert not source.generating
    stand_in(SLEEP)
    assert source.again(next_seed=False) is None
    assert source.problem is None
    source.stop()
    assert asked[0].run == tmp_path
    assert asked[0].sampling.temperature > 0


def test_another_seed_means_nothing_without_temperature(tmp_path: Path) -> None:
    source = AnswersSource(RunDir(tmp_path))
    source.request = AnswersRequest(tmp_path)
    assert source.again(next_seed=True) == "at temperature 0 another seed gives the same answers"
    assert not source.generating


def test_damaged_files_are_said(tmp_path: Path) -> None:
    path = write_answers(tmp_path, prompts=1)
    source = AnswersSource(RunDir(tmp_path))
    with path.open("a") as file:
        file.write("nonsense\n")
    assert source.poll()
    assert source.problem is not None
    assert "damaged" in source.problem
    assert source.state is None
    path.unlink()
    write_answers(tmp_path)
    (tmp_path / "votes.jsonl").write_text("nonsense\n")
    problem = AnswersSource(RunDir(tmp_path)).problem
    assert problem is not None
    assert "not a vote" in problem
