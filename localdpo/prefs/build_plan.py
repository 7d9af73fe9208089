"""From the options of `localdpo prefs build` to a build: what is generated, who is asked, what it costs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from localdpo.answering.generator import digest
from localdpo.core.errors import UserError
from localdpo.data.fields import PROMPTS
from localdpo.data.formats import detect
from localdpo.data.prompts import PromptRow, read_prompt_rows
from localdpo.judging.base import Judge
from localdpo.judging.constitution import Constitution, Principles, load_constitution
from localdpo.judging.registry import JUDGES, JudgeOptions, make_judge
from localdpo.judging.rubric import DEFAULTS, MODES, Mode, load_rubric, rubrics_by_mode
from localdpo.judging.rules import NAME as RULES
from localdpo.judging.rules import judges_all, refuse_others
from localdpo.model import lora
from localdpo.prefs.build_rows import OWN_COLUMNS, UNSCORED_COLUMNS
from localdpo.prefs.candidates import (
    GROUP,
    CandidateHashes,
    CandidateSampling,
    CandidateSource,
    hashes_of,
    header_of,
)
from localdpo.prefs.settings import open_tokenizer
from localdpo.records.answers import AnswersTail, Header
from localdpo.records.checkpoints import LATEST, Note
from localdpo.records.verdicts import damaged_verdicts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CANDIDATES: Final = "candidates.jsonl"
VERDICTS: Final = "verdicts.jsonl"
CONSTITUTION: Final = "assistant"
_OUTPUT_FORMATS: Final = ("preference", "ultrafeedback")


@dataclass(frozen=True)
class BuildOptions:
    """What a person asked for; see `localdpo prefs build --help`.

    `n` None is 2, or 1 with `revise`. `valid_count` goes before `valid_fraction`. `group`: prompts that are
    answered together.
    """

    prompts: str
    out: Path
    source: CandidateSource
    n: int | None = None
    temperatures: tuple[float, ...] = (1.0,)
    max_tokens: int = 256
    seed: int = 0
    limit: int | None = None
    judge: str | None = None
    rubrics: tuple[str, ...] = ()
    constitution: str | None = None
    principles: Principles = "sample"
    revise: bool = False
    scores: bool | None = None
    batch: bool = False
    concurrency: int | None = None
    judge_tokens: int | None = None
    prices: Path | None = None
    max_usd: float | None = None
    valid_fraction: float = 0.1
    valid_count: int | None = None
    keep: int | None = None
    group: int = GROUP


@dataclass(frozen=True)
class Judges:
    """Who compares two answers, who scores one (None: not needed), and by what.

    `rubrics`: "name sha256" of each rubric, or of the constitution; empty for judges that read none.
    """

    pairs: Judge | None
    scores: Judge | None
    rubrics: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the judge, for people."""
        one = self.pairs or self.scores
        assert one is not None
        return one.name


@dataclass(frozen=True)
class Plan:
    """What a build will do; nothing is generated or asked yet.

    `notes`: what to say before it begins, one line each.
    """

    options: BuildOptions
    drawing: CandidateSampling
    prompts: list[PromptRow]
    tokenizer: PreTrainedTokenizerBase
    prints: CandidateHashes
    judges: Judges
    notes: tuple[str, ...] = ()

    @cached_property
    def header(self) -> Header:
        """The first line of `candidates.jsonl`."""
        return header_of(self.options.prompts, self.prompts, self.drawing, self.prints)

    @cached_property
    def facts(self) -> list[Mapping[str, Any]]:
        """The other columns of each prompt's row, for the judge."""
        # A parquet file may hold dates.
        return [json.loads(json.dumps(dict(row.facts), default=str)) for row in self.prompts]

    @property
    def candidates(self) -> Path:
        """The file of the candidates."""
        return self.options.out / CANDIDATES

    @property
    def verdicts(self) -> Path:
        """The journal of the verdicts."""
        return self.options.out / VERDICTS

    @property
    def most_verdicts(self) -> int:
        """Questions to the judge, at most."""
        scored = len(self.drawing.judged) if self.judges.scores is not None else 0
        return len(self.prompts) * ((2 if self.paired else 0) + scored)

    @property
    def paired(self) -> bool:
        """Whether two answers are compared, rather than several scored."""
        return len(self.drawing.judged) == 2


def plan_build(options: BuildOptions) -> Plan:
    """Look at everything that was named. Loads no model. Raises UserError(s) for what does not fit."""
    _check(options)
    rows = read_prompt_rows(options.prompts, options.limit)
    _check_columns(options.prompts, rows)
    notes: list[str] = []
    source = _pinned(options.source, notes.append)
    options = replace(options, source=source)
    notes += damaged_verdicts(options.out / VERDICTS)
    tokenizer = open_tokenizer(source.model, trust_remote_code=source.trust_remote_code)
    revise = None
    if options.revise:
        revise = load_constitution(options.constitution or CONSTITUTION)
        if source.template == "raw" or not tokenizer.chat_template:
            raise UserError("--revise: it takes a chat template, to ask for the critique")
    count = options.n or (1 if options.revise else 2)
    drawing = CandidateSampling(
        count, options.temperatures, options.max_tokens, options.seed, revise, options.group
    )
    plan = Plan(
        options,
        drawing,
        rows,
        tokenizer,
        hashes_of(source, tokenizer),
        _judges(options, rows, revise, count),
        tuple(notes),
    )
    _check_folder(plan)
    return plan


def _pinned(source: CandidateSource, note: Note) -> CandidateSource:
    """The source with the checkpoint that a run's LATEST stands for now: a run that trains moves it."""
    if source.adapter is None or Path(source.adapter).name != LATEST:
        return source
    return replace(source, adapter=str(lora.open_adapter(source.adapter, note).path))


def _check(options: BuildOptions) -> None:
    """What can be said without looking at anything else."""
    if options.revise and options.n not in (None, 1):
        raise UserError("--revise: one answer a prompt is criticised and revised; leave out -n")
    if not options.revise and options.n is not None and options.n < 2:
        raise UserError(f"-n: expected 2 candidates or more, got {options.n}")
    if any(not math.isfinite(each) or each < 0 for each in options.temperatures) or not options.temperatures:
        raise UserError("--temperatures: expected numbers >= 0 with commas, as in 0.7,1.0")
    count = 1 if options.revise else options.n or 2
    if len(options.temperatures) > count:
        raise UserError(
            f"--temperatures: {len(options.temperatures)} for {count} candidate(s) a prompt; "
            "give fewer, or a larger -n"
        )
    if not options.revise and 0.0 in options.temperatures and count > len(options.temperatures):
        raise UserError(
            "--temperatures: at 0 every candidate is the same; give each its temperature, or leave 0 out"
        )


def _check_columns(label: str, rows: Sequence[PromptRow]) -> None:
    """The other columns of a row must not make the pairs look like another format."""
    others = {name for row in rows for name in row.facts} - set(OWN_COLUMNS)
    if rivals := sorted(others & PROMPTS):
        raise UserError(
            f"{label}: beside prompt, {', '.join(rivals)} would look like another prompt of the pairs; "
            "rename it"
        )
    for own in (OWN_COLUMNS, UNSCORED_COLUMNS):
        try:
            found = detect({*others, *own}, "pairs", label).name
        except UserError:
            found = "more than one format"
        if found not in _OUTPUT_FORMATS:
            raise UserError(
                f"{label}: with its columns ({', '.join(sorted(others))}) pairs would look like {found}; "
                "rename some"
            )


def _check_folder(plan: Plan) -> None:
    """The folder must be new, or one of the same candidates."""
    out = plan.options.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; --out names a folder")
    tail = AnswersTail(plan.candidates)
    tail.poll()
    if tail.header is None or tail.header.key == plan.header.key:
        return
    old, new = (depends_on(header) for header in (tail.header, plan.header))
    changed = ", ".join(name for name in new if old.get(name) != new[name]) or "candidates"
    raise UserError(
        f"{out}: holds candidates of another build (changed: {changed}); "
        "give another --out, or the options of then"
    )


def depends_on(header: Header) -> dict[str, Any]:
    """What a build's candidates depend on, by name."""
    return {
        **header.depends,
        "max_tokens": header.sampling.max_tokens,
        "seed": header.sampling.seed,
        "n": len(header.contestants),
        "temperatures": [one["temperature"] for one in header.contestants],
    }


def _judges(
    options: BuildOptions, rows: Sequence[PromptRow], revise: Constitution | None, count: int
) -> Judges:
    """Who judges. Of two answers scores are asked for, or come free with the rules; of more they decide."""
    facts = [row.facts for row in rows]
    spec = options.judge or (RULES if judges_all(facts) else None)
    if spec is None:
        raise UserError(
            "no judge: name one, such as --judge mlx:MODEL, --judge anthropic or --judge openai:URL#MODEL"
        )
    refuse_others(spec, facts)
    rubrics = rubrics_by_mode(options.rubrics)
    paired = revise is not None or count == 2
    scored = not paired or (
        options.scores if options.scores is not None else spec == RULES or "score" in rubrics
    )
    if not paired and options.scores is False:
        raise UserError("--no-scores: of more than two candidates the scores decide")
    wanted: Mapping[Mode, bool] = {"pairwise": paired, "score": scored}
    modes = [mode for mode in MODES if wanted[mode]]
    if unread := [mode for mode in rubrics if mode not in modes]:
        raise UserError(f"--rubric {rubrics[unread[0]]}: nothing is asked in its mode, {unread[0]}")
    kind = JUDGES.get(spec.partition(":")[0])
    constitution = options.constitution
    if revise is not None and kind is not None and not kind.reads_rubric:
        constitution = None  # it is for the revision alone
    made = {mode: _judge(options, spec, mode, rubrics.get(mode), constitution) for mode in modes}
    reads = kind is None or kind.reads_rubric
    texts = tuple(_text_of(rubrics.get(mode), mode, constitution) for mode in modes) if reads else ()
    return Judges(made.get("pairwise"), made.get("score"), tuple(dict.fromkeys(texts)))


def _judge(
    options: BuildOptions, spec: str, mode: Mode, rubric: str | None, constitution: str | None
) -> Judge:
    return make_judge(
        spec,
        JudgeOptions(
            mode=mode,
            rubric=rubric,
            constitution=constitution,
            principles=options.principles,
            batch=options.batch,
            concurrency=options.concurrency,
            max_tokens=options.judge_tokens,
            prices=options.prices,
        ),
    )


def _text_of(rubric: str | None, mode: Mode, constitution: str | None) -> str:
    """Name and hash of what a judge is told to look at."""
    if constitution is not None:
        found = load_constitution(constitution)
        return f"{found.name} {digest([[one.id, one.text] for one in found.principles])[:16]}"
    told = load_rubric(rubric or DEFAULTS[mode])
    return f"{told.name} {told.sha256[:16]}"
