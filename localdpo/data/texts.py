"""What texts share, and dialogues as one text with Human and Assistant marks (Anthropic's HH data)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from localdpo.data.types import Message

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
MARK = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def common_prefix(texts: Sequence[str]) -> str:
    """The longest beginning that all texts share, by character; "" for no texts."""
    # The least and the greatest differ where any two do.
    low, high = min(texts, default=""), max(texts, default="")
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:length]


def transcript_messages(text: str) -> list[Message] | None:
    """The turns of a transcript that ends with an open Assistant mark, as messages; None for other text."""
    if not (text.startswith(HUMAN) and text.rstrip().endswith(ASSISTANT)):
        return None
    _, *parts = MARK.split(text)
    turns = zip(parts[0::2], parts[1::2], strict=True)
    return [{"role": _ROLES[name], "content": words.strip()} for name, words in turns][:-1]


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """(prompt, chosen answer, rejected answer) of two transcripts that differ in the last answer only.

    The prompt ends with the Assistant mark. None when they part before the last answer.
    """
    prompt = chosen[: chosen.rfind(ASSISTANT) + len(ASSISTANT)]
    answers = chosen[len(prompt) :], rejected[len(prompt) :]
    if not prompt.endswith(ASSISTANT) or not rejected.startswith(prompt) or MARK.search(answers[1]):
        return None
    return prompt, *answers
