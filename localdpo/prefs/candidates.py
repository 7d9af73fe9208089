"""Candidates: several answers of one model to each prompt, kept in `candidates.jsonl` as they are generated.

The file is an answers file (records/answers.py) with a column for each candidate: "1", "2", ... at their
temperatures; with revision "1", "critique", "revision". A group's answers of one column are written at once.

Revision follows Constitutional AI (arXiv 2212.08073, section 3.1): the model criticises its answer by a
principle, then writes it again. The principle of a prompt is the one that a judge with the same constitution
is asked about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from localdpo.answering.generator import (
    GENERATOR_VERSION,
    AnswerColumn,
    OnAnswer,
    digest,
    fill_groups,
    prompt_seeds,
    same_random_state,
)
from localdpo.core.errors import UserError
from localdpo.data.encode import Limits, encode_prompt
from localdpo.data.messages import prompt_messages
from localdpo.data.prompts import PromptRow
from localdpo.data.types import Message, Side, TemplateChoice, Tokenizer
from localdpo.judging.rubric import Constitution, Principle
from localdpo.model import lora
from localdpo.model.backend import prepare
from localdpo.model.load import fingerprint, load_base, model_path, tokenizer_fingerprint
from localdpo.recipe.load import load_recipe
from localdpo.records.answers import AnswerRecord, AnswersWriter, Header, Sampling

GROUP: Final = 32
CRITIQUE: Final = "critique"
REVISION: Final = "revision"
_CRITIQUE: Final = (
    "Look at your last answer by this principle and by nothing else: {principle}\n"
    "Say in a few sentences where the answer falls short of it, or that it does not."
)
_REVISION: Final = (
    "Write that answer again, so that it keeps this principle: {principle}\n"
    "Mend what you found above and keep the rest. Reply with the answer alone."
)


@dataclass(frozen=True, slots=True)
class CandidateSource:
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


def source_from(
    recipe: Path | None, model: str | None, adapter: str | None, max_length: int | None
) -> CandidateSource:
    """The model that a recipe or the options of a command name. Raises UserError(s)."""
    if recipe is None:
        if model is None:
            raise UserError("no model: give --recipe, or --model and --adapter")
        return CandidateSource(model, adapter, limits=None if max_length is None else Limits(max_length))
    if model is not None or adapter is not None or max_length is not None:
        raise UserError("--recipe names the model: leave out --model, --adapter and --max-length")
    loaded = load_recipe(recipe)
    train = loaded.train
    return CandidateSource(
        loaded.model,
        loaded.adapter,
        loaded.data.template,
        Limits(train.max_length, train.max_prompt_length, train.truncation),
        loaded.trust_remote_code,
        loaded.data.chat_template_kwargs,
    )


@dataclass(frozen=True, slots=True)
class CandidateSampling:
    """How candidates are sampled: `count` of them, over the temperatures in turn.

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
        """Names of the candidates, in the order in which they are generated."""
        numbered = tuple(str(number + 1) for number in range(self.count))
        return numbered if self.revise is None else (*numbered, CRITIQUE, REVISION)

    @property
    def judged(self) -> tuple[str, ...]:
        """Names of those that may become a side of a pair; a revision comes first."""
        return tuple(name for name in self.names[::-1] if name != CRITIQUE) if self.revise else self.names

    def temperature(self, name: str) -> float:
        """The temperature of a candidate; critique and revision are sampled at the first one."""
        return self.temperatures[(int(name) - 1) % len(self.temperatures) if name.isdigit() else 0]


@dataclass(frozen=True, slots=True)
class CandidateHashes:
    """Hashes of what answers: base, adapter (None without one), chat template (of its text) and tokenizer."""

    model: str
    adapter: str | None
    template: str
    tokenizer: str


def hashes_of(source: CandidateSource, tokenizer: Tokenizer) -> CandidateHashes:
    """The hashes of a source. Raises UserError for a model or adapter that is not there."""
    adapter = (
        None if source.adapter is None else lora.adapter_fingerprint(lora.open_adapter(source.adapter).path)
    )
    given = [source.template, tokenizer.chat_template, dict(source.template_kwargs)]
    text = json.dumps(given, sort_keys=True, default=str)
    folder = model_path(source.model)
    return CandidateHashes(fingerprint(folder), adapter, digest(text), tokenizer_fingerprint(folder))


def header_of(
    label: str, prompts: Sequence[PromptRow], sampling: CandidateSampling, hashes: CandidateHashes
) -> Header:
    """The first line of `candidates.jsonl`: everything that the candidates depend on."""
    revise = sampling.revise
    depends = {
        "generator": GENERATOR_VERSION,
        "group": sampling.group,
        **asdict(hashes),
        "prompts": digest([row.asked for row in prompts]),
        "constitution": None if revise is None else [[one.id, one.text] for one in revise.principles],
    }
    candidates = tuple(
        {
            "name": name,
            "label": f"candidate {name}",
            "role": "other",
            "adapter": "",
            "fingerprint": hashes.adapter or "",
            "temperature": sampling.temperature(name),
        }
        for name in sampling.names
    )
    drawn = Sampling(sampling.max_tokens, sampling.temperatures[0], sampling.seed)
    return Header(
        key=digest([depends, candidates, asdict(drawn)])[:16],
        run="prefs build",
        sampling=drawn,
        contestants=candidates,
        prompts=tuple({"id": row.id, "text": row.text} for row in prompts),
        source=label,
        depends=depends,
    )


def make_candidates(
    source: CandidateSource,
    prompts: Sequence[PromptRow],
    sampling: CandidateSampling,
    tokenizer: Tokenizer,
    writer: AnswersWriter,
    on_answer: OnAnswer | None = None,
) -> None:
    """Generate what `writer` lacks; without anything missing no model is loaded.

    Raises UserError for a model or adapter that does not load, a prompt that the template refuses, and a
    full disk.
    """
    if not writer.tail.missing:
        return
    prepare()

    def encode(prompt: Side, tools: list[Any] | None, kwargs: Mapping[str, Any]) -> list[int]:
        options = {**source.template_kwargs, **kwargs}
        ids = encode_prompt(tokenizer, prompt, source.template, tools=tools, template_kwargs=options)
        return [*ids.tolist()]

    # Before the model is loaded: a prompt that the template refuses is reported at once.
    ids = [encode(row.prompt, row.tools, row.template_kwargs) for row in prompts]

    def ids_of_request(name: str, i: int) -> list[int]:
        assert sampling.revise is not None
        principle = sampling.revise.principles[sampling.revise.drawn(prompts[i].id)]
        answer = writer.tail.records[i, "1"].text
        critique = writer.tail.records[i, CRITIQUE].text if name == REVISION else None
        return encode(revision_messages(prompts[i].prompt, answer, principle, critique), None, {})

    columns = [
        AnswerColumn(
            name,
            sampling.temperature(name),
            candidate_seeds(prompts, sampling.seed, name),
            partial(ids_of_request, name) if name in (CRITIQUE, REVISION) else ids.__getitem__,
            waits=name in (CRITIQUE, REVISION),
        )
        for name in sampling.names
    ]
    with same_random_state():
        base = load_base(source.model, trust_remote_code=source.trust_remote_code)
        if source.adapter is not None:
            folder = lora.open_adapter(source.adapter).path
            lora.attach(base.model, lora.read_config(folder), seed=0)
            lora.load_weights(base.model, folder)
        for _ in fill_groups(writer, base, columns, sampling.group, on_answer, live=False):
            pass


def candidate_seeds(prompts: Sequence[PromptRow], seed: int, name: str) -> list[int]:
    """The seed of each prompt's random key for one candidate; every candidate draws noise of its own."""
    return prompt_seeds(prompts, int(digest([seed, name])[:16], 16))


def revision_messages(
    prompt: Side, answer: str, principle: Principle, critique: str | None = None
) -> list[Message]:
    """The conversation, the answer, and the request for its critique; with the `critique`, that for a better
    answer after it.
    """
    words = principle.text.strip()
    messages: list[Message] = [
        *prompt_messages(prompt),
        {"role": "assistant", "content": answer},
        {"role": "user", "content": _CRITIQUE.format(principle=words)},
    ]
    if critique is not None:
        messages.append({"role": "assistant", "content": critique})
        messages.append({"role": "user", "content": _REVISION.format(principle=words)})
    return messages


def by_prompt(
    records: Mapping[tuple[int, str], AnswerRecord], count: int, names: Sequence[str]
) -> list[dict[str, AnswerRecord]]:
    """For each of `count` prompts its candidates of these names, in their order."""
    return [{name: records[i, name] for name in names} for i in range(count)]
