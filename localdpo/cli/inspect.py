"""`localdpo inspect`: the reward of each token of a run's pairs, and the pairs with the lowest margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from localdpo.cli.options import JsonOption, RunArgument, RunsDirOption
from localdpo.cli.plain import print_plain, print_table
from localdpo.core.errors import UserError
from localdpo.core.text import counted, excerpt
from localdpo.out import note, print_json
from localdpo.records.metrics import ACCURACY, ALL_TIED
from localdpo.records.rundir import find_run

if TYPE_CHECKING:
    from localdpo.dashboard.widgets.answertext import Token
    from localdpo.evals.inspect_pairs import Inspection
    from localdpo.out.console import Console, Text
    from localdpo.train.token_rewards import PairRewards

DEFAULT_WORST: Final = 20
MARK: Final = "▸"
HEADINGS: Final = ("row", "margin", "ranked", "tokens", "chosen", "rejected")
BEGINNING: Final = 40


def inspect(
    run: RunArgument = None,
    pair: Annotated[
        int | None, typer.Option(min=1, metavar="ROW", help="Show the pair of this row, token by token.")
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help=f"List this many pairs, lowest margin first. Default: {DEFAULT_WORST}."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Score only the first N pairs. Default: all.", metavar="N")
    ] = None,
    split: Annotated[
        Literal["valid", "train"],
        typer.Option(metavar="valid|train", help="Which of the run's pairs to score."),
    ] = "valid",
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Score only the pairs of this data set of the recipe.")
    ] = None,
    as_json: JsonOption = False,
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """List the pairs with the lowest reward margins.

    With --pair: the reward of each token of that pair.
    """
    from localdpo.model.backend import prepare
    from localdpo.out.console import Console

    if pair is not None and (worst is not None or limit is not None):
        raise UserError("--pair shows one pair: remove --worst and --limit")
    found = find_run(runs_dir, run)
    prepare(note)
    from localdpo.evals.inspect_pairs import inspect_run

    inspection = inspect_run(
        found.path,
        split=split,
        pair=pair,
        worst=worst or DEFAULT_WORST,
        limit=limit,
        source=source,
        note=note,
    )
    if as_json:
        print_json(as_object(found.name, inspection))
    elif pair is not None:
        show_pair(Console(), inspection)
    else:
        show_worst(Console(), found.name, inspection)


def as_object(run: str, inspection: Inspection) -> dict[str, Any]:
    """The inspection as JSON values, the sums of its pairs among them; log-probabilities in nats."""
    record = {"run": run, **asdict(inspection)}
    metrics = {ACCURACY: record.pop("accuracy"), "rewards/margins": record.pop("margin")}
    for entry, pair in zip(record["pairs"], inspection.pairs, strict=True):
        entry |= {"margin": pair.margin, "ranked": pair.ranked}
        for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            sums = ("text", "reward", "logp", "reference_logp")
            entry[side] |= {name: getattr(response, name) for name in sums}
    return {**record, "metrics": metrics}


def show_worst(console: Console, run: str, inspection: Inspection) -> None:
    """One line a pair, lowest margin first, below a line about all scored pairs."""
    accuracy = inspection.accuracy
    accuracy_words = ALL_TIED if accuracy is None else f"reward accuracy {accuracy:.3f}"
    of = "" if inspection.scored == inspection.rows else f" of {inspection.rows:,}"
    print_plain(
        console,
        f"{run}, {inspection.checkpoint}: {inspection.scored:,}{of} {inspection.split} pairs of "
        f"{inspection.source}, {accuracy_words}, margin {inspection.margin:+.3f}",
    )
    rows = [
        (
            row_name(inspection, pair),
            f"{pair.margin:+.3f}",
            pair.ranked,
            f"{len(pair.chosen.tokens)}/{len(pair.rejected.tokens)}",
            excerpt(pair.chosen.text, BEGINNING),
            excerpt(pair.rejected.text, BEGINNING),
        )
        for pair in inspection.pairs
    ]
    print_table(console, HEADINGS, rows, right=("row", "margin"))


def row_name(inspection: Inspection, pair: PairRewards) -> str:
    """The number of the pair's row, with its data set where there are several."""
    return str(pair.row) if pair.source == inspection.source else f"{pair.source}:{pair.row}"


def show_pair(console: Console, inspection: Inspection) -> None:
    """The prompt, and both responses with the reward of each token: as colour, or as numbers without it."""
    from rich.rule import Rule

    from localdpo.dashboard.terminal import PALETTES, Abilities
    from localdpo.dashboard.widgets.answertext import Tinting, scale_of, tints_legend, tokens_text
    from localdpo.out.console import Text

    (pair,) = inspection.pairs
    responses = {
        "chosen": [(token.text, token.reward) for token in pair.chosen.tokens],
        "rejected": [(token.text, token.reward) for token in pair.rejected.tokens],
    }
    tinting = Tinting(scale_of(*responses.values()), False, PALETTES["light"], Abilities())
    coloured = console.color_system is not None and not console.no_color
    what = "log-probability / tokens" if pair.chosen.reference_logp is None else "log-ratio"
    row = f"{inspection.split} row {row_name(inspection, pair)}"
    title = f"{row}: margin {pair.margin:+.3f}, ranked {pair.ranked}"
    console.print(Rule(Text(title), align="left"))
    console.print(Text(pair.prompt))
    for (name, tokens), response in zip(responses.items(), (pair.chosen, pair.rejected), strict=True):
        head = f"\n{name}: reward {response.reward:+.3f}, {counted(len(tokens), 'token')}"
        console.print(Text(head, style="bold"))
        text = tokens_text(tokens, tinting) if coloured else numbered_tokens(tokens)
        console.print(text, soft_wrap=not console.is_terminal)
    console.print()
    meaning = f"beta ({inspection.beta:g}) * {what} of each token"
    console.print(tints_legend(tinting, meaning) if coloured else Text(f"in brackets: {meaning}"))


def numbered_tokens(tokens: Sequence[Token]) -> Text:
    """The response with each token marked and its reward in brackets behind it."""
    from localdpo.dashboard.widgets.answertext import signed, spans, visible
    from localdpo.out.console import Text

    pieces = (
        MARK + visible(piece, unicode=True, behind=f"[{signed(reward)}]") for piece, reward in spans(tokens)
    )
    return Text("".join(pieces))
