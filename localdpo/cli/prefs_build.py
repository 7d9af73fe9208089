"""`localdpo prefs build`: preference pairs from a model's own answers and a judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from localdpo.cli.judging import carry_out, with_judge_options
from localdpo.cli.options import SPEC_HELP, DryRunOption, JsonOption, MaxTokensOption


@with_judge_options
def build(
    *,
    prompts: Annotated[str, typer.Argument(metavar="PROMPTS", help="File, data set or demo: name.")],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FOLDER", help="Folder of the build; give it again to resume."),
    ],
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="FILE", help="Recipe whose model, adapter and limits count."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Model that answers.")] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", metavar="NAME", help="Adapter on it, from SFT.")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", min=2, metavar="N", help="Tokens at which training would cut a row."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", metavar="N", help="Candidates a prompt. Default: 2, compared; more are scored."),
    ] = None,
    temperatures: Annotated[
        str, typer.Option(metavar="LIST", help="Of the candidates in turn, with commas.")
    ] = "1.0",
    max_tokens: MaxTokensOption = 256,
    min_words: Annotated[
        int, typer.Option(metavar="N", min=1, help="Candidates with fewer words are dropped.")
    ] = 1,
    missing_eos_penalty: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Judge candidates cut at --max-tokens too, take X from their score, and never choose them. "
            "Default: they make no pair.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of sampling and of the split.")] = 0,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most this many prompts.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="SPEC",
            help=f"{SPEC_HELP}. Default: rules for the demo's prompts.",
        ),
    ] = None,
    revise: Annotated[
        bool,
        typer.Option(
            "--revise", help="One answer, its critique and revision by the constitution, as a pair."
        ),
    ] = False,
    scores: Annotated[
        bool | None,
        typer.Option("--scores/--no-scores", help="Score both answers of a pair. Default: only rules do."),
    ] = None,
    judging: dict[str, Any],
    valid_fraction: Annotated[
        float | None,
        typer.Option(metavar="X", min=0.0, max=0.5, help="Share of the pairs held out. Default: 0.1."),
    ] = None,
    valid_count: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Pairs held out, instead of a share.")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Write the first N pairs and no more.")
    ] = None,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Make pairs: candidates of a model for each prompt, judged, split by prompt. Run it again to resume."""
    from localdpo.core.errors import UserError
    from localdpo.core.names import command_line
    from localdpo.out import result
    from localdpo.prefs.build import REPORT, TRAIN, VALID, run_build
    from localdpo.prefs.build_plan import BuildOptions, plan_build, preview_lines
    from localdpo.prefs.build_report import report_lines
    from localdpo.prefs.candidates import source_from

    if valid_fraction is not None and valid_count is not None:
        raise UserError("--valid-fraction and --valid-count: give one of the two")
    options = BuildOptions(
        prompts=prompts,
        out=out,
        source=source_from(recipe, model, adapter, max_length),
        n=n,
        temperatures=numbers(temperatures),
        max_tokens=max_tokens,
        min_words=min_words,
        missing_eos_penalty=missing_eos_penalty,
        seed=seed,
        limit=limit,
        judge=judge,
        revise=revise,
        scores=scores,
        valid_fraction=0.1 if valid_fraction is None else valid_fraction,
        valid_count=valid_count,
        keep=keep,
        **judging,
    )
    if dry_run:
        lines = preview_lines(plan_build(options))
        result({"preview": lines}, lines, as_json=as_json)
        return
    report = carry_out(options, plan_build, run_build)
    names = [TRAIN, *([VALID] if report["pairs"]["valid"] else []), REPORT]
    lines = [
        *report_lines(report),
        f"written: {', '.join(str(out / name) for name in names)}",
        f"look at them: {command_line('prefs', 'check', str(out / TRAIN))}",
    ]
    result(report, lines, as_json=as_json)


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them. Raises UserError."""
    from localdpo.core.errors import UserError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--temperatures {text}: expected numbers with commas, as in 0.7,1.0") from None
