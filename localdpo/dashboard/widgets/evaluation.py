"""What the judge screen shows above its list: win rates, measured figures, a running evaluation."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from textual.widgets import Static

from localdpo.core.names import command_line
from localdpo.core.text import counted, printable
from localdpo.dashboard.screens.dialogs import STOP_EVALUATION_CHOICES, ChoiceDialog, LineDialog
from localdpo.dashboard.terminal import Abilities, Palette
from localdpo.launch.processes import Job
from localdpo.out.console import Text
from localdpo.records.evaluations import Evaluation, JudgedDuel, RateEstimate
from localdpo.records.rundir import RunDir
from localdpo.records.wording import run_words

_EVEN: Final = 0.5
_LEAST_BAR: Final = 8
_LOG: Final = "worker.log"
_DETAIL: Final = (
    "Options of `localdpo eval`; without any, `rules` judges the demo's incident reports (format, severity, "
    "action, facts), and other runs are measured only. "
    "--judge mlx:MODEL asks a local model, --judge anthropic --max-usd 2 asks Claude."
)


@dataclass(frozen=True)
class RatesStyle:
    """How rates are drawn. `width`: cells of a line."""

    palette: Palette
    abilities: Abilities
    width: int


def interval_bar(rate: RateEstimate, width: int, style: RatesStyle) -> Text:
    """The interval on a scale from 0 to 100% of `width` cells; the middle is marked."""
    signs = "├─●┤┊" if style.abilities.unicode else "[-O]:"
    cells = [" "] * width
    cells[_cell(_EVEN, width)] = signs[4]
    if rate.low is not None and rate.high is not None:
        low, high = _cell(rate.low, width), _cell(rate.high, width)
        cells[low : high + 1] = [signs[1]] * (high - low + 1)
        cells[low], cells[high] = signs[0], signs[3]
    cells[_cell(rate.value, width)] = signs[2]
    return Text("".join(cells), _tone(rate, style.palette), no_wrap=True)


def rates_text(evaluation: Evaluation, selected: int, style: RatesStyle) -> Text:
    """A line for each pair of models with its bar, then what else is known of the selected one."""
    text = Text(no_wrap=True, overflow="ellipsis")
    names = [
        f"{evaluation.labels[duel.first]} vs {evaluation.labels[duel.second]}" for duel in evaluation.duels
    ]
    width = max((len(name) for name in names), default=0)
    # On a narrow screen the figures come first.
    bar = style.width - width - 26
    for index, (duel, name) in enumerate(zip(evaluation.duels, names, strict=True)):
        mark = style.abilities.mark("cursor") if index == selected and len(names) > 1 else " "
        text.append(f"{mark}{name:<{width}} ", "bold" if index == selected else "")
        if duel.win_rate is None:
            text.append("no verdicts\n", style.palette.muted)
            continue
        text.append(f"{100 * duel.win_rate.value:5.1f}% ", f"bold {_tone(duel.win_rate, style.palette)}")
        if bar >= _LEAST_BAR:
            text.append_text(interval_bar(duel.win_rate, bar, style))
        text.append(f" {_range(duel.win_rate)}\n", style.palette.muted)
    if evaluation.duels:
        text.append("interval includes 50%: no verdict\n", style.palette.muted)
        text.append_text(_details(evaluation.duels[selected]))
    return text


def _details(duel: JudgedDuel) -> Text:
    lines = [f"won {duel.wins}, tied {duel.ties}, lost {duel.losses}; same text {duel.identical}"]
    lines.append(f"changed with the order: {duel.flips} of {duel.valid - duel.identical}")
    if (controlled := duel.length_controlled) is not None and (rate := controlled.rate) is not None:
        lines.append(f"at equal lengths {100 * rate.value:.1f}% {_range(rate)}")
    if duel.valid < duel.prompts:
        why = ", ".join(f"{status} {count}" for status, count in duel.statuses.items())
        lines.append(f"without a verdict: {duel.prompts - duel.valid} ({why})")
    if duel.people is not None:
        votes = counted(duel.people["votes"], "vote")
        lines.append(f"agrees with people: {100 * duel.people['agreement']:.0f}% of {votes}")
    return Text("\n".join(lines))


def categories_text(duel: JudgedDuel | None, style: RatesStyle) -> Text:
    """A bar for each category of the prompts."""
    if duel is None or not duel.categories:
        return Text("the prompts have no field `category`", style.palette.muted)
    text = Text(no_wrap=True, overflow="ellipsis")
    width = min(16, max(len(category.name) for category in duel.categories))
    bar = max(_LEAST_BAR, style.width - width - 14)
    for category in duel.categories:
        text.append(f"{printable(category.name)[:width]:<{width}} ")
        text.append_text(interval_bar(category.win_rate, bar, style))
        text.append(
            f" {100 * category.win_rate.value:3.0f}%", f"bold {_tone(category.win_rate, style.palette)}"
        )
        text.append(f" n{category.valid}\n", style.palette.muted)
    return text


def metrics_text(evaluation: Evaluation, style: RatesStyle) -> Text:
    """`name  before -> after  better` for each measured figure."""
    text = Text(no_wrap=True, overflow="ellipsis")
    before, after = evaluation.versus
    arrow = "→" if style.abilities.unicode else "->"
    text.append(f"{evaluation.labels[before]} {arrow} {evaluation.labels[after]}\n", style.palette.muted)
    width = max((len(metric.name) for metric in evaluation.metrics), default=0)
    for metric in evaluation.metrics:
        means = (metric.means.get(name) for name in evaluation.versus)
        values = ["-" if mean is None else f"{mean:.{metric.digits}f}" for mean in means]
        text.append(f"{printable(metric.name):<{width}}  {values[0]:>6} {arrow} {values[1]:>6}  ")
        tone = {"better": style.palette.chosen, "worse": style.palette.rejected}.get(metric.reading)
        sign = {"better": "up", "worse": "down"}.get(metric.reading)
        mark = style.abilities.mark(sign) if sign is not None else " "
        text.append(f"{mark} {metric.reading}\n", tone or style.palette.muted)
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


class EvaluationJob(Job):
    """Runs `localdpo eval` for the judge screen; its log is `eval/worker.log`. What it judged stays, so the
    same command resumes it.

    `options`: of `localdpo eval`, as a person would type them.
    """

    def __init__(self, run: RunDir, options: Sequence[str], command: Sequence[str] = ()) -> None:
        words = [*(command or (sys.executable, "-m", "localdpo")), *_eval_words(run, options)]
        super().__init__(words, run.evaluations / _LOG, "the evaluation", "r resumes it")

    def status(self) -> str:
        """The last line that it printed; empty before the first."""
        lines = self.lines()
        return lines[-1] if lines else ""


def eval_command(run: RunDir, options: Sequence[str] = ()) -> str:
    """The command that evaluates `run`, ready for a shell in the current folder."""
    return command_line(*_eval_words(run, options))


def _eval_words(run: RunDir, options: Sequence[str]) -> list[str]:
    return ["eval", *run_words(run), *options]


class EvaluationLine(Static):
    """Starts an evaluation, shows its progress, and stops it; hidden while there is nothing to show.

    Attributes:
        job: the evaluation that was started here and has not ended.
    """

    def __init__(self) -> None:
        super().__init__(id="evaluating")
        self.display = False
        self.job: EvaluationJob | None = None
        self._options = ""

    def ask(self, run: RunDir) -> None:
        """Ask for options and evaluate `run`; while an evaluation is running, ask whether to stop it."""

        def start(options: str | None) -> None:
            if options is not None:
                self._start(run, options)

        def stop(choice: str | None) -> None:
            if choice == "stop":
                self.stop("stopped; r resumes it")

        if self.job is not None:
            question = f"Stop the evaluation of {run.name}?"
            self.app.push_screen(ChoiceDialog(question, self.job.status(), STOP_EVALUATION_CHOICES), stop)
        else:
            placeholder = "no options; enter starts, esc leaves"
            question = f"Evaluate {run.name}?"
            self.app.push_screen(LineDialog(question, _DETAIL, self._options, placeholder), start)

    def follow(self) -> bool:
        """Show its progress, or why it failed; whether it has just ended."""
        job = self.job
        if job is None:
            return False
        if job.is_running:
            status = job.status()
            if status:
                self._show(f"evaluating: {status} (r stops it, and so does leaving)")
            return False
        self.job = None
        self._show(job.problem() or "")
        return True

    def stop(self, message: str = "") -> None:
        """End the evaluation, if one is running, and show `message`."""
        if self.job is not None:
            self.job.stop()
            self.job = None
        self._show(message)

    def on_unmount(self) -> None:
        if self.job is not None:
            self.job.stop()

    def _start(self, run: RunDir, options: str) -> None:
        self._options = options
        try:
            words = shlex.split(options)
            self.job = EvaluationJob(run, words)
        except ValueError as error:
            self._show(f"the options cannot be read: {error}")
        except OSError as error:
            self._show(f"the evaluation cannot be started: {error.strerror or error}")
        else:
            self._show(f"started: {eval_command(run, words)}")

    def _show(self, text: str) -> None:
        self.update(Text(printable(text)))
        self.display = bool(text)
