"""Pairs as plain text, a thousand at a time: what all checks look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from localdpo.data.messages import HUMAN, transcript_messages
from localdpo.data.types import Message, Pair, Side
from localdpo.prefs.shingles import Words

CHUNK_ROWS = 1000


@dataclass
class Chunk:
    """Neighbouring pairs of a source.

    Attributes:
        start: place of the first pair among all pairs of the source.
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
        """One more pair."""
        self.pairs.append(pair)
        prompt, subject = prompt_texts(pair.prompt)
        self.prompts.append(prompt)
        self.subjects.append(subject)
        transcript = isinstance(pair.prompt, str) and pair.prompt.startswith(HUMAN)
        self.chosen.append(answer_text(pair.chosen, transcript))
        self.rejected.append(answer_text(pair.rejected, transcript))

    @cached_property
    def subject_words(self) -> Words:
        """The words of `subjects`."""
        return Words(self.subjects)


def prompt_texts(prompt: Side) -> tuple[str, str]:
    """A prompt as one text, and the same without system messages.

    One user message gives its text alone, so that the same prompt as text and as messages is the same.
    """
    messages = prompt if not isinstance(prompt, str) else None
    if isinstance(prompt, str):
        messages = transcript_messages(prompt) if prompt.startswith(HUMAN) else None
        if messages is None:
            return prompt, prompt
    assert messages is not None
    whole = _joined(messages)
    spoken = [message for message in messages if message["role"] != "system"]
    return whole, whole if len(spoken) == len(messages) or not spoken else _joined(spoken)


def answer_text(side: Side, transcript: bool = False) -> str:
    """An answer's words; the space after a transcript's Assistant mark is none of them."""
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
