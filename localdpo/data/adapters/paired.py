"""Rows with a chosen and a rejected answer, each text or messages, and a prompt in one of several columns.

Data sets give the prompt once or twice: in a column, and again as the messages that both answers open with.
The two are joined by what they say: white space makes no difference, and of two versions of a turn the one in
the answers is kept. Nothing that only one of them says is lost: where they contradict, the row is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from localdpo.data.columns import PROMPTS
from localdpo.data.fields import RowProblem, RowSkip, has_content, read_options, read_side
from localdpo.data.texts import ASSISTANT, HUMAN, common_prefix, split_transcripts, transcript_messages
from localdpo.data.types import Message, Pair, Side

Record = Mapping[str, Any]
ReadPrompt = Callable[[Record], Side]
PARTED = "chosen and rejected part before the last answer"
NO_SHARED_PROMPT = "chosen and rejected share no prompt"
DISAGREE = "the prompt and the turns that both answers open with say different things"
# What a conversation that was written out as one text has besides its turns.
_MARKS = re.compile(
    r"<\|[^|<>]*\|>|<[/\w]+>|\[/?\w+\]|<</?\w+>>"
    r"|\b(human|user|assistant|system|instruction|input|response|question|answer|prompt)\b|\W",
    re.IGNORECASE,
)


def column(name: str) -> ReadPrompt:
    """The prompt as one column has it."""
    return lambda record: read_side(record, name)


def explicit(
    read: ReadPrompt, chosen: str = "chosen", rejected: str = "rejected"
) -> Callable[[Record], Pair]:
    """A prompt of its own and two answers, in columns of these names."""

    def read_pair(record: Record) -> Pair:
        sides = read_side(record, chosen), read_side(record, rejected)
        if isinstance(sides[0], str) or isinstance(sides[1], str):
            prompt = read(record)
            if isinstance(prompt, str):
                sides = _without_transcript(prompt, sides)
            answers = _single(sides[0], chosen), _single(sides[1], rejected)
            return Pair(_before(prompt, answers), *answers, **read_options(record))
        shared, better, worse = _split_messages(sides[0], sides[1], (chosen, rejected))
        if shared:
            # Both answers have the prompt, so a column for it may as well hold nothing.
            empty = [name for name in PROMPTS & record.keys() if not has_content(record[name])]
            record = {**record, **dict.fromkeys(empty, "")}
        prompt = _before(read(record), (better, worse))
        return Pair(join(prompt, shared), better, worse, **read_options(record))

    return read_pair


def implicit(record: Record) -> Pair:
    """The prompt is what both answers open with: messages, a transcript's turns, or words."""
    chosen, rejected = read_side(record, "chosen"), read_side(record, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return Pair(*_split_text(chosen, rejected), **read_options(record))
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowProblem("rejected", "expected the same type as chosen (both text or both messages)")
    prompt, better, worse = _split_messages(chosen, rejected, ("chosen", "rejected"))
    if not prompt:
        raise RowSkip(NO_SHARED_PROMPT)
    return Pair(prompt, better, worse, **read_options(record))


def splits_words(record: Record) -> bool:
    """Whether `implicit` makes the prompt of the words that both answers happen to open with."""
    chosen = record.get("chosen")
    return isinstance(chosen, str) and not chosen.startswith(HUMAN)


def either(record: Record) -> Pair:
    """With a prompt column or without one, as Argilla's data sets are."""
    return explicit(column("prompt"))(record) if has_content(record.get("prompt")) else implicit(record)


# --- joining -------------------------------------------------------------------------------------------


def join(prompt: Side, shared: list[Message]) -> list[Message]:
    """The prompt column with the messages that both answers open with. Raises RowSkip if they contradict."""
    if isinstance(prompt, str):
        turns = transcript_messages(prompt)
        if turns is None:
            return _join_text(prompt, shared)
        prompt = turns
    for size in range(min(len(prompt), len(shared)), 0, -1):
        if _same(prompt[-size:], shared[:size]):
            return [*prompt[:-size], *shared]
    if any(_same(shared[i : i + len(prompt)], prompt) for i in range(len(shared))):
        return shared
    if not shared:
        return prompt
    # What stands in the middle of the prompt was answered there already.
    answered = any(_same(prompt[i : i + len(shared)], shared) for i in range(len(prompt)))
    if answered or shared[0]["role"] == "system" or shared[0]["role"] == prompt[-1]["role"]:
        raise RowSkip(DISAGREE)
    return [*prompt, *shared]


def _join_text(prompt: str, shared: list[Message]) -> list[Message]:
    """A prompt as text is one turn of the person's, or the whole conversation written out."""
    asked: Message = {"role": "user", "content": prompt}
    if not any(message["role"] == "user" for message in shared):
        return [*shared, asked]
    if asked in shared:
        return shared
    said, words = [_words(message) for message in shared], _words(asked)
    if any(words in one for one in said):
        return shared
    if not _MARKS.sub("", _besides(words, said)):
        return shared
    if said[-1] and said[-1] in words and all(message["role"] == "system" for message in shared[:-1]):
        # The text says more than the one turn of the answers: it takes that turn's place.
        return [*shared[:-1], asked]
    raise RowSkip(DISAGREE)


def _besides(text: str, parts: list[str]) -> str:
    """What a text has besides these parts (whole words, in their order); all of it if one is missing."""
    rest, place = "", 0
    for part in parts:
        found = re.compile(rf"(?<!\w){re.escape(part)}(?!\w)").search(text, place)
        if found is None:
            return text
        rest, place = f"{rest}{text[place : found.start()]} ", found.end()
    return rest + text[place:]


def _same(some: list[Message], others: list[Message]) -> bool:
    """Whether two stretches of messages say the same, white space aside."""
    return len(some) == len(others) and all(
        one == other or _bare(one) == _bare(other) for one, other in zip(some, others, strict=True)
    )


def _bare(message: Message) -> Message:
    return {**message, "content": _words(message)}


def _words(message: Message) -> str:
    return " ".join(str(message.get("content") or "").split())


def _before(prompt: Side, answers: tuple[Side, Side]) -> Side:
    """The prompt without its last turn where that is one of the answers: a whole conversation."""
    if isinstance(prompt, str) or len(prompt) < 2 or prompt[-1]["role"] != "assistant":
        return prompt
    turns = [{"role": "assistant", "content": side} if isinstance(side, str) else side[0] for side in answers]
    return prompt[:-1] if any(_same(prompt[-1:], [turn]) for turn in turns) else prompt


# --- taking apart --------------------------------------------------------------------------------------


def _single(side: Side, name: str) -> Side:
    if isinstance(side, str):
        return side
    if len(side) != 1 or side[0]["role"] != "assistant":
        raise RowProblem(name, f"expected one assistant message, found {len(side)} messages")
    return side


def _split_messages(
    chosen: list[Message], rejected: list[Message], names: tuple[str, str]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Common leading messages, and the one assistant message that follows on each side."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and _same([chosen[shared]], [rejected[shared]]):
        shared += 1
    for name, rest in zip(names, (chosen[shared:], rejected[shared:]), strict=True):
        if rest[-1]["role"] != "assistant":
            found = rest[-1]["role"]
            raise RowProblem(name, f"expected an assistant message at the end, found role {found!r}")
        if len(rest) > 1:
            raise RowSkip(PARTED)
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _without_transcript(prompt: str, sides: tuple[Side, Side]) -> tuple[Side, Side]:
    """Answers that are whole transcripts and open with the prompt, itself a transcript: the rest of each."""
    if not (prompt.startswith(HUMAN) and prompt.rstrip().endswith(ASSISTANT)):
        return sides
    first, second = (side.removeprefix(prompt.rstrip()) if isinstance(side, str) else side for side in sides)
    return first, second


def _split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The prompt that two whole texts share, cut where a word ends, and what follows it on each side.

    Human/Assistant transcripts are cut after the last Assistant mark instead. The white space at the cut goes
    to the responses, as tokenizers have it.
    """
    if chosen.startswith(HUMAN) and rejected.startswith(HUMAN):
        parts = split_transcripts(chosen, rejected)
        if parts is None:
            raise RowSkip(PARTED)
        return parts
    end = len(common_prefix([chosen, rejected]))
    while end > 0 and not all(end == len(text) or text[end].isspace() for text in (chosen, rejected)):
        end -= 1
    prompt = chosen[:end].rstrip()
    if not prompt:
        raise RowSkip(NO_SHARED_PROMPT)
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]
