"""The way back: a pair as the row of a format, with what the format cannot hold named.

A writer raises RowProblem for a pair that its format has no place for. What it can leave out without
changing the pair's words (tools, white space around a turn) it names in `lost`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from localdpo.core.text import counted
from localdpo.data.fields import CUT, FINISH_REASON, OPTIONS, RowProblem
from localdpo.data.formats.pairs import RATINGS
from localdpo.data.messages import ASSISTANT, HUMAN, MARK, as_conversation, transcript_messages
from localdpo.data.types import Message, Pair

Columns = Mapping[str, Any]
SCORES = RATINGS[0]
WHITE_SPACE = "white space around a turn"
_SPEAKERS = {"user": HUMAN, "assistant": ASSISTANT}


@dataclass(frozen=True, slots=True)
class Written:
    """The rows of a pair (two in formats with one answer a row), and what of the pair is not in them."""

    records: tuple[dict[str, Any], ...]
    lost: tuple[str, ...] = ()


Writer = Callable[[Pair, Columns], Written]
"""From a pair and the other columns of its row (scores under the names SCORES) to rows."""


def explicit(pair: Pair, columns: Columns) -> Written:
    """TRL's rows with a prompt, text or messages as they are; other columns stay."""
    own = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, **_ending(pair)}
    return Written(({**columns, **own, **_options(pair)},))


def implicit(pair: Pair, columns: Columns) -> Written:
    """TRL's rows without a prompt: the full conversation on both sides; other columns stay."""
    prompt, chosen, rejected = _messages(pair)
    if not prompt:
        raise RowProblem("prompt", "empty; rows without a prompt column need messages that both sides share")
    own = {"chosen": [*prompt, chosen], "rejected": [*prompt, rejected], **_ending(pair)}
    return Written(({**columns, **own, **_options(pair)},))


def ultrafeedback(pair: Pair, columns: Columns) -> Written:
    """UltraFeedback made into pairs: the prompt as text and inside both sides; needs scores."""
    prompt, chosen, rejected = _messages(pair)
    asked = [message for message in prompt if message["role"] == "user"]
    if not asked:
        raise RowProblem("prompt", "no user message; this format needs one")
    question = _words(asked[-1], "prompt")
    own = {
        "prompt": question,
        "prompt_id": hashlib.sha256(question.encode()).hexdigest(),
        "chosen": [*prompt, chosen],
        "rejected": [*prompt, rejected],
        "messages": [*prompt, chosen],
        **dict(zip(SCORES, _scores(columns), strict=True)),
        **_ending(pair),
        **_options(pair),
    }
    return Written(({**own, **{name: columns[name] for name in columns if name not in own}},))


def argilla(pair: Pair, columns: Columns) -> Written:
    """Argilla's conversations with ratings; needs scores."""
    prompt, chosen, rejected = _messages(pair)
    if not prompt:
        raise RowProblem("prompt", "empty; this format needs messages that both sides share")
    own = {"chosen": [*prompt, chosen], "rejected": [*prompt, rejected], **_ending(pair)}
    return Written(({**own, **dict(zip(RATINGS[1], _scores(columns), strict=True))},), tuple(_options(pair)))


def openai(pair: Pair, columns: Columns) -> Written:
    """OpenAI's preference fine-tuning."""
    prompt, chosen, rejected = _messages(pair)
    given: dict[str, Any] = {"messages": prompt}
    if pair.tools:
        given["tools"] = pair.tools
    record = {"input": given, "preferred_output": [chosen], "non_preferred_output": [rejected]}
    return Written((record,), ("chat_template_kwargs",) if pair.template_kwargs else ())


def transcripts(pair: Pair, columns: Columns) -> Written:
    """Anthropic's HH: two whole transcripts that differ in the last answer."""
    prompt, chosen, rejected, lost = _transcript(pair)
    return Written(({"chosen": prompt + chosen, "rejected": prompt + rejected},), lost)


def responses(pair: Pair, columns: Columns) -> Written:
    """Mitchell's rows, one pair each, the chosen answer as the target for SFT."""
    prompt, chosen, rejected, lost = _transcript(pair)
    record = {"prompt": prompt, "responses": [chosen, rejected], "pairs": [[0, 1]], "sft_target": chosen}
    return Written((record,), lost)


def stackexchange(pair: Pair, columns: Columns) -> Written:
    """One question as text, the better answer as response_j."""
    prompt, chosen, rejected = _messages(pair)
    if len(prompt) != 1 or prompt[0]["role"] != "user":
        raise RowProblem(
            "prompt", f"this format keeps one question, the row has {counted(len(prompt), 'message')}"
        )
    question, better, worse = (_words(message, "prompt") for message in (prompt[0], chosen, rejected))
    record = {"question": question, "response_j": better, "response_k": worse}
    return Written((record,), tuple(_options(pair)))


def labelled(pair: Pair, columns: Columns) -> Written:
    """KTO: a desirable row, and an undesirable one right after it."""
    rows = [
        {"prompt": pair.prompt, "completion": answer, "label": label, **_options(pair)}
        for answer, label in zip(pair.responses, (True, False), strict=True)
    ]
    return Written(tuple(rows))


def demonstration(pair: Pair, columns: Columns) -> Written:
    """TRL's rows for SFT: the prompt and the chosen answer; other columns but scores of the pair stay."""
    kept = {name: value for name, value in columns.items() if name not in SCORES}
    own = {"prompt": pair.prompt, "completion": pair.chosen, **_options(pair)}
    return Written(({**kept, **own},))


def _messages(pair: Pair) -> tuple[list[Message], Message, Message]:
    prompt, (chosen, rejected) = as_conversation(pair.prompt, pair.responses)
    return prompt, chosen, rejected


def _options(pair: Pair) -> dict[str, Any]:
    values = (pair.tools, dict(pair.template_kwargs))
    return {name: value for name, value in zip(OPTIONS, values, strict=True) if value}


def _ending(pair: Pair) -> dict[str, str]:
    """What says that the rejected answer did not end; nothing where it did."""
    return {} if pair.rejected_ended else {FINISH_REASON: CUT}


def _scores(columns: Columns) -> list[Any]:
    for name in SCORES:
        if columns.get(name) is None:
            raise RowProblem(name, "missing; this format needs the scores of both answers")
    return [columns[name] for name in SCORES]


def _words(message: Message, name: str) -> str:
    """The text of a message that is nothing but text."""
    if set(message) - {"role", "content"}:
        other = ", ".join(sorted(set(message) - {"role", "content"}))
        raise RowProblem(name, f"a message with {other}; this format keeps text only")
    return str(message["content"])


def _transcript(pair: Pair) -> tuple[str, str, str, tuple[str, ...]]:
    """(prompt up to the open Assistant mark, chosen, rejected, what is lost) as text with marks."""
    prompt, chosen, rejected = _messages(pair)
    lost = list(_options(pair))
    text = ""
    for i, message in enumerate(prompt):
        name = f"prompt[{i}]"
        speaker = _SPEAKERS.get(message["role"])
        if speaker is None:
            raise RowProblem(f"{name}.role", f"a Human/Assistant transcript has no {message['role']!r}")
        words = _unmarked(message, name)
        if words != words.strip() and WHITE_SPACE not in lost:
            lost.append(WHITE_SPACE)
        text += f"{speaker} {words.strip()}"
    text += ASSISTANT
    if transcript_messages(text) is None:
        raise RowProblem("prompt", "a Human/Assistant transcript opens with the person's turn")
    return text, f" {_unmarked(chosen, 'chosen')}", f" {_unmarked(rejected, 'rejected')}", tuple(lost)


def _unmarked(message: Message, name: str) -> str:
    words = _words(message, name)
    if MARK.search(f"{words}"):
        raise RowProblem(name, "holds a Human/Assistant mark, which would read as a turn of its own")
    return words
