"""The report of `prefs check`: as lines for a terminal, and as JSON. Rows count from 1, as in `file:row`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from localdpo.core.text import counted, format_seconds, printable
from localdpo.prefs.checks.base import LEVELS, Finding

VERSION: Final = 1
BAR: Final = 30
_PARTS = ("prompt", "chosen", "rejected", "row")


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

    def verdict(self) -> str:
        """The last line: how many findings of each level."""
        counts = [(level, sum(result.check.level == level for result in self.results)) for level in LEVELS]
        return ", ".join(f"{n} {level}{'s' if level != 'info' and n != 1 else ''}" for level, n in counts)


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
                "name": result.check.name,
                "level": result.check.level,
                "count": result.count,
                "total": result.total,
                "message": result.message,
                "advice": result.check.advice,
                "examples": [
                    {"rows": list(example.numbers), "note": example.note} for example in result.examples
                ],
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
            lines += ["", *_length_table(unit, facts[unit])]
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
    """What was not checked, and the verdict."""
    skipped = [f"not checked: {words}" for words in report.not_checked]
    return [*skipped, f"{report.verdict()}; {format_seconds(report.seconds)}"]


def _length_table(unit: str, lengths: Mapping[str, Mapping[str, float]]) -> list[str]:
    lines = [f"{unit:<12}{'mean':>10}{'median':>10}{'95%':>10}{'longest':>10}"]
    for part in _PARTS:
        if part in lengths:
            figures = lengths[part]
            cells = (figures["mean"], figures["median"], figures["p95"], figures["max"])
            lines.append(f"{part:<12}" + "".join(f"{round(cell):>10,}" for cell in cells))
    return lines


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
