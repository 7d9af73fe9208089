"""Rows that hold a preference pair: a chosen and a rejected answer, or several answers and what ranks them.

Data sets give the prompt once or twice: in a column, and again as the messages that both answers open with.
The two are joined by what they say: white space makes no difference, and of two versions of a turn the one in
the answers is used. Nothing that only one of them says is lost: where they contradict, the row is skipped.

Answers are ranked by scores, a label or an order. Equally good ones make no pair: the row is skipped and
counted. An answer that is alone in its row waits for a neighbour with the same prompt (`ScoredAnswer`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from localdpo.core.text import common_prefix, counted, is_number
from localdpo.data.encode import IDENTICAL
from localdpo.data.fields import (
    CUT,
    FINISH_REASON,
    PROMPTS,
    STOP,
    RowProblem,
    RowSkip,
    describe,
    has_content,
    number,
    read_list,
    read_number,
    read_text,
    text,
)
from localdpo.data.messages import (
    ASSISTANT,
    HUMAN,
    MARK,
    read_answer,
    read_messages,
    read_options,
    read_side,
    transcript_messages,
)
from localdpo.data.types import Message, Pair, Side

Record = Mapping[str, Any]
ReadPrompt = Callable[[Record], Side]
ReadResult = TypeVar("ReadResult")
PARTED = "chosen and rejected part before the last answer"
NO_SHARED_PROMPT = "chosen and rejected share no prompt"
DISAGREE = "the prompt and the turns that both answers open with say different things"
EQUAL = "both answers have the same score"
CLOSE = "the scores of the answers are closer than 2 to 1"
FEW = "fewer than two answers with a score"
# What a conversation that was written out as one text has besides its turns.
_MARKS = re.compile(
    r"<\|[^|<>]*\|>|<[/\w]+>|\[/?\w+\]|<</?\w+>>"
    r"|\b(human|user|assistant|system|instruction|input|response|question|answer|prompt)\b|\W",
    re.IGNORECASE,
)
# The paper on SHP trains on pairs whose scores are at least 2 to 1; below that the preference is weak.
SHP_RATIO = 2.0
# How data sets call the scores of a pair that is already ordered.
RATINGS: tuple[tuple[str, str], ...] = (
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("rating_chosen", "rating_rejected"),
)


# --- a chosen and a rejected answer -------------------------------------------------------------------


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


def either(record: Record) -> Pair:
    """With a prompt column or without one, as Argilla's data sets are."""
    return explicit(column("prompt"))(record) if has_content(record.get("prompt")) else implicit(record)


def openai(record: Record) -> Pair:
    """OpenAI's preference fine-tuning: `input.messages`, and one assistant message on either side."""
    given = record.get("input")
    if not isinstance(given, dict):
        raise RowProblem("input", f"expected an object with messages, got {describe(given)}")
    inner = {f"input.{name}": value for name, value in given.items()}
    prompt = read_messages(inner, "input.messages")
    chosen, rejected = read_answer(record, "preferred_output"), read_answer(record, "non_preferred_output")
    tools = given.get("tools") or record.get("tools")
    return Pair(prompt, chosen, rejected, **read_options({**record, "tools": tools}))


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
    # What is in the middle of the prompt was answered there already.
    answered = any(_same(prompt[i : i + len(shared)], shared) for i in range(len(prompt)))
    if answered or shared[0]["role"] == "system" or shared[0]["role"] == prompt[-1]["role"]:
        raise RowSkip(DISAGREE)
    return [*prompt, *shared]


def _join_text(prompt: str, shared: list[Message]) -> list[Message]:
    """A prompt as text is one turn of the person's, or the whole conversation written out."""
    turn: Message = {"role": "user", "content": prompt}
    if not any(message["role"] == "user" for message in shared):
        return [*shared, turn]
    if turn in shared:
        return shared
    said, words = [_words(message) for message in shared], _words(turn)
    if any(words in text for text in said):
        return shared
    if not _MARKS.sub("", _besides(words, said)):
        return shared
    if said[-1] and said[-1] in words and all(message["role"] == "system" for message in shared[:-1]):
        # The text says more than the one turn of the answers: it takes that turn's place.
        return [*shared[:-1], turn]
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
        a == b or _bare(a) == _bare(b) for a, b in zip(some, others, strict=True)
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
        raise RowProblem(name, f"expected one assistant message, found {counted(len(side), 'message')}")
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
            role = rest[-1]["role"]
            raise RowProblem(name, f"expected an assistant message at the end, found role {role!r}")
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
        prompt = chosen[: chosen.rfind(ASSISTANT) + len(ASSISTANT)]
        answers = chosen[len(prompt) :], rejected[len(prompt) :]
        if not prompt.endswith(ASSISTANT) or not rejected.startswith(prompt) or MARK.search(answers[1]):
            raise RowSkip(PARTED)
        return prompt, *answers
    end = len(common_prefix([chosen, rejected]))
    while end > 0 and not all(end == len(text) or text[end].isspace() for text in (chosen, rejected)):
        end -= 1
    prompt = chosen[:end].rstrip()
    if not prompt:
        raise RowSkip(NO_SHARED_PROMPT)
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


# --- several answers and what ranks them --------------------------------------------------------------


def unequal(read: Callable[[Record], ReadResult]) -> Callable[[Record], ReadResult]:
    """`read`, for rows that have the scores of both answers besides: equal ones make no pair.

    A score that is null says nothing, and the row is kept.
    """

    def checked(record: Record) -> ReadResult:
        result = read(record)
        for names in RATINGS:
            scores = [number(record[name], name) for name in names if record.get(name) is not None]
            if len(scores) == 2 and scores[0] == scores[1]:
                raise RowSkip(EQUAL)
        return result

    return checked


def ending(read: Callable[[Record], Any]) -> Callable[[Record], Any]:
    """`read`, for rows that may have the column FINISH_REASON: a rejected answer that was cut has no end."""

    def read_ending(record: Record) -> Any:
        reason = record.get(FINISH_REASON)
        if reason not in (None, STOP, CUT):
            shown = repr(reason) if isinstance(reason, str) else describe(reason)
            raise RowProblem(FINISH_REASON, f'expected "{CUT}" or "{STOP}", got {shown[:60]}')
        result = read(record)
        if reason != CUT:
            return result
        if not isinstance(result, Pair):
            raise RowProblem(FINISH_REASON, f"{CUT}, but rows of this format have no one rejected answer")
        if result.chosen == result.rejected:
            raise RowSkip(IDENTICAL)
        return replace(result, rejected_ended=False)

    return read_ending


def contradicts(record: Record) -> bool:
    """Whether the scores that a row has besides say that the rejected answer is the better one."""
    for names in RATINGS:
        chosen, rejected = (record.get(name) for name in names)
        if is_number(chosen) and is_number(rejected):
            return bool(chosen < rejected)
    return False


def shp(record: Record) -> Pair:
    """Stanford Human Preferences: `labels` 1 prefers A. Pairs below SHP_RATIO are skipped."""
    prompt = read_text(record, "history")
    answers = [read_text(record, "human_ref_A"), read_text(record, "human_ref_B")]
    label = read_number(record, "labels")
    if label not in (0.0, 1.0):
        raise RowProblem("labels", f"expected 1 (A is preferred) or 0 (B), got {label:g}")
    if read_number(record, "score_ratio") < SHP_RATIO:
        raise RowSkip(CLOSE)
    return _ordered(prompt, answers, first=label == 1.0, record=record)


def signed(prompt: str, first: str, second: str, preference: str) -> Callable[[Record], Pair]:
    """HelpSteer's preferences: below 0 the first answer is better, above 0 the second."""

    def read(record: Record) -> Pair:
        question = read_side(record, prompt)
        answers = [read_text(record, first), read_text(record, second)]
        value = read_number(record, preference)
        if value == 0:
            raise RowSkip(EQUAL)
        return _ordered(question, answers, first=value < 0, record=record)

    return read


def _ordered(prompt: Side, answers: Sequence[str], *, first: bool, record: Record) -> Pair:
    chosen, rejected = answers if first else reversed(answers)
    return Pair(prompt, chosen, rejected, **read_options(record))


def completions(record: Record) -> Pair:
    """UltraFeedback before it was made into pairs: the best completion against the worst.

    Of four answers none can lie below mean - 2 sd (sqrt(3) sd is the limit), which is the place that
    arXiv 2502.16825 advises, so the worst is the nearest to it.
    """
    prompt = read_text(record, "instruction")
    scored: list[tuple[float, str]] = []
    for i, entry in enumerate(read_list(record, "completions")):
        name = f"completions[{i}]"
        if not isinstance(entry, dict):
            raise RowProblem(
                name, f"expected an object with response and overall_score, got {describe(entry)}"
            )
        answer = text(entry.get("response"), f"{name}.response")
        if entry.get("overall_score") is not None:
            scored.append((number(entry["overall_score"], f"{name}.overall_score"), answer))
    return _extremes(prompt, scored, record)


def generations(prompt: str, ratings: str) -> Callable[[Record], Pair]:
    """distilabel's lists: `generations` and a rating of each, the best against the worst."""

    def read(record: Record) -> Pair:
        question = read_text(record, prompt)
        answers, values = read_list(record, "generations"), read_list(record, ratings)
        if len(answers) != len(values):
            raise RowProblem(ratings, f"expected {len(answers)}, one for each generation, got {len(values)}")
        scored = [
            (number(value, f"{ratings}[{i}]"), text(answer, f"generations[{i}]"))
            for i, (answer, value) in enumerate(zip(answers, values, strict=True))
            if value is not None and answer is not None
        ]
        return _extremes(question, scored, record)

    return read


def _extremes(prompt: Side, scored: Sequence[tuple[float, str]], record: Record) -> Pair:
    """The first of the best against the first of the worst."""
    if len(scored) < 2:
        raise RowSkip(FEW)
    best, worst = max(scored, key=lambda answer: answer[0]), min(scored, key=lambda answer: answer[0])
    if best[0] == worst[0]:
        raise RowSkip(EQUAL)
    return Pair(prompt, best[1], worst[1], **read_options(record))


def responses(record: Record) -> list[Pair]:
    """The rows of Mitchell's reference implementation: answers, and pairs of their indices, better first."""
    prompt = read_side(record, "prompt")
    answers = [text(value, f"responses[{i}]") for i, value in enumerate(read_list(record, "responses"))]
    options = read_options(record)
    pairs = []
    for k, indices in enumerate(read_list(record, "pairs")):
        name = f"pairs[{k}]"
        if not isinstance(indices, list) or len(indices) != 2:
            raise RowProblem(name, f"expected two indices of responses, got {describe(indices)}")
        for index in indices:
            if type(index) is not int or not 0 <= index < len(answers):
                raise RowProblem(
                    name, f"expected an index from 0 to {len(answers) - 1}, got {describe(index)}"
                )
        better, worse = indices
        pairs.append(Pair(prompt, answers[better], answers[worse], **options))
    if not pairs:
        raise RowSkip(FEW)
    return pairs


# --- one answer a row ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """One answer of a row that holds no other. Neighbours with one prompt and two scores make a pair."""

    prompt: Side
    response: Side
    score: float
    options: dict[str, Any] = field(default_factory=dict)

    def against(self, other: ScoredAnswer) -> Pair:
        """The pair of two answers with different scores; this one was read first."""
        better, worse = (self, other) if self.score > other.score else (other, self)
        return Pair(self.prompt, better.response, worse.response, **self.options)


def alone(
    answer: str, score: str, read_score: Callable[[Record, str], float]
) -> Callable[[Record], ScoredAnswer]:
    """An answer with its score, or with a label that says whether it is desirable."""

    def read(record: Record) -> ScoredAnswer:
        value = float(read_score(record, score))
        side = read_side(record, "prompt")
        return ScoredAnswer(side, read_answer(record, answer), value, read_options(record))

    return read
