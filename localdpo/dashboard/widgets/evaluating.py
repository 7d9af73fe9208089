"""The line of the judge screen that starts an evaluation, says how far it is, and stops it."""

from __future__ import annotations

import shlex
from typing import Final

from textual.widgets import Static

from localdpo.core.text import printable
from localdpo.dashboard.evaluation_job import EvaluationJob, eval_command
from localdpo.dashboard.screens.dialogs import STOP_EVALUATION_CHOICES, Choose, TypeLine
from localdpo.out.console import Text
from localdpo.records.rundir import RunDir

_DETAIL: Final = (
    "Options of `localdpo eval`; without any `rules` judges the demo's incident reports (format, severity, "
    "action, facts), and other runs are measured only. "
    "--judge mlx:MODEL asks a local model, --judge anthropic --max-usd 2 asks Claude."
)


class Evaluating(Static):
    """Not shown while there is nothing to say.

    Attributes:
        job: the evaluation that was started here and has not ended.
    """

    def __init__(self) -> None:
        super().__init__(id="evaluating")
        self.display = False
        self.job: EvaluationJob | None = None
        self._options = ""

    def ask(self, run: RunDir) -> None:
        """Ask for options and evaluate `run`; while that goes on, ask whether to stop it."""

        def start(options: str | None) -> None:
            if options is not None:
                self._start(run, options)

        if self.job is not None:
            question = f"Stop the evaluation of {run.name}?"
            self.app.push_screen(Choose(question, self.job.status(), STOP_EVALUATION_CHOICES), self._answered)
        else:
            empty = "no options; enter starts, esc leaves"
            self.app.push_screen(TypeLine(f"Evaluate {run.name}?", _DETAIL, self._options, empty), start)

    def follow(self) -> bool:
        """Say how far it is, or why it failed; whether it has just ended."""
        job = self.job
        if job is None:
            return False
        if job.is_running:
            status = job.status()
            if status:
                self._say(f"evaluating: {status} (r stops it, and so does leaving)")
            return False
        self.job = None
        self._say(job.problem() or "")
        return True

    def stop(self, said: str = "") -> None:
        """End it, if one goes on, and say `said`."""
        if self.job is not None:
            self.job.stop()
            self.job = None
        self._say(said)

    def on_unmount(self) -> None:
        if self.job is not None:
            self.job.stop()

    def _answered(self, choice: str | None) -> None:
        if choice == "stop":
            self.stop("stopped; r goes on")

    def _start(self, run: RunDir, options: str) -> None:
        self._options = options
        try:
            words = shlex.split(options)
            self.job = EvaluationJob(run, words)
        except ValueError as error:
            self._say(f"the options cannot be read: {error}")
        except OSError as error:
            self._say(f"the evaluation cannot be started: {error.strerror or error}")
        else:
            self._say(f"started: {eval_command(run, words)}")

    def _say(self, text: str) -> None:
        self.update(Text(printable(text)))
        self.display = bool(text)
