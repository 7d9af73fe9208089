"""`localdpo prefs`: look at preference data, clean it, and write it in another format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from localdpo.cli.options import (
    AgainstOption,
    ForceOption,
    FormatOption,
    MaxLengthOption,
    RecipeOption,
    TokenizerOption,
)
from localdpo.cli.prefs_build import build
from localdpo.cli.prefs_label import label
from localdpo.out import print_json, say

if TYPE_CHECKING:
    from localdpo.out.console import Console
    from localdpo.prefs.check import Progress
    from localdpo.prefs.report import CheckReport

FINDING_EXIT: Final = 1
STYLES: Final = {"error": "bold red", "warning": "bold yellow", "info": "bold"}

prefs = typer.Typer(
    name="prefs",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Preference data: build, label, check, clean and convert it.",
)
prefs.command()(build)
prefs.command()(label)


@prefs.command()
def check(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Pairs. Default: the recipe's data.train.")
    ] = None,
    recipe: RecipeOption = None,
    model: TokenizerOption = None,
    max_length: MaxLengthOption = None,
    format_name: FormatOption = None,
    against: AgainstOption = None,
    reference: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Score N pairs with the recipe's model and adapter."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as one JSON object.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report as a page as well.")
    ] = None,
) -> None:
    """Report on pairs. Exit code 1 when a finding is an error."""
    from localdpo.prefs.check import check as run_check
    from localdpo.prefs.report import as_object
    from localdpo.prefs.settings import settings_from

    settings, source = settings_from(recipe, model, max_length, format_name, against or (), reference, data)
    report = with_progress(lambda tell: run_check(source, settings, tell))
    if html is not None:
        from localdpo.pages import write_page

        write_page(html, "check", report=as_object(report))
    if as_json:
        print_json(as_object(report))
    else:
        show(report)
    if report.failed:
        raise typer.Exit(FINDING_EXIT)


@prefs.command()
def clean(
    data: Annotated[str, typer.Argument(metavar="IN", help="Pairs.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New file of JSON lines.")],
    drop: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Checks whose rows go, with commas. Default: see the report."),
    ] = None,
    recipe: RecipeOption = None,
    model: TokenizerOption = None,
    max_length: MaxLengthOption = None,
    format_name: FormatOption = None,
    against: AgainstOption = None,
    force: ForceOption = False,
) -> None:
    """Copy the rows that no check flags, and count the reasons of the others."""
    from localdpo.prefs.rewrite import clean as run_clean
    from localdpo.prefs.settings import settings_from

    settings, _ = settings_from(recipe, model, max_length, format_name, against or (), None, data)
    names = None if drop is None else [name.strip() for name in drop.split(",") if name.strip()]
    done = with_progress(
        lambda tell: run_clean(data, out, drop=names, settings=settings, force=force, progress=tell)
    )
    say(f"{out}: {done.kept:,} of {done.read:,} rows; {done.dropped:,} dropped")
    _print_counts(done.reasons, "rows")


@prefs.command()
def convert(
    data: Annotated[str, typer.Argument(metavar="IN", help="Pairs.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New file of JSON lines.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="Format to write.")],
    format_name: FormatOption = None,
    force: ForceOption = False,
) -> None:
    """Write pairs in another format, and name what it has no place for."""
    from localdpo.prefs.rewrite import convert as run_convert

    done = with_progress(
        lambda tell: run_convert(data, out, to, format_name=format_name, force=force, progress=tell)
    )
    say(f"{out}: {done.pairs:,} pairs from {done.read_as} to {done.to}, {done.written:,} rows")
    _print_counts({f"lost: {name}": count for name, count in done.lost.items()}, "pairs")
    _print_counts({f"left out: {reason}": len(rows) for reason, rows in done.skipped.items()}, "rows")


def with_progress(work: Callable[[Progress | None], Any]) -> Any:
    """Do `work`, with a count of rows on stderr while it takes time; nothing where that is no terminal."""
    from localdpo.out.console import Console

    errors = Console(stderr=True)
    if not errors.is_terminal:
        return work(None)
    with errors.status("reading") as status:
        return work(lambda rows: status.update(f"{rows:,} rows"))


def show(report: CheckReport) -> None:
    """Print the report; levels in colour on a terminal, and as words everywhere."""
    from localdpo.out.console import Console
    from localdpo.prefs.report import closing_lines, finding_lines, summary_lines

    console = Console()
    _print(console, summary_lines(report))
    for result in report.results:
        console.print()
        _print(console, finding_lines(report, result), STYLES[result.check.level])
    console.print()
    _print(console, closing_lines(report))


def _print(console: Console, lines: Sequence[str], style: str = "") -> None:
    """Lines as they are; `style` is for the first word."""
    from localdpo.out.console import Text

    for i, line in enumerate(lines):
        text = Text(line)
        if i == 0 and style:
            text.stylize(style, 0, line.index(":"))
        console.print(text, soft_wrap=True)


def _print_counts(counts: Mapping[str, int], what: str) -> None:
    for name, count in sorted(counts.items(), key=lambda item: -item[1]):
        say(f"  {name}: {count:,} {what}")
