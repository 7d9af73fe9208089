"""Builds that are killed: reads jobs from stdin, starts a child for each, prints how it ended.

A job is a JSON line {"folder", "prompts", "model", "adapter", "delay", "options"}. The child builds in
`folder`/build; after `delay` seconds (null: never) it is killed with SIGKILL, wherever it is. Before each
part is generated a line goes to parts.jsonl, before each question one to asked.jsonl; a child's lines follow
one that holds what the folder had when it started. One parent for all of them, so that MLX is
imported once where a child is a fork (see `children`).
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from building import CountingJudge, append, options_of, rows_in
from children import Job, serve, status_of

from localdpo.answering.generator import AnswerColumn, fill_groups
from localdpo.judging import registry
from localdpo.judging.base import Judge
from localdpo.judging.registry import JudgeRequest
from localdpo.judging.rubric import Mode
from localdpo.prefs import build_plan, candidates
from localdpo.prefs.build import run_build


def build(job: Job) -> int:
    folder = Path(job["folder"])
    out = folder / "build"
    started = [f"{row['prompt']} {row['contestant']}" for row in lines_of(out / "candidates.jsonl")[1:]]
    told = [row["question"] for row in lines_of(out / "verdicts.jsonl")]
    append(folder / "parts.jsonl", {"there": started})
    append(folder / "asked.jsonl", {"there": [[one["prompt"], *one["answers"]] for one in told]})

    def make(spec: str, request: JudgeRequest | None = None, mode: Mode = "pairwise") -> Judge:
        return CountingJudge(mode, folder / "asked.jsonl")

    def watched(column: AnswerColumn) -> AnswerColumn:
        def prompt_ids(i: int) -> list[int]:
            append(folder / "parts.jsonl", [f"{i} {column.name}"])
            return column.prompt_ids(i)

        return replace(column, prompt_ids=prompt_ids)

    def fill(writer: Any, base: Any, columns: Sequence[AnswerColumn], *more: Any, **options: Any) -> Any:
        return fill_groups(writer, base, [watched(column) for column in columns], *more, **options)

    registry.make_judge = make  # type: ignore[assignment]
    candidates.fill_groups = fill  # type: ignore[assignment]
    options = options_of(
        out, Path(job["prompts"]), Path(job["model"]), Path(job["adapter"]), **job["options"]
    )
    run_build(build_plan.plan_build(options))
    return 0


def lines_of(path: Path) -> list[Any]:
    """The complete lines of a file that a kill may have cut."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        data = path.read_bytes()
        return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    return rows_in(path)


def wait(child: int, job: Job) -> int:
    """The status of a child that is killed after its delay unless it has ended."""
    delay: float | None = job["delay"]
    end = None if delay is None else time.monotonic() + delay
    while end is not None:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.001)
    return status_of(child, job)


if __name__ == "__main__":
    serve(build, wait)
