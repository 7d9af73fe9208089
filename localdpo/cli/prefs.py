"""`localdpo prefs`: make, label, check, clean, split and convert preference data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from localdpo.cli import options as opt
from localdpo.cli.judging import carry_out, with_judge_options
from localdpo.core.errors import UserError
from localdpo.core.names import command_line
from localdpo.core.text import counted
from localdpo.out import has_screen, print_json, result

if TYPE_CHECKING:
    from localdpo.prefs.check import CheckReport, Progress
    from localdpo.prefs.label import Summary

FAILED_EXIT: Final = 1
STYLES: Final = {"error": "bold red", "warning": "bold yellow", "info": "bold"}

prefs = typer.Typer(
    name="prefs",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Build, label, check, clean, split and convert preference data.",
)


@prefs.command()
@with_judge_options
def build(
    *,
    prompts: Annotated[str, typer.Argument(metavar="PROMPTS", help="File, data set or demo: name.")],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of the build; give it again to resume.")
    ],
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Recipe whose model, adapter and limits count.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Model that answers.")] = None,
    adapter: Annotated[str | None, typer.Option(metavar="NAME", help="Adapter on it, from SFT.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Tokens at which training would cut a row.")
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", metavar="N", help="Candidates a prompt. Default: 2, compared; more are scored."),
    ] = None,
    temperatures: Annotated[
        str, typer.Option(metavar="LIST", help="Temperatures of the candidates in turn, as in 0.7,1.0.")
    ] = "1.0",
    max_tokens: opt.MaxTokensOption = 256,
    min_words: Annotated[
        int, typer.Option(metavar="N", min=1, help="Candidates with fewer words are dropped.")
    ] = 1,
    missing_eos_penalty: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            callback=opt.finite,
            help="Judge candidates cut at --max-tokens too, take X from their score, and never choose them. "
            "Default: they make no pair.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of sampling and of the split.")] = 0,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most this many prompts.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help=f"{opt.SPEC_HELP}. Default: rules for the demo's prompts."),
    ] = None,
    revise: Annotated[
        bool,
        typer.Option(
            "--revise", help="One answer, its critique and revision by the constitution, as a pair."
        ),
    ] = False,
    scores: opt.ScoresOption = None,
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
    as_json: opt.JsonOption = False,
    dry_run: opt.DryRunOption = False,
) -> None:
    """Make pairs of a model's answers, as a judge ranks them.

    The pairs are split by prompt into files to train on and to evaluate on. Run it again to resume.
    """
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
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--temperatures {text}: expected numbers with commas, as in 0.7,1.0") from None


@prefs.command()
def label(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Pairs.")],
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where labels are kept. Default: DATA.labels.jsonl.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the order and of the sides.")] = 0,
    again: Annotated[
        float,
        typer.Option(
            metavar="X", min=0.0, max=1.0, help="Share of the pairs shown twice, for self-agreement."
        ),
    ] = 0.1,
    format_name: opt.FormatOption = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Only print the counts and the agreement of the labels.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Then write the pairs that were decided, as labelled.")
    ] = None,
    force: opt.ForceOption = False,
    as_json: opt.JsonOption = False,
) -> None:
    """Label pairs by keyboard; run it again to resume.

    It says how well you agree with the data and with yourself.
    """
    from localdpo.prefs.label import open_labelling

    path = journal or journal_of(data)
    if out is not None:
        from localdpo.prefs.rewrite import check_output

        check_output(out, force=force)  # before the work, not after it
        if out.resolve() == path.resolve():
            raise UserError(f"--out {out}: the labels are kept there; give another name")
    if not plain and not has_screen():
        raise UserError(
            "labelling takes a terminal; --plain prints the counts and the agreement of the labels"
        )
    if plain and not path.exists():
        raise UserError(f"{path}: no labels there yet; label without --plain")
    state = open_labelling(data, path, seed=seed, again=again, format_name=format_name)
    if not plain:
        from localdpo.cli.label_screen import LabelScreen
        from localdpo.dashboard.appbase import ScreenApp, run_app

        run_app(ScreenApp(LabelScreen(state)))
    summary = state.summary()
    lines = [*label_lines(summary), f"labels: {path}"]
    if out is not None:
        from localdpo.prefs.label import write_labelled

        written, cut = write_labelled(data, state, out, format_name=format_name, force=force)
        lines.append(f"written: {out}, {counted(written, 'pair')}")
        if cut:
            lines.append(
                f"left out: {counted(cut, 'pair')} whose preferred answer was cut at a limit of tokens"
            )
    result({**asdict(summary), "labels": str(path)}, lines, as_json=as_json)


def journal_of(data: str) -> Path:
    """Beside a file, else in the folder one is in, by the last part of the name."""
    path = Path(data)
    if path.is_file():
        return path.with_name(f"{path.name}.labels.jsonl")
    return Path(f"{data.rpartition('/')[2].replace(':', '-')}.labels.jsonl")


def label_lines(summary: Summary) -> list[str]:
    """Counts and agreement of the labels, for a terminal."""
    counts = ", ".join(f"{count:,} {name}" for name, count in summary.choices.items() if count)
    lines = [f"answered: {summary.done:,} of {summary.total:,}" + (f" ({counts})" if counts else "")]
    for what, share, kappa in (
        ("with the data", summary.agreement, summary.kappa),
        ("with yourself", summary.self_agreement, summary.self_kappa),
    ):
        if share is not None:
            words = "" if kappa is None else f", kappa {kappa:.2f}"
            lines.append(f"agreement {what}: {share:.0%}{words}")
    if summary.flagged:
        lines.append(f"flagged rows: {', '.join(map(str, summary.flagged))}")
    return lines


@prefs.command()
def check(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Preference pairs. Default: the recipe's data.train.")
    ] = None,
    recipe: opt.RecipeOption = None,
    model: opt.TokenizerOption = None,
    max_length: opt.MaxLengthOption = None,
    format_name: opt.FormatOption = None,
    against: opt.AgainstOption = None,
    reference: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Score N pairs with the recipe's model and adapter."),
    ] = None,
    as_json: opt.JsonOption = False,
    html: opt.HtmlOption = None,
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
            help="Checks whose rows to drop, separated by commas. Default: those of rows that are broken, "
            "contradict or repeat others, or overlap with --against.",
        ),
    ] = None,
    recipe: opt.RecipeOption = None,
    model: opt.TokenizerOption = None,
    max_length: opt.MaxLengthOption = None,
    format_name: opt.FormatOption = None,
    against: opt.AgainstOption = None,
    force: opt.ForceOption = False,
    as_json: opt.JsonOption = False,
) -> None:
    """Copy the rows that no check flags.

    The dropped rows are counted by reason.
    """
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
    to: Annotated[str, typer.Option(metavar="FORMAT", help="Format to write; sft: the chosen answers.")],
    format_name: opt.FormatOption = None,
    force: opt.ForceOption = False,
    as_json: opt.JsonOption = False,
) -> None:
    """Write preference pairs in another format.

    What that format has no place for is counted.
    """
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
    format_name: opt.FormatOption = None,
    force: opt.ForceOption = False,
    as_json: opt.JsonOption = False,
) -> None:
    """Write a data set into two files that share no prompt."""
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
    from localdpo.out.console import Console, Text
    from localdpo.prefs.check import closing_lines, finding_lines, summary_lines

    console = Console()
    console.print("\n".join(summary_lines(report)), soft_wrap=True)
    for finding in report.results:
        text = Text("\n".join(lines := finding_lines(report, finding)))
        text.stylize(STYLES[finding.check.level], 0, lines[0].index(":"))
        console.print(Text("\n") + text, soft_wrap=True)
    console.print("\n" + "\n".join(closing_lines(report)), soft_wrap=True)


def _counts(counts: Mapping[str, int], noun: str) -> list[str]:
    """A line for each count, the highest first."""
    falling = sorted(counts.items(), key=lambda item: -item[1])
    return [f"  {name}: {counted(count, noun)}" for name, count in falling]
