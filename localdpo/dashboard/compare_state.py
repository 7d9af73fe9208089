"""What the compare screen shows: an answers file, the votes, the judges' verdicts, and the process that may
be writing the answers. No Textual.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from localdpo.core.errors import UserError
from localdpo.core.text import printable
from localdpo.launch.processes import Job
from localdpo.records.answers import (
    ANNOUNCEMENT,
    FOLDER,
    NOTE,
    AnswerRecord,
    AnswersRequest,
    AnswersTail,
    Sampling,
    answers_files,
    rows_of,
)
from localdpo.records.rundir import RunDir
from localdpo.records.verdicts import Choice, VerdictTail
from localdpo.records.votes import Subject, Vote, Votes, sides, subject, tally, text_id

# A prompt's state: the two answers differ, are the same, or are not both there yet.
Mark = Literal["differs", "same", "waiting"]


@dataclass(frozen=True, slots=True)
class PromptView:
    """One prompt and its answers so far.

    Attributes:
        answers: contestant -> answer, in the order of columns.
        pair: the two answers that filters, marks and votes are about: of the trained contestant and of the
            one it is compared with; None until both are there.
    """

    index: int
    id: str
    text: str
    answers: Mapping[str, AnswerRecord]
    pair: tuple[AnswerRecord, AnswerRecord] | None

    @property
    def title(self) -> str:
        """The prompt on one line."""
        return " ".join(printable(self.text).split())

    @property
    def mark(self) -> Mark:
        if self.pair is None:
            return "waiting"
        return "differs" if self.pair[0].text != self.pair[1].text else "same"

    @property
    def more_tokens(self) -> int:
        """By how many tokens the trained answer is longer."""
        return 0 if self.pair is None else self.pair[0].tokens - self.pair[1].tokens

    @property
    def subject(self) -> Subject | None:
        """What a vote on the two answers is about."""
        if self.pair is None:
            return None
        return subject(self.id, *(text_id(answer.text) for answer in self.pair))


class Verdicts:
    """What judges said about two texts: `eval/verdicts.jsonl`, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._tail = VerdictTail(path)
        # (judge, prompt, text shown first, text shown second) -> choice
        self._said: dict[tuple[str, str, str, str], Choice] = {}

    def poll(self) -> bool:
        """Read the new verdicts; whether there was a choice between two answers in them."""
        has_choice = False
        for record in self._tail.poll():
            if record.verdict.choice is not None and len(record.answers) == 2:
                first, second = map(text_id, record.answers)
                self._said[record.judge, record.id, first, second] = record.verdict.choice
                has_choice = True
        return has_choice

    def lost(self, view: PromptView) -> bool:
        """Whether a judge preferred the other text to the trained one in both orders."""
        if view.pair is None:
            return False
        trained, other = (text_id(answer.text) for answer in view.pair)
        return any(
            self._said.get((judge, view.id, trained, other)) == "second"
            and self._said.get((judge, view.id, other, trained)) == "first"
            for judge in {judge for judge, *_ in self._said}
        )

    def __bool__(self) -> bool:
        return bool(self._said)


@dataclass(frozen=True, slots=True)
class Filter:
    """A choice of prompts. `label` may hold {trained} and {other}."""

    name: str
    label: str
    keeps: Callable[[PromptView, Verdicts], bool]
    needs_verdicts: bool = False


# In the order of the key.
FILTERS: Final = (
    Filter("all", "all", lambda view, verdicts: True),
    Filter("differing", "{trained}≠{other}", lambda view, verdicts: view.mark == "differs"),
    Filter("longer", "longer", lambda view, verdicts: view.more_tokens > 0),
    Filter("shorter", "shorter", lambda view, verdicts: view.more_tokens < 0),
    Filter("lost", "judge lost", lambda view, verdicts: verdicts.lost(view), needs_verdicts=True),
)


class CompareState:
    """The answers of one file that has its header, and how they are looked at.

    Attributes:
        tail: the answers file.
        header: what was asked.
        votes: of the run.
        verdicts: of the run's judges.
        trained: the contestant that marks and votes are about: the run's own adapter.
        others: whom it can be compared with: what it started from first, then the base, then other runs.
        filter: index into FILTERS.
        blind: whether names are hidden until a vote.
    """

    def __init__(self, tail: AnswersTail, votes: Votes, verdicts: Verdicts) -> None:
        assert tail.header is not None
        self.tail, self.header, self.votes, self.verdicts = tail, tail.header, votes, verdicts
        self.trained = self.header.named("trained") or self.header.names[-1]
        rest = [name for name in self.header.names if name != self.trained]
        start = self.header.named("start")
        self.others = sorted(rest, key=lambda name: name != start)
        self.filter = 0
        self.blind = False
        self._against = 0

    def label(self, name: str) -> str:
        return self.header.labels[name]

    @property
    def other(self) -> str:
        """Whom it is compared with now."""
        return self.others[self._against % len(self.others)] if self.others else self.trained

    def next_other(self) -> None:
        self._against += 1

    def views(self) -> list[PromptView]:
        """Every prompt, in order."""
        views = []
        for index, (prompt, answers) in enumerate(zip(self.header.prompts, rows_of(self.tail), strict=True)):
            trained, other = answers.get(self.trained), answers.get(self.other)
            pair = None if trained is None or other is None else (trained, other)
            views.append(PromptView(index, prompt["id"], prompt["text"], answers, pair))
        return views

    def visible(self) -> list[PromptView]:
        """The prompts that the filter keeps."""
        keeps = FILTERS[self.filter].keeps
        return [view for view in self.views() if keeps(view, self.verdicts)]

    def next_filter(self) -> None:
        """The next filter that has something to go by."""
        self.filter = (self.filter + 1) % len(FILTERS)
        while FILTERS[self.filter].needs_verdicts and not self.verdicts:
            self.filter = (self.filter + 1) % len(FILTERS)

    def next_after(self, index: int) -> PromptView | None:
        """The next prompt, from the start again after the last, whose answers differ; in blind mode, that
        have no vote yet. None if there is none."""
        wanted = [
            view
            for view in self.visible()
            if view.mark == "differs" and not (self.blind and self.vote_of(view) is not None)
        ]
        later = [view for view in wanted if view.index > index]
        return next(iter(later + wanted), None)

    def panes(self, view: PromptView) -> tuple[str, ...]:
        """Whose answers are shown, in order: all, or in blind mode the two to vote on."""
        return self.sides(view) if self.blind else self.header.names

    # --- voting -----------------------------------------------------------------------------------------

    def hidden(self, view: PromptView) -> bool:
        """Whether names must not be shown: in blind mode, before the vote."""
        return self.blind and self.vote_of(view) is None

    def sides(self, view: PromptView) -> tuple[str, str]:
        """The two contestants in the order in which blind mode shows them."""
        return sides(view.id, (self.trained, self.other), self.header.sampling.seed)

    def vote_of(self, view: PromptView) -> Vote | None:
        return None if view.subject is None else self.votes.of(view.subject)

    def vote(self, view: PromptView, choice: Choice, now: float) -> bool:
        """Keep a vote; False where there are no two different answers to vote on."""
        if view.mark != "differs":
            return False
        first, second = self.sides(view)
        answers = (text_id(view.answers[first].text), text_id(view.answers[second].text))
        seed = self.header.sampling.seed
        self.votes.add(Vote(now, view.id, first, second, choice, seed, answers))
        return True

    def undo(self, view: PromptView) -> Vote | None:
        """Take the latest vote on the prompt's answers back; None if there was none."""
        return None if view.subject is None else self.votes.undo(view.subject)

    def tally(self) -> tuple[int, int, int]:
        """(wins of the trained one, ties, wins of the other) among the votes on this file's answers."""
        votes = [vote for view in self.views() if (vote := self.vote_of(view)) is not None]
        return tally(votes, self.trained, self.other)


# Without a request; with a temperature, so that another seed gives other answers.
DEFAULT_SAMPLING: Final = Sampling(temperature=0.7)
_WORKER: Final = (sys.executable, "-m", "localdpo.answering.worker")
_LOG: Final = "worker.log"


class AnswersJob(Job):
    """Generates answers for the compare screen; its log is `answers/worker.log`. What it wrote stays, so the
    same request resumes it.

    Attributes:
        path: the answers file, None until the process has announced it.
    """

    def __init__(self, request: AnswersRequest, command: Sequence[str] = ()) -> None:
        self.path: Path | None = None
        super().__init__(
            [*(command or _WORKER), request.to_json()],
            request.run / FOLDER / _LOG,
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


class AnswersSource:
    """One run's answers. Without a request it shows the newest file that the run has.

    Attributes:
        state: what is shown; None until a file has begun.
        problem: what went wrong, one line.
    """

    def __init__(self, run: RunDir, request: AnswersRequest | None = None) -> None:
        self.run = run
        self.request = request
        self.state: CompareState | None = None
        self.problem: str | None = None
        self._job: AnswersJob | None = None
        self._shown: Path | None = None
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
        files = answers_files(self.run.path)
        if self._shown in files:
            self._shown = files[(files.index(self._shown) + 1) % len(files)]
        self._open()
        return None if len(files) > 1 else "the run has no other file of answers"

    def poll(self) -> bool:
        """Look at the process and the files; whether there is anything new to show."""
        has_changed = self._poll_job()
        if self.state is None:
            return (self.problem is None and self._open()) or has_changed
        try:
            return any([self.state.tail.poll(), self.state.verdicts.poll(), has_changed])
        except UserError as error:
            self.problem, self.state = str(error), None
            return True

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
        """Show the job's file, without a job the chosen one, once it has begun; whether it is another."""
        path = self._path()
        if path is None or (self.state is not None and self.state.tail.path == path):
            return False
        self._shown = path
        tail, verdicts = AnswersTail(path), Verdicts(self.run.verdicts)
        try:
            tail.poll()
            if tail.header is None:
                return False
            state = CompareState(tail, Votes(self.run.votes), verdicts)
        except UserError as error:
            self.problem = str(error)
            return True
        verdicts.poll()
        state.blind = self.state is not None and self.state.blind
        self.state = state
        return True

    def _path(self) -> Path | None:
        if self._job is not None:
            return self._job.path
        files = answers_files(self.run.path)
        return self._shown if self._shown in files else next(iter(files), None)
