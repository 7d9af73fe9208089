"""Answers of models to prompts, generated in batches and kept in an answers file (records/answers.py).

Prompts are answered in fixed groups, in their order, by the columns of the file in turn, those of the same
weights together. A group is generated completely or not at all, and each answer has a random key of its own
(`generate_apart`), so the answers of a process that was killed and started again are bit for bit those of one
that was not, and the file is the same too. What is lost to a kill is at most the part of a
group that was being generated.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from localdpo.answering.contestants import Contestant, Contestants, contestants
from localdpo.answering.prompts import choose_prompts
from localdpo.core.errors import UserError
from localdpo.data.batches import collate
from localdpo.data.encode import ENCODER_VERSION, encode_prompt
from localdpo.data.prompts import PromptRow
from localdpo.data.types import EncodedRow
from localdpo.model.arrays import random_key, set_random_key
from localdpo.model.backend import prepare
from localdpo.model.forward import Forward, batch_arrays
from localdpo.model.generate import generate_apart
from localdpo.model.load import Base, fingerprint, load_base, model_path, tokenizer_fingerprint
from localdpo.model.memory import rows_in_pass
from localdpo.recipe.load import load_recipe
from localdpo.records.answers import (
    AnswerRecord,
    AnswersRequest,
    AnswersTail,
    AnswersWriter,
    Header,
    Sampling,
    answers_files,
    answers_path,
    read_answers,
)
from localdpo.records.checkpoints import Note
from localdpo.records.rundir import RunDir, run_of

# Raise it with every change that leads to other answers to the same prompt: it is part of the key.
GENERATOR_VERSION = 2
GROUP = 64
# Answers that are generated at once, where they fit: on a CPU a step for 128 takes twice as long as for 32.
_AT_ONCE = 128
# Answers that a model reads at once, of similar length, at most.
READ_AT_ONCE = 32
# Characters of a token, for the length of an answer that is not there yet.
_CHARACTERS = 5
OnAnswer = Callable[[AnswerRecord], None]
AnswersByName = Mapping[str, Sequence[AnswerRecord]]
# By the prompt's index and the contestant's name.
AnswersByPlace = Mapping[tuple[int, str], AnswerRecord]


def digest(value: object) -> str:
    """The sha256 of a JSON value, in hexadecimal."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()


def prompt_seeds(prompts: Sequence[PromptRow], seed: int) -> list[int]:
    """The seed of each prompt's random key: of its id, the run's seed, and how often it came before."""
    seen: Counter[str] = Counter()
    seeds = []
    for row in prompts:
        seeds.append(int(digest([seed, row.id, seen[row.id]])[:16], 16))
        seen[row.id] += 1
    return seeds


@contextmanager
def same_random_state() -> Iterator[None]:
    """Put the global random state back afterwards: loading models and adapters draws fresh weights."""
    before = random_key()
    try:
        yield
    finally:
        set_random_key(before)


# --- any answers file ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerColumn:
    """One column of an answers file, and how it is filled.

    Attributes:
        name: of the contestant in the file's header.
        temperature: of its answers.
        seeds: of each prompt's random key.
        prompt_ids: from a prompt's index to the token ids to answer to. Called when the prompt's group is
            due, so that they may hold answers of earlier columns.
        active: while this context holds, the model has the column's weights.
        waits: whether it needs the answers of the columns before it. Columns with the same context that do
            not wait are generated together.
    """

    name: str
    temperature: float
    seeds: Sequence[int]
    prompt_ids: Callable[[int], list[int]]
    active: Callable[[], AbstractContextManager[None]] = nullcontext
    waits: bool = False


def fill_groups(
    writer: AnswersWriter,
    base: Base,
    columns: Sequence[AnswerColumn],
    group: int,
    on_answer: OnAnswer | None = None,
    *,
    live: bool = True,
) -> Iterator[range]:
    """Generate what the file lacks; yields each group of prompt indices once every column has answered it.

    Args:
        on_answer: called with every new answer as it finishes.
        live: write each answer, with its token ids, as it finishes, for readers that follow the file. Else a
            column's answers to a group are written at once, in the order of the prompts and without ids.
    """
    assert writer.tail.header is not None
    count, known = len(writer.tail.header.prompts), writer.tail.records
    for start in range(0, count, group):
        indices = range(start, min(start + group, count))
        for together in _together(columns):
            # The answers to a prompt stand together: it is read once for all of them.
            asked = [(i, column) for i in indices for column in together]
            if all((i, column.name) in known for i, column in asked):
                continue
            records: dict[tuple[int, str], AnswerRecord] = {}
            with together[0].active():
                for index, answer in generate_apart(
                    base.model,
                    base.tokenizer,
                    [column.prompt_ids(i) for i, column in asked],
                    [column.seeds[i] for i, column in asked],
                    max_tokens=writer.tail.header.sampling.max_tokens,
                    temperatures=[column.temperature for _, column in asked],
                    batch=_AT_ONCE,
                ):
                    i, column = asked[index]
                    drawn = answer.drawn if live else ()
                    record = AnswerRecord(
                        i, column.name, answer.text, len(answer.tokens), answer.finished, ids=drawn
                    )
                    is_new = (i, column.name) not in known
                    if live:
                        writer.answers(record)
                    records[i, column.name] = record
                    if on_answer is not None and is_new:
                        on_answer(record)
            if not live:
                writer.answers(*(records[i, column.name] for column in together for i in indices))
        yield indices


def _together(columns: Sequence[AnswerColumn]) -> list[list[AnswerColumn]]:
    """The columns in their order, those together that can be generated so."""
    groups: list[list[AnswerColumn]] = []
    for column in columns:
        if groups and not column.waits and column.active is groups[-1][0].active:
            groups[-1].append(column)
        else:
            groups.append([column])
    return groups


def read_partial(path: Path) -> AnswersTail:
    """What an answers file holds so far; empty where there is none yet."""
    tail = AnswersTail(path)
    tail.poll()
    return tail


def missing_answers(header: Header, records: AnswersByPlace) -> int:
    """How many answers of the header's columns are still to be generated."""
    return len(header.prompts) * len(header.contestants) - len(records)


def longest_text(name: str, tokens: int) -> str:
    """A text of as many characters and words as an answer of `tokens` has at most; by name."""
    return f"{name} {'xxxx ' * (tokens - 1)}".ljust(tokens * _CHARACTERS, "x")


def longest_answers(header: Header) -> AnswersByPlace:
    """Answers at the limit of length, no two alike, instead of those that are not generated yet."""
    tokens = header.sampling.max_tokens
    return {
        (i, name): AnswerRecord(i, name, longest_text(name, tokens), tokens, True)
        for i in range(len(header.prompts))
        for name in header.names
    }


# --- the answers of a run's models ---------------------------------------------------------------------


def plan_answers(
    run: RunDir,
    contestants: Sequence[Contestant],
    prompts: Sequence[PromptRow],
    sampling: Sampling,
    *,
    source: str = "",
) -> tuple[Path, Header]:
    """The file that these answers belong in, and its first line. Loads no model.

    Raises UserError: the run's base cannot be found; ValueError: no prompts, or no contestants.
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
        "prompts": digest([[row.asked, row.responses] for row in prompts]),
    }
    names = [[contestant.name, contestant.fingerprint] for contestant in contestants]
    header = Header(
        key=digest([depends, names, asdict(sampling)])[:16],
        run=run.name,
        sampling=sampling,
        contestants=tuple(
            {
                "name": contestant.name,
                "label": contestant.label,
                "role": contestant.role,
                "adapter": "" if contestant.adapter is None else contestant.adapter.name,
                "fingerprint": contestant.fingerprint,
            }
            for contestant in contestants
        ),
        prompts=tuple({"id": row.id, "text": row.text} for row in prompts),
        source=source,
        depends=depends,
    )
    return answers_path(run.path, header.key), header


def kept_answers(
    run: RunDir, contestants: Sequence[Contestant], path: Path, header: Header
) -> AnswersByPlace:
    """The answers that are not generated again: those of the file at `path`, and what others hold of them.

    Other files are those of this run and of the runs that trained the contestants. A contestant's answers are
    taken from one of them if it has all, of the same weights, to the same prompts and drawn alike: they are
    the same but for the rounding of logits in another batch. What is damaged there, or cannot be read, is
    passed over.

    Raises UserError when the file at `path` is damaged.
    """
    kept = dict(read_partial(path).records)
    indices = range(len(header.prompts))
    lacking = [who for who in contestants if any((i, who.name) not in kept for i in indices)]
    trained = [run_of(who.adapter) for who in contestants if who.adapter is not None]
    folders = dict.fromkeys([run.path, *(other.path for other in trained if other is not None)])
    for file in (file for folder in folders for file in answers_files(folder) if file != path):
        tail = AnswersTail(file)
        with suppress(UserError, OSError):
            # Its header first: a file may be long.
            if lacking and tail.poll(max_bytes=1) and _is_drawn_alike(tail.header, header):
                tail.poll()
        for who in tuple(lacking):
            column = [tail.records.get((i, _name_of(who, tail.header))) for i in indices]
            if None not in column:
                lacking.remove(who)
                for i, record in enumerate(filter(None, column)):
                    kept.setdefault((i, who.name), replace(record, contestant=who.name))
    return kept


def _name_of(contestant: Contestant, header: Header | None) -> str:
    """What a file calls a contestant of these weights; no name if it has none."""
    columns = () if header is None else header.contestants
    same = (column for column in columns if column.get("fingerprint") == contestant.fingerprint)
    return next((str(column["name"]) for column in same), "")


def _is_drawn_alike(one: Header | None, other: Header) -> bool:
    """Whether models of the same weights give the same answers in both files."""
    return one is not None and one.sampling == other.sampling and digest(one.depends) == digest(other.depends)


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

    Answers that are kept (`kept_answers`) are not generated again; with none missing, no model is loaded.

    Args:
        scores: whether each model reads each answer, for `AnswerRecord.logps`.
        source: where the prompts came from, for people who look at the file.
        on_answer: called with every answer as it finishes, first those that were there already; `logps` may
            still be empty then, the result's are complete.

    Raises UserError: a model or adapter that cannot be loaded, a prompt that the template refuses, another
    process that generates the same answers, or a full disk.
    """
    path, header = plan_answers(run, contestants, prompts, sampling, source=source)
    with AnswersWriter(path, header) as writer:
        writer.answers(*kept_answers(run, contestants, path, header).values())
        if on_answer is not None:
            for record in list(writer.tail.records.values()):
                on_answer(record)
        if writer.tail.missing or (scores and not writer.tail.complete):
            with same_random_state():
                _Answering(run, contestants, prompts).run(writer, scores, on_answer)
        records = writer.tail.records
        return {name: [records[i, name] for i in range(len(prompts))] for name in header.names}


def mean_logps(
    run: RunDir,
    contestants: Sequence[Contestant],
    prompts: Sequence[PromptRow],
    answers: Sequence[AnswerRecord],
) -> dict[str, list[float]]:
    """Mean log-probability per token, in nats, of one answer to each prompt under each contestant, by name.

    Raises UserError for a model or adapter that cannot be loaded and a prompt that the template refuses.
    """
    texts = [(i, answer.ids) for i, answer in enumerate(answers)]
    with same_random_state():
        means = _Answering(run, contestants, prompts).read(texts)
    return {name: [of_model[text] for text in texts] for name, of_model in means.items()}


def answer_request(
    request: AnswersRequest, note: Note, announce: Callable[[Path], None] = lambda path: None
) -> Path:
    """The answers file of a request, complete; `announce` is called with it before anything is generated.

    Raises UserError as `contestants`, `choose_prompts` and `answer_all` do.
    """
    run = RunDir(request.run)
    rows, source = choose_prompts(run, request.prompts, request.texts, request.limit)
    models = contestants(run, [RunDir(path) for path in request.with_runs], note=note)
    path, _ = plan_answers(run, models, rows, request.sampling)
    announce(path)
    answer_all(run, models, rows, request.sampling, source=source)
    return path


def answered(request: AnswersRequest, note: Note) -> AnswersTail:
    """The answers of a request, generated as far as they are not on the disk; raises as `answer_request`.

    `note` gets a line for what a person should know of the device, of checkpoints and of inputs.
    """
    prepare(note)
    return read_answers(answer_request(request, note))


# A prompt's index and the ids of an answer to it.
_Text = tuple[int, tuple[int, ...]]


class _Answering:
    """One load of a run's base, and everything that is generated and read with it."""

    def __init__(self, run: RunDir, every: Sequence[Contestant], prompts: Sequence[PromptRow]) -> None:
        prepare()
        recipe = load_recipe(run.recipe)
        self.base = load_base(recipe.model, trust_remote_code=recipe.trust_remote_code)
        tokenizer = self.base.tokenizer._tokenizer
        self.models = Contestants(self.base, every)
        self.names = [contestant.name for contestant in every]
        self.ids = [
            encode_prompt(
                tokenizer,
                row.prompt,
                recipe.data.template,
                tools=row.tools,
                template_kwargs={**recipe.data.chat_template_kwargs, **row.template_kwargs},
                responses=row.responses,
            )
            for row in prompts
        ]
        self.prompts = prompts
        ends = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        self.pad = next((int(token) for token in ends if token is not None), 0)

    def run(self, writer: AnswersWriter, scores: bool, on_answer: OnAnswer | None) -> None:
        """Answer and read what is missing, group by group."""
        assert writer.tail.header is not None
        sampling = writer.tail.header.sampling
        seeds = prompt_seeds(self.prompts, sampling.seed)
        columns = [
            AnswerColumn(
                name,
                sampling.temperature,
                seeds,
                lambda i: self.ids[i].tolist(),
                partial(self.models.use, name),
            )
            for name in self.names
        ]
        for indices in fill_groups(writer, self.base, columns, GROUP, on_answer):
            if scores and not writer.tail.scored.issuperset(indices):
                # Mean log-probabilities of the group's answers: answer of -> under the model.
                records = writer.tail.records
                means = self.read({(i, records[i, name].ids) for i in indices for name in self.names})
                for i in indices:
                    texts = {name: (i, records[i, name].ids) for name in self.names}
                    rows = {name: {m: means[m][text] for m in means} for name, text in texts.items()}
                    writer.scores(i, rows)

    def read(self, texts: Iterable[_Text]) -> dict[str, dict[_Text, float]]:
        """Mean log-probability per token of each text under each model, by its name."""
        # Models often agree on an answer: each text is read once. Longest first, so that memory that does not
        # suffice shows at once; then a fixed order.
        ordered = sorted(set(texts), key=lambda text: (-len(text[1]), *text))
        means: dict[str, dict[_Text, float]] = {}
        for model in self.names:
            with self.models.use(model):
                means[model] = self._means(ordered)
        return means

    def _means(self, texts: Sequence[_Text]) -> dict[_Text, float]:
        """Mean log-probability per token of each text under the weights in the model now."""
        forward = Forward(self.base.model, shared=False)
        means: dict[_Text, float] = {}
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
