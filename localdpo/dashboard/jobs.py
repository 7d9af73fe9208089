"""Processes of localdpo that work beside a screen: answers for a comparison, an evaluation.

A job prints its progress to a log in the run's folder. What it generated and judged stays there, so the same
command resumes it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from localdpo.core.names import command_line
from localdpo.launch.processes import Job
from localdpo.records.answers import ANNOUNCEMENT, NOTE, AnswersRequest
from localdpo.records.answers import FOLDER as ANSWERS_FOLDER
from localdpo.records.rundir import RunDir
from localdpo.records.wording import runs_dir_words

_LOG: Final = "worker.log"
_ANSWERS_WORKER: Final = (sys.executable, "-m", "localdpo.answering.worker")


class AnswersJob(Job):
    """Generates answers for the compare screen; its log is `answers/worker.log`.

    Attributes:
        path: the answers file, None until the process has announced it.
    """

    def __init__(self, request: AnswersRequest, command: Sequence[str] = ()) -> None:
        self.path: Path | None = None
        super().__init__(
            [*(command or _ANSWERS_WORKER), request.to_json()],
            request.run / ANSWERS_FOLDER / _LOG,
            "generation",
            "g resumes it",
        )

    def poll(self) -> None:
        """Look for the announcement of the file."""
        if self.path is None:
            announced = [line for line in self.lines() if line.startswith(ANNOUNCEMENT)]
            if announced:
                self.path = Path(json.loads(announced[0].removeprefix(ANNOUNCEMENT)))

    def note(self) -> str | None:
        """Damage in the files that the process skipped, in one line; None if there was none."""
        notes = [line.removeprefix(NOTE) for line in self.lines() if line.startswith(NOTE)]
        return "; ".join(notes) or None


class EvaluationJob(Job):
    """Runs `localdpo eval` for the judge screen; its log is `eval/worker.log`.

    `options`: of `localdpo eval`, as a person would type them.
    """

    def __init__(self, run: RunDir, options: Sequence[str], command: Sequence[str] = ()) -> None:
        words = [*(command or (sys.executable, "-m", "localdpo")), *_eval_words(run, options)]
        super().__init__(words, run.evaluations / _LOG, "the evaluation", "r resumes it")

    def status(self) -> str:
        """The last line that it printed; empty before the first."""
        lines = self.lines()
        return lines[-1] if lines else ""


def eval_command(run: RunDir, options: Sequence[str] = ()) -> str:
    """The command that evaluates `run`, ready for a shell in the current folder."""
    return command_line(*_eval_words(run, options))


def _eval_words(run: RunDir, options: Sequence[str]) -> list[str]:
    return ["eval", run.name, *runs_dir_words(run), *options]
