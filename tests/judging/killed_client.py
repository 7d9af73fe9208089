"""A client that is killed: reads jobs from stdin, starts a child for each, prints how it ended.

A job is a JSON line {"folder", "die_after", "concurrency", "batch"}. The child asks all questions with the
journal in `folder`, kills itself (SIGKILL) after that many verdicts, or writes `table.txt` at the end. Its
process id is in `pid`. One parent for all of them, so that the anthropic package is imported
once where a child is a fork (see `children`).
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anthropic  # noqa: F401
from children import Job, serve, status_of
from fake_judges import pairs, run_questions

from localdpo.evals.figures import tally
from localdpo.judging.anthropic import AnthropicJudge
from localdpo.judging.anthropic_batch import AnthropicBatchJudge
from localdpo.judging.base import Question, both_orders, collect
from localdpo.judging.cost import load_prices
from localdpo.judging.rubric import load_rubric
from localdpo.judging.run import Journal
from localdpo.records.verdicts import Verdict

PAIRS = pairs(4)


def client(folder: Path, die_after: int | None, concurrency: int, batch: bool) -> None:
    kind = AnthropicBatchJudge if batch else AnthropicJudge
    judge = kind(load_rubric("helpful"), load_prices(), "claude-opus-5-5", concurrency=concurrency)
    if isinstance(judge, AnthropicBatchJudge):
        judge.poll = 0.01
    known = 0
    (folder / "pid").write_text(str(os.getpid()))
    with Journal(folder / "verdicts.jsonl") as journal:
        questions = both_orders(PAIRS)
        cached = folder / "verdicts.jsonl"
        before = cached.read_bytes().count(b'"status":"ok"')

        def count(question: Question, verdict: Verdict) -> None:
            nonlocal known
            known += 1
            if die_after is not None and known - before >= die_after:
                os.kill(os.getpid(), signal.SIGKILL)

        verdicts = collect(PAIRS, run_questions(judge, questions, journal, on_verdict=count))
    lines = [f"{one.id} {one.score} {one.flipped} {one.first} {one.second}" for one in verdicts]
    (folder / "table.txt").write_text("\n".join([*lines, repr(tally(verdicts))]))


def carry_out(job: Job) -> int:
    client(Path(job["folder"]), job["die_after"], job["concurrency"], job["batch"])
    return 0


if __name__ == "__main__":
    serve(carry_out, status_of)
