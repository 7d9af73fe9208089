"""`localdpo eval`: the table that says whether it helped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

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
    PromptsOption,
    RubricOption,
    RunArgument,
    RunsDirOption,
    WithRunsOption,
)

if TYPE_CHECKING:
    from localdpo.evals.plan import Options, Plan
    from localdpo.out.console import Console

# Between two lines of progress where there is no terminal for a bar.
LINE_SECONDS: Final = 5.0


def evaluate(
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
    rubric: RubricOption = None,
    constitution: ConstitutionOption = None,
    checks: Annotated[
        Path | None, typer.Option("--checks", metavar="FILE", help="More heuristics, from a YAML file.")
    ] = None,
    prompts: PromptsOption = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many prompts.")] = 200,
    with_run: WithRunsOption = None,
    max_tokens: MaxTokensOption = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="1: answers as the models give them; 0: the likeliest token.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling and of the intervals.")] = 0,
    principles: PrinciplesOption = Principles.sample,
    batch: BatchOption = False,
    max_usd: MaxUsdOption = None,
    concurrency: ConcurrencyOption = None,
    judge_tokens: JudgeTokensOption = None,
    prices: PricesOption = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the files in RUN/eval. Default: the kind of judge.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the page there, too.")
    ] = None,
    dry_run: DryRunOption = False,
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """Did it help? Heuristics and a judge on the answers of base, SFT and trained adapter."""
    from localdpo.evals.plan import Options
    from localdpo.records.answers import Sampling
    from localdpo.records.rundir import find_run

    options = Options(
        run=find_run(runs_dir, run),
        prompts=prompts,
        limit=limit,
        sampling=Sampling(max_tokens, temperature, seed),
        with_runs=tuple(find_run(runs_dir, other) for other in with_run or ()),
        judge=judge,
        scores=scores,
        rubrics=tuple(rubric or ()),
        constitution=constitution,
        principles=principles.value,
        batch=batch,
        concurrency=concurrency,
        judge_tokens=judge_tokens,
        prices=prices,
        max_usd=max_usd,
        checks=checks,
        name=name,
    )
    if dry_run:
        preview(options)
        return
    record = carried_out(options, html)
    show(record, options, as_json)


def preview(options: Options) -> None:
    """Print what an evaluation would do."""
    from localdpo.evals.plan import plan_evaluation, preview_lines
    from localdpo.out import say

    say("\n".join(preview_lines(plan_evaluation(options))))


def carried_out(options: Options, html: Path | None) -> dict[str, Any]:
    """Evaluate with a bar on stderr; the record."""
    from localdpo.cli.plain import print_plain
    from localdpo.evals.files import page
    from localdpo.evals.plan import plan_evaluation, run_evaluation, write_page
    from localdpo.judging.budget import Budget
    from localdpo.model.backend import prepare
    from localdpo.out.console import Console

    console = Console(stderr=True)
    for hint in prepare().hints:
        print_plain(console, hint)
    plan = plan_evaluation(options)
    for note in plan.notes:
        print_plain(console, note)
    budget = Budget(options.max_usd)
    with progress(console, plan) as callbacks:
        record = run_evaluation(plan, budget=budget, **callbacks)
    if budget.spent:
        print_plain(console, f"spent on the judge: ${budget.spent:.4f}")
    if html is not None:
        write_page(html, page(record))
    return record


@contextmanager
def progress(console: Console, plan: Plan) -> Iterator[dict[str, Any]]:
    """What `run_evaluation` calls while it works: bars on a terminal, lines elsewhere."""
    from localdpo.cli.plain import print_plain
    from localdpo.core.text import format_seconds

    counts = {"answers": len(plan.prompts) * len(plan.contestants)}
    if plan.judge is not None:
        counts["verdicts"] = plan.questions

    def waited(seconds: float, why: str) -> None:
        print_plain(console, f"waiting {format_seconds(seconds)}: {why}")

    with bars(console, counts) if console.is_terminal else lines(console, counts) as advance:
        yield {
            "on_answer": lambda record: advance("answers"),
            "on_verdict": lambda question, verdict: advance("verdicts"),
            "on_wait": waited,
        }


@contextmanager
def bars(console: Console, counts: Mapping[str, int]) -> Iterator[Callable[[str], None]]:
    """A bar for each count; what is given advances one of them."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        tasks = {name: shown.add_task(name, total=total) for name, total in counts.items()}

        def advance(name: str) -> None:
            if name in tasks:
                shown.advance(tasks[name])

        yield advance


@contextmanager
def lines(console: Console, counts: Mapping[str, int]) -> Iterator[Callable[[str], None]]:
    """A line now and then with how far a count is, as far as the last one."""
    from localdpo.cli.plain import print_plain

    done = dict.fromkeys(counts, 0)
    said = time.monotonic()

    def advance(name: str) -> None:
        nonlocal said
        if name not in counts:
            return
        done[name] += 1
        if done[name] == counts[name] or time.monotonic() - said >= LINE_SECONDS:
            said = time.monotonic()
            print_plain(console, f"{name} {done[name]:,} of {counts[name]:,}")

    yield advance


def show(record: dict[str, Any], options: Options, as_json: bool) -> None:
    """Print the record, as a table or as JSON, and where its files are."""
    from localdpo.evals.table import text
    from localdpo.out import print_json, say

    if as_json:
        print_json(record)
        return
    say(text(record))
    say(f"written: {options.run.evaluations / record['name']}.json, .md and .html")
