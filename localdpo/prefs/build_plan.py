"""From the options of `localdpo prefs build` to a build: what is generated, who is asked, what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from localdpo.answering.generator import digest, longest_answers, missing_answers, read_partial
from localdpo.core.errors import UserError
from localdpo.core.text import counted
from localdpo.data.fields import PROMPTS
from localdpo.data.formats import detect
from localdpo.data.prompts import PromptRow, read_prompt_rows
from localdpo.data.types import Tokenizer
from localdpo.judging.registry import (
    JUDGES,
    JudgeRequest,
    Judges,
    cost_lines,
    judge_spec,
    make_judges,
    wants_scores,
)
from localdpo.judging.rubric import (
    DEFAULTS,
    MODES,
    Constitution,
    Mode,
    load_constitution,
    load_rubric,
    rubrics_by_mode,
)
from localdpo.model import lora
from localdpo.prefs.build_report import OWN_COLUMNS, UNSCORED_COLUMNS
from localdpo.prefs.candidates import (
    GROUP,
    CandidateHashes,
    CandidateSampling,
    CandidateSource,
    by_prompt,
    hashes_of,
    header_of,
)
from localdpo.prefs.selection import CandidateJudging
from localdpo.prefs.settings import open_tokenizer
from localdpo.records.answers import Header
from localdpo.records.checkpoints import LATEST
from localdpo.records.verdicts import damaged_verdicts

CANDIDATES: Final = "candidates.jsonl"
VERDICTS: Final = "verdicts.jsonl"
CONSTITUTION: Final = "assistant"
_OUTPUT_FORMATS: Final = ("preference", "ultrafeedback")
UNSCORED_PENALTY: Final = (
    "missing_eos_penalty: without scores there is nothing to take it from; an answer that was cut is rejected"
    " where the judge prefers the other one or neither, else the pair is dropped"
)


@dataclass(frozen=True)
class BuildOptions(JudgeRequest):
    """What a person asked for; see `localdpo prefs build --help`.

    `n` None is 2, or 1 with `revise`. `min_words`: candidates with fewer are not judged.
    `missing_eos_penalty`: what the score of a candidate loses that was cut at `max_tokens`, which can only be
    rejected; None: such candidates are not judged. `valid_count` overrides `valid_fraction`. `group`: prompts
    that are answered together.
    """

    prompts: str
    out: Path
    source: CandidateSource
    n: int | None = None
    temperatures: tuple[float, ...] = (1.0,)
    max_tokens: int = 256
    min_words: int = 1
    missing_eos_penalty: float | None = None
    seed: int = 0
    limit: int | None = None
    revise: bool = False
    valid_fraction: float = 0.1
    valid_count: int | None = None
    keep: int | None = None
    group: int = GROUP


@dataclass(frozen=True)
class BuildPlan:
    """What a build will do; nothing is generated or asked yet.

    `rubrics`: "name sha256" of each rubric that is judged by, or of the constitution; empty for judges that
    read none. `notes`: what to say before it begins, one line each.
    """

    options: BuildOptions
    sampling: CandidateSampling
    prompts: list[PromptRow]
    tokenizer: Tokenizer
    hashes: CandidateHashes
    judges: Judges
    rubrics: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def header(self) -> Header:
        """The first line of `candidates.jsonl`."""
        return header_of(self.options.prompts, self.prompts, self.sampling, self.hashes)

    @property
    def candidates(self) -> Path:
        return self.options.out / CANDIDATES

    @property
    def verdicts(self) -> Path:
        return self.options.out / VERDICTS

    @property
    def judge_name(self) -> str:
        judge = self.judges.pairs or self.judges.scores
        assert judge is not None
        return judge.name

    @property
    def most_verdicts(self) -> int:
        """Questions to the judge, at most."""
        scored = len(self.sampling.judged) if self.judges.scores is not None else 0
        return len(self.prompts) * ((2 if self.paired else 0) + scored)

    @property
    def paired(self) -> bool:
        """Whether two answers are compared, rather than several scored."""
        return len(self.sampling.judged) == 2


def plan_build(options: BuildOptions) -> BuildPlan:
    """Look at everything that was named. Loads no model. Raises UserError(s) for what does not fit."""
    _check(options)
    rows = read_prompt_rows(options.prompts, options.limit)
    _check_columns(options.prompts, rows)
    notes: list[str] = []
    source = options.source
    if source.adapter is not None and Path(source.adapter).name == LATEST:
        # The checkpoint that a run's LATEST names now: a run that trains moves it.
        source = replace(source, adapter=str(lora.open_adapter(source.adapter, notes.append).path))
        options = replace(options, source=source)
    notes += damaged_verdicts(options.out / VERDICTS)
    tokenizer = open_tokenizer(source.model, trust_remote_code=source.trust_remote_code)
    revise = None
    if options.revise:
        revise = load_constitution(options.constitution or CONSTITUTION)
        if source.template == "raw" or not tokenizer.chat_template:
            raise UserError("--revise: it takes a chat template, to ask for the critique")
    count = options.n or (1 if options.revise else 2)
    sampling = CandidateSampling(
        count, options.temperatures, options.max_tokens, options.seed, revise, options.group
    )
    hashes = hashes_of(source, tokenizer)
    judges, rubrics = _judges(options, rows, revise, count)
    if options.missing_eos_penalty is not None and judges.scores is None:
        notes.append(UNSCORED_PENALTY)
    plan = BuildPlan(options, sampling, rows, tokenizer, hashes, judges, rubrics, tuple(notes))
    _check_folder(plan)
    return plan


def _check(options: BuildOptions) -> None:
    """What can be said without looking at anything else."""
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"{options.out}: is a file; --out names a folder")
    if options.min_words > options.max_tokens:
        raise UserError(
            f"--min-words {options.min_words}: no answer of --max-tokens {options.max_tokens} has so many"
        )
    penalty = options.missing_eos_penalty
    if penalty is not None and not (math.isfinite(penalty) and penalty > 0):
        raise UserError(f"--missing-eos-penalty {penalty:g}: expected a number above 0")
    if options.revise and options.n not in (None, 1):
        raise UserError("--revise: one answer a prompt is criticised and revised; leave out -n")
    if not options.revise and options.n is not None and options.n < 2:
        raise UserError(f"-n: expected 2 candidates or more, got {options.n}")
    if any(not math.isfinite(each) or each < 0 for each in options.temperatures) or not options.temperatures:
        raise UserError("--temperatures: expected numbers >= 0 with commas, as in 0.7,1.0")
    count = 1 if options.revise else options.n or 2
    if len(options.temperatures) > count:
        raise UserError(
            f"--temperatures: {len(options.temperatures)} for {counted(count, 'candidate')} a prompt; "
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
            format_name = detect({*others, *own}, "pairs", label).name
        except UserError:
            format_name = "more than one format"
        if format_name not in _OUTPUT_FORMATS:
            raise UserError(
                f"{label}: with its columns ({', '.join(sorted(others))}) pairs would look like "
                f"{format_name}; rename some"
            )


def _check_folder(plan: BuildPlan) -> None:
    """Raise UserError if the folder holds other candidates."""
    header = read_partial(plan.candidates).header
    if header is None or header.key == plan.header.key:
        return
    old, new = _depends_on(header), _depends_on(plan.header)
    changed = ", ".join(name for name in new if old.get(name) != new[name]) or "candidates"
    raise UserError(
        f"{plan.options.out}: holds candidates of another build (changed: {changed}); "
        "give another --out, or the options of then"
    )


def _depends_on(header: Header) -> dict[str, Any]:
    """What a build's candidates depend on, by name."""
    return {
        **header.depends,
        "max_tokens": header.sampling.max_tokens,
        "seed": header.sampling.seed,
        "n": len(header.contestants),
        "temperatures": [candidate["temperature"] for candidate in header.contestants],
    }


def _judges(
    options: BuildOptions, rows: Sequence[PromptRow], revise: Constitution | None, count: int
) -> tuple[Judges, tuple[str, ...]]:
    """Who judges, and by what. Of two answers scores are optional; of more they decide."""
    spec = judge_spec(options, rows)
    if spec is None:
        raise UserError(
            "no judge: name one, such as --judge mlx:MODEL, --judge anthropic or --judge openai:URL#MODEL"
        )
    rubrics = rubrics_by_mode(options.rubrics)
    paired = revise is not None or count == 2
    if not paired and options.scores is False:
        raise UserError("--no-scores: of more than two candidates the scores decide")
    wanted: Mapping[Mode, bool] = {"pairwise": paired, "score": not paired or wants_scores(options, spec)}
    modes = [mode for mode in MODES if wanted[mode]]
    if unread := [mode for mode in rubrics if mode not in modes]:
        raise UserError(f"--rubric {rubrics[unread[0]]}: nothing is asked in its mode, {unread[0]}")
    kind = JUDGES.get(spec.partition(":")[0])
    reads_rubric = kind is None or kind.reads_rubric
    if revise is not None and not reads_rubric:
        options = replace(options, constitution=None)  # it is for the revision alone
    judges = make_judges(options, spec, modes)
    if not reads_rubric:
        return judges, ()
    if options.constitution is not None:
        loaded = load_constitution(options.constitution)
        principles = [[each.id, each.text] for each in loaded.principles]
        return judges, (f"{loaded.name} {digest(principles)[:16]}",)
    texts = [load_rubric(rubrics.get(mode) or DEFAULTS[mode]) for mode in modes]
    return judges, tuple(dict.fromkeys(f"{text.name} {text.sha256[:16]}" for text in texts))


def preview_lines(plan: BuildPlan) -> list[str]:
    """What the build would generate, ask and cost at most. Writes nothing and asks nobody."""
    kept = read_partial(plan.candidates).records
    missing = missing_answers(plan.header, kept)
    wanted = len(plan.prompts) * len(plan.sampling.names)
    records = longest_answers(plan.header) if missing else kept
    answers = by_prompt(records, len(plan.prompts), plan.sampling.judged)
    questions = CandidateJudging(plan, answers).questions()
    temperatures = ", ".join(
        dict.fromkeys(f"{plan.sampling.temperature(name):g}" for name in plan.sampling.names)
    )
    penalty = plan.options.missing_eos_penalty
    least = "" if plan.options.min_words == 1 else f"at least {counted(plan.options.min_words, 'word')} and "
    return [
        f"prompts: {len(plan.prompts):,} of {plan.options.prompts}",
        f"candidates: {wanted:,} of {least}at most {counted(plan.sampling.max_tokens, 'token')} at "
        f"temperature {temperatures}; "
        f"{missing:,} to generate",
        *([] if penalty is None else [f"cut at the limit: judged too, never chosen; penalty {penalty:g}"]),
        *cost_lines(plan.options, plan.judge_name, questions, plan.verdicts, known=not missing),
        *plan.notes,
    ]
