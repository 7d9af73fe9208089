"""The options that several commands share, each declared once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from localdpo.core.errors import UserError
from localdpo.records.rundir import path_in, runs_below

# What is declared without its name is named after the parameter that takes it.
SPEC_HELP = (
    "mlx:MODEL, anthropic[:MODEL], openai:URL#MODEL, jury:ONE+OTHER, rules (the demo's reports), constraints"
)


# In the first lines of every page (pages/templates/base.html.j2).
PAGE_MARK: Final = b'<meta name="generator" content="localdpo">'


def page_path(path: Path | None) -> Path | None:
    """The path of `--html` as it is, ahead of the work. Raises UserError where no page can be written.

    A page replaces an earlier one, and nothing else: `--html pairs.jsonl` would lose the pairs.
    """
    if path is not None:
        if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
            raise UserError(f"--html {path}: a page is written here; give a file name that ends in .html")
        if not path.parent.is_dir():
            raise UserError(f"--html {path}: the folder {path.parent} does not exist")
        if path.exists():
            with path.open("rb") as file:
                if PAGE_MARK not in file.read(1024):
                    raise UserError(
                        f"--html {path}: exists already and is no page of localdpo; name another file"
                    )
    return path


def finite(value: float | None) -> float | None:
    """The value of an option without a largest one. Raises BadParameter for infinity."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"expected a number, got {value}")
    return value


HtmlOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", callback=page_path, help="Write a self-contained page to this file."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON; everything else goes to stderr.")
]

# --- runs and answers ------------------------------------------------------------------------------------


def run_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names of runs that begin so, the latest first: for a shell that completes them."""
    runs_dir = ctx.params.get("runs_dir") or Path("runs")
    names = (path_in(runs_dir, run) for run in runs_below(runs_dir))
    return [name for name in names if name.startswith(incomplete)]


RunArgument = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="Name of the run. Default: the latest.", autocompletion=run_names),
]
RunsDirOption = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs.")]
RecipeArgument = Annotated[
    str | None, typer.Argument(metavar="RECIPE", help="A YAML file. Not needed with --resume --run NAME.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Options that override the recipe's, such as loss.beta=0.2."),
]
PlainOption = Annotated[
    bool, typer.Option("--plain", help="No dashboard: bars on a terminal, text lines elsewhere.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Resume what --run names, or the latest of the recipe.")
]
SeriesOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="NAME",
        help="Name of the series. Default: the recipe's, numbered if taken. An existing one is resumed.",
    ),
]
NotifyOption = Annotated[
    bool,
    typer.Option("--notify", help="Notify the desktop of warnings and of the run's end, and ring the bell."),
]
PromptsOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="Prompts: a file, a data set or a demo: name.")
]
WithRunsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="RUN",
        help="Another run on the same base model; repeatable.",
        autocompletion=run_names,
    ),
]
MaxTokensOption = Annotated[int, typer.Option(metavar="N", min=1, help="Longest answer in tokens.")]
CheckpointOption = Annotated[
    str | None, typer.Option(metavar="STEP", help="Checkpoint of this step. Default: the newest one.")
]
TemperatureOption = Annotated[
    float,
    typer.Option(
        "--temperature", "--temp", metavar="X", min=0.0, callback=finite, help="0 takes the likeliest token."
    ),
]
SeedOption = Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the sampling.")]

# --- preference data -------------------------------------------------------------------------------------

FormatOption = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="Format of the rows. Default: auto-detected.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")]
RecipeOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Recipe that names model, limits and evaluation data.")
]
TokenizerOption = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Model whose tokenizer counts tokens.")
]
MaxLengthOption = Annotated[
    int | None, typer.Option(metavar="N", help="Tokens at which training would cut a row.")
]
AgainstOption = Annotated[
    list[str] | None,
    typer.Option(metavar="DATA", help="Evaluation data to look for overlap with; repeatable."),
]

# --- judges ----------------------------------------------------------------------------------------------

ScoresOption = Annotated[
    bool | None,
    typer.Option(
        "--scores/--no-scores",
        help="The judge scores each answer from 1 to 5, too. "
        "Default: with rules, constraints or a rubric for it.",
    ),
]
RubricOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rubric",
        metavar="NAME|FILE",
        help="Rubric of the judge, shipped or a file; one for pairs, one for scores.",
    ),
]
ConstitutionOption = Annotated[
    str | None, typer.Option(metavar="NAME|FILE", help="Principles instead of a rubric.")
]
PrinciplesOption = Annotated[
    Literal["sample", "all"] | None,
    typer.Option(metavar="sample|all", help="One principle a prompt, or all of them. Default: sample."),
]
BatchOption = Annotated[bool, typer.Option("--batch", help="Ask Claude in Message Batches: half the price.")]
ConcurrencyOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Questions to the judge at a time. Default: the judge's own."),
]
JudgeTokensOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Longest reply of a judge behind a server, thoughts included. Default: the judge's own.",
    ),
]
EffortOption = Annotated[
    Literal["low", "medium", "high", "xhigh", "max"] | None,
    typer.Option(help="How much Claude thinks before it answers. Default: the model's own."),
]
PriceOption = Annotated[
    str | None,
    typer.Option(metavar="IN,OUT", help="Dollars for a million tokens of the judge, in and out, as in 4,20."),
]
PricesOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Prices on top of the shipped ones.")]
MaxUsdOption = Annotated[
    float | None,
    typer.Option(metavar="USD", min=0.0, callback=finite, help="Never spend more than this on the judge."),
]
ForgetOption = Annotated[
    bool,
    typer.Option(
        "--forget-options",
        help="Resume without the options that it was begun with, such as --batch and --max-usd.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done and the most it can cost, and stop.")
]
