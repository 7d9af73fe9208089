"""`localdpo prefs label`: label pairs by keyboard, blind."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localdpo.cli.options import ForceOption, FormatOption, JsonOption
from localdpo.core.text import counted

if TYPE_CHECKING:
    from localdpo.prefs.label import Summary


def label(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Pairs.")],
    journal: Annotated[
        Path | None,
        typer.Option("--journal", metavar="FILE", help="Where labels are kept. Default: DATA.labels.jsonl."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the order and of the sides.")] = 0,
    again: Annotated[
        float,
        typer.Option(
            metavar="X", min=0.0, max=1.0, help="Share of the pairs shown twice, for self-agreement."
        ),
    ] = 0.1,
    format_name: FormatOption = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Only print the counts and the agreement of the labels.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Then write the pairs that were decided, as labelled."),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Label pairs by keyboard; run it again to resume. Says how well you agree with the data and yourself."""
    from localdpo.core.errors import UserError
    from localdpo.out import has_screen, result
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
        from localdpo.cli.label_screen import LabelApp
        from localdpo.dashboard.appbase import run_app

        app = LabelApp(state)
        run_app(app)
        if app.labelling.failure is not None:
            raise app.labelling.failure
    summary = state.summary()
    lines = [*summary_lines(summary), f"labels: {path}"]
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


def summary_lines(summary: Summary) -> list[str]:
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
