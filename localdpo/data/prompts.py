"""Prompts to be answered, from a data source: text, or chat messages, as training reads them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from localdpo.core.errors import UserError
from localdpo.core.text import counted
from localdpo.data.rows import InvalidRow, Problems, Skipped, read_rows, source_format
from localdpo.data.sources import open_source
from localdpo.data.types import Kind, Side

PROMPT_ID_DIGITS = 16


@dataclass(frozen=True)
class PromptRow:
    """A prompt and the other columns of its row.

    Attributes:
        facts: the columns that are no part of the prompt, for heuristics and judges that check facts.
        tools, template_kwargs: what goes to the chat template with the prompt.
        responses: the answers of its row, if it has any: the opening of an answer may depend on them.
        place: source and row, for messages; empty for a prompt that a person gave.
    """

    prompt: Side
    facts: Mapping[str, Any] = field(default_factory=dict)
    tools: list[Any] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    responses: tuple[Side, ...] = ()
    place: str = field(default="", compare=False)

    @property
    def text(self) -> str:
        """What to show of the prompt: its text, or the last user message of a conversation."""
        if isinstance(self.prompt, str):
            return self.prompt
        users = [message for message in self.prompt if message.get("role") == "user"]
        return str((users or self.prompt)[-1].get("content", ""))

    @property
    def options(self) -> tuple[list[Any] | None, dict[str, Any]]:
        """What goes to the chat template with the prompt, in the order of the columns OPTIONS."""
        return self.tools, dict(self.template_kwargs)

    @property
    def asked(self) -> Any:
        """What is sent to the model, as a JSON value: the prompt alone where nothing goes with it."""
        return [self.prompt, *self.options] if self.tools or self.template_kwargs else self.prompt

    @cached_property
    def id(self) -> str:
        """The first digits of the sha256 of `asked`; equal requests have equal ids."""
        return prompt_id(self.asked)


def prompt_id(asked: Any) -> str:
    """The first PROMPT_ID_DIGITS hexadecimal digits of the sha256 of a request as JSON."""
    text = json.dumps(asked, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:PROMPT_ID_DIGITS]


def read_prompt_rows(
    source: str,
    limit: int | None = None,
    *,
    kind: Kind = "prompts",
    format_name: str | None = None,
    rows: int | None = None,
    only: Container[int] | None = None,
    seen: set[str] | None = None,
) -> list[PromptRow]:
    """The first `limit` prompts of a data source with the other columns of their rows; None: all of them.

    The source is whatever data.train may be. With the kind of a run's data its prompts are those that the run
    trains or is evaluated on; "prompts" takes pairs, and rows with nothing but a prompt. Rows that training
    would drop are dropped. `rows`: read only the first N rows of the source. `only`: numbers of the rows to
    read, from 0. `seen`: ids of prompts to skip; those that are read are added, so that each comes once; with
    None a prompt comes as often as there are rows of it.
    Raises UserError(s) with file:row for a source that cannot be read, a row without a prompt, and no rows.
    """
    opened = open_source(source)
    adapter = source_format(opened, kind, format_name)
    prompts: list[PromptRow] = []
    repeated = False
    skipped: Counter[str] = Counter()
    problems = Problems(opened.label)
    for row in read_rows(opened, kind, rows, format_name):
        # An answer is a pair only with its neighbour, so prompts are counted and not rows.
        if limit is not None and len(prompts) >= limit:
            break
        if only is not None and row.rows[0] not in only:
            continue
        if isinstance(row.result, InvalidRow):
            problems.add(row.rows[0], row.result.message)
        elif isinstance(row.result, Skipped):
            skipped[row.result.reason] += 1
        elif row.result.as_is:
            raise UserError(f"{opened.label}: rows of text have no prompt to answer; name another source")
        else:
            assert adapter is not None
            columns = [column for record in row.records for column in record.items()]
            facts = {name: value for name, value in columns if name not in adapter.reads}
            read, place = row.result, f"{opened.label}:{row.rows[0] + 1}"
            prompt = PromptRow(read.prompt, facts, read.tools, read.template_kwargs, read.responses, place)
            if seen is not None:
                if prompt.id in seen:
                    repeated = True
                    continue
                seen.add(prompt.id)
            prompts.append(prompt)
    problems.raise_if_any()
    if not prompts and not repeated:
        reasons = "; ".join(f"{reason} ({counted(count, 'row')})" for reason, count in skipped.items())
        raise UserError(f"{opened.label}: no prompts in it{': ' + reasons if reasons else ''}")
    return prompts
