"""Where the compare screen's answers come from: a file of the run, and the process that may be writing it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from localdpo.core.errors import UserError
from localdpo.dashboard.answers_job import AnswersJob
from localdpo.dashboard.compare_state import CompareState, Verdicts
from localdpo.records.answers import AnswersRequest, AnswersTail, Sampling, answers_files
from localdpo.records.rundir import RunDir
from localdpo.records.votes import Votes

# What is asked when nobody said how: drawn, so that another seed gives other answers.
DEFAULT_SAMPLING: Final = Sampling(temperature=0.7)


class AnswersSource:
    """One run's answers. Without a request it shows the newest file that the run has.

    Attributes:
        state: what is shown; None until there is a file.
        problem: what went wrong, one line.
    """

    def __init__(self, run: RunDir, request: AnswersRequest | None = None) -> None:
        self.run = run
        self.request = request
        self.state: CompareState | None = None
        self.problem: str | None = None
        self._job: AnswersJob | None = None
        self._file = 0
        if request is not None:
            self.generate(request)
        self._open()

    @property
    def generating(self) -> bool:
        """Whether a process started here is writing answers."""
        return self._job is not None

    def generate(self, request: AnswersRequest) -> None:
        """Start the process that answers `request`; an earlier one ends."""
        self.stop()
        self.request, self.problem = request, None
        try:
            self._job = AnswersJob(request)
        except OSError as error:
            self.problem = f"generation cannot be started: {error.strerror or error}"

    def again(self, next_seed: bool) -> str | None:
        """Generate what is missing, or with the next seed everything anew; why not, if it cannot be."""
        if self.generating:
            return "answers are being generated already"
        request = self.request or AnswersRequest(self.run.path, sampling=DEFAULT_SAMPLING)
        if next_seed:
            if not request.sampling.temperature:
                return "at temperature 0 another seed gives the same answers"
            request = replace(request, sampling=replace(request.sampling, seed=request.sampling.seed + 1))
        self.generate(request)
        return None

    def next_file(self) -> str | None:
        """Show the run's next file of answers; why not, if it cannot be."""
        if self.generating:
            return "another file can be opened when generation is done"
        self._file += 1
        self._open()
        return None if len(answers_files(self.run.path)) > 1 else "the run has no other file of answers"

    def poll(self) -> bool:
        """Look at the process and the files; whether there is anything new to show."""
        has_changed = self._poll_job()
        if self.state is not None:
            try:
                has_changed |= self.state.tail.poll()
            except UserError as error:
                self.problem, self.state = str(error), None
                return True
            has_changed |= self.state.verdicts.poll()
        return has_changed

    def stop(self) -> None:
        """End the process, if one was started. What it wrote stays."""
        if self._job is not None:
            self._job.stop()
            self._job = None

    def _poll_job(self) -> bool:
        if self._job is None:
            return False
        is_over = not self._job.is_running
        self._job.poll()
        has_opened = self._open()
        if is_over:
            self.problem = self._job.problem() or self._job.note()
            self._job = None
            has_opened |= self.state is None and self._open()
        return is_over or has_opened

    def _open(self) -> bool:
        """Show the job's file as soon as it is known, without a job the chosen one; whether it is another."""
        path = self._path()
        if path is None or (self.state is not None and self.state.tail.path == path):
            return False
        tail, verdicts = AnswersTail(path), Verdicts(self.run.verdicts)
        try:
            tail.poll()
            votes = Votes(self.run.votes)
        except UserError as error:
            self.problem = str(error)
            return True
        verdicts.poll()
        before, self.state = self.state, CompareState(tail, votes, verdicts)
        self.state.blind = before is not None and before.blind
        return True

    def _path(self) -> Path | None:
        if self._job is not None:
            return self._job.path
        files = answers_files(self.run.path)
        return files[self._file % len(files)] if files else None
