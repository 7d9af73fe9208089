"""The answers of a run's models: `runs/NAME/answers/KEY.jsonl`, append-only, read while it grows.

    {"v":1,"key":...,"run":...,"sampling":{...},"contestants":[...],"prompts":[{"id":...,"text":...}],...}
    {"prompt":0,"contestant":"base","text":"...","tokens":41,"finished":true,"ids":[...]}
    {"prompt":0,"logps":{"base":{"base":-0.91,"dpo":-1.4},"dpo":{"base":-1.2,"dpo":-0.6}}}

The first line says what the answers are to and from; then come answers as they finish, and for each prompt
the log-probabilities: of the answer of the outer name, under the model of the inner name, in nats a token.
Each line ends with its checksum, see `seal`. KEY is a hash of all that the answers depend on, so a file
belongs to one question for good. A writer that was killed can leave a torn last line: readers do not see it,
the next writer takes it away. Since the order of the lines is fixed too, a file that was killed and continued
is the same to the byte as one that was not.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

from localdpo.core.atomic import entries, is_unsupported, no_space_error, out_of_space
from localdpo.core.errors import UserError
from localdpo.core.seal import seal, unseal
from localdpo.records.tail import LineTail

FORMAT_VERSION: Final = 1
FOLDER: Final = "answers"
# Who a contestant is: the base, the run's start adapter, its trained adapter, or another run's.
Role = Literal["base", "start", "trained", "other"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn. `max_tokens` of one answer; temperature 0 takes the likeliest token."""

    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One model's answer to one prompt.

    Attributes:
        prompt_index: place of the prompt in the list that was asked.
        contestant: name of who answered.
        tokens: length, without the end-of-turn token.
        finished: whether it ended by itself, not at the limit of tokens.
        logps: contestant -> mean log-probability per token of this answer under that model, nats, the
            end-of-turn token included; empty until the models have read it.
        ids: every token id that was drawn, the end-of-turn token included.
    """

    prompt_index: int
    contestant: str
    text: str
    tokens: int
    finished: bool
    logps: Mapping[str, float] = field(default_factory=dict)
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of an answers file: what was asked, of whom, and how.

    Attributes:
        key: the file's name without its ending.
        run: the name of the run.
        sampling: of every answer.
        contestants: `{name, label, role, adapter, fingerprint}` of each, in the order of columns.
        prompts: `{id, text}` of each, in order; the text is what to show of the prompt.
        source: where the prompts came from, as the person named it.
        depends: what else the answers depend on (base, template, version of the generator).
    """

    key: str
    run: str
    sampling: Sampling
    contestants: tuple[Mapping[str, Any], ...]
    prompts: tuple[Mapping[str, str], ...]
    source: str = ""
    depends: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the contestants."""
        return tuple(str(one["name"]) for one in self.contestants)

    @property
    def labels(self) -> dict[str, str]:
        """What to call each contestant."""
        return {str(one["name"]): str(one["label"]) for one in self.contestants}

    def named(self, role: Role) -> str | None:
        """The name of the first contestant in this role, None if there is none."""
        return next((str(one["name"]) for one in self.contestants if one["role"] == role), None)


def answers_path(run: Path, key: str) -> Path:
    """The answers file of a run's folder for one key."""
    return run / FOLDER / f"{key}.jsonl"


def answers_files(run: Path) -> list[Path]:
    """The answers files of a run's folder, the most recently written first."""
    found = entries(run / FOLDER, "*.jsonl")
    return sorted(found, key=lambda path: (-path.stat().st_mtime, path.name))


class AnswersTail:
    """Reads an answers file, again and again while it grows. A file that does not exist yet is empty.

    Attributes:
        header: None until its line is there.
        records: the answers so far, by prompt and contestant.
    """

    def __init__(self, path: str | Path) -> None:
        self._lines = LineTail(path)
        self.header: Header | None = None
        self.records: dict[tuple[int, str], AnswerRecord] = {}
        self.scored: set[int] = set()
        self._line = 0

    @property
    def path(self) -> Path:
        """The answers file."""
        return self._lines.path

    @property
    def offset(self) -> int:
        """Bytes of the whole lines that were taken in."""
        return self._lines.offset

    def poll(self) -> bool:
        """Take in the lines that were ended since the last poll; whether there were any."""
        lines = self._lines.poll()
        for line in lines:
            self._take(line)
        return bool(lines)

    @property
    def complete(self) -> bool:
        """Whether every answer is there and read by every model."""
        return self.header is not None and self.missing == 0 and len(self.scored) == len(self.header.prompts)

    @property
    def missing(self) -> int:
        """Answers that are not there yet; 0 without a header."""
        if self.header is None:
            return 0
        return len(self.header.prompts) * len(self.header.contestants) - len(self.records)

    def _take(self, line: bytes) -> None:
        try:
            self._line += 1
            entry = json.loads(unseal(line))
            if self.header is None:
                self.header = header_from(entry)
            elif "logps" in entry:
                self._take_scores(int(entry["prompt"]), entry["logps"])
            else:
                record = _record_from(entry)
                self.records[record.prompt_index, record.contestant] = record
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            what = "the file" if self.header is None else "this line"
            raise UserError(
                f"{self.path}:{self._line}: damaged ({type(error).__name__}: {error}); "
                f"remove {what}, and what is missing then is made again"
            ) from error

    def _take_scores(self, prompt: int, logps: Mapping[str, Mapping[str, float]]) -> None:
        if self.header is None or not 0 <= prompt < len(self.header.prompts):
            raise ValueError(f"there is no prompt {prompt}")
        # A person may have taken a damaged answer out: what was read of it is read again with the new one.
        known = {name: under for name, under in logps.items() if (prompt, name) in self.records}
        for name, under in known.items():
            self.records[prompt, name] = replace(
                self.records[prompt, name], logps={one: float(value) for one, value in under.items()}
            )
        if len(known) == len(logps):
            self.scored.add(prompt)


class AnswersWriter:
    """The one writer of an answers file, for as long as it lives; it holds the file's lock.

    Opening it writes the header if the file is new, and takes away the torn last line of an earlier writer.
    `tail` knows what the file holds, what was written here included.

    Raises:
        UserError: another process writes the file, it is damaged, or the disk is full.
    """

    def __init__(self, path: Path, header: Header) -> None:
        path.parent.mkdir(exist_ok=True)
        self.tail = AnswersTail(path)
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._start(header)
        except BaseException:
            os.close(self._fd)
            raise

    def _start(self, header: Header) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.tail.path}: another process is making these answers; wait for it, or watch it there"
            ) from None
        except OSError as error:
            if not is_unsupported(error):
                raise
            raise UserError(
                f"{self.tail.path}: this disk keeps no locks ({error.strerror}), so two processes could "
                "write these answers; copy the run to another disk and give its --runs-dir"
            ) from error
        self.tail.poll()
        os.ftruncate(self._fd, self.tail.offset)
        if self.tail.header is None:
            self._append({"v": FORMAT_VERSION, **asdict(header)})
        elif self.tail.header.key != header.key:
            raise UserError(f"{self.tail.path}: holds other answers than its name says; remove the file")

    def answer(self, record: AnswerRecord) -> None:
        """Add an answer. Nothing is written for one that is there already."""
        self.answers([record])

    def answers(self, records: Sequence[AnswerRecord]) -> None:
        """Add several answers in one write: a kill leaves all of them or none."""
        self._append(
            *(
                {
                    "prompt": record.prompt_index,
                    "contestant": record.contestant,
                    "text": record.text,
                    "tokens": record.tokens,
                    "finished": record.finished,
                    "ids": record.ids,
                }
                for record in records
                if (record.prompt_index, record.contestant) not in self.tail.records
            )
        )

    def scores(self, prompt: int, logps: Mapping[str, Mapping[str, float]]) -> None:
        """Add the log-probabilities of a prompt's answers: answer -> model -> mean nats a token."""
        if prompt not in self.tail.scored:
            self._append({"prompt": prompt, "logps": logps})

    def _append(self, *entries: Mapping[str, Any]) -> None:
        texts = [json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in entries]
        lines = b"".join(map(seal, texts))
        try:
            written = os.write(self._fd, lines)
        except OSError as error:
            if out_of_space(error):
                raise no_space_error(self.tail.path, len(lines)) from error
            raise
        if written < len(lines):
            raise no_space_error(self.tail.path, len(lines) - written)
        self.tail.poll()

    def __enter__(self) -> AnswersWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


def read_answers(path: str | Path) -> AnswersTail:
    """What an answers file holds now. Raises UserError if there is none or it is damaged."""
    tail = AnswersTail(path)
    tail.poll()
    if tail.header is None:
        raise UserError(f"{path}: no answers in it; make some with `localdpo compare`")
    return tail


def header_from(entry: Mapping[str, Any]) -> Header:
    """The header of a file's first line. Raises KeyError, TypeError or ValueError for anything else."""
    if entry["v"] != FORMAT_VERSION:
        raise ValueError(f"format {entry['v']}, expected {FORMAT_VERSION}")
    sampling = Sampling(**entry["sampling"])
    numbers = (sampling.max_tokens, sampling.temperature, sampling.seed)
    if not all(isinstance(value, int | float) for value in numbers):
        raise ValueError("expected numbers in sampling")
    _require_texts(entry["contestants"], ("name", "label", "role"))
    _require_texts(entry["prompts"], ("id", "text"))
    rest = {name: entry[name] for name in ("key", "run", "source", "depends")}
    return Header(
        sampling=sampling, contestants=tuple(entry["contestants"]), prompts=tuple(entry["prompts"]), **rest
    )


def _require_texts(objects: Iterable[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Raise KeyError, TypeError or ValueError unless each of `objects` has texts of these names."""
    if not all(isinstance(one[name], str) for one in objects for name in names):
        raise ValueError(f"expected text in {', '.join(names)}")


def _record_from(entry: Mapping[str, Any]) -> AnswerRecord:
    return AnswerRecord(
        prompt_index=int(entry["prompt"]),
        contestant=str(entry["contestant"]),
        text=str(entry["text"]),
        tokens=int(entry["tokens"]),
        finished=bool(entry["finished"]),
        ids=tuple(entry["ids"]),
    )


def rows_of(tail: AnswersTail) -> Sequence[Mapping[str, AnswerRecord]]:
    """The answers by prompt, in order: contestant -> answer, without those that are not there yet."""
    if tail.header is None:
        return []
    names, count = tail.header.names, len(tail.header.prompts)
    return [
        {name: tail.records[i, name] for name in names if (i, name) in tail.records} for i in range(count)
    ]
