"""`localdpo eval`: the table that says whether it helped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from localdpo.cli.judging import carry_out, with_judge_options
from localdpo.cli.options import (
    SPEC_HELP,
    DryRunOption,
    JsonOption,
    MaxTokensOption,
    PromptsOption,
    RunArgument,
    RunsDirOption,
    WithRunsOption,
    finite,
    page_path,
)


@with_judge_options
def evaluate(
    *,
    run: RunArgument = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="SPEC",
            help=f"human, {SPEC_HELP}. Default: rules for the demo's prompts, else none.",
        ),
    ] = None,
    scores: Annotated[
        bool | None,
        typer.Option(
            "--scores/--no-scores",
            help="The judge scores each answer from 1 to 5, too. Default: only rules do.",
        ),
    ] = None,
    judging: dict[str, Any],
    checks: Annotated[
        Path | None, typer.Option("--checks", metavar="FILE", help="More heuristics, from a YAML file.")
    ] = None,
    prompts: PromptsOption = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most this many prompts.")] = 200,
    with_run: WithRunsOption = None,
    max_tokens: MaxTokensOption = 256,
    temperature: Annotated[
        float,
        typer.Option(
            metavar="X",
            min=0.0,
            callback=finite,
            help="1: answers as the models give them; 0: the likeliest token.",
        ),
    ] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of sampling and of the intervals.")] = 0,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Of the files in RUN/eval. Default: the kind of judge."),
    ] = None,
    as_json: JsonOption = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", callback=page_path, help="Write the page there, too."),
    ] = None,
    dry_run: DryRunOption = False,
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """Did it help? Heuristics and a judge on the answers of base, SFT and trained adapter."""
    from localdpo.core.atomic import write_text
    from localdpo.evals.evaluate import (
        EvalOptions,
        plan_evaluation,
        preview_lines,
        run_evaluation,
    )
    from localdpo.evals.table import page, text
    from localdpo.out import result
    from localdpo.records.answers import Sampling
    from localdpo.records.rundir import find_run

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
