"""`localdpo compare`: the answers of base, SFT and DPO to the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from localdpo.core.rundir import RunDir
    from localdpo.data.types import Side
    from localdpo.evals.compare import Comparison

SIDE_BY_SIDE_WIDTH: Final = 100
HELD_OUT: Final = "demo:prompts/heldout"


def compare(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Name of the run. Default: the latest.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Print the answers and leave, without a screen to browse them.")
    ] = False,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="FILE", help="Data file or name with a field prompt."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="A prompt; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many prompts of a file.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    runs_dir: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs.")] = Path("runs"),
) -> None:
    """Answers of the base model, the SFT adapter and the trained adapter. Default: held-out prompts."""
    from rich.console import Console

    from localdpo.core.rundir import find_run

    found = find_run(runs_dir, run)
    asked = choose_prompts(found, prompts, prompt or [], limit)
    from localdpo.evals.compare import compare_run

    comparisons = compare_run(found.path, asked, max_tokens=max_tokens, temperature=temperature, seed=seed)
    show(Console(), comparisons, trained_name(found))


def choose_prompts(run: RunDir, file: str | None, texts: Sequence[str], limit: int) -> list[Side]:
    """The given texts and the first prompts of the given file; without either, those of `default_source`."""
    from localdpo.data.prompts import read_prompts

    given: list[Side] = list(texts)
    if file is None and not given:
        file = default_source(run)
    return given + (read_prompts(file, limit) if file is not None else [])


def default_source(run: RunDir) -> str:
    """The file of the held-out prompts of a run: what its recipe says, or the demo's own.

    Raises UserError if the recipe names no file of prompts that the run was not trained on.
    """
    from localdpo.core.errors import UserError
    from localdpo.core.names import is_demo
    from localdpo.recipe.load import load_recipe

    recipe = load_recipe(run.recipe)
    source = recipe.eval.prompts or (HELD_OUT if is_demo(recipe.data.train) else recipe.data.valid)
    if source is None:
        raise UserError(
            f"{run.path}: its recipe names no held-out prompts; give --prompts FILE or --prompt TEXT"
        )
    return source


def trained_name(run: RunDir) -> str:
    """What to call the adapter that the run trained: DPO, SFT, IPO, ..."""
    from localdpo.recipe.load import load_recipe

    loss = load_recipe(run.recipe).loss.spec.name
    return "DPO" if loss == "sigmoid" else loss.upper()


def show(console: Console, comparisons: Sequence[Comparison], trained: str) -> None:
    """Print the comparisons: three columns, or one under the other on a narrow screen."""
    for number, comparison in enumerate(comparisons, start=1):
        if number > 1:
            console.print()
        console.print(render(comparison, f"{number}/{len(comparisons)}", console.width, trained))


def render(comparison: Comparison, title: str, width: int, trained: str) -> RenderableType:
    """One prompt and its answers, for a screen of `width` columns. Text is never taken for markup."""
    from rich.console import Group
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    answers = answers_of(comparison, trained)
    head = [Rule(Text(f"prompt {title}"), align="left"), clean(comparison.prompt)]
    if width < SIDE_BY_SIDE_WIDTH:
        stacked = [part for name, text in answers for part in (Text(f"\n{name}:", style="bold"), clean(text))]
        return Group(*head, *stacked)
    table = Table(expand=True)
    for name, _ in answers:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(clean(text) for _, text in answers))
    return Group(*head, table)


def answers_of(comparison: Comparison, trained: str) -> list[tuple[str, str]]:
    """(name, text) of each answer; a run that started without an adapter has two."""
    start = "start" if trained == "SFT" else "SFT"
    answers = [("base", comparison.base), (start, comparison.sft), (trained, comparison.dpo)]
    return [(name, text) for name, text in answers if text is not None]


def clean(text: str) -> RenderableType:
    """`text` with its line breaks, without other characters that would steer the terminal."""
    from rich.text import Text

    from localdpo.core.wording import printable

    return Text("\n".join(printable(line) for line in text.split("\n")))
