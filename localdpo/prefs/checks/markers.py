"""Marks of chat templates and special tokens that were left in the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from localdpo.data.messages import ASSISTANT, HUMAN
from localdpo.prefs.findings import Check, Finding, at_rows
from localdpo.prefs.rows import Chunk

# As the templates of well-known models write them.
MARKERS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|end|>"),
    *("<|user|>", "<|assistant|>", "<|system|>", "<start_of_turn>", "<end_of_turn>"),
    *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "</s>", "<eos>", "<bos>", "<extra_id_1>"),
    *("### Instruction:", "### Response:", HUMAN, ASSISTANT),
)
# Each of MARKERS holds one of these.
_SIGNS = ("<", "[", "### ", "\n\nHuman", "\n\nAssistant")

TEMPLATE = Check(
    "template-markers",
    "warning",
    "a mark of a chat template within the text",
    "cut the text at the mark, or take the row out: the model would learn to write it",
)
SPECIAL = Check(
    "special-tokens",
    "error",
    "a special token of this tokenizer within the text",
    "cut the text there, or take the row out: it becomes a control token in the middle of an answer",
    drops=True,
)


class Markers:
    """Looks for marks in prompts and answers; `special` are the tokenizer's own tokens, if there is one."""

    checks: ClassVar[tuple[Check, ...]] = (SPECIAL, TEMPLATE)

    def __init__(self, special: Sequence[str] = ()) -> None:
        own = [token for token in dict.fromkeys(special) if len(token.strip()) > 1]
        marks = [(mark, SPECIAL) for mark in own] + [(mark, TEMPLATE) for mark in MARKERS if mark not in own]
        self._marked = [(mark, check) for mark, check in marks if any(sign in mark for sign in _SIGNS)]
        self._unmarked = [(mark, check) for mark, check in marks if (mark, check) not in self._marked]
        self._found: dict[str, dict[int, str]] = {check.name: {} for check in self.checks}
        self._total = 0

    def add(self, chunk: Chunk) -> None:
        """Find the first mark of each pair, special tokens before the others."""
        self._total += len(chunk)
        sides = zip(chunk.chosen, chunk.rejected, chunk.prompts, strict=True)
        for place, texts in enumerate(sides, chunk.start):
            found = [
                (mark, check, name)
                for name, text in zip(("chosen", "rejected", "prompt"), texts, strict=True)
                for mark, check in self._in(text)
            ]
            if found:
                mark, check, name = min(found, key=lambda one: one[1] is not SPECIAL)
                self._found[check.name][place] = f"{mark.strip()} in {name}"

    def _in(self, text: str) -> list[tuple[str, Check]]:
        # Nearly every mark holds one of a few signs, and most texts hold none of them.
        marks = self._unmarked + (self._marked if any(sign in text for sign in _SIGNS) else [])
        return [(mark, check) for mark, check in marks if mark in text]

    def finish(self) -> Iterator[Finding]:
        """Special tokens, then other marks."""
        for check in self.checks:
            found = self._found[check.name]
            message = f"{len(found):,} pairs: {check.what}"
            yield from at_rows(check, self._total, found, message, found.values())

    def facts(self) -> dict[str, Any]:
        """Nothing besides the findings."""
        return {}
