"""`localdpo prefs`: check preference data, clean and split it, and write it in another format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from localdpo.cli.options import (
    AgainstOption,
    ForceOption,
    FormatOption,
    JsonOption,
    MaxLengthOption,
    RecipeOption,
    TokenizerOption,
    page_path,
)
from localdpo.cli.prefs_build import build
from localdpo.cli.prefs_label import label
from localdpo.core.text import counted
from localdpo.out import print_json, result

if TYPE_CHECKING:
    from localdpo.out.console import Console
    from localdpo.prefs.check import CheckReport, Progress

FAILED_EXIT: Final = 1
STYLES: Final = {"error": "bold red", "warning": "bold yellow", "info": "bold"}

prefs = typer.Typer(
    name="prefs",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Build, label, check, clean, split and convert preference data.",
)
prefs.command()(build)
prefs.command()(label)


@prefs.command()
def check(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Preference pairs. Default: the recipe's data.train.")
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
    as_json: JsonOption = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", callback=page_path, help="Also write the report as an HTML page."
        ),
    ] = None,
) -> None:
    """Check preference pairs for problems. The exit code is 1 if any error-level check fails."""
    from localdpo.prefs.check import as_object
    from localdpo.prefs.check import check as run_check
    from localdpo.prefs.settings import settings_from

    settings, source = settings_from(recipe, model, max_length, format_name, against or (), reference, data)
    report = with_progress(lambda progress: run_check(source, settings, progress))
    if html is not None:
        from localdpo.pages import write_page

        write_page(html, "check", report=as_object(report))
    if as_json:
        print_json(as_object(report))
    else:
        show(report)
    if report.failed:
        raise typer.Exit(FAILED_EXIT)


@prefs.command()
def clean(
    data: Annotated[str, typer.Argument(metavar="IN", help="Preference pairs.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File of JSON lines to write.")],
    drop: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Checks whose rows to drop, separated by commas. Default: see docs/preference-data.md.",
        ),
    ] = None,
    recipe: RecipeOption = None,
    model: TokenizerOption = None,
    max_length: MaxLengthOption = None,
    format_name: FormatOption = None,
    against: AgainstOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Copy the rows that no check flags, and count the dropped rows by reason."""
    from localdpo.prefs.rewrite import clean as run_clean
    from localdpo.prefs.settings import settings_from

    settings, _ = settings_from(recipe, model, max_length, format_name, against or (), None, data)
    names = None if drop is None else [name.strip() for name in drop.split(",") if name.strip()]
    done = with_progress(
        lambda progress: run_clean(data, out, drop=names, settings=settings, force=force, progress=progress)
    )
    head = f"{out}: {done.kept:,} of {counted(done.read, 'row')}; {done.dropped:,} dropped"
    result({"out": str(out), **asdict(done)}, [head, *_counts(done.reasons, "row")], as_json=as_json)


@prefs.command()
def convert(
    data: Annotated[str, typer.Argument(metavar="IN", help="Preference pairs.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File of JSON lines to write.")],
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="Format to write; sft: the chosen answers.")
    ],
    format_name: FormatOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write preference pairs in another format, and count the columns that it cannot hold."""
    from localdpo.prefs.rewrite import convert as run_convert

    done = with_progress(
        lambda progress: run_convert(data, out, to, format_name=format_name, force=force, progress=progress)
    )
    skipped = {reason: len(rows) for reason, rows in done.skipped.items()}
    lines = [
        f"{out}: {counted(done.pairs, 'pair')} from {done.read_as} to {done.to}, "
        f"{counted(done.written, 'row')}"
    ]
    lines += _counts({f"lost: {name}": count for name, count in done.lost.items()}, "pair")
    lines += _counts({f"skipped: {reason}": count for reason, count in skipped.items()}, "row")
    counts = {"read_as": done.read_as, "to": done.to, "pairs": done.pairs, "written": done.written}
    record = {"out": str(out), **counts, "lost": done.lost, "skipped": skipped}
    result(record, lines, as_json=as_json)


@prefs.command()
def split(
    data: Annotated[str, typer.Argument(metavar="IN", help="Rows of any kind that have prompts.")],
    train: Annotated[Path, typer.Argument(metavar="TRAIN", help="File of JSON lines to write.")],
    valid: Annotated[Path, typer.Argument(metavar="VALID", help="The other one, to evaluate on.")],
    valid_fraction: Annotated[
        float, typer.Option(metavar="X", min=0.0, max=0.5, help="Share of the rows held out.")
    ] = 0.1,
    valid_count: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Rows held out, instead of a share.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the split.")] = 0,
    format_name: FormatOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the rows of a data set into two files, such that no prompt is in both."""
    from localdpo.prefs.rewrite import split as run_split

    done = with_progress(
        lambda progress: run_split(
            data,
            train,
            valid,
            fraction=valid_fraction,
            count=valid_count,
            seed=seed,
            format_name=format_name,
            force=force,
            progress=progress,
        )
    )
    lines = [
        f"{train}: {counted(done.train, 'row')}; {valid}: {counted(done.valid, 'row')}; "
        f"{counted(done.prompts, 'prompt')}, none in both",
        *_counts({f"left out: {reason}": count for reason, count in done.skipped.items()}, "row"),
    ]
    record = {"train": done.train, "valid": done.valid, "prompts": done.prompts, "skipped": done.skipped}
    result(record, lines, as_json=as_json)


def with_progress(work: Callable[[Progress | None], Any]) -> Any:
    """Do `work` with a count of rows on stderr, if that is a terminal."""
    from localdpo.out.console import Console

    errors = Console(stderr=True)
    if not errors.is_terminal:
        return work(None)
    with errors.status("reading") as status:
        return work(lambda rows: status.update(counted(rows, "row")))


def show(report: CheckReport) -> None:
    """Print the report; on a terminal the levels are coloured."""
    from localdpo.out.console import Console
    from localdpo.prefs.check import closing_lines, finding_lines, summary_lines

    console = Console()
    _print(console, summary_lines(report))
    for finding in report.results:
        console.print()
        _print(console, finding_lines(report, finding), STYLES[finding.check.level])
    console.print()
    _print(console, closing_lines(report))


def _print(console: Console, lines: Sequence[str], style: str = "") -> None:
    """Print lines; `style` is for the level that the first begins with."""
    from localdpo.out.console import Text

    for i, line in enumerate(lines):
        text = Text(line)
        if i == 0 and style:
            text.stylize(style, 0, line.index(":"))
        console.print(text, soft_wrap=True)


def _counts(counts: Mapping[str, int], noun: str) -> list[str]:
    """A line for each count, the highest first."""
    falling = sorted(counts.items(), key=lambda item: -item[1])
    return [f"  {name}: {counted(count, noun)}" for name, count in falling]
