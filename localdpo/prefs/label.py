"""Labelling pairs by hand: what is shown when, what was answered, and how consistent the answers are.

Nothing here draws: a screen shows `Labelling.current`, passes keys on, and may be killed at any time. Both
answers are shown blind, on sides drawn by the seed. A part of the pairs comes back later, unannounced and
with the sides exchanged: how often a person then answers the same is the upper bound of what a judge or a
model can reach on their labels.

Every change goes through a record, and the journal of them is the complete state: a log (see records/log.py),
one line for every key, on the disk before the next pair is shown.

    {"v": 1, "source": "pairs.jsonl", "digest": "file:...", "seed": 0, "again": 0.1, "pairs": 200}
    {"place": 0, "row": 17, "choice": "1", "swapped": true, "time": 1700000000.0}
    {"undo": 0}
    {"flag": 17, "on": true}
    {"note": 17, "text": "both miss the date"}
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, get_args

from localdpo.core.errors import UserError
from localdpo.data.formats.write import explicit
from localdpo.data.rows import InvalidRow, Skipped, read_rows
from localdpo.data.sources import open_source
from localdpo.data.types import Pair
from localdpo.evals.statistics import quadratic_kappa
from localdpo.prefs.checks.base import answer_text, prompt_texts
from localdpo.prefs.rewrite import check_output, json_lines
from localdpo.records.log import LogTail, LogWriter, decode, encode

VERSION: Final = 1
# A pair comes back after at least so many others, so that it is not simply remembered.
GAP: Final = 10
Choice = Literal["1", "2", "tie", "bad", "skip"]
Record = Mapping[str, Any]
CHOICES: Final[tuple[Choice, ...]] = get_args(Choice)
# From worst to best for the data's chosen answer; two bad answers are as good as each other.
_SCALE: Final = ("rejected", "tie", "chosen")


@dataclass(frozen=True, slots=True)
class Item:
    """A pair to label: its row from 1, and its texts."""

    row: int
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Shown:
    """What is on the screen: `place` in the schedule, and the answers on the sides that they have there.

    `swapped`: the data's rejected answer comes first. `again`: the pair was shown before (a secret).
    """

    place: int
    item: Item
    swapped: bool
    again: bool

    @property
    def answers(self) -> tuple[str, str]:
        """The first answer on the screen, and the second."""
        pair = self.item.chosen, self.item.rejected
        return (pair[1], pair[0]) if self.swapped else pair


@dataclass(frozen=True, slots=True)
class Label:
    """An answer to what was shown at `place`."""

    place: int
    row: int
    choice: Choice
    swapped: bool
    time: float

    @property
    def prefers(self) -> str | None:
        """The data's `chosen` or `rejected`, `tie` for a tie and for two bad ones; None: skipped."""
        if self.choice == "skip":
            return None
        if self.choice in ("tie", "bad"):
            return "tie"
        return "chosen" if (self.choice == "1") != self.swapped else "rejected"


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of the labels. Shares and kappas are None where there is nothing to compare.

    Attributes:
        done, total: labels given, and places in the schedule.
        choices: how many of each choice. flagged: rows.
        agreement, kappa: with the data's own preference, over pairs that were decided the first time.
        self_agreement, self_kappa: with oneself, over pairs that were shown twice.
    """

    done: int
    total: int
    choices: Mapping[str, int]
    flagged: tuple[int, ...]
    agreement: float | None
    kappa: float | None
    self_agreement: float | None
    self_kappa: float | None


def schedule(count: int, seed: int, again: float) -> list[tuple[int, bool]]:
    """(pair, whether it comes back) in the order to show them: pure in its arguments.

    Every pair comes once, in an order drawn by the seed; a share `again` of them comes a second time, at
    least GAP pairs later.
    """
    rng = random.Random(f"label {seed}")
    order = list(range(count))
    rng.shuffle(order)
    early = max(0, count - GAP)
    twice = rng.sample(range(early), min(early, round(again * count)))
    shows = [(float(place), pair, False) for place, pair in enumerate(order)]
    shows += [(rng.uniform(place + GAP, count - 1) + 0.5, order[place], True) for place in twice]
    return [(pair, is_again) for _, pair, is_again in sorted(shows)]


@dataclass
class Labelling:
    """The state of a person's work on some pairs; `save` is called with the record of every change before it.

    Every method that takes a key changes the state once the record is saved.
    """

    items: Sequence[Item]
    seed: int = 0
    again: float = 0.1
    save: Callable[[Record], None] = lambda record: None
    labels: dict[int, Label] = field(default_factory=dict)
    flags: set[int] = field(default_factory=set)
    notes: dict[int, str] = field(default_factory=dict)
    _given: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.places = schedule(len(self.items), self.seed, self.again)
        self._first = {pair: place for place, (pair, is_again) in enumerate(self.places) if not is_again}

    @property
    def current(self) -> Shown | None:
        """What to show now: the first place without a label; None when all have one."""
        place = next((place for place in range(len(self.places)) if place not in self.labels), None)
        return None if place is None else self.shown(place)

    def shown(self, place: int) -> Shown:
        """What is shown at a place of the schedule. The second time the sides are exchanged."""
        pair, is_again = self.places[place]
        first = random.Random(f"sides {self.seed} {self._first[pair]}").random() < 0.5
        return Shown(place, self.items[pair], first != is_again, is_again)

    def answer(self, choice: Choice) -> None:
        """Label what is shown now. Raises ValueError when nothing is, or for an unknown choice."""
        now = self.current
        if now is None or choice not in CHOICES:
            raise ValueError(f"nothing to answer with {choice!r}")
        self._change(asdict(Label(now.place, now.item.row, choice, now.swapped, time.time())))

    def undo(self) -> bool:
        """Take the last label back; its pair is shown again. False when there is none."""
        if not self._given:
            return False
        self._change({"undo": self._given[-1]})
        return True

    def flag(self) -> None:
        """Flag the row that is shown now, or take its flag away."""
        row = self._now().item.row
        self._change({"flag": row, "on": row not in self.flags})

    def note(self, text: str) -> None:
        """Keep a note on the row that is shown now; an empty one takes it away."""
        self._change({"note": self._now().item.row, "text": text})

    def summary(self) -> Summary:
        """Counts, and agreement with the data and with oneself."""
        counts: dict[str, int] = {choice: 0 for choice in CHOICES}
        for label in self.labels.values():
            counts[label.choice] += 1
        firsts = [label.prefers for label in self._first_labels() if label.prefers in ("chosen", "rejected")]
        first, second = self._twice()
        # By the side shown: by the data's own names one rater would be a constant.
        sides = [label for label in self._first_labels() if label.choice in ("1", "2")]
        mine, data = [label.choice for label in sides], ["2" if label.swapped else "1" for label in sides]
        same = [a == b for a, b in zip(first, second, strict=True)]
        return Summary(
            done=len(self.labels),
            total=len(self.places),
            choices=counts,
            flagged=tuple(sorted(self.flags)),
            agreement=firsts.count("chosen") / len(firsts) if firsts else None,
            kappa=quadratic_kappa(mine, data, ("1", "2")) if sides else None,
            self_agreement=sum(same) / len(same) if same else None,
            self_kappa=quadratic_kappa(first, second, _SCALE) if same else None,
        )

    def preferences(self) -> dict[int, str]:
        """What was preferred in each row that was decided, `chosen` or `rejected`, by row from 1.

        A pair that was shown twice and answered otherwise the second time is not decided.
        """
        preferred: dict[int, str | None] = {}
        for label in sorted(self.labels.values(), key=lambda label: label.place):
            if label.prefers is not None:
                known = preferred.get(label.row, label.prefers)
                preferred[label.row] = label.prefers if known == label.prefers else None
        return {row: side for row, side in preferred.items() if side in ("chosen", "rejected")}

    def _first_labels(self) -> Iterator[Label]:
        return (label for place, label in self.labels.items() if not self.places[place][1])

    def _twice(self) -> tuple[list[str], list[str]]:
        """What was preferred the first and the second time, of pairs with two answers."""
        pairs = []
        for place, label in self.labels.items():
            pair, is_again = self.places[place]
            earlier = self.labels.get(self._first[pair])
            if is_again and earlier is not None and earlier.prefers is not None and label.prefers is not None:
                pairs.append((earlier.prefers, label.prefers))
        return [a for a, _ in pairs], [b for _, b in pairs]

    def _now(self) -> Shown:
        now = self.current
        if now is None:
            raise ValueError("nothing is shown any more")
        return now

    def _change(self, record: Record) -> None:
        self.save(record)
        self.replay(record)

    def replay(self, record: Record) -> None:
        """Apply one record. Raises ValueError where it is invalid or does not fit the schedule."""
        match record:
            case {
                "place": int(place),
                "row": int(row),
                "choice": choice,
                "swapped": bool(swapped),
                "time": int(when) | float(when),
            } if choice in CHOICES and 0 <= place < len(self.places):
                self.labels[place] = Label(place, row, choice, swapped, when)
                self._given.append(place)
            case {"undo": int(place)}:
                self.labels.pop(place, None)
                self._given = [given for given in self._given if given != place]
            case {"flag": int(row), "on": bool(on)}:
                (self.flags.add if on else self.flags.discard)(row)
            case {"note": int(row), "text": str(text)}:
                self.notes.pop(row, None)
                if text:
                    self.notes[row] = text
            case _:
                raise ValueError("expected a label, undo, flag or note")


# --- the journal, and the labelled pairs --------------------------------------------------------------------


def read_items(source: str, format_name: str | None = None) -> tuple[list[Item], str]:
    """The pairs of a source to label, and the digest of its content. Rows that are no pair are skipped.

    Raises UserError for a source that cannot be read, and for one without a pair.
    """
    opened = open_source(source)
    items = []
    for row in read_rows(opened, "pairs", None, format_name):
        if isinstance(row.result, InvalidRow | Skipped):
            continue
        assert isinstance(row.result, Pair)
        prompt, _ = prompt_texts(row.result.prompt)
        sides = (answer_text(side).strip() for side in row.result.responses)
        items.append(Item(row.rows[0] + 1, prompt, *sides))
    if not items:
        raise UserError(f"{opened.label}: no pair in it to label")
    return items, opened.digest


def open_labelling(
    source: str, journal: Path, *, seed: int = 0, again: float = 0.1, format_name: str | None = None
) -> Labelling:
    """Begin to label a source, or resume where the journal ends.

    A journal keeps the seed and the share that it began with.
    Raises UserError for a source without pairs, and for a journal that is broken or of other data.
    """
    items, digest = read_items(source, format_name)
    records = _records(journal)
    if not records:
        header = {"v": VERSION, "source": source, "digest": digest, "seed": seed, "again": again}
        append_record(journal, {**header, "pairs": len(items)})
        return Labelling(items, seed, again, partial(append_record, journal))
    first = records[0]
    share = first.get("again", 0)
    is_share = isinstance(share, int | float) and 0 <= share <= 1
    if first.get("v") != VERSION or not isinstance(first.get("seed"), int) or not is_share:
        raise UserError(f"{journal}:1: not the header of a label journal; give another name")
    if first.get("digest") != digest:
        raise UserError(f"{journal}: holds labels of {first.get('source')} as it was; give another name")
    state = Labelling(items, first["seed"], float(share), partial(append_record, journal))
    for number, record in enumerate(records[1:], start=2):
        try:
            state.replay(record)
        except ValueError as error:
            raise UserError(f"{journal}:{number}: {error}") from error
    return state


def append_record(journal: Path, record: Record) -> None:
    """One line at the end of the journal, on the disk when this returns. Raises UserError for no space."""
    try:
        with LogWriter(journal, durable=True) as log:
            log.append(encode(record))
    except OSError as error:
        raise UserError(f"{journal}: cannot be written ({error.strerror})") from error


def _records(journal: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in LogTail(journal).lines():
        try:
            record = decode(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{journal}:{number}: not a line of JSON: {error}; remove the line to continue"
            ) from error
        if not isinstance(record, dict):
            raise UserError(f"{journal}:{number}: expected an object")
        records.append(record)
    return records


def write_labelled(
    source: str, state: Labelling, out: Path, *, format_name: str | None = None, force: bool = False
) -> tuple[int, int]:
    """Write the decided pairs of `source`, in its order, as rows of prompt, chosen and rejected; how many.

    A column `label` holds the pair's row, whether the label agrees with the data, and flag and note if there
    are any. A pair whose preferred answer was cut is left out, since a chosen answer always ends; the second
    number is of these. Raises UserError for a file that is there already.
    """
    check_output(out, force=force)
    decided = state.preferences()
    written = cut = 0
    with json_lines(out) as put:
        for row in read_rows(open_source(source), "pairs", None, format_name):
            number = row.rows[0] + 1
            side = decided.get(number)
            if side is None or not isinstance(row.result, Pair):
                continue
            pair = row.result
            if side == "rejected":
                if not pair.rejected_ended:
                    cut += 1
                    continue
                pair = replace(pair, chosen=pair.rejected, rejected=pair.chosen)
            label: dict[str, Any] = {"row": number, "agrees": side == "chosen"}
            label |= {"flagged": True} if number in state.flags else {}
            label |= {"note": state.notes[number]} if number in state.notes else {}
            for record in explicit(pair, {"label": label}).records:
                put(record)
            written += 1
    return written, cut
