"""The options that name a judge and limit it, the same in every command that asks one."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

SPEC_HELP = "mlx:MODEL, anthropic[:MODEL], openai:URL#MODEL, jury:ONE+OTHER, rules (the demo's reports)"


class Principles(StrEnum):
    """How a constitution is asked about."""

    sample = "sample"
    all = "all"


RubricOption = Annotated[
    list[str] | None,
    typer.Option("--rubric", metavar="NAME|FILE", help="For pairs or for scores; once for each."),
]
ConstitutionOption = Annotated[
    str | None, typer.Option("--constitution", metavar="NAME|FILE", help="Principles instead of a rubric.")
]
PrinciplesOption = Annotated[
    Principles, typer.Option("--principles", help="One principle a prompt, or all of them.")
]
BatchOption = Annotated[bool, typer.Option("--batch", help="Ask Claude in Message Batches: half the price.")]
ConcurrencyOption = Annotated[
    int | None, typer.Option(min=1, help="Questions to the judge at a time. Default: the judge's own.")
]
JudgeTokensOption = Annotated[
    int | None,
    typer.Option(
        "--judge-tokens",
        min=1,
        help="Longest reply of a judge behind a server, thoughts included. Default: the judge's own.",
    ),
]
PricesOption = Annotated[
    Path | None, typer.Option("--prices", metavar="FILE", help="Prices on top of the shipped ones.")
]
MaxUsdOption = Annotated[
    float | None, typer.Option("--max-usd", min=0.0, help="Never spend more than this on the judge.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be generated, asked and paid, and stop.")
]
