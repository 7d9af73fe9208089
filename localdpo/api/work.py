"""Comparing, evaluating and exporting a run, and making and checking pairs: the commands as functions.

`localdpo COMMAND --help` explains their options. Every function raises UserError(s) for mistakes that the
caller can correct; notes go to stderr.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Unpack

from localdpo.answering.generator import answered
from localdpo.api.runs import Run
from localdpo.core.errors import UserError, UserErrors
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
from localdpo.prefs.report import CheckReport
from localdpo.prefs.settings import settings_from
from localdpo.records.answers import AnswersRequest, AnswersTail, Sampling
from localdpo.records.evaluations import Evaluation, read_evaluation

# The least that a number may be, by its name here.
_LEAST: Final = {
    "limit": 1,
    "max_tokens": 1,
    "temperature": 0,
    "seed": 0,
    "max_length": 2,
    "min_words": 1,
    "keep": 1,
    "valid_count": 0,
    "valid_fraction": 0,
    "reference": 1,
    "concurrency": 1,
    "judge_tokens": 1,
    "max_usd": 0,
}
# A run, or the path of its folder.
RunLike = Run | str | os.PathLike[str]


def compare(
    run: RunLike,
    prompts: str | os.PathLike[str] | None = None,
    *,
    texts: Sequence[str] = (),
    limit: int | None = 32,
    with_runs: Sequence[RunLike] = (),
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
) -> AnswersTail:
    """Answers of base, start adapter and trained adapter (and of other runs) to the same prompts.

    Args:
        prompts: a file or data set of prompts; None: the run's held-out prompts, unless `texts` are given.

    Answers that are in the run's folder already are not generated again. `answers_object` gives all as JSON
    values.
    """
    _check_numbers(limit=limit, max_tokens=max_tokens, temperature=temperature, seed=seed)
    sampling = Sampling(max_tokens, temperature, seed)
    others = tuple(Run(other).path for other in with_runs)
    source = None if prompts is None else os.fspath(prompts)
    return answered(AnswersRequest(Run(run).path, source, tuple(texts), limit, others, sampling), note)


def evaluate(
    run: RunLike,
    prompts: str | os.PathLike[str] | None = None,
    *,
    limit: int = 200,
    max_tokens: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
    with_runs: Sequence[RunLike] = (),
    checks: str | os.PathLike[str] | None = None,
    name: str | None = None,
    **judging: Unpack[JudgeOptions],
) -> Evaluation:
    """Did it help? Heuristics, and a judge if one is named, on the answers of base and adapters.

    The run's folder keeps answers, verdicts and the evaluation; what it has is not asked again.
    """
    _check_numbers(limit=limit, max_tokens=max_tokens, temperature=temperature, seed=seed, **judging)
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


def build_pairs(
    prompts: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | None = None,
    model: str | None = None,
    adapter: str | None = None,
    max_length: int | None = None,
    n: int | None = None,
    temperatures: Sequence[float] = (1.0,),
    max_tokens: int = 256,
    min_words: int = 1,
    seed: int = 0,
    limit: int | None = None,
    revise: bool = False,
    valid_fraction: float = 0.1,
    valid_count: int | None = None,
    keep: int | None = None,
    **judging: Unpack[JudgeOptions],
) -> dict[str, Any]:
    """Preference pairs from a model's own answers and a judge, in the folder `out`; what report.json holds.

    The model is that of a recipe, or `model` with `adapter`. Call it again to resume.
    """
    _check_numbers(limit=limit, max_tokens=max_tokens, seed=seed, max_length=max_length, keep=keep, **judging)
    _check_numbers(valid_fraction=valid_fraction, valid_count=valid_count, min_words=min_words)
    options = BuildOptions(
        prompts=os.fspath(prompts),
        out=Path(out),
        source=source_from(None if recipe is None else Path(recipe), model, adapter, max_length),
        n=n,
        temperatures=tuple(temperatures),
        max_tokens=max_tokens,
        min_words=min_words,
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


def check_pairs(
    data: str | os.PathLike[str] | None = None,
    *,
    recipe: str | os.PathLike[str] | None = None,
    model: str | None = None,
    max_length: int | None = None,
    format: str | None = None,
    against: Sequence[str] = (),
    reference: int | None = None,
) -> CheckReport:
    """Check preference pairs for problems; `CheckReport.failed`: whether an error-level check found any."""
    _check_numbers(max_length=max_length, reference=reference)
    path = None if recipe is None else Path(recipe)
    source = None if data is None else os.fspath(data)
    settings, source = settings_from(path, model, max_length, format, against, reference, source)
    return check.check(source, settings)


def export(
    run: RunLike,
    to: str = "mlx",
    *,
    out: str | os.PathLike[str] | None = None,
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


def _check_numbers(**options: object) -> None:
    """Raise UserErrors for options whose number is invalid or too small. None stands for a default."""
    problems = [
        UserError(f"{name}: expected a number, {_LEAST[name]} or more, got {value}")
        for name, value in options.items()
        if name in _LEAST and value is not None
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= _LEAST[name])
    ]
    if problems:
        raise UserErrors(problems)
