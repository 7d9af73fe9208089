"""Answers of several adapters on one base, generated in batches and kept on disk.

Prompts are answered in fixed groups of GROUP, in their order, by every contestant in turn; then every
contestant reads the group's answers for their log-probabilities. A group is generated as a whole or not at
all, and each prompt has a random key of its own (`generate_apart`), so the answers of a process that was
killed and started again are bit for bit those of one that was not, and the answers file is the same too. What
is lost to a kill is at most the part of a group that one contestant was generating.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
import numpy as np

from localdpo.data.batches import collate
from localdpo.data.encode import ENCODER_VERSION, encode_prompt
from localdpo.data.prompts import PromptRow
from localdpo.data.types import EncodedRow
from localdpo.evals.contestants import Contestant, Contestants, contestants
from localdpo.model.arrays import random_key, set_random_key
from localdpo.model.backend import prepare
from localdpo.model.forward import Forward, batch_arrays
from localdpo.model.generate import generate_apart
from localdpo.model.load import fingerprint, load_base, model_path, tokenizer_fingerprint
from localdpo.model.memory import rows_in_pass
from localdpo.recipe.load import load_recipe
from localdpo.records.answers import (
    AnswerRecord,
    AnswersWriter,
    Header,
    Sampling,
    answers_path,
)
from localdpo.records.rundir import RunDir

__all__ = ["AnswerRecord", "Contestant", "PromptRow", "Sampling", "answer_all", "contestants", "plan_answers"]

# Raise it with every change that gives other answers to the same question: it is part of the key.
GENERATOR_VERSION = 2
GROUP = 64
# Answers that a model reads at once, of similar length, at most.
READ_AT_ONCE = 32
OnAnswer = Callable[[AnswerRecord], None]
Logps = dict[int, dict[str, dict[str, float]]]


def answer_all(
    run: RunDir,
    contestants: Sequence[Contestant],
    prompts: Sequence[PromptRow],
    sampling: Sampling,
    *,
    scores: bool = True,
    source: str = "",
    on_answer: OnAnswer | None = None,
) -> dict[str, list[AnswerRecord]]:
    """Every contestant's answers to every prompt, in the order of `prompts`, by the contestant's name.

    What `runs/NAME/answers/KEY.jsonl` holds is not made again; when nothing is missing no model is loaded.

    Args:
        scores: whether each model reads each answer, for `AnswerRecord.logps`.
        source: where the prompts came from, for people who look at the file.
        on_answer: told every answer as it finishes, first those that were there already; `logps` may still
            be empty then, the result's are complete.

    Raises:
        UserError: a model or adapter that cannot be loaded, a prompt that the template refuses, another
            process that makes the same answers, or a full disk.
    """
    path, header = plan_answers(run, contestants, prompts, sampling, source=source)
    with AnswersWriter(path, header) as writer:
        if on_answer is not None:
            for record in list(writer.tail.records.values()):
                on_answer(record)
        if writer.tail.missing or (scores and not writer.tail.complete):
            before = random_key()  # loading a model and attaching an adapter draw fresh weights
            try:
                _Answering(run, contestants, prompts, sampling, writer, on_answer).run(scores)
            finally:
                set_random_key(before)
        records = writer.tail.records
        return {one.name: [records[i, one.name] for i in range(len(prompts))] for one in contestants}


def plan_answers(
    run: RunDir,
    contestants: Sequence[Contestant],
    prompts: Sequence[PromptRow],
    sampling: Sampling,
    *,
    source: str = "",
) -> tuple[Path, Header]:
    """The file that these answers belong in, and its first line. Loads no model.

    Raises:
        UserError: the run's base cannot be found.
        ValueError: no prompts, or no contestants.
    """
    if not prompts or not contestants:
        raise ValueError("answers need at least one prompt and one contestant")
    recipe = load_recipe(run.recipe)
    folder = model_path(recipe.model)
    depends = {
        "generator": GENERATOR_VERSION,
        "group": GROUP,
        "base": fingerprint(folder),
        "tokenizer": tokenizer_fingerprint(folder),
        "template": recipe.data.template,
        "template_kwargs": recipe.data.chat_template_kwargs,
        "encoder": ENCODER_VERSION,
        "prompts": _digest([[row.asked, row.responses] for row in prompts]),
    }
    who = [[one.name, one.fingerprint] for one in contestants]
    header = Header(
        key=_digest([depends, who, asdict(sampling)])[:16],
        run=run.name,
        sampling=sampling,
        contestants=tuple(_described(one) for one in contestants),
        prompts=tuple({"id": row.id, "text": row.text} for row in prompts),
        source=source,
        depends=depends,
    )
    return answers_path(run.path, header.key), header


def _digest(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _described(one: Contestant) -> dict[str, str]:
    return {
        "name": one.name,
        "label": one.label,
        "role": one.role,
        "adapter": "" if one.adapter is None else one.adapter.name,
        "fingerprint": one.fingerprint,
    }


def prompt_seeds(prompts: Sequence[PromptRow], seed: int) -> list[int]:
    """The seed of each prompt's random key: of its id, the run's seed, and how often it came before."""
    seen: Counter[str] = Counter()
    seeds = []
    for row in prompts:
        seeds.append(int(_digest([seed, row.id, seen[row.id]])[:16], 16))
        seen[row.id] += 1
    return seeds


class _Answering:
    """One load of the base and what goes on with it."""

    def __init__(
        self,
        run: RunDir,
        every: Sequence[Contestant],
        prompts: Sequence[PromptRow],
        sampling: Sampling,
        writer: AnswersWriter,
        on_answer: OnAnswer | None,
    ) -> None:
        prepare()
        recipe = load_recipe(run.recipe)
        base = load_base(recipe.model, trust_remote_code=recipe.trust_remote_code)
        inner = base.tokenizer._tokenizer
        self.base = base
        self.models = Contestants(base, every)
        self.names = [one.name for one in every]
        self.ids = [
            encode_prompt(
                inner,
                row.prompt,
                recipe.data.template,
                tools=row.tools,
                template_kwargs={**recipe.data.chat_template_kwargs, **row.template_kwargs},
                responses=row.responses,
            )
            for row in prompts
        ]
        self.seeds = prompt_seeds(prompts, sampling.seed)
        self.sampling, self.writer, self.on_answer = sampling, writer, on_answer
        self.pad = next((int(p) for p in (inner.pad_token_id, inner.eos_token_id) if p is not None), 0)

    def run(self, scores: bool) -> None:
        """Answer and read what is missing, group by group."""
        for start in range(0, len(self.ids), GROUP):
            group = range(start, min(start + GROUP, len(self.ids)))
            for name in self.names:
                if any((i, name) not in self.writer.tail.records for i in group):
                    self._answer(group, name)
            if scores and not self.writer.tail.scored.issuperset(group):
                for prompt, logps in self._read(group).items():
                    self.writer.scores(prompt, logps)

    def _answer(self, group: range, name: str) -> None:
        """One contestant's answers to a group; those that are there already are not written again."""
        with self.models.use(name):
            finished = generate_apart(
                self.base.model,
                self.base.tokenizer,
                [self.ids[i].tolist() for i in group],
                [self.seeds[i] for i in group],
                max_tokens=self.sampling.max_tokens,
                temperature=self.sampling.temperature,
                batch=GROUP,
            )
            for place, answer in finished:
                if (group[place], name) in self.writer.tail.records:
                    continue
                record = AnswerRecord(
                    group[place], name, answer.text, len(answer.tokens), answer.finished, ids=answer.drawn
                )
                self.writer.answer(record)
                if self.on_answer is not None:
                    self.on_answer(record)

    def _read(self, group: range) -> Logps:
        """The mean log-probabilities of a group's answers: prompt -> answer of -> under the model."""
        records = self.writer.tail.records
        # Models often agree on an answer: each text is read once.
        texts = sorted({(i, records[i, name].ids) for i in group for name in self.names}, key=_by_length)
        found: Logps = {i: {name: {} for name in self.names} for i in group}
        for model in self.names:
            with self.models.use(model):
                means = self._means(texts)
            for i in group:
                for name in self.names:
                    found[i][name][model] = means[i, records[i, name].ids]
        return found

    def _means(
        self, texts: Sequence[tuple[int, tuple[int, ...]]]
    ) -> Mapping[tuple[int, tuple[int, ...]], float]:
        """Mean log-probability per token of each (prompt, ids) under the weights in the model now."""
        forward = Forward(self.base.model, shared=False)
        means: dict[tuple[int, tuple[int, ...]], float] = {}
        left = list(texts)
        while left:
            longest = max(len(self.ids[i]) + len(ids) for i, ids in left[:READ_AT_ONCE])
            count = rows_in_pass(longest, READ_AT_ONCE)
            part, left = left[:count], left[count:]
            rows = [EncodedRow(i, self.ids[i], (np.array(ids, dtype=np.int32),)) for i, ids in part]
            batch = collate(rows, self.pad, np.arange(len(rows)))
            sums = forward.logps(batch_arrays(batch, shared=False), gradient=False)
            mx.eval(sums)
            values = np.array(sums, dtype=np.float64) / batch.lengths
            means.update(zip(part, values.tolist(), strict=True))
        return means


def _by_length(text: tuple[int, tuple[int, ...]]) -> tuple[int, int, tuple[int, ...]]:
    """Longest first, so that memory that does not suffice shows at once; then a fixed order."""
    return -len(text[1]), text[0], text[1]
