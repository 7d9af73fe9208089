"""Candidates: several answers of one model to each prompt, kept in `candidates.jsonl` as they are made.

The file is an answers file (records/answers.py) where each candidate is a contestant: "1", "2", ... at their
temperatures; with revision "1", "critique", "revision". Prompts are answered in groups, in their order. A
part, one candidate of a group, is written at once when all of it is there, and each answer has a random key
of its own: what the file holds is never generated again, and a build that was killed and continued ends with
the same file, to the byte, as one that was not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from localdpo.data.encode import Limits, encode_prompt
from localdpo.data.prompts import PromptRow
from localdpo.data.types import Side, TemplateChoice
from localdpo.evals.answers import GENERATOR_VERSION, prompt_seeds
from localdpo.judging.constitution import Constitution
from localdpo.model import lora
from localdpo.model.arrays import random_key, set_random_key
from localdpo.model.backend import prepare
from localdpo.model.generate import generate_apart
from localdpo.model.load import fingerprint, load_base, model_path, tokenizer_fingerprint
from localdpo.prefs.revision import CRITIQUE, REVISION, critique_request, principle_of, revision_request
from localdpo.records.answers import AnswerRecord, AnswersWriter, Header, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GROUP: Final = 32
OnCandidate = Callable[[AnswerRecord], None]


@dataclass(frozen=True, slots=True)
class Source:
    """The model that answers, and how its data becomes tokens.

    `limits`: of the training to come, for what truncation would make of a pair; None: nothing is cut.
    `template_kwargs`: options of the chat template for every row, as data.chat_template_kwargs.
    """

    model: str
    adapter: str | None = None
    template: TemplateChoice = "auto"
    limits: Limits | None = None
    trust_remote_code: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drawing:
    """How candidates are drawn: `count` of them, over the temperatures in turn.

    `revise`: the principles by which the one candidate is criticised and revised; None without.
    """

    count: int = 2
    temperatures: tuple[float, ...] = (1.0,)
    max_tokens: int = 256
    seed: int = 0
    revise: Constitution | None = None
    group: int = GROUP

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the candidates, in the order in which they are made."""
        numbered = tuple(str(number + 1) for number in range(self.count))
        return numbered if self.revise is None else (*numbered, CRITIQUE, REVISION)

    @property
    def judged(self) -> tuple[str, ...]:
        """Names of those that may become a side of a pair; a revision stands first."""
        return tuple(name for name in self.names[::-1] if name != CRITIQUE) if self.revise else self.names

    def temperature(self, name: str) -> float:
        """The temperature at which a candidate is drawn."""
        return self.temperatures[(int(name) - 1) % len(self.temperatures)] if name.isdigit() else self.first

    @property
    def first(self) -> float:
        """The first temperature; critique and revision are drawn at it."""
        return self.temperatures[0]


@dataclass(frozen=True, slots=True)
class Prints:
    """Hashes of what answers: base, adapter (None without one), chat template (of its text) and tokenizer."""

    model: str
    adapter: str | None
    template: str
    tokenizer: str


def prints_of(source: Source, tokenizer: PreTrainedTokenizerBase) -> Prints:
    """The hashes of a source. Raises UserError for a model or adapter that is not there."""
    adapter = None if source.adapter is None else fingerprint(lora.adapter_path(source.adapter))
    given = [source.template, tokenizer.chat_template, dict(source.template_kwargs)]
    text = json.dumps(given, sort_keys=True, default=str)
    folder = model_path(source.model)
    return Prints(fingerprint(folder), adapter, digest(text), tokenizer_fingerprint(folder))


def header_of(label: str, prompts: Sequence[PromptRow], drawing: Drawing, prints: Prints) -> Header:
    """The first line of `candidates.jsonl`: everything that the candidates depend on."""
    revise = drawing.revise
    depends = {
        "generator": GENERATOR_VERSION,
        "group": drawing.group,
        **asdict(prints),
        "prompts": digest([row.asked for row in prompts]),
        "constitution": None if revise is None else [[one.id, one.text] for one in revise.principles],
    }
    candidates = tuple(
        {
            "name": name,
            "label": f"candidate {name}",
            "role": "other",
            "adapter": "",
            "fingerprint": prints.adapter or "",
            "temperature": drawing.temperature(name),
        }
        for name in drawing.names
    )
    sampling = Sampling(drawing.max_tokens, drawing.first, drawing.seed)
    return Header(
        key=digest([depends, candidates, asdict(sampling)])[:16],
        run="prefs build",
        sampling=sampling,
        contestants=candidates,
        prompts=tuple({"id": row.id, "text": row.text} for row in prompts),
        source=label,
        depends=depends,
    )


def digest(value: object) -> str:
    """The sha256 of a JSON value, in hexadecimal."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()


def make_candidates(
    source: Source,
    prompts: Sequence[PromptRow],
    drawing: Drawing,
    tokenizer: PreTrainedTokenizerBase,
    writer: AnswersWriter,
    on_candidate: OnCandidate | None = None,
) -> None:
    """Generate what `writer` lacks, part by part; without anything missing no model is loaded.

    Raises UserError for a model or adapter that does not load, a prompt that the template refuses, and a
    full disk.
    """
    if not writer.tail.missing:
        return
    before = random_key()  # loading a model and attaching an adapter draw fresh weights
    try:
        _Making(source, prompts, drawing, tokenizer, writer, on_candidate).run()
    finally:
        set_random_key(before)


class _Making:
    """One load of the model and what goes on with it."""

    def __init__(
        self,
        source: Source,
        prompts: Sequence[PromptRow],
        drawing: Drawing,
        tokenizer: PreTrainedTokenizerBase,
        writer: AnswersWriter,
        on_candidate: OnCandidate | None,
    ) -> None:
        prepare()
        self.source, self.prompts, self.drawing = source, prompts, drawing
        self.tokenizer, self.writer, self.on_candidate = tokenizer, writer, on_candidate
        # Before the model is loaded: a prompt that the template refuses is said at once.
        self.ids = [self._ids(row.prompt, row.tools, row.template_kwargs) for row in prompts]
        self.base = load_base(source.model, trust_remote_code=source.trust_remote_code)
        if source.adapter is not None:
            folder: Path = lora.adapter_path(source.adapter)
            lora.attach(self.base.model, lora.read_config(folder), seed=0)
            lora.load_weights(self.base.model, folder)

    def run(self) -> None:
        """Make the parts that are missing, group by group."""
        size = self.drawing.group
        seeds = {name: candidate_seeds(self.prompts, self.drawing.seed, name) for name in self.drawing.names}
        for start in range(0, len(self.prompts), size):
            group = range(start, min(start + size, len(self.prompts)))
            for name in self.drawing.names:
                if any((i, name) not in self.writer.tail.records for i in group):
                    self._part(group, name, [seeds[name][i] for i in group])

    def _part(self, group: range, name: str, seeds: Sequence[int]) -> None:
        """One candidate of every prompt of a group: generated together, written together."""
        asked = self._asked(group, name)
        known = self.writer.tail.records
        records: dict[int, AnswerRecord] = {}
        for place, answer in generate_apart(
            self.base.model,
            self.base.tokenizer,
            asked,
            seeds,
            max_tokens=self.drawing.max_tokens,
            temperature=self.drawing.temperature(name),
            batch=self.drawing.group,
        ):
            i = group[place]
            records[i] = AnswerRecord(i, name, answer.text, len(answer.tokens), answer.finished)
            if self.on_candidate is not None and (i, name) not in known:
                self.on_candidate(records[i])
        self.writer.answers([records[i] for i in group])

    def _asked(self, group: range, name: str) -> list[list[int]]:
        """The token ids that a candidate answers to."""
        if name not in (CRITIQUE, REVISION):
            return [self.ids[i] for i in group]
        return [self._ids(self._request(i, name)) for i in group]

    def _request(self, i: int, name: str) -> Side:
        constitution = self.drawing.revise
        assert constitution is not None
        row, records = self.prompts[i], self.writer.tail.records
        principle = principle_of(constitution, row.id)
        answer = records[i, "1"].text
        if name == CRITIQUE:
            return critique_request(row.prompt, answer, principle)
        return revision_request(row.prompt, answer, principle, records[i, CRITIQUE].text)

    def _ids(
        self, prompt: Side, tools: list[Any] | None = None, kwargs: Mapping[str, Any] | None = None
    ) -> list[int]:
        options = {**self.source.template_kwargs, **(kwargs or {})}
        ids: list[int] = encode_prompt(
            self.tokenizer, prompt, self.source.template, tools=tools, template_kwargs=options
        ).tolist()
        return ids


def candidate_seeds(prompts: Sequence[PromptRow], seed: int, name: str) -> list[int]:
    """The seed of each prompt's random key for one candidate; every candidate draws noise of its own."""
    return prompt_seeds(prompts, int(digest([seed, name])[:16], 16))


def by_prompt(
    records: Mapping[tuple[int, str], AnswerRecord], count: int, names: Sequence[str]
) -> list[dict[str, AnswerRecord]]:
    """For each of `count` prompts its candidates of these names, in their order."""
    return [{name: records[i, name] for name in names} for i in range(count)]
