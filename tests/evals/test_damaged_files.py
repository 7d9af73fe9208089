"""Each kind of file, with bits flipped and ends cut: what is read is what was written, less, or an error."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eval_parts import Told, asked, fair

from localdpo.core.errors import UserError
from localdpo.evals.evaluate import evaluate
from localdpo.evals.table import read_record
from localdpo.heuristics import STANDARD
from localdpo.judging.base import Question
from localdpo.judging.registry import Judges
from localdpo.judging.run import Journal
from localdpo.judging.without_model import RulesJudge
from localdpo.records.answers import AnswerRecord, AnswersWriter, Header, Sampling, read_answers
from localdpo.records.evaluations import evaluation_text
from localdpo.records.events import EventWriter, read_events
from localdpo.records.log import seal
from localdpo.records.pairs import read_pairs
from localdpo.records.rundir import RunDir
from localdpo.records.verdicts import Usage, Verdict, damaged_verdicts
from localdpo.records.votes import Vote, Votes

TRIES = 60
# What the file says, as a list: damage may leave entries out, and may never change one.
Read = Callable[[Path], list[Any]]


def events(path: Path) -> Read:
    with EventWriter(path) as log:
        for step in range(5):
            log.write("step", step, metrics={"loss": 0.5 + step, "note": "words"})
    # A flipped bit in the name of the checksum leaves a field more.
    return lambda path: [(event.time, event.step, event.data["metrics"]) for event in read_events(path)]


def answers(path: Path) -> Read:
    names = [{"name": name, "label": name, "role": "base"} for name in "ab"]
    prompts = tuple({"id": str(i), "text": f"question {i}"} for i in range(2))
    header = Header("k", "run", Sampling(), tuple(names), prompts)
    with AnswersWriter(path, header) as writer:
        for i in range(2):
            for name in "ab":
                writer.answers(AnswerRecord(i, name, f"the answer {i}", 3, True, ids=(1, 2, i)))
            writer.scores(i, {name: {"a": -0.5, "b": -0.25} for name in "ab"})

    def read(path: Path) -> list[Any]:
        tail = read_answers(path)
        # An answer whose scores were cut off is the answer still.
        return [tail.header, *((r.prompt, r.contestant, r.text, r.ids) for r in tail.records.values())]

    return read


def votes(path: Path) -> Read:
    kept = Votes(path)
    for i in range(4):
        kept.add(Vote(float(i), f"prompt {i}", "dpo", "sft", "first", 7, ("one", "two")))
    return lambda path: Votes(path).all()


def verdicts(path: Path) -> Read:
    question = Question("7", "why", ("this", "that"))
    with Journal(path) as journal:
        for key in "abcd":
            verdict = Verdict("ok", "first", None, f"reason {key}", None, Usage(5, 2, 1, 0.25), "raw")
            journal.add(key, RulesJudge(), question, verdict)

    def read(path: Path) -> list[Any]:
        with Journal(path) as journal:
            found = [(key, journal.get(key)) for key in "abcd" if journal.get(key)]
        assert len(found) == 4 or damaged_verdicts(path) or path.read_bytes().endswith(b"\n")
        return found

    return read


def pairs(path: Path) -> Read:
    side = {"text": "yes", "reward": 0.25, "tokens": [["yes", 0.25]]}
    one = {"row": 1, "source": "a", "prompt": "p", "margin": 0.5, "chosen": side, "rejected": side}
    path.write_bytes(seal(json.dumps({"step": 20, "beta": 0.1, "pairs": [one]})))
    return lambda path: [read_pairs(RunDir(path.parent), path.name)]


def evaluation(path: Path) -> Read:
    record = evaluate("it", asked(path.parent, 4), STANDARD, Judges(Told(fair)))
    path.write_bytes(seal(evaluation_text(record)))
    return lambda path: [{name: value for name, value in read_record(path).items() if len(name) != 3}]


@pytest.mark.parametrize("make", [events, answers, votes, verdicts, pairs, evaluation])
def test_damage_never_changes_what_is_read(make: Callable[[Path], Read], tmp_path: Path) -> None:
    read, draw = make(tmp_path / "whole"), random.Random(0)
    content = (tmp_path / "whole").read_bytes()
    whole = read(tmp_path / "whole")
    refused: list[str] = []
    for number in range(TRIES):
        damaged = bytearray(content)
        if number % 3 == 0:
            del damaged[draw.randrange(len(damaged)) :]
        else:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        # A name of its own: readers may remember a file by its time.
        path = tmp_path / f"damaged-{number}"
        path.write_bytes(bytes(damaged))
        try:
            found = read(path)
        except UserError as error:
            refused.append(str(error))
            continue
        assert all(entry in whole for entry in found), (number, found)
    assert all("damaged-" in line for line in refused)
    assert refused or make in (events, verdicts)
