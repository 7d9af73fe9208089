"""The lines and texts of the compare screen. Pure: from a CompareState to rich's Text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from localdpo.core.text import changes, counted, word_diff
from localdpo.dashboard.compare_state import FILTERS, CompareState, PromptView
from localdpo.dashboard.terminal import Abilities, Palette
from localdpo.dashboard.widgets.answertext import clean, diff_text
from localdpo.out.console import Text
from localdpo.records.answers import AnswerRecord
from localdpo.records.wording import format_sampling

NO_ANSWERS: Final = "no answers yet: g generates them, in a process of its own"
_SIDES: Final = ("1", "2")
# State of a prompt -> (glyph, ASCII twin).
_MARKS: Final = {"differs": ("≠", "/"), "same": ("=", "="), "waiting": ("…", "~")}
_GAP: Final = "   "


@dataclass(frozen=True)
class CompareTexts:
    """Words, marks and colours for one look at the answers.

    Attributes:
        generating: whether answers are being written.
        marked: whether words that differ are marked.
    """

    state: CompareState
    palette: Palette
    abilities: Abilities
    generating: bool = False
    marked: bool = True

    def status(self) -> Text:
        """`demo:prompts/heldout  37/96 answers   temperature 0.7, seed 7, ...`."""
        state, header = self.state, self.state.header
        line = _line()
        total = len(header.prompts) * len(header.names)
        line.append(f"{total - state.tail.missing}/{counted(total, 'answer')}", "bold")
        if self.generating:
            line.append(f" {self.abilities.mark('waiting')} generating", self.palette.chosen)
        elif state.tail.missing:
            line.append(" incomplete: g resumes", self.palette.rejected)
        elif not state.tail.complete:
            line.append(" without log-probabilities: g adds them", self.palette.muted)
        line.append(f"{_GAP}{header.source or 'prompts'}")
        return line.append(f"{_GAP}{format_sampling(header.sampling)}", self.palette.muted)

    def filters(self) -> Text:
        """The filters by name, the current one in brackets, and how many prompts it keeps."""
        state, line = self.state, _line()
        if state.blind:
            line.append(
                f"blind, {counted(sum(state.tally()), 'vote')}{_GAP}", f"bold {self.palette.rejected}"
            )
        line.append("show ", self.palette.muted)
        for index, choice in enumerate(FILTERS):
            label = choice.label.format(trained=state.label(state.trained), other=state.label(state.other))
            label = label if self.abilities.unicode else label.replace("≠", "/=")
            if index == state.filter:
                line.append(f"[{label}]", f"bold {self.palette.chosen}")
            elif choice.needs_verdicts and not state.verdicts:
                line.append(f" {label} (no verdicts) ", self.palette.muted)
            else:
                line.append(f" {label} ")
        kept = f"{len(state.visible())} of {counted(len(state.views()), 'prompt')}"
        return line.append(f"{_GAP}{kept}", self.palette.muted)

    def mark(self, view: PromptView) -> str:
        """The glyph of a prompt's state, and a tick where there is a vote."""
        mark = _MARKS[view.mark][0 if self.abilities.unicode else 1]
        return mark + (self.abilities.mark("finished") if self.state.vote_of(view) is not None else " ")

    def title(self, view: PromptView, name: str, index: int) -> str:
        """Who a pane belongs to; a number while names are hidden, number and name after the vote."""
        state = self.state
        if not state.blind:
            return state.label(name)
        if state.hidden(view):
            return f"answer {_SIDES[index]}"
        vote = state.vote_of(view)
        won = ", your vote" if vote is not None and vote.winner == name else ""
        return f"{_SIDES[index]} was {state.label(name)}{won}"

    def tabs(self, view: PromptView, names: tuple[str, ...], here: int) -> Text:
        """The panes by title, the one that is shown in brackets."""
        line = _line()
        for index, name in enumerate(names):
            title = self.title(view, name, index)
            if index == here:
                line.append(f"[{title}] ", f"bold {self.palette.chosen}")
            else:
                line.append(f" {title}  ")
        return line

    def pane(self, view: PromptView, name: str, index: int, room: int) -> tuple[Text, Text, Text]:
        """(body, title, subtitle) of one answer in a frame of `room` columns."""
        title = Text(self.title(view, name, index))
        answer = view.answers.get(name)
        if answer is None:
            waiting = "being generated" if self.generating else "not generated yet"
            body = Text(f"{self.abilities.mark('waiting')} {waiting}", self.palette.muted)
            return body, title, Text()
        if self.state.hidden(view):
            return Text(clean(answer.text)), title, Text(length(answer))
        title.append(f", {length(answer)}")
        logps = logps_text(answer.logps, self.state.header.labels, self.abilities.unicode, room - 6)
        return self._body(view, name), title, Text(logps)

    def figures(self, view: PromptView) -> Text:
        """How the two answers differ, the legend of the lines below them, and the votes."""
        state, line = self.state, _line()
        if state.hidden(view):
            votable = "1: answer 1 is better   2: answer 2   t: a tie   n: next without a vote"
            is_votable = view.mark == "differs"
            return line.append(votable if is_votable else "nothing to vote on: n goes to the next")
        if view.pair is not None:
            trained, other = view.pair
            pieces = word_diff(other.text, trained.text)
            line.append(f"{state.label(state.trained)} beside {state.label(state.other)}: {changes(pieces)}")
        won, ties, lost = state.tally()
        if won + ties + lost:
            votes = f"votes: {won} won, {ties} tied, {lost} lost"
            line.append(f"{_GAP}{votes}", self.palette.chosen)
        if any(answer.logps for answer in view.answers.values()):
            line.append(f"{_GAP}below: log-probability/token, nats", self.palette.muted)
        return line

    def _body(self, view: PromptView, name: str) -> Text:
        """The answer; what the trained answer and the other do not share is marked in both."""
        text, trained = view.answers[name].text, self.state.trained
        if (
            not self.marked
            or view.pair is None
            or view.mark == "same"
            or name not in (trained, self.state.other)
        ):
            return Text(clean(text))
        side: Literal["old", "new"] = "new" if name == trained else "old"
        return diff_text(view.pair[1].text, view.pair[0].text, side, self.palette, self.abilities)


def length(answer: AnswerRecord) -> str:
    """How long an answer is: `41 tokens`, `256 tokens, cut`."""
    return f"{counted(answer.tokens, 'token')}{'' if answer.finished else ', cut'}"


def logps_text(logps: Mapping[str, float], labels: Mapping[str, str], unicode: bool, room: int) -> str:
    """`base -1.31  SFT -0.92`: mean log-probability per token of one answer under each model, nats.

    In less than `room` columns the names are shortened as far as they stay distinct: `b-1.31 S-0.92`.
    """
    minus = "\N{MINUS SIGN}" if unicode else "-"
    names = [labels.get(name, name) for name in logps]
    values = [f"{value:.2f}".replace("-", minus) for value in logps.values()]
    full = "  ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
    if len(full) <= room:
        return full
    return " ".join(f"{name}{value}" for name, value in zip(beginnings(names), values, strict=True))


def beginnings(names: Sequence[str]) -> list[str]:
    """The fewest first letters of each name that no other of the names begins with."""
    for size in range(1, max(map(len, names), default=0)):
        cut = [name[:size] for name in names]
        if len(set(cut)) == len(cut):
            return cut
    return list(names)


def titles(views: Sequence[PromptView]) -> list[str]:
    """Each prompt on one line, without the words that all of them begin with."""
    words = [view.title.split(" ") for view in views]
    same = [len(set(column)) == 1 for column in zip(*words, strict=False)]
    shared = [*same, False].index(False) if len(words) > 1 else 0
    return [" ".join(title[shared:]) or view.title for title, view in zip(words, views, strict=True)]


def _line() -> Text:
    return Text(no_wrap=True, overflow="ellipsis")
