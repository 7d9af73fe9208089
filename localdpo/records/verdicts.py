"""The verdicts of judges: a log (see records/log.py) with every verdict before it is used, so that nothing is
asked twice. `runs/NAME/eval/verdicts.jsonl`, and `verdicts.jsonl` beside the candidates of a build:

    {"v":1,"time":1700000000.0,"key":"<sha256>","judge":"anthropic claude-...","identity":{...},
     "question":{"id":"12","prompt":"...","answers":["...","..."]},
     "verdict":{"status":"ok","choice":"first","score":null,"reason":"...","principle":null,
                "usage":{"input_tokens":812,"output_tokens":95,"cached_tokens":0,"usd":0.005},"raw":"..."}}

Damaged lines are skipped; their questions are asked again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from localdpo.records.log import DAMAGE, LogTail, as_record, decode, encode

FORMAT_VERSION: Final = 1
Choice = Literal["first", "second", "tie"]
# Only "ok" carries a choice or a score. The others are counted and shown, never scored.
# "unanswered": asked as often as it makes sense, and the server never gave a reply to read.
Status = Literal["ok", "refused", "truncated", "unparseable", "unanswered"]
CHOICES: Final[tuple[Choice, ...]] = get_args(Choice)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one verdict cost. `usd` is 0 for a local judge, and where the price is not known.

    `input_tokens` are all tokens of the request; `cached_tokens` of them came from the server's cache.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said to one question.

    Attributes:
        choice: for two answers, in the order they were asked in; None unless status is "ok".
        score: for one answer, 1 to 5; None unless status is "ok".
        reason: the judge's own words, for people.
        principle: id of the constitution's principle that was asked about.
        category: of a refusal, in the server's word, such as "cyber".
        raw: the reply as it came, for those that could not be read.
    """

    status: Status
    choice: Choice | None = None
    score: float | None = None
    reason: str = ""
    principle: str | None = None
    usage: Usage = Usage()
    raw: str = ""
    category: str | None = None

    @property
    def label(self) -> str:
        """The status for people, with the category of a refusal."""
        return self.status if self.category is None else f"{self.status} ({self.category})"


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """A verdict with what was asked.

    Attributes:
        key: a hash of all that the verdict depends on.
        judge: the judge's name; `identity` all that its verdicts depend on besides the question.
        id: of the prompt.
        answers: the texts in the order they were asked in, one to be scored or two to be compared.
    """

    key: str
    verdict: Verdict
    judge: str = ""
    identity: Mapping[str, str] = field(default_factory=dict)
    id: str = ""
    prompt: str = ""
    answers: tuple[str, ...] = ()


def encode_verdict(record: VerdictRecord) -> bytes:
    """The line of a record, with the time."""
    question = {"id": record.id, "prompt": record.prompt, "answers": list(record.answers)}
    return encode(
        {
            "v": FORMAT_VERSION,
            "time": round(time.time(), 3),
            "key": record.key,
            "judge": record.judge,
            "identity": dict(record.identity),
            "question": question,
            "verdict": asdict(record.verdict),
        }
    )


def decode_verdict(line: bytes) -> VerdictRecord | None:
    """The record on one line, or None when it is damaged or of another version."""
    try:
        record = decode(line)
        if record["v"] != FORMAT_VERSION:
            return None
        verdict = _verdict(record["verdict"])
        entry = record.get("question", {}) | {name: record[name] for name in ("key", "judge", "identity")}
        return None if verdict is None else as_record(VerdictRecord, entry, verdict=verdict)
    except DAMAGE:
        return None


class VerdictTail(LogTail):
    """Reads a growing log of verdicts.

    Attributes:
        damaged: numbers of the lines so far that were no verdict.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.damaged: list[int] = []

    def poll(self) -> list[VerdictRecord]:
        """The new verdicts, in order."""
        records = []
        for number, line in self.lines():
            record = decode_verdict(line)
            if record is None:
                self.damaged.append(number)
            else:
                records.append(record)
        return records


def damaged_verdicts(path: Path) -> list[str]:
    """A line for a person about each damaged line of a log of verdicts; empty when there is no log."""
    tail = VerdictTail(path)
    tail.poll()
    again = "its question is asked again"
    lines = [f"{path}:{number}: a damaged verdict is skipped; {again}" for number in tail.damaged]
    return [*lines, f"{path}: its last line is cut off; {again}"] if tail.is_cut else lines


def _verdict(record: Any) -> Verdict | None:
    """The verdict of a line. Nothing in it is believed that a judge could not have said."""
    try:
        verdict = as_record(Verdict, record)
    except ValueError:
        return None
    score, usage = verdict.score, verdict.usage
    says_nothing = verdict.choice is None and score is None
    is_possible = (
        (verdict.status == "ok") != says_nothing
        and (verdict.choice is None or score is None)
        and (score is None or 1 <= score <= 5)
        and asdict(usage).keys() == record["usage"].keys()
        and all(0 <= value <= sys.float_info.max for value in astuple(usage))
    )
    return verdict if is_possible else None
