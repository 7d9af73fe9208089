"""Builds on the tiny model with a judge that counts what it is asked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tiny_folders import write_rows

from localdpo.judging.base import Judge, Question
from localdpo.judging.registry import JudgeRequest
from localdpo.judging.rubric import Mode
from localdpo.prefs.build_plan import BuildOptions
from localdpo.prefs.candidates import CandidateSource
from localdpo.records.verdicts import Usage, Verdict

PRICE = 0.01
FILES = ("candidates.jsonl", "train.jsonl", "valid.jsonl", "report.json")


class CountingJudge(Judge):
    """Prefers the answer with more of the letter e; its score is that number, from 1 to 5. Costs PRICE.

    Each question is a line in `log` before it is answered, so that one that was asked in vain counts too.
    """

    name = "counting"

    def __init__(self, mode: str, log: Path | None = None, choose: Callable[[int, int], str] | None = None):
        self.identity: Mapping[str, str] = {"judge": "counting", "mode": mode}
        self.log = log
        self.asked: list[Question] = []
        self.choose = choose or (lambda one, two: "first" if one > two else "second" if two > one else "tie")

    def ask(self, question: Question) -> Verdict:
        self.asked.append(question)
        if self.log is not None:
            append(self.log, [question.prompt, *question.answers])
        counts = [answer.count("e") for answer in question.answers]
        usage = Usage(10, 2, 0, PRICE)
        if len(counts) == 1:
            return Verdict("ok", score=float(min(5, 1 + counts[0])), usage=usage)
        return Verdict("ok", choice=self.choose(*counts), usage=usage)  # type: ignore[arg-type]

    def worst_case_usd(self, question: Question) -> float:
        return PRICE


def append(path: Path, value: object) -> None:
    """One line in one write."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, json.dumps(value).encode() + b"\n")
    os.close(fd)


def maker(judges: list[CountingJudge], **options: Any) -> Callable[[str, JudgeRequest | None, Mode], Judge]:
    """Stands for `make_judge`: a counting judge each time, put into `judges`."""

    def make(spec: str, request: JudgeRequest | None = None, mode: Mode = "pairwise") -> Judge:
        judges.append(CountingJudge(mode, **options))
        return judges[-1]

    return make


def write_prompts(file: Path, count: int) -> Path:
    """Prompts as text and as messages, each with a column of its own."""
    texts = [f"What is the answer to question number {i}?" for i in range(count)]
    rows = [
        {"prompt": text if i % 2 else [{"role": "user", "content": text}], "topic": f"topic {i}"}
        for i, text in enumerate(texts)
    ]
    return write_rows(file, rows)


def options_of(out: Path, prompts: Path, model: Path, adapter: Path | None, **others: Any) -> BuildOptions:
    """A small build: answers of at most 12 tokens, cut ones of which are many, in groups of 4."""
    source = others.pop("source", None) or CandidateSource(
        str(model), None if adapter is None else str(adapter)
    )
    defaults = {"max_tokens": 12, "judge": "counting", "group": 4, "valid_fraction": 0.25}
    return BuildOptions(str(prompts), out, source, **{**defaults, **others})


def rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
