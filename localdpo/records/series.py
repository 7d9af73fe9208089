"""A series: several runs in one folder. Of rounds each is made after the one before; see here and sweeps.py.

runs/NAME/
    series.yaml          of rounds: the resolved recipe; they belong to one recipe for good
    series.json          of rounds: what came of the runs that are done, with a checksum (see `seal`)
    sweep.json           of a sweep: its grid, and the resolved recipe of each run
    options.json         how it is made and judged, as far as the command said; with a checksum
    series.log           what the process that makes the series printed
    lock                 held (flock) while that process lives
    round-1/, ...        the runs, each a folder like any other run's

The files on disk say what a series still has to do, so it can be resumed at any point.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from localdpo.core.atomic import write_bytes
from localdpo.core.errors import UserError
from localdpo.records.answers import AnswersTail, answers_files
from localdpo.records.evaluations import RateEstimate
from localdpo.records.events import effective, read_events
from localdpo.records.log import as_record, read_sealed, seal
from localdpo.records.progress import progress_of
from localdpo.records.rundir import SERIES_RECIPES, RunDir, folders_of
from localdpo.records.wording import resume_command

VERSION: Final = 1
# Of the evaluation in each run of a series.
EVALUATION: Final = "rounds"
BUILD: Final = "build"


class SeriesDir(RunDir):
    """The folder of a series. Runs and series are made, found, locked and deleted alike."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.log = self.path / "series.log"
        self.options = self.path / "options.json"

    def members(self) -> list[RunDir]:
        """The runs that were made."""
        return sorted(folders_of(self.path, RunDir), key=lambda run: (len(run.name), run.name))

    def is_running(self) -> bool:
        """Whether a process makes the series, or trains a run of it."""
        return self.is_locked() or any(run.is_running() for run in self.members())


@dataclass(frozen=True)
class SeriesOptions:
    """What the command that makes a series was told beside its recipes, and what a later one goes on with.

    None, and a key that is missing: nothing was said, so the default holds.

    Attributes:
        judging: how its runs are judged: fields of JudgeRequest, and for a sweep those of its evaluations.
        jobs: runs of a sweep at once.
        best_by: what the best run of a sweep is the best by.
    """

    judging: Mapping[str, Any] = field(default_factory=dict)
    jobs: int | None = None
    best_by: str | None = None

    def above(self, kept: SeriesOptions) -> SeriesOptions:
        """These options, and from those that were `kept` what these say nothing of.

        Who names a judge names another one, with all its options.
        """
        judging = self.judging if "judge" in self.judging else {**kept.judging, **self.judging}
        jobs = kept.jobs if self.jobs is None else self.jobs
        best_by = kept.best_by if self.best_by is None else self.best_by
        return SeriesOptions(judging, jobs, best_by)


def read_options(series: RunDir | None) -> SeriesOptions:
    """The options that a series goes on with; none for a new one. Raises UserError for damage."""
    if not isinstance(series, SeriesDir) or not series.options.exists():
        return SeriesOptions()
    try:
        return read_sealed(series.options, _OPTIONS, "the options of a series of runs")
    except UserError as error:
        raise UserError(f"{error}; remove the file and give the options again") from error


def write_options(series: SeriesDir, options: SeriesOptions) -> None:
    """Keep the options for whoever goes on. Only for the holder of the lock.

    Raises UserError for a full disk.
    """
    if options != SeriesOptions() or series.options.exists():
        write_bytes(series.options, seal(json.dumps({"v": VERSION, **asdict(options)}, indent=1)))


_OPTIONS: Final = partial(as_record, SeriesOptions, version=VERSION)


class RoundsDir(SeriesDir):
    """The folder of a series of rounds."""

    command = "rounds"
    nouns = ("rounds", "rounds")

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.recipe = self.path / SERIES_RECIPES[0]
        self.record = self.path / "series.json"

    def round(self, number: int) -> RunDir:
        """The run of the round `number`, from 1; made or not."""
        return RunDir(self.path / f"round-{number}")


@dataclass(frozen=True)
class RoundResult:
    """What came of a round. Win rates are those of its policy; lengths are means on the held-out prompts.

    Attributes:
        name: of the run.
        pairs: that it trained on and held out.
        last: against what it started from; first: against what the first round started from.
        kl: KL(policy || start of the first round) of whole responses in nats, and its standard error.
        tokens: mean length of its answers; tokens_first: of the first start's.
    """

    name: str
    pairs: int
    last: RateEstimate | None
    first: RateEstimate | None
    kl: float
    kl_se: float | None
    tokens: float
    tokens_first: float


@dataclass(frozen=True)
class SeriesRecord:
    """What is known of a series. `wanted`: rounds at most. `ended`: why it has ended, None before."""

    wanted: int
    rounds: tuple[RoundResult, ...] = ()
    ended: str | None = None

    @property
    def best(self) -> RoundResult | None:
        """The first round that is better than the start beyond its interval, or the last one after it that is
        better than the round before, too.
        """
        best = None
        for each in self.rounds:
            if is_above_half(each.first) and (best is None or is_above_half(each.last)):
                best = each
        return best

    def to_json(self) -> dict[str, object]:
        """The record as a JSON object."""
        best = self.best
        return {"v": VERSION, **asdict(self), "best": None if best is None else best.name}


def is_above_half(rate: RateEstimate | None) -> bool:
    """Whether the whole interval of a win rate lies above 50%."""
    return rate is not None and rate.low is not None and rate.low > 0.5


def why_end(
    rounds: Sequence[RoundResult], wanted: int, max_kl: float | None, patience: int = 1
) -> str | None:
    """Why a series ends after its last round; None while it goes on.

    `patience`: as many rounds in a row end it that are not clearly better than the one before.
    """
    if not rounds:
        return None
    last = rounds[-1]
    before = rounds[-2].name if len(rounds) > 1 else "the start"
    if not any(is_above_half(result.last) for result in rounds[-patience:]) and len(rounds) >= patience:
        ended = f"{last.name} is not clearly better than {before}: it wins {rate_text(last.last)}"
        return ended if patience == 1 else f"{ended}; it is number {patience} of such rounds in a row"
    if max_kl is not None and last.kl > max_kl:
        return f"the KL of {last.name} from the start is {last.kl:.3g} nats, above rounds.max_kl {max_kl:g}"
    return "all rounds are done" if len(rounds) >= wanted else None


def rate_text(rate: RateEstimate | None) -> str:
    """`61% (52% to 69%)`."""
    if rate is None:
        return "-"
    if rate.low is None or rate.high is None:
        return f"{rate.value:.0%}"
    return f"{rate.value:.0%} ({rate.low:.0%} to {rate.high:.0%})"


def stage_of(series: RoundsDir, record: SeriesRecord) -> str:
    """What a series does now, in words, from what the folder of its current round holds."""
    if record.ended is not None and not series.is_running():
        return "ended"
    run = series.round(len(record.rounds) + 1)
    of = f"{run.name}{f' of {record.wanted}' if record.wanted else ''}"
    if not series.is_running():
        return f"{of}: stopped; resume it with: {resume_command(series)}"
    if run.is_running():
        progress = progress_of(effective(read_events(run.events)))
        training = f"{of}: training, step {progress.step}" + (f"/{progress.total}" if progress.total else "")
        # A run whose series was killed trains on; whoever resumes the series waits for it.
        is_made = series.is_locked()
        return training if is_made else f"{training}, then stopped; resume it with: {resume_command(series)}"
    if run.status() == "finished":
        files = answers_files(run.path)
        return f"{of}: evaluation, {_answered(files[0]) if files else 'answers'}"
    return f"{of}: pairs, {_answered(run.path / BUILD / 'candidates.jsonl')}"


def _answered(path: Path) -> str:
    """`answers`, `answers 385 of 800`, or `verdicts` when all are there."""
    tail = AnswersTail(path)
    tail.poll()
    wanted = len(tail.records) + tail.missing
    return f"answers {len(tail.records)} of {wanted}" if tail.missing else "verdicts" if wanted else "answers"


HEADINGS: Final = ("round", "pairs", "win vs last", "win vs start", "KL", "tokens")


def cells(result: RoundResult) -> tuple[str, ...]:
    """A round in the order of HEADINGS."""
    error = "" if result.kl_se is None else f" +- {1.96 * result.kl_se:.2g}"
    return (
        result.name,
        f"{result.pairs:,}",
        rate_text(result.last),
        rate_text(result.first),
        f"{result.kl:.3g}{error}",
        f"{result.tokens:.0f} ({result.tokens - result.tokens_first:+.0f})",
    )


def closing_lines(record: SeriesRecord) -> list[str]:
    """Why a series ended, and which round to take."""
    best = record.best
    lines = [] if record.ended is None else [f"ended: {record.ended}"]
    if record.rounds:
        lines.append("no round is clearly better than the start" if best is None else f"best: {best.name}")
    return lines


def read_record(series: RoundsDir) -> SeriesRecord:
    """What is known of the series; nothing before its first round is done. Raises UserError for damage."""
    if not series.record.exists():
        return SeriesRecord(0)
    return read_sealed(series.record, _RECORD, "the record of a series of runs")


def write_record(series: RoundsDir, record: SeriesRecord) -> None:
    """Replace the record. Raises UserError for a full disk."""
    write_bytes(series.record, seal(json.dumps(record.to_json(), indent=1)))


_RECORD: Final = partial(as_record, SeriesRecord, version=VERSION)
