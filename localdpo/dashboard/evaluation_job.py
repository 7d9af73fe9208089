"""The evaluation that is started from the judge screen: `localdpo eval` in a process of its own.

Its output goes to `eval/worker.log` of the run; the last line says how far it is. What it generated and asked
is kept, so the same command goes on after an end.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from localdpo.launch import Job
from localdpo.records.rundir import RunDir

LOG: Final = "worker.log"


def eval_command(run: RunDir, options: Sequence[str] = ()) -> str:
    """The command that evaluates `run`, ready for a shell in the current folder."""
    return shlex.join(["localdpo", *_arguments(run, options)])


class EvaluationJob(Job):
    """A running evaluation. `options`: of `localdpo eval`, as a person would type them."""

    def __init__(self, run: RunDir, options: Sequence[str], command: Sequence[str] = ()) -> None:
        words = [*(command or (sys.executable, "-m", "localdpo")), *_arguments(run, options)]
        super().__init__(words, run.evaluations / LOG, "the evaluation", "r goes on")

    def status(self) -> str:
        """How far it is, in its own words; empty before it has said anything."""
        lines = self.lines()
        return lines[-1] if lines else ""


def _arguments(run: RunDir, options: Sequence[str]) -> list[str]:
    folder = [] if run.path.parent == Path("runs") else ["--runs-dir", str(run.path.parent)]
    return ["eval", run.name, *folder, *options]
