"""Lengths in tokens, what is cut at the recipe's limits, and where prompt and answer share a token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from localdpo.data.encode import (
    IDENTICAL,
    IDENTICAL_WHEN_CUT,
    NO_CONTENT,
    NO_SCORED_TOKEN,
    Encoder,
    Limits,
)
from localdpo.data.store import REASONING_LOST
from localdpo.data.types import EncodedRow, TemplateChoice
from localdpo.prefs.checks.sizes import longer_facts
from localdpo.prefs.columns import Column, share, summary
from localdpo.prefs.findings import EXAMPLES, Check, Finding, at_rows
from localdpo.prefs.rows import Chunk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_LIMIT = 2**31 - 1
_AT_LIMITS = (NO_SCORED_TOKEN, NO_CONTENT, IDENTICAL_WHEN_CUT)
# Below this share, cutting a few long rows is what a limit is for.
MANY_CUT = 0.05

TRUNCATED = Check(
    "truncated",
    "warning",
    f"cut at the limits, where that is more than {MANY_CUT:.0%} of the pairs",
    "raise train.max_length, or take out the longest rows: a cut answer has no end to learn",
)
LOST = Check(
    "lost-when-cut",
    "warning",
    "nothing to learn is left within the limits",
    "raise train.max_length, or take them out; training drops them",
    drops=True,
)
REFUSED = Check(
    "not-rendered",
    "error",
    "the chat template cannot write the row",
    "mend what it cannot write, take a model whose template does, or take the rows out; training drops them",
    drops=True,
)
LEFT_OUT = Check(
    "left-out",
    "warning",
    "the chat template leaves out a part of the row, or opens the answer otherwise than it asks for one",
    "use a template, or options of it (data.chat_template_kwargs), that write the whole row",
)
MERGED = Check(
    "boundary-merges",
    "info",
    "a token would span the end of the prompt and the start of the answer",
    "nothing has to be done: prompt and answer are tokenised apart in these rows",
)


class Tokens:
    """Encodes every pair as training would, without limits, and sees what the limits take away."""

    checks: ClassVar[tuple[Check, ...]] = (REFUSED, LOST, TRUNCATED, LEFT_OUT, MERGED)

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: TemplateChoice,
        limits: Limits | None,
        end_ids: Collection[int] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        def encoder(limits: Limits) -> Encoder:
            return Encoder(tokenizer, template, limits, end_ids=end_ids, template_kwargs=template_kwargs)

        self._encoder = encoder(Limits(_NO_LIMIT))
        self._cutting = None if limits is None else encoder(limits)
        self._limits = limits
        self._left_out: dict[int, str] = {}
        self._lengths = Column(np.int32)
        self._cut: list[int] = []
        self._merged: list[int] = []
        self._dropped: dict[str, list[int]] = defaultdict(list)
        self._total = 0

    def add(self, chunk: Chunk) -> None:
        """Encode the pairs of a chunk."""
        self._total += len(chunk)
        examples = list(enumerate(chunk.pairs, chunk.start))
        encoded = self._encoder.encode(examples)
        for reason, places in encoded.dropped.items():
            self._dropped[reason] += places
        self._merged += encoded.merged_rows
        self._lengths.add([(len(row.prompt), *map(len, row.responses)) for row in encoded.rows])
        for note, places in encoded.notes.items():
            self._left_out.update(dict.fromkeys(places, note))
        self._left_out.update(dict.fromkeys(encoded.reasoning_lost, REASONING_LOST))
        if self._cutting is not None and self._limits is not None:
            over = {row.row for row in encoded.rows if _is_over(row, self._limits)}
            cut = self._cutting.encode([one for one in examples if one[0] in over])
            for reason, places in cut.dropped.items():
                self._dropped[reason] += places
            self._cut += [row.row for row in cut.rows]

    def finish(self) -> Iterator[Finding]:
        """Rows that cannot be rendered, rows lost or cut at the limits, merged boundaries."""
        when_cut = {place: why for why in _AT_LIMITS for place in self._dropped[why]}
        # The checks of labels tell of identical answers.
        others = self._dropped.keys() - {*_AT_LIMITS, IDENTICAL}
        refused = {place: why for why in sorted(others) for place in self._dropped[why]}
        yield from self._finding(REFUSED, refused, f"{len(refused):,} pairs cannot be written as tokens")
        message = f"{len(when_cut):,} pairs have nothing to learn within the limits"
        yield from self._finding(LOST, when_cut, message)
        cut = share(len(self._cut), self._total)
        if cut > MANY_CUT:
            message = f"{cut:.1%} of the pairs lose tokens at {self._limit_words()}"
            yield from self._finding(TRUNCATED, dict.fromkeys(self._cut, ""), message)
        message = f"{len(self._left_out):,} pairs are not written as they stand, or as they will be asked"
        yield from self._finding(LEFT_OUT, self._left_out, message)
        message = f"{len(self._merged):,} pairs would share a token at the boundary"
        yield from self._finding(MERGED, dict.fromkeys(self._merged, ""), message)

    def facts(self) -> dict[str, Any]:
        """Tokens of each part and what the limits do."""
        table = self._lengths.values.reshape(-1, 3)
        names = ("prompt", "chosen", "rejected")
        whole = table[:, 0] + table[:, 1:].max(axis=1) if len(table) else table[:, 0]
        return {
            "tokens": {
                **{name: summary(table[:, i]) for i, name in enumerate(names)},
                "row": summary(whole),
            },
            "chosen_longer_tokens": longer_facts(table[:, 1], table[:, 2], "tokens"),
            "limits": None if self._limits is None else self._limit_words(),
            "truncated": len(self._cut),
            "merged": len(self._merged),
        }

    def _limit_words(self) -> str:
        assert self._limits is not None
        prompt = self._limits.max_prompt_length
        return f"max_length {self._limits.max_length}" + (f", max_prompt_length {prompt}" if prompt else "")

    def _finding(self, check: Check, found: dict[int, str], message: str) -> list[Finding]:
        return at_rows(
            check, self._total, sorted(found), message, [found[i] for i in sorted(found)[:EXAMPLES]]
        )


def _is_over(row: EncodedRow, limits: Limits) -> bool:
    """Whether an uncut row is longer than the limits."""
    prompt, longest = len(row.prompt), max(map(len, row.responses))
    return prompt > (limits.max_prompt_length or prompt) or prompt + longest > limits.max_length
