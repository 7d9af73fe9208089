"""An evaluation's record in words: conclusion and tables, for the terminal, Markdown and HTML; and its files.

No figure is computed here: the record (see `evaluate`) comes from a run that just ended or from its file.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from localdpo.core.atomic import write_text
from localdpo.core.errors import UserError
from localdpo.core.text import aligned, counted, printable
from localdpo.pages import render
from localdpo.records.evaluations import evaluation_files, read_evaluation, write_evaluation
from localdpo.records.log import DAMAGE
from localdpo.records.rundir import RunDir

Tone: TypeAlias = Literal["", "better", "worse", "unsure"]
Record: TypeAlias = Mapping[str, Any]
MISSING: Final = "-"
# Columns of the terminal that sentences are wrapped at; tables are as wide as their words.
WIDTH: Final = 96
MANY_INVALID: Final = 0.05
MANY_FLIPS: Final = 0.2
# Transcripts on the page; all of them are in the JSON file.
SHOWN_ROWS: Final = 50
ARROWS: Final = {"higher": " ↑", "lower": " ↓", "neutral": ""}
TONES: Final[dict[str, Tone]] = {"better": "better", "worse": "worse", "unclear": "unsure"}


@dataclass(frozen=True, slots=True)
class Cell:
    """The words of a cell; `tone` colours them in a page."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A caption, the heads of the columns, rows of cells, and notes under it. The first column is text."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def grid(self) -> list[tuple[str, ...]]:
        """The words of all cells, row by row, the heads first."""
        return [self.head, *(tuple(cell.text for cell in row) for row in self.rows)]


def tables(record: Record) -> list[Table]:
    """Metrics, duels, categories and strengths; those that the record has."""
    tables = [metrics_table(record)]
    if record["duels"]:
        tables.append(duels_table(record))
    if any(duel["categories"] for duel in record["duels"]):
        tables.append(categories_table(record))
    if record["strengths"]:
        tables.append(strengths_table(record))
    return tables


def labels_of(record: Record) -> dict[str, str]:
    """Name -> label of each contestant, in the order of columns."""
    return {contestant["name"]: contestant["label"] for contestant in record["contestants"]}


def heading(record: Record) -> str:
    """What was evaluated and how, in one line."""
    sampling = record["sampling"]
    judge = f"judge {record['judge']['name']}" if record["judge"] else "no judge"
    drawn = (
        f"temperature {sampling['temperature']:g}, seed {sampling['seed']}"
        if sampling["temperature"]
        else "likeliest token each time"
    )
    return f"{record['run']}: {counted(record['prompts'], 'prompt')} of {record['source']}, {drawn}, {judge}"


def metrics_table(record: Record) -> Table:
    """The metrics with a column for each model, the difference with its interval and what it means."""
    labels = labels_of(record)
    before, after = (labels[name] for name in record["versus"])
    rows = []
    for row in record["metrics"]:
        digits, difference, tone = row["digits"], row["difference"], TONES.get(row["reading"], "")
        means = []
        for name in labels:
            count = row["counts"][name]
            some = f" (of {count})" if count < record["prompts"] else ""
            means.append(Cell(_number(row["means"][name], digits) + some))
        change = MISSING
        if difference is not None:
            change = f"{_number(difference['value'], digits, signed=True)} {_range(difference, digits)}"
        metric = Cell(row["name"] + ARROWS[row["direction"]])
        rows.append((metric, *means, Cell(change, tone), Cell(row["reading"], tone)))
    notes = (
        "↑ more is better, ↓ less is better. Difference with its 95% interval, paired bootstrap.",
        "Each interval is for itself: of twenty metrics without a difference, one may show one.",
    )
    head = ("metric", *labels.values(), f"{after} - {before}", "")
    return Table("Metrics, means over prompts", head, tuple(rows), notes)


def duels_table(record: Record) -> Table:
    """One column for each pair of models, one row for each figure."""
    labels, duels = labels_of(record), record["duels"]
    head = ("", *(f"{labels[duel['first']]} vs {labels[duel['second']]}" for duel in duels))
    figures: dict[str, Callable[[Record], str]] = {
        "win / tie / loss": lambda d: f"{d['wins']} / {d['ties']} / {d['losses']}",
        "win rate": lambda d: _rate(d["win_rate"]),
        "sign test p": lambda d: MISSING if d["sign_test_p"] is None else f"{d['sign_test_p']:.2g}",
        "prompts needed": _needed,
        "at equal lengths": lambda d: _rate((d["length_controlled"] or {}).get("rate")),
        "order flips": lambda d: f"{d['flips']} of {d['valid'] - d['identical']}",
        "position bias": _bias,
        "same answer": lambda d: str(d["identical"]),
        "without a verdict": _invalid,
    }
    if any(duel["people"] for duel in duels):
        figures["agrees with people"] = _people
    rows = tuple(
        (
            Cell(name),
            *(Cell(words(d), _rate_tone(d["win_rate"]) if name == "win rate" else "") for d in duels),
        )
        for name, words in figures.items()
    )
    notes = [
        "Win rate: a tie is half a win, and so is a verdict that changed with the order; Wilson's interval.",
        "Prompts needed: to tell a true rate of this size from 50 in four of five repetitions.",
        "Position bias: how much more often than half the answer shown first wins, in points.",
    ]
    whys = sorted({duel["why"] for duel in duels if duel["why"]})
    notes += [f"Without a verdict, most often: {why.rstrip('.')}." for why in whys]
    notes += [
        f"At equal lengths, {head[1 + i]}: none, {duel['length_controlled']['refused']}."
        for i, duel in enumerate(duels)
        if duel["length_controlled"] and duel["length_controlled"]["refused"]
    ]
    return Table("Pairwise preference of the judge, for the first of each pair", head, rows, tuple(notes))


def categories_table(record: Record) -> Table:
    """The win rate of each duel in each category."""
    labels, duels = labels_of(record), record["duels"]
    by_name = [{each["name"]: each for each in duel["categories"]} for duel in duels]
    names = sorted({name for categories in by_name for name in categories})
    head = ("category", *(f"{labels[duel['first']]} vs {labels[duel['second']]}" for duel in duels))

    def cell(category: Record | None) -> Cell:
        if category is None:
            return Cell(MISSING)
        rate = category["win_rate"]
        return Cell(f"{_rate(rate)} of {category['valid']}", _rate_tone(rate))

    rows = tuple((Cell(name), *(cell(categories.get(name)) for categories in by_name)) for name in names)
    return Table("Win rate by category", head, rows)


def strengths_table(record: Record) -> Table:
    """Bradley-Terry strengths, the strongest first."""
    labels = labels_of(record)
    ranked = sorted(record["strengths"], key=lambda each: -each["value"])
    rows = tuple(
        (Cell(labels[each["name"]]), Cell(_number(each["value"], 2, signed=True)), Cell(_range(each, 2)))
        for each in ranked
    )
    base = labels[record["strengths"][0]["name"]]
    note = f"In logits; {base} is 0. Intervals from resampled prompts."
    return Table("Strength over all pairs (Bradley-Terry)", ("", "strength", "95% interval"), rows, (note,))


def _range(estimate: Record, digits: int) -> str:
    if estimate["low"] is None:
        return "[no interval]"
    ends = (_number(estimate[end], digits, signed=True) for end in ("low", "high"))
    return "[{}, {}]".format(*ends)


def _number(value: float | None, digits: int, *, signed: bool = False) -> str:
    if value is None:
        return MISSING
    value = round(value, digits) + 0.0  # no "-0.000"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def _rate(estimate: Record | None) -> str:
    if estimate is None:
        return MISSING
    value, low, high = (f"{100 * estimate[name]:.1f}" for name in ("value", "low", "high"))
    return f"{value}% [{low}, {high}]"


def _rate_tone(estimate: Record | None) -> Tone:
    if estimate is None or estimate["low"] <= 0.5 <= estimate["high"]:
        return "unsure"
    return "better" if estimate["low"] > 0.5 else "worse"


def _needed(duel: Record) -> str:
    if duel["win_rate"] is None:
        return MISSING
    return "any number is too few" if duel["prompts_needed"] is None else f"{duel['prompts_needed']:,}"


def _bias(duel: Record) -> str:
    bias = duel["position_bias"]
    if bias is None:
        return MISSING
    points = {end: 100 * bias[end] for end in ("value", "low", "high")}
    words = f"{_number(points['value'], 1, signed=True)} {_range(points, 1)}"
    return f"{words} (!)" if bias["flagged"] else words


def _invalid(duel: Record) -> str:
    missing = duel["prompts"] - duel["valid"]
    whys = ", ".join(f"{status} {count}" for status, count in duel["statuses"].items())
    return f"{missing} ({whys})" if whys else str(missing)


def _people(duel: Record) -> str:
    people = duel["people"]
    if people is None:
        return MISSING
    kappa = "" if people["kappa"] is None else f", kappa {people['kappa']:.2f}"
    return f"{100 * people['agreement']:.0f}% of {people['votes']}{kappa}"


def text(record: Record) -> str:
    """Heading, tables and conclusion as plain text in aligned columns."""
    parts = [_wrapped(heading(record))]
    for table in tables(record):
        words = [[printable(word) for word in line] for line in table.grid]
        lines = aligned(words, range(1, len(table.head)))
        parts.append("\n".join([f"{table.caption}:", *lines, *map(_wrapped, table.notes)]))
    parts.append("\n".join(_wrapped(line) for line in record["conclusion"]))
    return "\n\n".join(parts) + "\n"


def _wrapped(line: str) -> str:
    return textwrap.fill(printable(line), WIDTH)


def markdown(record: Record) -> str:
    parts = [f"# Evaluation {_md(record['name'])}", _md(heading(record))]
    parts.append("\n".join(f"- {_md(line)}" for line in record["conclusion"]))
    for table in tables(record):
        rows = [tuple(map(_md, row)) for row in table.grid]
        parts += [f"## {_md(table.caption)}", markdown_table(rows), *(_md(note) for note in table.notes)]
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its head first; numbers, which all but the first column hold, on the right."""
    head, *body = rows
    lines = (head, ["---", *["---:"] * (len(head) - 1)], *body)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _md(words: str) -> str:
    """Text that Markdown takes for text."""
    clean = printable(words)
    for sign in "\\`*_[]<>|":
        clean = clean.replace(sign, f"\\{sign}")
    return clean


# --- the conclusion ------------------------------------------------------------------------------------


def conclusion(
    metrics: Sequence[Record],
    duels: Sequence[Record],
    labels: Mapping[str, str],
    versus: tuple[str, str],
) -> list[str]:
    """One sentence on the first duel, one on the metrics, then every caution that applies."""
    before, after = (labels[name] for name in versus)
    lines = [duel_sentence(duels[0], labels)] if duels else []
    lines.append(_metrics_sentence(metrics, before, after))
    for duel in duels[:1]:
        lines += _cautions(duel, labels)
    return lines


def duel_sentence(duel: Record, labels: Mapping[str, str]) -> str:
    """Who was preferred, or why nothing can be said."""
    first, second = labels[duel["first"]], labels[duel["second"]]
    rate = duel["win_rate"]
    if duel["identical"] == duel["prompts"]:
        return (
            f"No verdict: {first} and {second} gave the same answer to all of "
            f"{counted(duel['prompts'], 'prompt')}."
        )
    if rate is None or duel["valid"] == duel["identical"]:
        differing = duel["prompts"] - duel["identical"]
        answers = counted(differing, "differing answer")
        return f"No verdict on {first} against {second}: not one of {answers} was judged."
    share = f"{_percent(rate['value'])} of {counted(duel['valid'], 'prompt')}, interval {_interval(rate)}"
    if rate["low"] > 0.5:
        return f"{first} is preferred to {second}: {share}."
    if rate["high"] < 0.5:
        return f"{first} is worse than {second}: preferred on {share}."
    needed = duel["prompts_needed"]
    hint = (
        f" If the true rate were this one, about {counted(needed, 'prompt')} would be needed to tell."
        if needed is not None and needed > duel["valid"]
        else ""
    )
    return f"No verdict: {first} is preferred to {second} on {share}, which holds 50.{hint}"


def _metrics_sentence(metrics: Sequence[Record], before: str, after: str) -> str:
    names: dict[str, list[str]] = {"better": [], "worse": []}
    for row in metrics:
        if row["reading"] in names:
            difference = f"{row['difference']['value']:+.{row['digits']}f}"
            names[row["reading"]].append(f"{row['name']} ({difference})")
    better = ", ".join(names["better"]) or "nothing"
    worse = ", ".join(names["worse"]) or "nothing"
    return f"{after} against {before}, beyond the interval, better: {better}; worse: {worse}."


def _cautions(duel: Record, labels: Mapping[str, str]) -> list[str]:
    cautions = []
    invalid = duel["prompts"] - duel["valid"]
    if invalid > MANY_INVALID * duel["prompts"]:
        whys = ", ".join(f"{status} {count}" for status, count in duel["statuses"].items())
        why = f"; most often: {duel['why']}" if duel["why"] else ""
        cautions.append(
            f"Caution: no valid verdict on {invalid} of {counted(duel['prompts'], 'prompt')} ({whys}){why}."
        )
    asked = duel["valid"] - duel["identical"]
    if asked and duel["flips"] > MANY_FLIPS * asked:
        share = _percent(duel["flips"] / asked)
        cautions.append(f"Caution: on {share} of the prompts the judge changed its mind with the order.")
    bias = duel["position_bias"]
    if bias is not None and bias["flagged"]:
        side = "first" if bias["value"] > 0 else "second"
        points = f"{100 * abs(bias['value']):.1f} points"
        cautions.append(f"Caution: the judge favours the answer shown {side}, by {points}.")
    return cautions + _length_caution(duel, labels)


def _length_caution(duel: Record, labels: Mapping[str, str]) -> list[str]:
    """Where the verdict does not survive the control for length."""
    rate, controlled = duel["win_rate"], (duel["length_controlled"] or {}).get("rate")
    if rate is None or controlled is None:
        return []
    holds = [each["low"] <= 0.5 <= each["high"] for each in (rate, controlled)]
    if holds[0] or not (holds[1] or (rate["value"] > 0.5) != (controlled["value"] > 0.5)):
        return []
    share = f"{_percent(controlled['value'])}, interval {_interval(controlled)}"
    return [f"Caution: at equal lengths {labels[duel['first']]} would win {share}: length may be why."]


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}%"


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}"


# --- files ----------------------------------------------------------------------------------------------


def write_record(run: RunDir, record: Mapping[str, Any]) -> Path:
    """Write a record in its three forms; the path of the JSON file. Raises UserError for a full disk."""
    run.evaluations.mkdir(exist_ok=True)
    write_text(run.evaluations / f"{record['name']}.md", markdown(record))
    write_text(run.evaluations / f"{record['name']}.html", page(record))
    return write_evaluation(run, record)


def read_record(path: Path) -> Mapping[str, Any]:
    """A record from its JSON file. Raises UserError when it is not one."""
    record = read_evaluation(path).record
    try:
        # By another hand it may lack anything: what cannot be shown is refused here.
        markdown(record), page_values(record)
    except (*DAMAGE, LookupError, ArithmeticError) as error:
        raise UserError(f"{path}: not an evaluation that `localdpo eval` wrote ({error})") from error
    return record


def latest_record(run: RunDir) -> Mapping[str, Any] | None:
    """The evaluation that was written last, None if there is none. Raises UserError when it is damaged."""
    files = evaluation_files(run)
    return read_record(files[0]) if files else None


def page(record: Mapping[str, Any]) -> str:
    """The record as one self-contained HTML page."""
    return render("eval", **page_values(record))


def page_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows: tables, conclusion, and the first SHOWN_ROWS prompts with answers and verdicts."""
    return {
        "title": f"{record['run']}: evaluation {record['name']}",
        "heading": heading(record),
        "conclusion": record["conclusion"],
        "tables": tables(record),
        "labels": labels_of(record),
        "rows": record["rows"][:SHOWN_ROWS],
        "total": len(record["rows"]),
    }
