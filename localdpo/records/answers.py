"""The answers of a run's models: `runs/NAME/answers/KEY.jsonl`, append-only, read while it grows.

    {"v":1,"key":...,"run":...,"sampling":{...},"contestants":[...],"prompts":[{"id":...,"text":...}],...}
    {"prompt":0,"contestant":"base","text":"...","tokens":41,"finished":true,"ids":[...]}
    {"prompt":0,"logps":{"base":{"base":-0.91,"dpo":-1.4},"dpo":{"base":-1.2,"dpo":-0.6}}}

The first line says what the answers are to and from; then come answers as they finish, and for each prompt
the log-probabilities: of the answer of the outer name, under the model of the inner name, in nats a token.
KEY is a hash of all that the answers depend on, so a file belongs to one question for good. Since the order
of the lines is fixed too, a file whose writer was killed and resumed is the same to the byte as one that was
written in one go, unless another file came to hold some of its answers. For torn lines, locks and checksums
see records/log.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from localdpo.core.atomic import newest_first
from localdpo.core.errors import UserError
from localdpo.core.names import command_line
from localdpo.records.log import DAMAGE, LogTail, LogWriter, as_record, decode, encode

FORMAT_VERSION: Final = 1
FOLDER: Final = "answers"
# The process that generates prints `answers PATH` as soon as it knows the file, and `note: ...` warnings.
ANNOUNCEMENT: Final = "answers "
NOTE: Final = "note: "
# Who a contestant is: the base, the run's start adapter, its trained adapter, or another run's.
Role = Literal["base", "start", "trained", "other"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn. `max_tokens` of one answer; temperature 0 takes the likeliest token."""

    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class AnswersRequest:
    """Prompts, models and sampling.

    Attributes:
        run: the run's folder.
        prompts: file or name of a data source; None for the run's held-out prompts, unless texts are given.
        texts: prompts as text, asked first.
        limit: at most this many prompts of the source; None for all.
        with_runs: folders of other runs whose trained adapters answer too.
    """

    run: Path
    prompts: str | None = None
    texts: tuple[str, ...] = ()
    limit: int | None = 32
    with_runs: tuple[Path, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)

    def to_json(self) -> str:
        """The request as one line of JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> AnswersRequest:
        """What `to_json` wrote. Raises ValueError for anything else."""
        return as_record(cls, json.loads(text))


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One model's answer to one prompt.

    Attributes:
        prompt: index of the prompt in the header.
        contestant: name of who answered.
        tokens: length, without the end-of-turn token.
        finished: whether it ended by itself, not at the limit of tokens.
        logps: contestant -> mean log-probability per token of this answer under that model, nats, the
            end-of-turn token included; empty until the models have read it.
        ids: every token id that was drawn, the end-of-turn token included.
    """

    prompt: int
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
        return tuple(str(contestant["name"]) for contestant in self.contestants)

    @property
    def labels(self) -> dict[str, str]:
        """What to call each contestant."""
        return {str(contestant["name"]): str(contestant["label"]) for contestant in self.contestants}

    def named(self, role: Role) -> str | None:
        """The name of the first contestant in this role, None if there is none."""
        names = (str(contestant["name"]) for contestant in self.contestants if contestant["role"] == role)
        return next(names, None)


def answers_path(run: Path, key: str) -> Path:
    """The answers file of a run's folder for one key."""
    return run / FOLDER / f"{key}.jsonl"


def answers_files(run: Path) -> list[Path]:
    """The answers files of a run's folder, the most recently written first.

    An empty file, which a full disk leaves, does not count.
    """
    return [path for path in newest_first(run / FOLDER, "*.jsonl") if path.stat().st_size]


class AnswersTail(LogTail):
    """Reads an answers file, again and again while it grows. A file that does not exist yet is empty.

    Attributes:
        header: None until its line is there.
        records: the answers so far, by prompt and contestant.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.header: Header | None = None
        self.records: dict[tuple[int, str], AnswerRecord] = {}
        self.scored: set[int] = set()
        self._asked: frozenset[str] = frozenset()

    def poll(self, max_bytes: int | None = None) -> bool:
        """Take in the lines that were ended since the last poll, and whether there were any.

        `max_bytes`: about so many bytes of them.
        """
        lines = self.lines(max_bytes)
        for number, line in lines:
            self._take(number, line)
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

    def _take(self, number: int, line: bytes) -> None:
        try:
            entry = decode(line)
            if self.header is None:
                self.header = header_from(entry)
                self._asked = frozenset(self.header.names)
            elif "logps" in entry:
                self._take_scores(int(entry["prompt"]), entry["logps"])
            else:
                record = as_record(AnswerRecord, entry, ids=tuple(entry["ids"]))
                self._require_prompt(record.prompt)
                if record.contestant not in self._asked:
                    raise ValueError(f"{record.contestant} is not in the first line")
                self.records[record.prompt, record.contestant] = record
        except DAMAGE as error:
            what = "the file" if self.header is None else "this line"
            raise UserError(
                f"{self.path}:{number}: damaged ({type(error).__name__}: {error}); "
                f"remove {what}, and what is missing then is generated again"
            ) from error

    def _take_scores(self, prompt: int, logps: Mapping[str, Mapping[str, float]]) -> None:
        self._require_prompt(prompt)
        # A person may have taken a damaged answer out: what was read of it is read again with the new one.
        known = {name: under for name, under in logps.items() if (prompt, name) in self.records}
        for name, under in known.items():
            self.records[prompt, name] = replace(
                self.records[prompt, name], logps={model: float(value) for model, value in under.items()}
            )
        if len(known) == len(logps):
            self.scored.add(prompt)

    def _require_prompt(self, prompt: int) -> None:
        if self.header is None or not 0 <= prompt < len(self.header.prompts):
            raise ValueError(f"there is no prompt {prompt}")


class AnswersWriter(LogWriter):
    """The one writer of an answers file, for as long as it lives; it holds the file's lock.

    Opening it writes the header if the file is new. `tail` knows what the file holds, what was written here
    included.

    Raises UserError when another process writes the file, it is damaged, or the disk is full.
    """

    def __init__(self, path: Path, header: Header) -> None:
        path.parent.mkdir(exist_ok=True)
        super().__init__(path, exclusive=True)
        self.tail = AnswersTail(path)
        try:
            self.tail.poll()
            if self.tail.header is None:
                self._write({"v": FORMAT_VERSION, **asdict(header)})
            elif self.tail.header.key != header.key:
                raise UserError(f"{path}: holds other answers than its name says; remove the file")
        except BaseException:
            self.close()
            raise

    def answers(self, *records: AnswerRecord) -> None:
        """Add answers in one write: a kill leaves all of them or none. One that is there already stays."""
        fresh = [record for record in records if (record.prompt, record.contestant) not in self.tail.records]
        self._write(*({k: v for k, v in asdict(record).items() if k != "logps"} for record in fresh))

    def scores(self, prompt: int, logps: Mapping[str, Mapping[str, float]]) -> None:
        """Add the log-probabilities of a prompt's answers: answer -> model -> mean nats a token."""
        if prompt not in self.tail.scored:
            self._write({"prompt": prompt, "logps": logps})

    def _write(self, *entries: Mapping[str, Any]) -> None:
        self.append(*map(encode, entries))
        self.tail.poll()


def read_answers(path: str | Path) -> AnswersTail:
    """What an answers file holds now. Raises UserError if there is none or it is damaged."""
    tail = AnswersTail(path)
    tail.poll()
    if tail.header is None:
        raise UserError(f"{path}: no answers in it; make some with `{command_line('compare')}`")
    return tail


def header_from(entry: Mapping[str, Any]) -> Header:
    """The header of a file's first line. Raises KeyError, TypeError or ValueError for anything else."""
    header = as_record(Header, entry, FORMAT_VERSION)
    for objects, names in ((header.contestants, ("name", "label", "role")), (header.prompts, ("id", "text"))):
        if not all(isinstance(each[name], str) for each in objects for name in names):
            raise ValueError(f"expected text in {', '.join(names)}")
    return header


def rows_of(tail: AnswersTail) -> Sequence[Mapping[str, AnswerRecord]]:
    """The answers by prompt, in order: contestant -> answer, without those that are not there yet."""
    if tail.header is None:
        return []
    names, count = tail.header.names, len(tail.header.prompts)
    return [
        {name: tail.records[i, name] for name in names if (i, name) in tail.records} for i in range(count)
    ]


def answers_object(tail: AnswersTail) -> dict[str, Any]:
    """All answers as JSON values; log-probabilities are means per token in nats, by the model that read.

    Raises ValueError for a file without a header.
    """
    header = tail.header
    if header is None:
        raise ValueError(f"{tail.path}: no answers")
    return {
        "run": header.run,
        "source": header.source,
        "sampling": asdict(header.sampling),
        "contestants": list(header.contestants),
        "prompts": [
            {
                **prompt,
                "answers": {
                    name: {
                        "text": answer.text,
                        "tokens": answer.tokens,
                        "finished": answer.finished,
                        "logps": dict(answer.logps),
                    }
                    for name, answer in answers.items()
                },
            }
            for prompt, answers in zip(header.prompts, rows_of(tail), strict=True)
        ],
    }
