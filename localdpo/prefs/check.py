"""The table of checks, one pass of all over a data set, and its report. Memory grows by 600 bytes a pair."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from localdpo.core.text import counted, format_seconds, printable
from localdpo.data.rows import (
    AGAINST_SCORES,
    SHARED_WORDS,
    InvalidRow,
    ReadingNotes,
    Skipped,
    name_unread,
    read_rows,
    source_format,
)
from localdpo.data.sources import open_source
from localdpo.data.types import Pair
from localdpo.prefs.checks.base import (
    CHUNK_ROWS,
    EXAMPLES,
    LEVELS,
    Check,
    CheckSettings,
    Chunk,
    Family,
    Finding,
    FindingExample,
    PairColumn,
)
from localdpo.prefs.checks.lengths import Lengths, TokenLengths
from localdpo.prefs.checks.overlap import Overlap
from localdpo.prefs.checks.reference import ReferenceAccuracy
from localdpo.prefs.checks.repeats import Duplicates, Labels
from localdpo.prefs.checks.texts import Markers, Skew

VERSION: Final = 1
BAR: Final = 30
# A new check is an entry in its family's file; a new family is a class and a line in FAMILIES.
# What reading alone shows: rows that are no pair, columns that nobody reads, scores against the order.
UNREADABLE = Check(
    "unreadable-rows",
    "error",
    "a row that cannot be read",
    "fix the field that is named, or remove the row; training stops at it",
    drops=True,
)
UNUSABLE = Check(
    "unusable-rows",
    "info",
    "a well-formed row that makes no pair",
    "no action needed: training drops it, and so does cleaning",
    drops=True,
)
UNREAD = Check(
    "unread-columns",
    "warning",
    "columns that nobody reads",
    "put what belongs to the prompt into it, or remove the columns",
    rows=False,
)
SHARED = Check(
    "shared-words-as-prompt",
    "info",
    "prompts that are the words which both answers happen to open with",
    "give the prompt a column of its own, called prompt",
    rows=False,
)
SCORES = Check(
    "scores-against-order",
    "warning",
    "the rejected answer has the higher score",
    "swap the two answers, or remove the pair",
)

FAMILIES: Final[tuple[type[Family], ...]] = (
    Lengths,
    Labels,
    Duplicates,
    Markers,
    Skew,
    Overlap,
    TokenLengths,
    ReferenceAccuracy,
)
CHECKS: Final[tuple[Check, ...]] = (
    UNREADABLE,
    UNUSABLE,
    UNREAD,
    SHARED,
    SCORES,
    *(check for family in FAMILIES for check in family.checks),
)

Progress = Callable[[int], None]
"""Called with the number of rows read so far."""


def check(
    source: str, settings: CheckSettings | None = None, progress: Progress | None = None
) -> CheckReport:
    """The report on a data set of pairs.

    Raises UserError for data that is missing, empty or of another kind, and for a format, a tokenizer or a
    data set to compare with that does not exist. Rows that cannot be read are a finding.
    """
    settings = settings or CheckSettings()
    began = time.monotonic()
    opened = open_source(source)
    adapter = source_format(opened, "pairs", settings.format_name)
    not_checked: list[str] = []
    made = [family.from_settings(settings, not_checked) for family in FAMILIES]
    families = [family for family in made if family is not None]
    reading = _Reading()
    rows = read_rows(opened, "pairs", None, settings.format_name, reading.notes)
    for chunk in reading.chunks(rows, progress):
        for family in families:
            family.add(chunk)
    results = list(reading.results())
    facts = {"rows": reading.rows, "pairs": reading.pairs}
    if reading.pairs:
        for family in families:
            results += [reading.resolve(finding) for finding in family.finish(reading.pairs)]
            facts |= family.facts()
    results.sort(key=lambda result: LEVELS.index(result.check.level))
    return CheckReport(
        source=opened.label,
        read_as=adapter.name if adapter else "unknown",
        facts=facts,
        results=tuple(results),
        not_checked=tuple(not_checked),
        seconds=time.monotonic() - began,
    )


@dataclass
class _Reading:
    """From rows to chunks of pairs, with the rows of every pair and the rows that make none."""

    rows: int = 0
    pairs: int = 0
    notes: ReadingNotes = field(default_factory=ReadingNotes)
    _first: PairColumn = field(default_factory=PairColumn)
    _last: PairColumn = field(default_factory=PairColumn)
    _unreadable: dict[int, str] = field(default_factory=dict)
    _unusable: dict[int, str] = field(default_factory=dict)

    def chunks(self, rows: Iterable, progress: Progress | None) -> Iterator[Chunk]:
        """The pairs of the rows, CHUNK_ROWS at a time."""
        chunk = Chunk(0)
        for row in rows:
            self.rows = max(self.rows, row.rows[-1] + 1)
            if isinstance(row.result, InvalidRow):
                self._unreadable[row.rows[0]] = row.result.message
            elif isinstance(row.result, Skipped):
                self._unusable[row.rows[0]] = row.result.reason
            else:
                assert isinstance(row.result, Pair)
                chunk.add(row.result)
                self._first.add(row.rows[0])
                self._last.add(row.rows[-1])
                self.pairs += 1
            if len(chunk) == CHUNK_ROWS:
                yield chunk
                chunk = Chunk(self.pairs)
                if progress is not None:
                    progress(self.rows)
        if len(chunk):
            yield chunk

    def results(self) -> Iterator[Finding]:
        """Findings about the rows that make no pair, and about how the others were read."""
        for check_, notes in ((UNREADABLE, self._unreadable), (UNUSABLE, self._unusable)):
            if notes:
                examples = tuple(
                    FindingExample((row + 1,), note) for row, note in list(notes.items())[:EXAMPLES]
                )
                numbers = np.fromiter(notes, np.int64)
                reasons = [f"{reason} ({count:,})" for reason, count in Counter(notes.values()).most_common()]
                words = "; ".join(reasons) if check_ is UNUSABLE else check_.what
                message = f"{counted(len(notes), 'row')}: {words}"
                yield Finding(check_, len(notes), self.rows, message, examples, numbers)
        if self.notes.unread:
            yield Finding(UNREAD, max(self.notes.unread.values()), self.rows, name_unread(self.notes.unread))
        if shared := self.notes.shared_words:
            yield Finding(SHARED, shared, self.pairs, f"{counted(shared, 'pair')}: {SHARED_WORDS}")
        if against := self.notes.against_scores:
            examples = tuple(FindingExample((row + 1,)) for row in against[:EXAMPLES])
            numbers = np.array(against, np.int64)
            message = f"{counted(len(against), 'pair')}: {AGAINST_SCORES}"
            yield Finding(SCORES, len(against), self.pairs, message, examples, numbers)

    def resolve(self, finding: Finding) -> Finding:
        """A finding with the numbers of pairs replaced by the numbers of their rows."""
        first, last = self._first.values, self._last.values
        rows = [
            tuple(dict.fromkeys(int(row[pair]) + 1 for pair in example.numbers for row in (first, last)))
            for example in finding.examples
        ]
        examples = tuple(map(FindingExample, rows, (example.note for example in finding.examples)))
        numbers = np.unique(np.concatenate([first[finding.numbers], last[finding.numbers]]))
        return replace(finding, examples=examples, numbers=numbers)


# --- the report, as lines for a terminal and as JSON; rows count from 1, as in `file:row` ----------------


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All that `prefs check` reports.

    Attributes:
        read_as: name of the format. facts: figures as JSON values.
        results: errors first. not_checked: the checks that were skipped, and what each would need.
    """

    source: str
    read_as: str
    facts: Mapping[str, Any]
    results: tuple[Finding, ...]
    not_checked: tuple[str, ...]
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether any error-level check failed."""
        return any(result.check.level == "error" for result in self.results)


def as_object(report: CheckReport) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        "v": VERSION,
        "source": report.source,
        "format": report.read_as,
        "failed": report.failed,
        "facts": dict(report.facts),
        "findings": [
            {
                **{name: getattr(result.check, name) for name in ("name", "level", "advice")},
                **{name: getattr(result, name) for name in ("count", "total", "message")},
                "examples": [{"rows": list(one.numbers), "note": one.note} for one in result.examples],
            }
            for result in report.results
        ],
        "not_checked": list(report.not_checked),
        "seconds": round(report.seconds, 3),
    }


def summary_lines(report: CheckReport) -> list[str]:
    """Sizes, lengths and the histogram, for a terminal."""
    facts = report.facts
    sizes = ", ".join(counted(facts.get(f"{noun}s", 0), noun) for noun in ("row", "pair", "prompt"))
    lines = [f"{report.source}: {sizes}; format {report.read_as}"]
    for unit in ("characters", "tokens"):
        if unit in facts:
            lines += ["", f"{unit:<12}{'mean':>10}{'median':>10}{'95%':>10}{'longest':>10}"]
            for part, figures in facts[unit].items():
                cells = (figures[name] for name in ("mean", "median", "p95", "max"))
                lines.append(f"{part:<12}" + "".join(f"{round(cell):>10,}" for cell in cells))
    bias = facts.get("chosen_longer_tokens") or facts.get("chosen_longer")
    if bias:
        lines += ["", *_histogram(bias)]
    if "markdown" in facts:
        shares = [f"{name} {a:.0%}/{b:.0%}" for name, (a, b) in facts["markdown"].items() if a or b]
        lines += ["", f"markdown, chosen/rejected: {', '.join(shares) or 'none'}"]
    if facts.get("limits"):
        lines.append(
            f"at {facts['limits']}: {counted(facts['truncated'], 'pair')} cut; {facts['merged']:,} "
            "merged boundaries"
        )
    if "evaluation_prompts" in facts:
        lines.append(f"compared with {counted(facts['evaluation_prompts'], 'evaluation prompt')}")
    if "reference" in facts:
        scored = facts["reference"]
        lines.append(
            f"reference prefers the chosen answer in {scored['accuracy']:.1%} of "
            f"{counted(scored['scored'], 'pair')} ({scored['accuracy_per_token']:.1%} per token)"
        )
    return lines


def finding_lines(report: CheckReport, result: Finding) -> list[str]:
    """One finding: what, where (file:row of the first), what to do. The first line begins with its level."""
    check = result.check
    lines = [f"{check.level}: {check.name} ({result.count:,} of {result.total:,}): {result.message}"]
    for example in result.examples:
        where = f"{report.source}:{','.join(map(str, example.numbers))}"
        lines.append(f"    {where}  {printable(example.note)}".rstrip())
    return [*lines, f"    what to do: {check.advice}"]


def closing_lines(report: CheckReport) -> list[str]:
    """What was not checked, and how many findings of each level there are."""
    skipped = [f"not checked: {words}" for words in report.not_checked]
    counts = [(level, sum(result.check.level == level for result in report.results)) for level in LEVELS]
    words = [f"{n} {level}{'s' if level != 'info' and n != 1 else ''}" for level, n in counts]
    return [*skipped, f"{', '.join(words)}; {format_seconds(report.seconds)}"]


def _histogram(bias: Mapping[str, Any]) -> list[str]:
    longer, shorter, equal = bias["longer"], bias["shorter"], bias["equal"]
    lines = [
        f"chosen longer: {bias['share']:.0%} ({longer:,} of {longer + shorter:,}; {equal:,} equal), "
        f"{bias['mean_difference']:+,.0f} {bias['unit']} on average"
    ]
    bins = bias["histogram"]
    largest = max((bin["count"] for bin in bins), default=0) or 1
    for i, bin in enumerate(bins):
        low = "below" if i == 0 else f"{bin['from']:+,}"
        high = "above" if i == len(bins) - 1 else f"{bin['to']:+,}"
        bar = "#" * round(BAR * bin["count"] / largest)
        lines.append(f"  {f'{low} .. {high}':>20} {bar:<{BAR}} {bin['count']:,}")
    return lines
