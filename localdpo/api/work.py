"""Comparing, evaluating and exporting a run, and making and checking pairs: the commands as functions.

`localdpo COMMAND --help` explains their options. Every function raises UserError(s) for mistakes that the
caller can correct; notes go to stderr.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

from pydantic import Field

from localdpo.answering.generator import answered
from localdpo.api.runs import Run
from localdpo.evals.evaluate import EvalOptions, plan_evaluation, run_evaluation
from localdpo.interop import export as exports
from localdpo.interop.targets import Settings
from localdpo.judging.cost import Budget
from localdpo.judging.registry import JudgeOptions
from localdpo.model.backend import prepare
from localdpo.out import note
from localdpo.prefs import check
from localdpo.prefs.build import run_build
from localdpo.prefs.build_plan import BuildOptions, plan_build
from localdpo.prefs.candidates import source_from
from localdpo.prefs.check import CheckReport
from localdpo.prefs.settings import settings_from
from localdpo.recipe.arguments import Amount, Count, Whole, checked
from localdpo.records.answers import AnswersRequest, AnswersTail, Sampling
from localdpo.records.evaluations import Evaluation, read_evaluation

# A run, or the path of its folder.
RunLike = Run | str | os.PathLike[str]
PathLike = str | os.PathLike[str]
_Share = Annotated[float, Field(ge=0, le=0.5)]
_Length = Annotated[int, Field(ge=2)]


@checked
def compare(
    run: RunLike,
    prompts: PathLike | None = None,
    *,
    texts: Sequence[str] = (),
    limit: Count | None = 32,
    with_runs: Sequence[RunLike] = (),
    max_tokens: Count = 256,
    temperature: Amount = 0.0,
    seed: Whole = 0,
) -> AnswersTail:
    """Answers of base, start adapter and trained adapter (and of other runs) to the same prompts.

    Args:
        prompts: a file or data set of prompts; None: the run's held-out prompts, unless `texts` are given.

    Answers that are in the run's folder already are not generated again. `answers_object` gives all as JSON
    values.
    """
    sampling = Sampling(max_tokens, temperature, seed)
    others = tuple(Run(other).path for other in with_runs)
    source = None if prompts is None else os.fspath(prompts)
    return answered(AnswersRequest(Run(run).path, source, tuple(texts), limit, others, sampling), note)


@checked
def evaluate(
    run: RunLike,
    prompts: PathLike | None = None,
    *,
    limit: Count | None = 200,
    max_tokens: Count = 256,
    temperature: Amount = 1.0,
    seed: Whole = 0,
    with_runs: Sequence[RunLike] = (),
    checks: PathLike | None = None,
    name: str | None = None,
    **judging: Unpack[JudgeOptions],
) -> Evaluation:
    """Did it help? Heuristics, and a judge if one is named, on the answers of base and adapters.

    The run's folder keeps answers, verdicts and the evaluation; what it has is not asked again.
    """
    options = EvalOptions(
        run=Run(run).folder,
        prompts=None if prompts is None else os.fspath(prompts),
        limit=limit,
        sampling=Sampling(max_tokens, temperature, seed),
        with_runs=tuple(Run(other).folder for other in with_runs),
        checks=None if checks is None else Path(checks),
        name=name,
        **judging,
    )
    prepare(note)
    plan = plan_evaluation(options)
    for line in plan.notes:
        note(line)
    run_evaluation(plan, budget=Budget(options.max_usd))
    return read_evaluation(options.run.evaluations / f"{plan.name}.json")


@checked
def build_pairs(
    prompts: PathLike,
    out: PathLike,
    *,
    recipe: PathLike | None = None,
    model: str | None = None,
    adapter: str | None = None,
    max_length: _Length | None = None,
    n: _Length | None = None,
    temperatures: Sequence[Amount] = (1.0,),
    max_tokens: Count = 256,
    seed: Whole = 0,
    limit: Count | None = None,
    revise: bool = False,
    min_words: Count = 1,
    missing_eos_penalty: Amount | None = None,
    valid_fraction: _Share = 0.1,
    valid_count: Whole | None = None,
    keep: Count | None = None,
    **judging: Unpack[JudgeOptions],
) -> dict[str, Any]:
    """Preference pairs from a model's own answers and a judge, in the folder `out`; what report.json holds.

    The model is that of a recipe, or `model` with `adapter`. Call it again to resume.
    """
    options = BuildOptions(
        prompts=os.fspath(prompts),
        out=Path(out),
        source=source_from(None if recipe is None else Path(recipe), model, adapter, max_length),
        n=n,
        temperatures=tuple(temperatures),
        max_tokens=max_tokens,
        min_words=min_words,
        missing_eos_penalty=missing_eos_penalty,
        seed=seed,
        limit=limit,
        revise=revise,
        valid_fraction=valid_fraction,
        valid_count=valid_count,
        keep=keep,
        **judging,
    )
    prepare(note)
    plan = plan_build(options)
    for line in plan.notes:
        note(line)
    return run_build(plan, budget=Budget(options.max_usd))


@checked
def check_pairs(
    data: PathLike | None = None,
    *,
    recipe: PathLike | None = None,
    model: str | None = None,
    max_length: _Length | None = None,
    format: str | None = None,
    against: Sequence[str] = (),
    reference: Count | None = None,
) -> CheckReport:
    """Check preference pairs for problems; `CheckReport.failed`: whether an error-level check found any."""
    path = None if recipe is None else Path(recipe)
    source = None if data is None else os.fspath(data)
    settings, source = settings_from(path, model, max_length, format, against, reference, source)
    return check.check(source, settings)


@checked
def export(
    run: RunLike,
    to: str = "mlx",
    *,
    out: PathLike | None = None,
    bits: int | None = None,
    dequantize: bool = False,
    dtype: Literal["float16", "bfloat16", "float32"] | None = None,
    checkpoint: str | int | None = None,
    force: bool = False,
) -> exports.Export:
    """Write what the run trained for another program, load it again and compare it with base + adapter.

    `Export.written` is False for one that keeps too little and was not written; `force` writes it anyway, and
    replaces an earlier export.
    """
    prepare(note)
    place = None if out is None else Path(out)
    step = None if checkpoint is None else str(checkpoint)
    request = exports.ExportRequest(
        Run(run).folder, to, place, Settings(bits, dequantize, dtype), step, force
    )
    return exports.export(request, note)
