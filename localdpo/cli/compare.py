"""`localdpo compare`: the answers of base, SFT and DPO to the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from localdpo.cli import options as opt
from localdpo.core.errors import UserError
from localdpo.out import has_screen, note, print_json, say
from localdpo.records.answers import AnswersRequest, AnswersTail, Sampling, answers_object, rows_of
from localdpo.records.rundir import find_run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from localdpo.out.console import Console

SIDE_BY_SIDE_WIDTH: Final = 100
# Prompts of a file that are asked unless --limit says otherwise: as many as one reads in a terminal's scroll.
PRINTED_PROMPTS: Final = 4
BROWSED_PROMPTS: Final = 32


def compare(
    run: opt.RunArgument = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Print the answers and leave, without a screen to browse them.")
    ] = False,
    as_json: opt.JsonOption = False,
    html: opt.HtmlOption = None,
    prompts: opt.PromptsOption = None,
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A prompt; repeatable.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="At most this many prompts of a file. "
            f"Default: {BROWSED_PROMPTS}, or {PRINTED_PROMPTS} where they are printed.",
        ),
    ] = None,
    with_run: opt.WithRunsOption = None,
    max_tokens: opt.MaxTokensOption = 256,
    temperature: opt.TemperatureOption = 0.0,
    seed: opt.SeedOption = 0,
    runs_dir: opt.RunsDirOption = Path("runs"),
) -> None:
    """Show the answers of base, SFT and trained model side by side.

    By default to held-out prompts, in a screen.
    """
    from localdpo.out.console import Console

    if plain + as_json + (html is not None) > 1:
        raise UserError("--plain, --json and --html: choose one")
    if any(not text.strip() for text in prompt or ()):
        raise UserError("--prompt: the text is empty; expected a prompt to answer")
    opened = find_run(runs_dir, run)
    console = Console()
    browses = not (plain or as_json or html) and has_screen()
    printed = not (browses or as_json or html)
    request = AnswersRequest(
        run=opened.path,
        prompts=prompts,
        texts=tuple(prompt or ()),
        limit=limit or (PRINTED_PROMPTS if printed else BROWSED_PROMPTS),
        with_runs=tuple(find_run(runs_dir, name).path for name in with_run or ()),
        sampling=Sampling(max_tokens, temperature, seed),
    )
    if browses:
        from localdpo.dashboard.app import DashboardApp
        from localdpo.dashboard.appbase import run_app

        # The answers come from a process of their own.
        run_app(DashboardApp(runs_dir, opened, jump="compare", request=request))
        return
    from localdpo.answering.generator import answered

    tail = answered(request, note)
    if as_json:
        print_json(answers_object(tail))
    elif html is not None:
        from localdpo.pages import compare_values, write_page

        write_page(html, "compare", **compare_values(tail))
        say(f"written: {html}")
    else:
        show(console, tail)


def show(console: Console, tail: AnswersTail) -> None:
    """Print the answers: in columns, or one under the other on a narrow screen."""
    header = tail.header
    assert header is not None
    for number, (prompt, answers) in enumerate(zip(header.prompts, rows_of(tail), strict=True), start=1):
        if number > 1:
            console.print()
        labelled = [(header.labels[name], answer.text) for name, answer in answers.items()]
        console.print(render(prompt["text"], labelled, f"{number}/{len(header.prompts)}", console.width))


def render(prompt: str, answers: Sequence[tuple[str, str]], title: str, width: int) -> RenderableType:
    """One prompt and its (label, text) answers, for `width` columns. Text is never taken for markup."""
    from rich.console import Group
    from rich.rule import Rule
    from rich.table import Table

    from localdpo.out.console import Text

    head: list[RenderableType] = [Rule(Text(f"prompt {title}"), align="left"), Text(prompt)]
    if width < SIDE_BY_SIDE_WIDTH:
        for name, text in answers:
            head += [Text(f"\n{name}:", style="bold"), Text(text)]
        return Group(*head)
    table = Table(expand=True)
    for name, _ in answers:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*(Text(text) for _, text in answers))
    return Group(*head, table)
