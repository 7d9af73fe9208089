"""Lengths in characters and tokens, the bias towards longer answers, and what the recipe's limits cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np

from localdpo.core.text import counted, have
from localdpo.data.encode import (
    IDENTICAL,
    IDENTICAL_WHEN_CUT,
    NO_CONTENT,
    NO_SCORED_TOKEN,
    Encoder,
    Limits,
)
from localdpo.data.fields import FINISH_REASON
from localdpo.data.store import REASONING_LOST
from localdpo.data.types import Tokenizer
from localdpo.prefs.checks.base import (
    Check,
    CheckSettings,
    Chunk,
    Family,
    Finding,
    FindingExample,
    PairColumn,
    difference_histogram,
    flagged_pairs,
    hashes,
    share,
    summary,
)
from localdpo.prefs.settings import end_ids

# Above 60% of pairs the policy is likely to learn length; below this many pairs the share says little.
BIASED_SHARE = 0.6
ENOUGH_PAIRS = 50

EMPTY = Check(
    "empty-answers",
    "error",
    "an empty answer",
    "remove them: an empty answer teaches the model to stop at once, or to avoid stopping",
    drops=True,
)
EMPTY_PROMPT = Check(
    "empty-prompts", "warning", "an empty prompt", "remove them, unless they are intended", drops=True
)
CUT_REJECTED = Check(
    "cut-rejected",
    "info",
    "a rejected answer that was cut at a limit of tokens",
    "no action needed: training learns no end of it",
)
LENGTH = Check(
    "length-bias",
    "warning",
    "one side is the longer one too often",
    "add pairs whose chosen answer is the shorter one, or train with loss.type: r_dpo, simpo or "
    "sigmoid_norm, or with loss.ld_alpha below 1; judge results with length control",
    rows=False,
)


class Lengths(Family):
    """Characters of prompts and answers, and answers that were cut."""

    checks: ClassVar[tuple[Check, ...]] = (EMPTY, EMPTY_PROMPT, CUT_REJECTED, LENGTH)

    def __init__(self) -> None:
        self._lengths = PairColumn(np.int32)
        self._prompts = PairColumn()
        self._empty: dict[int, str] = {}
        self._no_prompt: dict[int, str] = {}
        self._cut: list[int] = []

    def add(self, chunk: Chunk) -> None:
        self._cut += [
            number for number, pair in enumerate(chunk.pairs, chunk.start) if not pair.rejected_ended
        ]
        sides = zip(chunk.prompts, chunk.chosen, chunk.rejected, strict=True)
        for number, (prompt, chosen, rejected) in enumerate(sides, chunk.start):
            empty = [name for name, text in (("chosen", chosen), ("rejected", rejected)) if not text.strip()]
            if empty:
                self._empty[number] = " and ".join(empty)
            if not prompt.strip():
                self._no_prompt[number] = ""
        texts = (chunk.prompts, chunk.chosen, chunk.rejected)
        self._lengths.add(np.array([[len(text) for text in side] for side in texts]).T)
        self._prompts.add(hashes(chunk.prompts))

    def finish(self, total: int) -> Iterator[Finding]:
        table = self._table()
        yield from flagged_pairs(EMPTY, len(table), self._empty, "an answer is empty")
        yield from flagged_pairs(EMPTY_PROMPT, len(table), self._no_prompt, "the prompt is empty")
        message = f"{FINISH_REASON} says that the rejected answer was cut"
        yield from flagged_pairs(CUT_REJECTED, len(table), dict.fromkeys(self._cut, ""), message)
        # The finding LENGTH when either side is the longer one in more than BIASED_SHARE of the pairs.
        bias = _longer_facts(table[:, 1], table[:, 2], "characters")
        unequal = bias["longer"] + bias["shorter"]
        difference = table[:, 1].astype(np.int64) - table[:, 2]
        for side, count, sign in (("chosen", bias["longer"], 1), ("rejected", bias["shorter"], -1)):
            if unequal >= ENOUGH_PAIRS and (part := share(count, unequal)) > BIASED_SHARE:
                message = (
                    f"the {side} answer is the longer one in {part:.0%} of the pairs of unequal "
                    f"length ({bias['mean_difference']:+.0f} characters on average)"
                )
                worst = np.argsort(-sign * difference, kind="stable")[:3]
                notes = {int(i): f"{sign * difference[i]:+,} characters" for i in worst}
                examples = tuple(FindingExample((number,), note) for number, note in notes.items())
                yield Finding(LENGTH, count, unequal, message, examples)

    def facts(self) -> dict[str, Any]:
        table = self._table()
        names = ("prompt", "chosen", "rejected")
        return {
            "pairs": len(table),
            "prompts": len(np.unique(self._prompts.values)),
            "characters": {name: summary(table[:, i]) for i, name in enumerate(names)},
            "chosen_longer": _longer_facts(table[:, 1], table[:, 2], "characters"),
        }

    def _table(self) -> np.ndarray:
        return self._lengths.values.reshape(-1, 3)


def _longer_facts(chosen: np.ndarray, rejected: np.ndarray, unit: str) -> dict[str, Any]:
    """How often the chosen answer is the longer one, of the pairs whose lengths differ, and by how much."""
    difference = chosen.astype(np.int64) - rejected
    longer, shorter = int((difference > 0).sum()), int((difference < 0).sum())
    return {
        "unit": unit,
        "longer": longer,
        "shorter": shorter,
        "equal": len(difference) - longer - shorter,
        "share": round(share(longer, longer + shorter), 4),
        "mean_difference": round(float(difference.mean()), 2) if len(difference) else 0.0,
        "histogram": difference_histogram(difference),
    }


# --- tokens ----------------------------------------------------------------------------------------------

_NO_LIMIT = 2**31 - 1
_AT_LIMITS = (NO_SCORED_TOKEN, NO_CONTENT, IDENTICAL_WHEN_CUT)
# Below this share, cutting a few long rows is what a limit is for.
MANY_CUT = 0.05

TRUNCATED = Check(
    "truncated",
    "warning",
    f"truncated at the limits, where that is more than {MANY_CUT:.0%} of the pairs",
    "raise train.max_length, or remove the longest rows: a truncated answer has no end to learn",
)
LOST = Check(
    "lost-when-cut",
    "warning",
    "nothing is left to learn within the limits",
    "raise train.max_length; or leave room for the answers with train.max_prompt_length, and "
    "train.truncation: keep_end where the end of a prompt matters most; or remove them; training drops them",
    drops=True,
)
REFUSED = Check(
    "not-rendered",
    "error",
    "the chat template cannot write the row",
    "fix what it cannot write, use a model whose template can, or remove the rows; training drops them",
    drops=True,
)
REWRITTEN = Check(
    "left-out",
    "warning",
    "the chat template drops a part of the row, or opens the answer otherwise than when it prompts for one",
    "use a template, or options of it (data.chat_template_kwargs), that write the entire row",
)
MERGED = Check(
    "boundary-merges",
    "info",
    "a token would span the end of the prompt and the start of the answer",
    "no action needed: prompt and answer are tokenised separately in these rows",
)


class TokenLengths(Family):
    """Encodes every pair as training would, without limits, and sees what the limits take away."""

    checks: ClassVar[tuple[Check, ...]] = (REFUSED, LOST, TRUNCATED, REWRITTEN, MERGED)

    @classmethod
    def from_settings(cls, settings: CheckSettings, not_checked: list[str]) -> Self | None:
        if settings.tokenizer is None or settings.limits is None:
            not_checked.append(
                "tokens and truncation: give --recipe FILE, or --model NAME and --max-length N"
            )
        return None if settings.tokenizer is None else cls(settings.tokenizer, settings)

    def __init__(self, tokenizer: Tokenizer, settings: CheckSettings) -> None:
        encoder = partial(
            Encoder,
            tokenizer,
            settings.template,
            end_ids=end_ids(tokenizer),
            template_kwargs=settings.template_kwargs,
        )
        self._limits = settings.limits
        self._encoder = encoder(Limits(_NO_LIMIT))
        self._truncating = None if self._limits is None else encoder(self._limits)
        self._rewritten: dict[int, str] = {}
        self._lengths = PairColumn(np.int32)
        self._cut: list[int] = []
        self._merged: list[int] = []
        self._dropped: dict[str, list[int]] = defaultdict(list)

    def add(self, chunk: Chunk) -> None:
        examples = list(enumerate(chunk.pairs, chunk.start))
        encoded = self._encoder.encode(examples)
        for reason, pairs in encoded.dropped.items():
            self._dropped[reason] += pairs
        self._merged += encoded.merged_rows
        self._lengths.add([(len(row.prompt), *map(len, row.responses)) for row in encoded.rows])
        for note, pairs in encoded.notes.items():
            self._rewritten.update(dict.fromkeys(pairs, note))
        self._rewritten.update(dict.fromkeys(encoded.reasoning_lost, REASONING_LOST))
        if self._truncating is not None and (limits := self._limits) is not None:
            lengths = {row.row: (len(row.prompt), max(map(len, row.responses))) for row in encoded.rows}
            most, whole = limits.max_prompt_length or _NO_LIMIT, limits.max_length
            over = {number for number, (prompt, n) in lengths.items() if prompt > most or prompt + n > whole}
            cut = self._truncating.encode([example for example in examples if example[0] in over])
            for reason, pairs in cut.dropped.items():
                self._dropped[reason] += pairs
            self._cut += [row.row for row in cut.rows]

    def finish(self, total: int) -> Iterator[Finding]:
        when_cut = {pair: why for why in _AT_LIMITS for pair in self._dropped[why]}
        # The checks of labels report identical answers.
        others = self._dropped.keys() - {*_AT_LIMITS, IDENTICAL}
        refused = {pair: why for why in sorted(others) for pair in self._dropped[why]}
        message = f"{counted(len(refused), 'pair')} cannot be written as tokens"
        yield from flagged_pairs(REFUSED, total, refused, message)
        message = f"{have(len(when_cut), 'pair')} nothing to learn within the limits"
        yield from flagged_pairs(LOST, total, when_cut, message)
        cut = share(len(self._cut), total)
        if cut > MANY_CUT:
            message = f"{cut:.1%} of the pairs lose tokens at {self._limit_words()}"
            yield from flagged_pairs(TRUNCATED, total, dict.fromkeys(self._cut, ""), message)
        rewritten = f"{have(len(self._rewritten), 'pair')} texts"
        message = f"{rewritten} that are not rendered as they are, or as prompts will be"
        yield from flagged_pairs(REWRITTEN, total, self._rewritten, message)
        message = f"{counted(len(self._merged), 'pair')} would share a token at the boundary"
        yield from flagged_pairs(MERGED, total, dict.fromkeys(self._merged, ""), message)

    def facts(self) -> dict[str, Any]:
        table = self._lengths.values.reshape(-1, 3)
        names = ("prompt", "chosen", "rejected")
        rows = table[:, 0] + table[:, 1:].max(axis=1) if len(table) else table[:, 0]
        return {
            "tokens": {
                **{name: summary(table[:, i]) for i, name in enumerate(names)},
                "row": summary(rows),
            },
            "chosen_longer_tokens": _longer_facts(table[:, 1], table[:, 2], "tokens"),
            "limits": None if self._limits is None else self._limit_words(),
            "truncated": len(self._cut),
            "merged": len(self._merged),
        }

    def _limit_words(self) -> str:
        assert self._limits is not None
        prompt = self._limits.max_prompt_length
        return f"max_length {self._limits.max_length}" + (f", max_prompt_length {prompt}" if prompt else "")
