"""Win rates and measured figures of an evaluation, as text with bars."""

from __future__ import annotations

from dataclasses import dataclass

from localdpo.core.text import printable
from localdpo.dashboard.terminal import Abilities
from localdpo.dashboard.themes import Palette
from localdpo.out.console import Text
from localdpo.records.evaluations import Evaluation, JudgedDuel, RateEstimate

_EVEN = 0.5


@dataclass(frozen=True)
class Drawing:
    """What is drawn with. `width`: cells of a line."""

    palette: Palette
    abilities: Abilities
    width: int


def interval_bar(rate: RateEstimate, width: int, drawing: Drawing) -> Text:
    """The interval on a scale from 0 to 100% of `width` cells; the middle is marked."""
    signs = "├─●┤┊" if drawing.abilities.unicode else "[-O]:"
    cells = [" "] * width
    cells[_cell(_EVEN, width)] = signs[4]
    if rate.low is not None and rate.high is not None:
        low, high = _cell(rate.low, width), _cell(rate.high, width)
        cells[low : high + 1] = [signs[1]] * (high - low + 1)
        cells[low], cells[high] = signs[0], signs[3]
    cells[_cell(rate.value, width)] = signs[2]
    return Text("".join(cells), _tone(rate, drawing.palette), no_wrap=True)


def rates_text(found: Evaluation, selected: int, drawing: Drawing) -> Text:
    """A line for each pair of models with its bar, then what else is known of the selected one."""
    text = Text(no_wrap=True, overflow="ellipsis")
    names = [f"{found.labels[duel.first]} vs {found.labels[duel.second]}" for duel in found.duels]
    width = max((len(name) for name in names), default=0)
    bar = max(8, drawing.width - width - 26)
    for place, (duel, name) in enumerate(zip(found.duels, names, strict=True)):
        mark = drawing.abilities.mark("cursor") if place == selected and len(names) > 1 else " "
        text.append(f"{mark}{name:<{width}} ", "bold" if place == selected else "")
        if duel.rate is None:
            text.append("no verdicts\n", drawing.palette.muted)
            continue
        text.append(f"{100 * duel.rate.value:5.1f}% ", f"bold {_tone(duel.rate, drawing.palette)}")
        text.append_text(interval_bar(duel.rate, bar, drawing))
        text.append(f" {_range(duel.rate)}\n", drawing.palette.muted)
    if found.duels:
        text.append("an interval across the middle: no verdict\n", drawing.palette.muted)
        text.append_text(_details(found.duels[selected]))
    return text


def _details(duel: JudgedDuel) -> Text:
    lines = [f"won {duel.wins}, tied {duel.ties}, lost {duel.losses}; same text {duel.identical}"]
    lines.append(f"changed with the order: {duel.flips} of {duel.valid - duel.identical}")
    if duel.controlled is not None:
        lines.append(f"at equal lengths {100 * duel.controlled.value:.1f}% {_range(duel.controlled)}")
    if duel.valid < duel.prompts:
        why = ", ".join(f"{status} {count}" for status, count in duel.statuses.items())
        lines.append(f"without a verdict: {duel.prompts - duel.valid} ({why})")
    if duel.people is not None:
        lines.append(
            f"agrees with people: {100 * duel.people['agreement']:.0f}% of {duel.people['votes']} votes"
        )
    return Text("\n".join(lines))


def categories_text(duel: JudgedDuel | None, drawing: Drawing) -> Text:
    """A bar for each category of the prompts."""
    if duel is None or not duel.categories:
        return Text("the prompts have no field `category`", drawing.palette.muted)
    text = Text(no_wrap=True, overflow="ellipsis")
    width = min(16, max(len(category.name) for category in duel.categories))
    bar = max(8, drawing.width - width - 14)
    for category in duel.categories:
        text.append(f"{printable(category.name)[:width]:<{width}} ")
        text.append_text(interval_bar(category.rate, bar, drawing))
        text.append(f" {100 * category.rate.value:3.0f}%", f"bold {_tone(category.rate, drawing.palette)}")
        text.append(f" n{category.valid}\n", drawing.palette.muted)
    return text


def metrics_text(found: Evaluation, drawing: Drawing) -> Text:
    """`name  before -> after  better` for each measured figure."""
    text = Text(no_wrap=True, overflow="ellipsis")
    before, after = found.versus
    arrow = "→" if drawing.abilities.unicode else "->"
    text.append(f"{found.labels[before]} {arrow} {found.labels[after]}\n", drawing.palette.muted)
    width = max((len(metric.name) for metric in found.metrics), default=0)
    for metric in found.metrics:
        values = [_number(metric.means.get(name), metric.digits) for name in found.versus]
        text.append(f"{printable(metric.name):<{width}}  {values[0]:>6} {arrow} {values[1]:>6}  ")
        style = {"better": drawing.palette.chosen, "worse": drawing.palette.rejected}.get(metric.reading)
        sign = {"better": "up", "worse": "down"}.get(metric.reading)
        mark = drawing.abilities.mark(sign) if sign is not None else " "
        text.append(f"{mark} {metric.reading}\n", style or drawing.palette.muted)
    return text


def _cell(share: float, width: int) -> int:
    return min(width - 1, max(0, round(share * (width - 1))))


def _tone(rate: RateEstimate, palette: Palette) -> str:
    if rate.low is None or rate.high is None or rate.low <= _EVEN <= rate.high:
        return palette.muted
    return palette.chosen if rate.low > _EVEN else palette.rejected


def _range(rate: RateEstimate) -> str:
    if rate.low is None or rate.high is None:
        return ""
    return f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
