"""Every key of the dashboard in one table; bindings, footer, help screen and command palette read it.

Single letters and keys without modifiers only: chords with Ctrl or Option do not pass through tmux and macOS
terminals unharmed. (Ctrl-C and Ctrl-Q are bound as well, to what `x` and `q` do; see app.py.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from textual.binding import Binding, BindingType
from textual.keys import format_key

from localdpo.records.runs import RunKind


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        screen: name of the screen it works on, "" for all.
        key: Textual's name of the key.
        action: name of the action, a method action_... of the screen, or of the app where screen is "".
        label: one or two words for the footer.
        help: what it does, one line for the help screen and the command palette.
        footer: whether the footer shows it.
        at_once: obeyed before the next key is looked at, which may be for a line that this one opens. Where a
            line has the keys already, it gets this one too.
    """

    screen: str
    key: str
    action: str
    label: str
    help: str
    footer: bool = True
    at_once: bool = False


# Name -> title, in the order of the keys 1, 2, ...
SCREEN_TITLES: Final[Mapping[str, str]] = {
    "live": "Live",
    "samples": "Samples",
    "pairs": "Pairs",
    "compare": "Compare",
    "judge": "Judge",
    "runs": "Runs",
}


# Those that another screen opens.
INNER_TITLES: Final[Mapping[str, str]] = {"series": "Series"}


def hidden_screens(kind: RunKind) -> frozenset[str]:
    """The screens that have nothing to show of a run of this kind."""
    return frozenset() if kind.has_pairs else frozenset({"pairs"})


KEYS: Final[tuple[Key, ...]] = (
    # Everywhere. The screens' own keys must not repeat one of these, but for the votes 1 and 2, which Compare
    # takes while the names are hidden.
    Key("", "1", "go('live')", "live", "Live: charts, tiles, notices and log of the run", False),
    Key("", "2", "go('samples')", "samples", "Samples: answers to the watched prompts", False),
    Key("", "3", "go('pairs')", "pairs", "Pairs: the lowest margins, token by token", False),
    Key("", "4", "go('compare')", "compare", "Compare: generated answers side by side", False),
    Key("", "5", "go('judge')", "judge", "Judge: win rates and verdicts", False),
    Key("", "6", "go('runs')", "runs", "Runs: all runs of this folder", False),
    Key("", "p", "pause", "pause", "pause or resume the run"),
    Key("", "x", "stop", "stop", "stop the run; asks how"),
    Key("", "c", "ask('checkpoint')", "save", "save a checkpoint now"),
    Key("", "e", "ask('evaluate')", "evaluate", "evaluate now"),
    Key("", "j", "jump", "jump", "a letter on every chart and pane; it goes there, and esc back", False),
    Key("", "N", "alerts", "notify", "notify the desktop of warnings and of the run's end, or not", False),
    Key("", "X", "ask('cancel')", "cancel", "cancel the commands that wait for the worker", False),
    Key("", "T", "theme", "theme", "next theme: dark, light, high contrast, 16 colours", False),
    Key("", "colon", "command_palette", "commands", "all commands by name", False),
    Key("", "question_mark", "help", "help", "all keys"),
    Key("", "q", "leave", "leave", "leave the dashboard; training continues"),
    # Live
    Key("live", "s", "charts('smooth')", "smooth", "next smoothing of the lines: 0.9, 0.97, 0.99, none, 0.6"),
    Key("live", "space", "freeze", "freeze", "freeze charts, figures and log, or resume", False),
    Key("live", "y", "charts('switch_axis')", "log axis", "logarithmic value axis, or linear again", False),
    Key("live", "plus", "charts('zoom', True)", "zoom", "zoom in, around the cross-hair or the newest step"),
    Key("live", "minus", "charts('zoom', False)", "zoom", "zoom out"),
    Key("live", "equals_sign", "charts('zoom', True)", "zoom", "the same as +, without shift", False),
    Key("live", "0", "charts('whole')", "all steps", "show all steps", False),
    Key("live", "comma", "charts('pan', -1)", "pan", "earlier steps, when zoomed in", False),
    Key("live", "full_stop", "charts('pan', 1)", "pan", "later steps, when zoomed in", False),
    Key("live", "left", "charts('point', -1)", "values", "cross-hair with values, one column left"),
    Key("live", "right", "charts('point', 1)", "values", "cross-hair with values, one column right"),
    Key("live", "up", "charts('choose', -1)", "chart", "the chart before", False),
    Key("live", "down", "charts('choose', 1)", "chart", "the next chart", False),
    Key("live", "m", "charts('maximise')", "maximise", "maximise one chart, or show all again"),
    Key("live", "enter", "charts('maximise')", "maximise", "the same as m", False),
    Key("live", "left_square_bracket", "charts('turn', -1)", "charts", "the charts before"),
    Key("live", "right_square_bracket", "charts('turn', 1)", "charts", "the next charts"),
    Key("live", "a", "acknowledge", "acknowledge", "acknowledge the notice shown", False),
    Key("live", "A", "notices", "notices", "all notices, with what they mean and what to try", False),
    Key("live", "l", "log", "log", "show or hide the log"),
    Key("live", "h", "system", "hardware", "show or hide what machine, worker and GPU use", False),
    Key(
        "live",
        "slash",
        "filter('metric-filter')",
        "find",
        "charts and tiles whose names have some words",
        at_once=True,
    ),
    Key("live", "f", "filter('filter')", "filter", "filter the log by words", False, at_once=True),
    Key("live", "pageup", "scroll_log(-1)", "log", "page up in the log", False),
    Key("live", "pagedown", "scroll_log(1)", "log", "page down in the log", False),
    Key("live", "end", "follow", "newest", "follow the newest steps and log lines", False),
    Key(
        "live",
        "escape",
        "back",
        "back",
        "undo freeze, filter, cross-hair, maximising, zoom, one by one; then back to the series",
        False,
    ),
    # Samples
    Key("samples", "left", "step(-1)", "step", "answers at the evaluation before"),
    Key("samples", "right", "step(1)", "step", "answers at the next evaluation"),
    Key("samples", "home", "first", "first", "answers at the first evaluation", False),
    Key("samples", "end", "last", "newest", "follow the newest answers", False),
    Key("samples", "up", "prompt(-1)", "prompt", "the prompt before"),
    Key("samples", "down", "prompt(1)", "prompt", "the next prompt"),
    Key("samples", "d", "against", "diff", "compare with: reference, evaluation before, nothing"),
    Key("samples", "pagedown", "scroll(1)", "scroll", "scroll both answers down", False),
    Key("samples", "pageup", "scroll(-1)", "scroll", "scroll both answers up", False),
    # Pairs
    Key("pairs", "enter", "open", "open", "open the pair: prompt, responses, rewards of tokens"),
    Key("pairs", "left", "step(-1)", "step", "pairs at the evaluation before"),
    Key("pairs", "right", "step(1)", "step", "pairs at the next evaluation"),
    Key("pairs", "home", "first", "first", "pairs at the first evaluation", False),
    Key("pairs", "end", "last", "newest", "follow the newest pairs", False),
    Key("pairs", "n", "numbers", "numbers", "token rewards as numbers, or as tints and marks"),
    Key("pairs", "escape", "close", "list", "back to the list", False),
    Key("pairs", "up", "other(-1)", "pair", "the pair before", False),
    Key("pairs", "down", "other(1)", "pair", "the next pair", False),
    Key("pairs", "pagedown", "scroll(1)", "scroll", "scroll both responses down", False),
    Key("pairs", "pageup", "scroll(-1)", "scroll", "scroll both responses up", False),
    # Compare
    Key("compare", "left", "pane(-1)", "pane", "the answer to the left"),
    Key("compare", "right", "pane(1)", "pane", "the answer to the right"),
    Key("compare", "enter", "full", "full", "one answer at full width, or all side by side", False),
    Key("compare", "f", "filter", "filter", "show: all, differing, longer, shorter, judge lost"),
    Key("compare", "n", "next", "next", "the next prompt whose answers differ; when blind, without a vote"),
    Key("compare", "d", "diff", "diff", "highlight the words that differ, or not", False),
    Key("compare", "w", "against", "against", "compare with the next: SFT, base, other runs"),
    Key("compare", "v", "blind", "blind", "blind voting: hide the names, or show them"),
    Key("compare", "1", "vote('first')", "vote", "vote, when blind: answer 1 is better"),
    Key("compare", "2", "vote('second')", "vote", "vote, when blind: answer 2 is better"),
    Key("compare", "t", "vote('tie')", "vote", "vote, when blind: a tie"),
    Key("compare", "u", "undo", "undo", "undo the vote on this prompt", False),
    Key("compare", "g", "generate(False)", "generate", "generate the answers that are missing"),
    Key("compare", "G", "generate(True)", "generate anew", "generate answers with the next seed", False),
    Key("compare", "o", "file", "other file", "the run's next file of answers", False),
    Key("compare", "pagedown", "scroll(1)", "scroll", "scroll the answers down", False),
    Key("compare", "pageup", "scroll(-1)", "scroll", "scroll the answers up", False),
    # Judge
    Key("judge", "enter", "open", "open", "open the verdict: answers and the judge's reasons"),
    Key("judge", "f", "filter", "filter", "show all, lost, tied, flipped, won or undecided verdicts"),
    Key("judge", "w", "duel", "against", "the next two models"),
    Key(
        "judge",
        "r",
        "judge",
        "judge",
        "evaluate: generate, measure and judge answers; asks for options; or stop it",
    ),
    Key("judge", "m", "measured", "measured", "all metrics, or the verdicts again"),
    Key("judge", "left", "file(1)", "evaluation", "the evaluation before", False),
    Key("judge", "right", "file(-1)", "evaluation", "the evaluation after", False),
    Key("judge", "up", "other(-1)", "verdict", "the verdict before", False),
    Key("judge", "down", "other(1)", "verdict", "the next verdict", False),
    Key("judge", "escape", "close", "list", "back to the list", False),
    # Runs
    Key("runs", "enter", "open", "open", "open the run, or the series"),
    Key("runs", "space", "mark", "mark", "mark the run; marked runs are overlaid below"),
    Key("runs", "s", "sort", "sort", "sort by the next column"),
    Key("runs", "slash", "filter", "filter", "filter by words in name, state, model or loss", at_once=True),
    Key("runs", "R", "resume", "resume", "resume the run from its last checkpoint and attach to it"),
    Key("runs", "D", "delete", "delete", "delete the run's folder; asks first"),
    Key("runs", "S", "reverse", "reverse", "reverse sort", False),
    Key("runs", "u", "unmark", "unmark", "unmark all runs", False),
    Key("runs", "home", "jump('first')", "first", "to the first run", False),
    Key("runs", "end", "jump('last')", "last", "to the last run", False),
    Key("runs", "pageup", "jump('before')", "page", "a page back", False),
    Key("runs", "pagedown", "jump('next')", "page", "a page on", False),
    # A series of rounds or a sweep, which Runs opens
    Key("series", "enter", "open", "open", "open the selected run"),
    Key("series", "escape", "close", "runs", "back to the runs"),
)

# Actions that ask a worker for something: the footer shows their keys while one is there to answer.
NEED_WORKER: Final = frozenset({"pause", "stop", "ask('cancel')", "ask('checkpoint')", "ask('evaluate')"})


def keys_of(screen: str) -> list[Key]:
    """The keys of a screen ("" those of all screens), in the order of the table."""
    return [key for key in KEYS if key.screen == screen]


def bindings_of(screen: str) -> list[BindingType]:
    """The keys of a screen as Textual's bindings, for its BINDINGS."""
    return [
        Binding(key.key, key.action, key.label, show=key.footer, tooltip=key.help, priority=key.at_once)
        for key in keys_of(screen)
    ]


def key_name(key: str, unicode: bool = True) -> str:
    """How a key is written for people: `left` is an arrow, or the word in ASCII."""
    name = format_key(key)
    return name if unicode or name.isascii() else key.capitalize()


def namespaced(key: Key) -> str:
    """The action of a key for `run_action` from anywhere on its screen."""
    return f"{'app' if key.screen == '' else 'screen'}.{key.action}"
