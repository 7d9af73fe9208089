"""`localdpo prefs build`: preference pairs from a model's own answers and a judge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localdpo.cli.options import (
    SPEC_HELP,
    BatchOption,
    ConcurrencyOption,
    ConstitutionOption,
    DryRunOption,
    JudgeTokensOption,
    MaxTokensOption,
    MaxUsdOption,
    PricesOption,
    Principles,
    PrinciplesOption,
    RubricOption,
)

if TYPE_CHECKING:
    from localdpo.judging.budget import Budget
    from localdpo.out.console import Console
    from localdpo.prefs.build import Callbacks
    from localdpo.prefs.build_plan import BuildOptions, Plan
    from localdpo.prefs.candidates import CandidateSource


def build(
    prompts: Annotated[str, typer.Argument(metavar="PROMPTS", help="File, data set or demo: name.")],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FOLDER", help="Folder of the build; the same one again goes on."),
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
        int | None, typer.Option("-n", help="Candidates a prompt. Default: 2, compared; more are scored.")
    ] = None,
    temperatures: Annotated[
        str, typer.Option(metavar="LIST", help="Of the candidates in turn, with commas.")
    ] = "1.0",
    max_tokens: MaxTokensOption = 256,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling and of the split.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many prompts.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="SPEC",
            help=f"{SPEC_HELP}. Default: rules for the demo's prompts.",
        ),
    ] = None,
    rubric: RubricOption = None,
    constitution: ConstitutionOption = None,
    principles: PrinciplesOption = Principles.sample,
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
    batch: BatchOption = False,
    concurrency: ConcurrencyOption = None,
    judge_tokens: JudgeTokensOption = None,
    prices: PricesOption = None,
    max_usd: MaxUsdOption = None,
    valid_fraction: Annotated[
        float | None, typer.Option(min=0.0, max=0.5, help="Share of the pairs held out. Default: 0.1.")
    ] = None,
    valid_count: Annotated[
        int | None, typer.Option(min=0, help="Pairs held out, instead of a share.")
    ] = None,
    keep: Annotated[int | None, typer.Option(min=1, help="Write the first N pairs and no more.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Make pairs: candidates of a model for each prompt, judged, split by prompt. A second call goes on."""
    from localdpo.core.errors import UserError
    from localdpo.out import say
    from localdpo.prefs.build_plan import BuildOptions, plan_build
    from localdpo.prefs.build_preview import preview_lines

    if valid_fraction is not None and valid_count is not None:
        raise UserError("--valid-fraction and --valid-count: give one of the two")
    options = BuildOptions(
        prompts=prompts,
        out=out,
        source=source_from(recipe, model, adapter, max_length),
        n=n,
        temperatures=numbers(temperatures),
        max_tokens=max_tokens,
        seed=seed,
        limit=limit,
        judge=judge,
        rubrics=tuple(rubric or ()),
        constitution=constitution,
        principles=principles.value,
        revise=revise,
        scores=scores,
        batch=batch,
        concurrency=concurrency,
        judge_tokens=judge_tokens,
        prices=prices,
        max_usd=max_usd,
        valid_fraction=0.1 if valid_fraction is None else valid_fraction,
        valid_count=valid_count,
        keep=keep,
    )
    if dry_run:
        plan = plan_build(options)
        say("\n".join([*preview_lines(plan), *plan.notes]))
        return
    show(carried_out(options), options, as_json)


def source_from(
    recipe: Path | None, model: str | None, adapter: str | None, max_length: int | None
) -> CandidateSource:
    """The model that a recipe or the options name. Raises UserError(s)."""
    from localdpo.core.errors import UserError
    from localdpo.data.encode import Limits
    from localdpo.prefs.candidates import CandidateSource

    if recipe is not None:
        if model is not None or adapter is not None or max_length is not None:
            raise UserError("--recipe names the model: leave out --model, --adapter and --max-length")
        from localdpo.recipe.load import load_recipe

        found = load_recipe(recipe)
        train = found.train
        limits = Limits(train.max_length, train.max_prompt_length, train.truncation)
        return CandidateSource(
            found.model,
            found.adapter,
            found.data.template,
            limits,
            found.trust_remote_code,
            found.data.chat_template_kwargs,
        )
    if model is None:
        raise UserError("no model: give --recipe, or --model and --adapter")
    return CandidateSource(model, adapter, limits=None if max_length is None else Limits(max_length))


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them. Raises UserError."""
    from localdpo.core.errors import UserError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--temperatures {text}: expected numbers with commas, as in 0.7,1.0") from None


def carried_out(options: BuildOptions) -> dict[str, Any]:
    """Build with bars on stderr; the report's record."""
    from localdpo.cli.plain import print_plain
    from localdpo.judging.budget import Budget
    from localdpo.model.backend import prepare
    from localdpo.out.console import Console
    from localdpo.prefs.build import run_build
    from localdpo.prefs.build_plan import plan_build

    console = Console(stderr=True)
    for hint in prepare().hints:
        print_plain(console, hint)
    plan = plan_build(options)
    for note in plan.notes:
        print_plain(console, note)
    budget = Budget(options.max_usd)
    try:
        with progress(console, plan, budget) as callbacks:
            return run_build(plan, budget=budget, callbacks=callbacks)
    finally:
        if budget.spent:
            print_plain(console, f"spent on the judge: ${budget.spent:.4f}")


@contextmanager
def progress(console: Console, plan: Plan, budget: Budget) -> Iterator[Callbacks]:
    """What `run_build` calls: bars with the time left and the money spent on a terminal, waits as lines."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from localdpo.cli.plain import print_plain
    from localdpo.core.text import format_seconds
    from localdpo.prefs.build import Callbacks

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[spent]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        wanted = len(plan.prompts) * len(plan.drawing.names)
        candidates = bars.add_task("candidates", total=wanted, spent="")
        # How many there are to ask depends on the candidates: the most until they are known.
        verdicts = bars.add_task("verdicts", total=plan.most_verdicts, spent="")

        def answered() -> None:
            bars.update(verdicts, advance=1, spent=f"${budget.spent:.4f}" if budget.spent else "")

        def waited(seconds: float, why: str) -> None:
            print_plain(console, f"waiting {format_seconds(seconds)}: {why}")

        yield Callbacks(
            on_candidate=lambda record: bars.advance(candidates),
            on_judging=lambda most: bars.update(verdicts, total=most),
            on_verdict=lambda question, verdict: answered(),
            on_wait=waited,
        )


def show(report: dict[str, Any], options: BuildOptions, as_json: bool) -> None:
    """Print the report, as lines or as JSON, and where its files are."""
    from localdpo.out import print_json, say
    from localdpo.prefs.build import REPORT, TRAIN, VALID
    from localdpo.prefs.build_report import report_lines

    if as_json:
        print_json(report)
        return
    say("\n".join(report_lines(report)))
    names = [TRAIN, *([VALID] if report["pairs"]["valid"] else []), REPORT]
    say(f"written: {', '.join(str(options.out / name) for name in names)}")
    say(f"look at them: localdpo prefs check {options.out / TRAIN}")
