"""`localdpo eval`: the table that says whether it helped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from localdpo.cli import options as opt
from localdpo.cli.judging import carry_out, with_judge_options
from localdpo.core.atomic import write_text
from localdpo.out import result
from localdpo.records.answers import Sampling
from localdpo.records.rundir import find_run


@with_judge_options
def evaluate(
    *,
    run: opt.RunArgument = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC", help=f"human, {opt.SPEC_HELP}. Default: rules for the demo's prompts, else none."
        ),
    ] = None,
    scores: opt.ScoresOption = None,
    judging: dict[str, Any],
    checks: Annotated[
        Path | None, typer.Option(metavar="FILE", help="More heuristics, from a YAML file.")
    ] = None,
    prompts: opt.PromptsOption = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most this many prompts.")] = 200,
    with_run: opt.WithRunsOption = None,
    max_tokens: opt.MaxTokensOption = 256,
    temperature: Annotated[
        float,
        typer.Option(
            metavar="X",
            min=0.0,
            callback=opt.finite,
            help="1: answers as the models give them; 0: the likeliest token.",
        ),
    ] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of sampling and of the intervals.")] = 0,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the files in RUN/eval. Default: the kind of judge."),
    ] = None,
    as_json: opt.JsonOption = False,
    html: opt.HtmlOption = None,
    dry_run: opt.DryRunOption = False,
    runs_dir: opt.RunsDirOption = Path("runs"),
) -> None:
    """Measure whether it helped, by checks of answers and a judge.

    Base, SFT and trained model answer the same prompts; the table has differences and win rates with their
    intervals.
    """
    from localdpo.evals.evaluate import (
        EvalOptions,
        plan_evaluation,
        preview_lines,
        run_evaluation,
    )
    from localdpo.evals.table import page, text

    options = EvalOptions(
        run=find_run(runs_dir, run),
        prompts=prompts,
        limit=limit,
        sampling=Sampling(max_tokens, temperature, seed),
        with_runs=tuple(find_run(runs_dir, other) for other in with_run or ()),
        judge=judge,
        scores=scores,
        checks=checks,
        name=name,
        **judging,
    )
    if dry_run:
        lines = preview_lines(plan_evaluation(options))
        result({"preview": lines}, lines, as_json=as_json)
        return
    record = carry_out(options, plan_evaluation, run_evaluation)
    if html is not None:
        write_text(html, page(record))
    written = f"written: {options.run.evaluations / record['name']}.json, .md and .html"
    result(record, [text(record), written], as_json=as_json)
