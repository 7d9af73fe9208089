"""What every check uses: the pairs as text, columns of numbers, what a check is and what it reports."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any, ClassVar, Final, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localdpo.core.text import counted
from localdpo.data.encode import Limits
from localdpo.data.messages import HUMAN, transcript_messages
from localdpo.data.types import Message, Pair, Side, TemplateChoice, Tokenizer
from localdpo.prefs.shingles import Words

Level = Literal["error", "warning", "info"]
LEVELS: Final[tuple[Level, ...]] = ("error", "warning", "info")
EXAMPLES: Final = 5
CHUNK_ROWS: Final = 1000
NOTHING: Final[NDArray[np.int64]] = np.zeros(0, np.int64)
PairScorer: TypeAlias = Callable[[list[Pair]], list[tuple[float, float, int, int]]]
"""From pairs to (log-probability of chosen, of rejected, tokens of chosen, of rejected) of those that fit."""


# --- checks and findings -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """One entry of the table CHECKS.

    Attributes:
        level: of its finding; an error makes `prefs check` exit with 1.
        what: what is counted, for a heading.
        advice: what a person may do.
        drops: whether `prefs clean` takes the rows out unless --drop says otherwise.
        rows: whether it points at rows (False: it is about the data as a whole, and cannot be cleaned).
    """

    name: str
    level: Level
    what: str
    advice: str
    drops: bool = False
    rows: bool = True


@dataclass(frozen=True, slots=True)
class FindingExample:
    """The pairs of an example by number from 0, in a report its rows by number from 1, and a few words."""

    numbers: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: `count` of `total`, and what cleaning would drop.

    `numbers` int64 are those of pairs, in a report those of rows, both from 0.
    """

    check: Check
    count: int
    total: int
    message: str
    examples: tuple[FindingExample, ...] = ()
    numbers: NDArray[np.int64] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True)
class CheckSettings:
    """What the checks need besides the data.

    Attributes:
        format_name: as in data.format; None: auto-detected from the columns.
        tokenizer: without one, nothing is checked that counts tokens. limits: without, nothing that they cut.
        against: data sets whose prompts must not be in the data.
        reference: the scorer of pairs, and how many of them to score.
    """

    format_name: str | None = None
    tokenizer: Tokenizer | None = None
    template: TemplateChoice = "auto"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits | None = None
    against: Sequence[str] = ()
    reference: tuple[PairScorer, int] | None = None


class Family(ABC):
    """Checks that look at the data together. `add` sees every pair once, in order; then `finish`."""

    checks: ClassVar[tuple[Check, ...]]

    @classmethod
    def from_settings(cls, settings: CheckSettings, not_checked: list[str]) -> Self | None:
        """The family; None where the settings lack what it needs, which it then adds to `not_checked`."""
        return cls()

    @abstractmethod
    def add(self, chunk: Chunk) -> None:
        """Look at the next pairs."""

    @abstractmethod
    def finish(self, total: int) -> Iterable[Finding]:
        """What was found in all pairs, `total` of them."""

    def facts(self) -> Mapping[str, Any]:
        """Figures for the report, as JSON values."""
        return {}


def flagged_pairs(
    check: Check, total: int, notes: Mapping[int, str], message: str | None = None
) -> list[Finding]:
    """The finding of a check that flags single pairs, each with a note; empty if it flags none."""
    pairs = sorted(notes)
    if not pairs:
        return []
    message = message or f"{counted(len(pairs), 'pair')}: {check.what}"
    examples = tuple(FindingExample((pair,), notes[pair]) for pair in pairs[:EXAMPLES])
    return [Finding(check, len(pairs), total, message, examples, np.array(pairs, np.int64))]


# --- pairs as text ---------------------------------------------------------------------------------------


@dataclass
class Chunk:
    """Neighbouring pairs of a source.

    Attributes:
        start: number of the first pair, counted from 0 among all pairs of the source.
        pairs: as they were read. `prompts`, `chosen` and `rejected` are their words as text.
        subjects: prompts without system messages, which many rows share.
    """

    start: int
    pairs: list[Pair] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pairs)

    def add(self, pair: Pair) -> None:
        self.pairs.append(pair)
        prompt, subject = prompt_texts(pair.prompt)
        self.prompts.append(prompt)
        self.subjects.append(subject)
        transcript = isinstance(pair.prompt, str) and pair.prompt.startswith(HUMAN)
        self.chosen.append(answer_text(pair.chosen, transcript))
        self.rejected.append(answer_text(pair.rejected, transcript))

    @cached_property
    def subject_words(self) -> Words:
        return Words(self.subjects)


def prompt_texts(prompt: Side) -> tuple[str, str]:
    """A prompt as one text, and the same without system messages.

    One user message is its text alone, so that the same prompt as text and as messages is the same.
    """
    messages = prompt if not isinstance(prompt, str) else None
    if isinstance(prompt, str):
        messages = transcript_messages(prompt) if prompt.startswith(HUMAN) else None
        if messages is None:
            return prompt, prompt
    assert messages is not None
    full = _joined(messages)
    spoken = [message for message in messages if message["role"] != "system"]
    return full, full if len(spoken) == len(messages) or not spoken else _joined(spoken)


def answer_text(side: Side, transcript: bool = False) -> str:
    """An answer's text, without the space after a transcript's Assistant mark."""
    if isinstance(side, str):
        return side.removeprefix(" ") if transcript else side
    return _content(side[0])


def _joined(messages: Sequence[Message]) -> str:
    if len(messages) == 1 and messages[0]["role"] == "user":
        return _content(messages[0])
    return "\n\n".join(f"{message['role']}: {_content(message)}" for message in messages)


def _content(message: Message) -> str:
    """A message's text; one that only calls tools has its calls as text."""
    content = message.get("content")
    if isinstance(content, str) and (content or not message.get("tool_calls")):
        return content
    return json.dumps(message.get("tool_calls"), sort_keys=True, default=str)


# --- numbers ---------------------------------------------------------------------------------------------


class PairColumn:
    """One number for each pair, grown chunk by chunk in one buffer."""

    def __init__(self, dtype: Any = np.int64) -> None:
        self._dtype = np.dtype(dtype)
        self._bytes = bytearray()

    def add(self, values: ArrayLike) -> None:
        """The numbers of the next pairs; rows of a table are taken one after the other."""
        self._bytes += np.ascontiguousarray(values, self._dtype).tobytes()

    @property
    def values(self) -> NDArray[Any]:
        """All numbers so far, without a copy. No number can be added while they are in use."""
        return np.frombuffer(self._bytes, self._dtype)


def hashes(values: Sequence[Any]) -> NDArray[np.int64]:
    """int64[N]: Python's own hash of each value, the same within this process only."""
    return np.fromiter((hash(value) for value in values), np.int64, len(values))


def summary(values: NDArray[Any]) -> dict[str, float]:
    """Mean, median, 95th percentile and largest of some counts; zeros for none."""
    if not len(values):
        return {"mean": 0.0, "median": 0.0, "p95": 0.0, "max": 0}
    median, p95 = np.percentile(values, [50, 95])
    mean = round(float(values.mean()), 2)
    return {"mean": mean, "median": float(median), "p95": round(float(p95), 2), "max": int(values.max())}


def difference_histogram(differences: NDArray[Any]) -> list[dict[str, int]]:
    """Nine bins of equal width, the middle one around 0, as {from, to, count}.

    The width is a round number near the spread, so outliers are counted in the outermost bins.
    """
    if not len(differences):
        return []
    bins, spread = 9, max(1.0, float(np.percentile(np.abs(differences), 90)))
    # The next of 2, 4, 10, 20, 40, 100, ...: even, so that half a bin is a whole number.
    steps = (step * 10**power for power in count() for step in (2, 4, 10))
    width = next(step for step in steps if step >= 2 * spread / bins)
    edges = (np.arange(bins + 1) - bins / 2) * width
    inner = np.clip(np.floor((differences - edges[0]) / width), 0, bins - 1).astype(np.int64)
    counts = np.bincount(inner, minlength=bins)
    return [{"from": int(edges[i]), "to": int(edges[i + 1]), "count": int(counts[i])} for i in range(bins)]


def share(count: int, total: int) -> float:
    """count / total, 0 for nothing."""
    return count / total if total else 0.0
