"""The objects that data hands from room to room: rows of text, rows of token ids, batches of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenizer: TypeAlias = "PreTrainedTokenizerBase"
"""Of transformers, which is loaded where one is opened."""
Kind: TypeAlias = Literal["pairs", "demonstrations", "unpaired", "prompts"]
TemplateChoice: TypeAlias = Literal["auto", "chat", "raw"]
Truncation: TypeAlias = Literal["keep_start", "keep_end"]
Message: TypeAlias = dict[str, Any]
Side: TypeAlias = "str | list[Message]"
"""One side of a row: plain text, or chat messages. A response given as messages is one assistant message."""


@dataclass(frozen=True, slots=True)
class Example:
    """What one row of data says: a prompt, and the responses that its kind of data has.

    `tools` and `template_kwargs` go to the chat template and count for nothing in raw rendering.
    """

    prompt: Side
    tools: list[Any] | None = field(default=None, kw_only=True)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def responses(self) -> tuple[Side, ...]:
        return ()

    @property
    def ended(self) -> tuple[bool, ...]:
        """Of each response, whether it ends with its text; else it was cut, and no end of it is scored."""
        return (True,) * len(self.responses)

    @property
    def desirable(self) -> bool | None:
        """The label of a rated response; None for examples of other kinds."""
        return None

    @property
    def as_is(self) -> bool:
        """Whether the text is never put into a chat template, whatever the recipe says."""
        return False


@dataclass(frozen=True, slots=True)
class Prompt(Example):
    """A prompt to answer, without a response."""


@dataclass(frozen=True, slots=True)
class Pair(Example):
    """A prompt with a preferred and a dispreferred response. The preferred one always ends.

    `rejected_ended`: False where the rejected one was cut at a limit of tokens.
    """

    chosen: Side
    rejected: Side
    rejected_ended: bool = field(default=True, kw_only=True)

    @property
    def responses(self) -> tuple[Side, ...]:
        return (self.chosen, self.rejected)

    @property
    def ended(self) -> tuple[bool, ...]:
        return (True, self.rejected_ended)


@dataclass(frozen=True, slots=True)
class Demonstration(Example):
    """A prompt with one response to imitate."""

    response: Side
    as_is: bool = field(default=False, kw_only=True)

    @property
    def responses(self) -> tuple[Side, ...]:
        return (self.response,)


@dataclass(frozen=True, slots=True)
class Rated(Example):
    """A prompt with one response that was found desirable, or undesirable.

    `of_pair`: it is one half of a preference pair, the chosen (desirable) or the rejected one (not).
    `response_ended`: False where it was cut at a limit of tokens.
    """

    response: Side
    desirable: bool
    of_pair: bool = field(default=False, kw_only=True)
    response_ended: bool = field(default=True, kw_only=True)

    @property
    def responses(self) -> tuple[Side, ...]:
        return (self.response,)

    @property
    def ended(self) -> tuple[bool, ...]:
        return (self.response_ended,)


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row as token ids. Every response id is scored, no prompt id is.

    `row` counts from 0 in the source (a JSONL file's line number less one). `prompt` is int32[>=1], the one
    prefix of all responses; `responses` holds int32[>=1] arrays: (chosen, rejected) or (response,).
    The arrays may be read-only views into a mapped file. `desirable` is the label of an unpaired row, None in
    rows of other kinds. `prompt_key` tells prompts apart as they were before they were cut to a limit.
    """

    row: int
    prompt: NDArray[np.int32]
    responses: tuple[NDArray[np.int32], ...]
    desirable: bool | None = None
    prompt_key: int = 0


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What became of the rows of a source. Row numbers count from 0.

    `truncated`: kept rows that lost tokens; `merged`: kept rows whose prompt and response would share a token
    if tokenised in one piece, and were tokenised apart; `split`: pairs that became two unpaired rows each,
    which count as two in the other figures. `unread`: columns that hold something and were not read, with
    their rows. `notes`: what else a person should know of the rows that were kept, with how many it is true
    of.
    """

    read: int = 0
    kept: int = 0
    dropped: Mapping[str, list[int]] = field(default_factory=dict)
    truncated: int = 0
    merged: int = 0
    split: int = 0
    unread: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def dropped_total(self) -> int:
        """How many rows were read and not kept."""
        return sum(len(rows) for rows in self.dropped.values())


@dataclass(frozen=True, slots=True)
class Batch:
    """P rows with K responses each, as padded arrays (K = 2 for pairs, else 1).

    indices     int64[P]       index of each row in its store
    context     int32[P, C]    prompt without its last token, padded on the LEFT to the longest
    context_pad int32[P]       pad columns at the left of each context row
    response    int32[K*P, R+1]  last prompt token, then the response ids, padded on the RIGHT to the longest
    lengths     int32[K*P]     response ids (= scored tokens) of each response row
    desirable   bool[P]        label of each unpaired row; None for rows of other kinds

    Response row k*P + i belongs to prompt i: all chosen first, then all rejected.
    """

    indices: NDArray[np.int64]
    context: NDArray[np.int32]
    context_pad: NDArray[np.int32]
    response: NDArray[np.int32]
    lengths: NDArray[np.int32]
    desirable: NDArray[np.bool_] | None = None
