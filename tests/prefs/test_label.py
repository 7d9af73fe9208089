"""Labelling: blind sides, hidden re-shows, undo, and a journal from which the state comes back."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from clean_pairs import clean_rows, write
from hypothesis import given
from hypothesis import strategies as st

from localdpo.core.errors import UserError
from localdpo.prefs.label import CHOICES, GAP, Item, Labelling, append_record, open_labelling, schedule


def items(count: int) -> list[Item]:
    return [Item(i + 1, f"prompt {i}", f"good {i}", f"bad {i}") for i in range(count)]


@given(st.integers(0, 80), st.integers(0, 9), st.floats(0, 1))
def test_every_pair_comes_once_and_some_come_back_later(count: int, seed: int, again: float) -> None:
    places = schedule(count, seed, again)
    assert places == schedule(count, seed, again)
    first = [pair for pair, is_again in places if not is_again]
    assert sorted(first) == list(range(count))
    back = [pair for pair, is_again in places if is_again]
    assert len(set(back)) == len(back) == min(max(0, count - GAP), round(again * count))
    for pair in back:
        assert places.index((pair, True)) - places.index((pair, False)) >= GAP


def test_sides_are_drawn_and_exchanged_the_second_time() -> None:
    state = Labelling(items(200), seed=3, again=0.3)
    shows = [state.shown(place) for place in range(len(state.places))]
    first = {shown.item.row: shown.swapped for shown in shows if not shown.again}
    assert 0.4 < sum(first.values()) / 200 < 0.6
    assert all(shown.swapped != first[shown.item.row] for shown in shows if shown.again)
    assert {shown.answers for shown in shows if shown.item.row == 1} <= {
        ("good 0", "bad 0"),
        ("bad 0", "good 0"),
    }


def prefer(state: Labelling, side: str) -> None:
    """Answer so that the data's `side` is preferred."""
    now = state.current
    assert now is not None
    state.answer("1" if (side == "chosen") != now.swapped else "2")


def test_a_person_who_agrees_with_the_data_and_with_oneself() -> None:
    state = Labelling(items(60), again=0.5)
    while state.current is not None:
        prefer(state, "chosen")
    done = state.summary()
    assert (done.done, done.total) == (90, 90)
    assert (done.agreement, done.kappa, done.self_agreement) == (1.0, 1.0, 1.0)
    # One rating throughout: chance alone would agree as well.
    assert done.self_kappa is None
    assert state.preferences() == {row: "chosen" for row in range(1, 61)}


def test_a_person_who_always_takes_the_first_agrees_with_nobody() -> None:
    state = Labelling(items(300), again=0.5)
    while state.current is not None:
        state.answer("1")
    done = state.summary()
    assert done.agreement == pytest.approx(0.5, abs=0.1)
    assert done.kappa == pytest.approx(0.0, abs=0.1)
    # The sides are exchanged the second time, so the same side is the other answer.
    assert done.self_agreement == 0.0
    assert done.self_kappa is not None
    assert done.self_kappa < -0.8
    # Only what came once is decided.
    assert len(state.preferences()) == 150


def test_ties_skips_flags_and_notes() -> None:
    state = Labelling(items(5), again=0)
    rows = []
    for choice in ("tie", "bad", "skip"):
        assert state.current is not None
        rows.append(state.current.item.row)
        state.flag()
        state.note(choice)
        state.answer(choice)
    assert state.notes == dict(zip(rows, ("tie", "bad", "skip"), strict=True))
    assert state.undo()
    state.flag()
    state.note("")
    assert state.summary().choices == {"1": 0, "2": 0, "tie": 1, "bad": 1, "skip": 0}
    assert state.summary().flagged == tuple(sorted(rows[:2]))
    assert list(state.notes) == rows[:2]
    assert state.preferences() == {}
    assert state.summary().agreement is None


def test_undo_goes_back_one_by_one() -> None:
    state = Labelling(items(3), again=0)
    for _ in range(3):
        state.answer("1")
    assert state.current is None
    with pytest.raises(ValueError, match="nothing to answer"):
        state.answer("1")
    with pytest.raises(ValueError, match="nothing is shown"):
        state.flag()
    places = []
    while state.undo():
        assert state.current is not None
        places.append(state.current.place)
    assert places == [2, 1, 0]
    assert not state.undo()


def test_a_label_that_cannot_be_saved_is_not_given() -> None:
    def full(record: Any) -> None:
        raise UserError("no space left")

    state = Labelling(items(2), save=full)
    with pytest.raises(UserError):
        state.answer("1")
    assert state.labels == {}


def seen(state: Labelling) -> Any:
    return state.labels, state.flags, state.notes, state.current


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write(tmp_path / "pairs.jsonl", clean_rows(15))


def test_the_journal_is_the_whole_state(source: str, tmp_path: Path) -> None:
    rng = random.Random(4)
    journal = tmp_path / "labels.jsonl"
    state = open_labelling(source, journal, seed=5, again=0.2)
    for _ in range(60):
        key = rng.randrange(6)
        if key == 0 or state.current is None:
            state.undo()
        elif key == 1:
            state.flag()
        elif key == 2:
            state.note(rng.choice(["", "why?"]))
        else:
            state.answer(rng.choice(CHOICES))
        # Another seed does not count: the journal keeps its own.
        assert seen(open_labelling(source, journal, seed=99, again=0.9)) == seen(state)


def test_a_torn_line_is_taken_away(source: str, tmp_path: Path) -> None:
    journal = tmp_path / "labels.jsonl"
    state = open_labelling(source, journal)
    state.answer("1")
    whole = journal.read_bytes()
    state.answer("2")
    content = journal.read_bytes()
    for cut in range(len(whole) + 1, len(content)):
        journal.write_bytes(content[:cut])
        again = open_labelling(source, journal)
        assert len(again.labels) == 1
        again.answer("tie")
        assert [label.choice for label in open_labelling(source, journal).labels.values()] == ["1", "tie"]


def test_labels_of_other_data_are_refused(source: str, tmp_path: Path) -> None:
    journal = tmp_path / "labels.jsonl"
    open_labelling(source, journal)
    write(tmp_path / "pairs.jsonl", clean_rows(16))
    with pytest.raises(UserError, match=r"labels.jsonl: holds labels of .*pairs.jsonl as it was"):
        open_labelling(source, journal)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "labels.jsonl:2: not a line of JSON"),
        ("[]", "labels.jsonl:2: expected an object"),
        (json.dumps({"place": 99, "choice": "1"}), "labels.jsonl:2: expected a label, undo, flag or note"),
    ],
)
def test_a_broken_journal_names_its_line(line: str, message: str, source: str, tmp_path: Path) -> None:
    journal = tmp_path / "labels.jsonl"
    open_labelling(source, journal)
    journal.write_text(journal.read_text() + line + "\n")
    with pytest.raises(UserError, match=message):
        open_labelling(source, journal)


def test_another_file_is_no_journal(source: str, tmp_path: Path) -> None:
    append_record(tmp_path / "other.jsonl", {"prompt": "q"})
    with pytest.raises(UserError, match="not the header of a label journal"):
        open_labelling(source, tmp_path / "other.jsonl")


def test_data_without_a_pair_cannot_be_labelled(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": 1, "rejected": 2}])
    with pytest.raises(UserError, match="no pair in it to label"):
        open_labelling(path, tmp_path / "labels.jsonl")
