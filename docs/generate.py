"""Writes the parts of the pages that come from the code: `python docs/generate.py`.

A generated part stands between two comments of its page, `<!-- generated: NAME -->` and `<!-- end -->`; PARTS
names the function that writes it. A test compares the pages with what this would write, so an option, a loss,
a format, a notice, a check or a command is described once, in the code.
"""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from typer.testing import CliRunner

from localdpo.cli.main import app, command_tree
from localdpo.data.fields import COMMON, FINISH_REASON
from localdpo.data.formats import FORMATS
from localdpo.data.types import Kind
from localdpo.heuristics.constraints import CONSTRAINTS
from localdpo.heuristics.kinds import HEURISTICS
from localdpo.objective import notices
from localdpo.objective.losses import PAIR_FORMULAS, UNPAIRED_FORMULAS
from localdpo.objective.registry import LOSSES
from localdpo.prefs.check import CHECKS
from localdpo.recipe.describe import FILE_NAME, names_elsewhere, options_table, schema_text, section_of
from localdpo.records.metrics import METRICS

DOCS: Final = Path(__file__).parent
PART: Final = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
HELP_COLUMNS: Final = 100
KINDS: Final[dict[Kind, str]] = {
    "pairs": "Pairs",
    "unpaired": "Single answers with a label",
    "demonstrations": "Demonstrations, for `loss: sft`",
    "prompts": "Prompts alone, for `compare`, `eval`, `prefs build` and `eval.prompts`",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def other_names() -> str:
    """What other programs call an option."""
    rows = (
        (f"`{name}`", ", ".join(programs), f"`{entry.key}`" if entry.key else "", entry.words)
        for name, (entry, programs) in names_elsewhere().items()
    )
    return table(("name", "in", "here", "how"), rows)


def code(text: str) -> str:
    """`text` in the font of code; HTML, because a | within backticks ends a cell of a table."""
    return f"<code>{html.escape(text, quote=False)}</code>"


def options() -> str:
    """Every option of a recipe, a table for each section."""
    text, sections = "", dict[str, list[Sequence[str]]]()
    for option in options_table():
        section = option.key.split(".")[0]
        default = "required" if option.default == "required" else f"`{option.default}`"
        row = (f"`{option.key}`", option.type, default, option.description)
        sections.setdefault(section if section_of(section) else "", []).append(row)
    for section, rows in sections.items():
        model = section_of(section)
        text += f"\n## {section or 'The top level'}\n\n"
        text += f"{(model.__doc__ or '').splitlines()[0]}\n\n" if model else ""
        text += table(("option", "type", "default", "meaning"), rows)
    return text


def losses() -> str:
    """Every loss with its formula, from the first line of its function's docstring, and its source.

    Such a line reads `FORMULA, [B] UNITS; VALUE where policy = reference.`
    """
    rows, formulas = [], {**PAIR_FORMULAS, **UNPAIRED_FORMULAS}
    for spec in LOSSES.values():
        first = (formulas[spec.name].__doc__ or "").splitlines()[0].removesuffix(".")
        formula, _, start = first.partition("; ")
        formula = formula.partition(", [B]")[0]
        for words in (" where policy = reference", " at policy = reference"):
            start = start.replace(words, "")
        rows.append((f"`{spec.name}`", spec.summary, code(formula), start, spec.source))
    head = ("`loss.type`", "what it is", "loss of one row", "where policy = reference", "source")
    return table(head, rows)


def loss_options() -> str:
    """Which options each loss reads, with their defaults."""
    rows = [
        (
            f"`{spec.name}`",
            {"pairs": "pairs", "unpaired": "single answers", "demonstrations": "demonstrations"}[spec.data],
            "yes" if spec.needs_reference else "no",
            ", ".join(f"`{name}` ({option.default})" for name, option in spec.options.items()),
        )
        for spec in LOSSES.values()
    ]
    return table(("`loss.type`", "trains on", "reference", "options (default)"), rows)


def formats() -> str:
    """Every data format with its columns, a table for each kind."""
    text = ""
    for kind, title in KINDS.items():
        rows = []
        for entry in FORMATS:
            if entry.kind != kind:
                continue
            optional = sorted(entry.reads - entry.columns - COMMON - {FINISH_REASON})
            columns = ", ".join(f"`{column}`" for column in sorted(entry.columns))
            columns += f"; optional {', '.join(f'`{column}`' for column in optional)}" if optional else ""
            written = "yes" if entry.write is not None else ""
            rows.append((f"`{entry.name}`", columns, "yes" if entry.detected else "no", written))
        text += f"\n### {title}\n\n" + table(
            ("format", "columns", "auto-detected", "written by `convert`"), rows
        )
    return text


def metrics() -> str:
    """Every metric of a run."""
    when = {"steps": "steps", "evals": "evaluations", "both": "steps, evaluations"}
    rows = (
        (f"`{m.name}`", m.unit, when[m.measured], m.better, m.chart.titles[0] if m.chart else "")
        for m in METRICS
    )
    return table(("metric", "unit", "measured at", "better", "chart"), rows)


def notice_rules() -> str:
    """Every notice that a run's metrics may raise."""
    rows = ((f"`{rule.name}`", ", ".join(rule.levels), rule.when) for rule in notices.RULES)
    return table(("name", "level", "raised if"), rows)


def checks() -> str:
    """Every check of `prefs check`."""
    rows = ((f"`{c.name}`", c.level, c.what, c.advice, "yes" if c.drops else "") for c in CHECKS)
    return table(("check", "level", "what it finds", "what to do", "dropped by `clean`"), rows)


def commands() -> str:
    """The help of the program, which lists the commands, and that of every command."""
    runner, tree = CliRunner(), command_tree()
    paths: list[tuple[str, ...]] = [()]
    for name, command in tree.commands.items():
        inner = getattr(command, "commands", {})
        paths += [(name,)] if not inner or command.invoke_without_command else []
        paths += [(name, below) for below in inner]
    text = ""
    for path in paths:
        told = runner.invoke(
            app, [*path, "--help"], prog_name="localdpo", terminal_width=100, max_content_width=100
        )
        text += f"\n## {' '.join(path)}\n" if path else ""
        text += f"\n```\n{told.output.strip()}\n```\n"
    return text


def check_kinds() -> str:
    """The kinds of checks that a file for `eval --checks` may name."""
    rows = []
    for name, build in HEURISTICS.items():
        options = dict(inspect.signature(build).parameters)
        better = options.pop("better").default
        words = [
            f"`{option}`"
            + ("" if value.default in (value.empty, None) else f" ({str(value.default).lower()})")
            for option, value in options.items()
            if option != "name"
        ]
        told = " ".join((inspect.getdoc(build) or "").split())
        rows.append((f"`{name}`", ", ".join(words), better, told))
    return table(("kind", "options (default)", "better", "the number"), rows)


def constraints() -> str:
    """The kinds of constraints."""
    rows = (
        (
            f"`{name}`",
            ", ".join(f"`{parameter}`" for parameter in list(inspect.signature(kind.holds).parameters)[1:]),
            (kind.holds.__doc__ or "").strip(),
            code(kind.wordings[0]),
        )
        for name, kind in CONSTRAINTS.items()
    )
    return table(("kind", "parameters", "kept when", "in a prompt"), rows)


PARTS: Final[dict[str, Callable[[], str]]] = {
    "options": options,
    "names-elsewhere": other_names,
    "losses": losses,
    "loss-options": loss_options,
    "formats": formats,
    "metrics": metrics,
    "notices": notice_rules,
    "checks": checks,
    "check-kinds": check_kinds,
    "constraints": constraints,
    "commands": commands,
}


def pages() -> dict[Path, str]:
    """Every page of docs/ with its generated parts as the code has them now, and the schema of recipes."""
    pages = {page: PART.sub(_part, page.read_text(encoding="utf-8")) for page in sorted(DOCS.glob("*.md"))}
    return {**pages, DOCS.parent / "recipes" / FILE_NAME: schema_text()}


def _part(found: re.Match[str]) -> str:
    return f"{found[1]}\n{PARTS[found[2]]().strip()}\n\n{found[3]}"


def main() -> None:
    """Write the pages that changed."""
    for page, text in pages().items():
        if not page.exists() or text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
