"""What the compare screen shows: an answers file, the votes, the judges' verdicts, and the process that may
be writing the answers. No Textual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from localdpo.core.errors import UserError
from localdpo.core.text import printable
from localdpo.dashboard.jobs import AnswersJob
from localdpo.records.answers import (
    AnswerRecord,
    AnswersRequest,
    AnswersTail,
    Header,
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
    """One prompt and its answers so far: contestant -> answer, in the order of columns."""

    index: int
    id: str
    text: str
    answers: Mapping[str, AnswerRecord]

    @property
    def title(self) -> str:
        """The prompt on one line."""
        return " ".join(printable(self.text).split())


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """The two answers that filters, marks and votes are about."""

    trained: AnswerRecord
    other: AnswerRecord

    @property
    def differs(self) -> bool:
        return self.trained.text != self.other.text


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

    def lost(self, prompt: str, trained: str, other: str) -> bool:
        """Whether a judge preferred the text `other` in both orders."""
        one, two = text_id(trained), text_id(other)
        return any(
            self._said.get((judge, prompt, one, two)) == "second"
            and self._said.get((judge, prompt, two, one)) == "first"
            for judge in {judge for judge, *_ in self._said}
        )

    def __bool__(self) -> bool:
        return bool(self._said)


@dataclass(frozen=True, slots=True)
class Filter:
    """A choice of prompts. `label` may hold {trained} and {other}."""

    name: str
    label: str
    keeps: Callable[[PromptView, AnswerPair | None, Verdicts], bool]
    needs_verdicts: bool = False


def _longer(view: PromptView, duel: AnswerPair | None, verdicts: Verdicts) -> bool:
    return duel is not None and duel.trained.tokens > duel.other.tokens


def _shorter(view: PromptView, duel: AnswerPair | None, verdicts: Verdicts) -> bool:
    return duel is not None and duel.trained.tokens < duel.other.tokens


def _lost(view: PromptView, duel: AnswerPair | None, verdicts: Verdicts) -> bool:
    return duel is not None and verdicts.lost(view.id, duel.trained.text, duel.other.text)


# In the order of the key.
FILTERS: Final = (
    Filter("all", "all", lambda view, duel, verdicts: True),
    Filter("differing", "{trained}≠{other}", lambda view, duel, verdicts: duel is not None and duel.differs),
    Filter("longer", "longer", _longer),
    Filter("shorter", "shorter", _shorter),
    Filter("lost", "judge lost", _lost, needs_verdicts=True),
)


class CompareState:
    """The answers of one file, and how they are looked at.

    Attributes:
        tail: the answers file.
        votes: of the run.
        verdicts: of the run's judges.
        filter: index into FILTERS.
        blind: whether names are hidden until a vote.
    """

    def __init__(self, tail: AnswersTail, votes: Votes, verdicts: Verdicts) -> None:
        self.tail, self.votes, self.verdicts = tail, votes, verdicts
        self.filter = 0
        self.blind = False
        self._against = 0

    @property
    def header(self) -> Header | None:
        """What was asked; None until the file begins."""
        return self.tail.header

    @property
    def names(self) -> tuple[str, ...]:
        """The contestants, in the order of columns."""
        return self.header.names if self.header is not None else ()

    def label(self, name: str) -> str:
        """What to call a contestant."""
        return self.header.labels.get(name, name) if self.header is not None else name

    @property
    def trained(self) -> str:
        """The contestant that marks and votes are about: the run's own adapter."""
        trained = self.header.named("trained") if self.header is not None else None
        return trained or (self.names[-1] if self.names else "")

    @property
    def others(self) -> Sequence[str]:
        """Whom it can be compared with: what it started from first, then the base, then other runs."""
        rest = [name for name in self.names if name != self.trained]
        first = self.header.named("start") if self.header is not None else None
        return sorted(rest, key=lambda name: name != first)

    @property
    def other(self) -> str:
        """Whom it is compared with now."""
        return self.others[self._against % len(self.others)] if self.others else self.trained

    def next_other(self) -> None:
        """Compare with the next of `others`."""
        self._against += 1

    def views(self) -> list[PromptView]:
        """Every prompt, in order."""
        if self.header is None:
            return []
        return [
            PromptView(i, str(prompt["id"]), str(prompt["text"]), answers)
            for i, (prompt, answers) in enumerate(zip(self.header.prompts, rows_of(self.tail), strict=True))
        ]

    def visible(self) -> list[PromptView]:
        """The prompts that the filter keeps."""
        keeps = FILTERS[self.filter].keeps
        return [view for view in self.views() if keeps(view, self.duel(view), self.verdicts)]

    def next_filter(self) -> None:
        """The next filter that has something to go by."""
        self.filter = (self.filter + 1) % len(FILTERS)
        while FILTERS[self.filter].needs_verdicts and not self.verdicts:
            self.filter = (self.filter + 1) % len(FILTERS)

    def duel(self, view: PromptView) -> AnswerPair | None:
        """The trained answer beside the other; None until both are there."""
        trained, other = view.answers.get(self.trained), view.answers.get(self.other)
        return None if trained is None or other is None else AnswerPair(trained, other)

    def mark(self, view: PromptView) -> Mark:
        """The state of a prompt's two answers."""
        duel = self.duel(view)
        if duel is None:
            return "waiting"
        return "differs" if duel.differs else "same"

    def next_after(self, index: int) -> PromptView | None:
        """The next prompt, from the start again after the last, whose answers differ; in blind mode, that
        have no vote yet. None if there is none."""
        wanted = self.votable if self.blind else self._differs
        found = [view for view in self.visible() if wanted(view)]
        later = [view for view in found if view.index > index]
        return next(iter(later + found), None)

    def panes(self, view: PromptView) -> tuple[str, ...]:
        """Whose answers are shown, in order: all, or in blind mode the two to vote on."""
        return self.sides(view) if self.blind else self.names

    def _differs(self, view: PromptView) -> bool:
        return self.mark(view) == "differs"

    # --- voting -----------------------------------------------------------------------------------------

    @property
    def seed(self) -> int:
        """Of the sides in blind mode."""
        return self.header.sampling.seed if self.header is not None else 0

    def hidden(self, view: PromptView) -> bool:
        """Whether names must not be shown: in blind mode, before the vote."""
        return self.blind and self.vote_of(view) is None

    def sides(self, view: PromptView) -> tuple[str, str]:
        """The two contestants in the order in which blind mode shows them."""
        return sides(view.id, (self.trained, self.other), self.seed)

    def vote_of(self, view: PromptView) -> Vote | None:
        """The vote on the prompt's two answers."""
        about = self._subject(view)
        return None if about is None else self.votes.of(about)

    def votable(self, view: PromptView) -> bool:
        """Whether there are two different answers without a vote."""
        return self.mark(view) == "differs" and self.vote_of(view) is None

    def vote(self, view: PromptView, choice: Choice, now: float) -> bool:
        """Keep a vote; False where there are no two different answers to vote on."""
        if self.mark(view) != "differs":
            return False
        first, second = self.sides(view)
        answers = (text_id(view.answers[first].text), text_id(view.answers[second].text))
        self.votes.add(Vote(now, view.id, first, second, choice, self.seed, answers))
        return True

    def undo(self, view: PromptView) -> Vote | None:
        """Take the latest vote on the prompt's answers back; None if there was none."""
        about = self._subject(view)
        return None if about is None else self.votes.undo(about)

    def tally(self) -> tuple[int, int, int]:
        """(wins of the trained one, ties, wins of the other) among the votes on this file's answers."""
        votes = [vote for view in self.views() if (vote := self.vote_of(view)) is not None]
        return tally(votes, self.trained, self.other)

    def _subject(self, view: PromptView) -> Subject | None:
        duel = self.duel(view)
        return (
            None if duel is None else subject(view.id, text_id(duel.trained.text), text_id(duel.other.text))
        )


# Without a request; with a temperature, so that another seed gives other answers.
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
