"""Votes: appended, read back, taken back; sides by chance but the same each time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo.core.errors import UserError
from localdpo.records.verdicts import Choice
from localdpo.records.votes import Vote, Votes, sides, subject, tally, text_id


def vote(prompt: str = "p", choice: Choice = "first", time: float = 1.0, texts: str = "xy") -> Vote:
    return Vote(time, prompt, "dpo", "sft", choice, 7, (text_id(texts[0]), text_id(texts[1])))


def test_votes_are_kept_and_the_latest_on_two_texts_counts(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    votes = Votes(path)
    assert votes.all() == []
    votes.add(vote())
    votes.add(vote("q", "tie", 2.0))
    votes.add(vote(choice="second", time=3.0, texts="yx"))
    again = Votes(path)
    assert again.all() == votes.all() == [vote("q", "tie", 2.0), vote(choice="second", time=3.0, texts="yx")]
    assert again.of(subject("p", text_id("y"), text_id("x"))) == vote(choice="second", time=3.0, texts="yx")
    assert again.of(subject("p", text_id("z"), text_id("x"))) is None


def test_undo_brings_the_one_before_back(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    votes = Votes(path)
    about = vote().subject
    assert votes.undo(about) is None
    assert not path.exists()
    votes.add(vote())
    votes.add(vote(choice="tie"))
    assert votes.undo(about) == vote(choice="tie")
    assert Votes(path).of(about) == votes.of(about) == vote()
    votes.undo(about)
    assert Votes(path).all() == []
    assert path.read_bytes().count(b"\n") == 4, "nothing is ever taken out of the file"


def test_a_torn_line_is_no_vote_and_the_next_one_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    Votes(path).add(vote())
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    votes = Votes(path)
    votes.add(vote("q"))
    assert [each.prompt for each in Votes(path).all()] == ["p", "q"]


@pytest.mark.parametrize(
    "line", ["nonsense", "{}", '{"answers":["a","b"],"choice":"best"}', "[]", '{"answers":"a"}']
)
def test_a_line_that_is_no_vote_is_said(line: str, tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    Votes(path).add(vote())
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"votes.jsonl:2: not a vote"):
        Votes(path)


def test_votes_are_tallied_by_name() -> None:
    votes = [vote(), vote("q", "second"), vote("r", "tie"), vote("s")]
    assert tally(votes, "dpo", "sft") == (2, 1, 1)
    assert tally(votes, "sft", "dpo") == (1, 1, 2)
    assert tally(votes, "base", "sft") == (0, 0, 0)


@given(st.text(max_size=8), st.integers(0, 2**40))
def test_sides_do_not_depend_on_the_order_of_the_names(prompt: str, seed: int) -> None:
    assert sides(prompt, ("sft", "dpo"), seed) == sides(prompt, ("dpo", "sft"), seed)
    assert set(sides(prompt, ("sft", "dpo"), seed)) == {"sft", "dpo"}


def test_both_sides_are_about_as_frequent() -> None:
    first = sum(sides(str(i), ("sft", "dpo"), 0)[0] == "dpo" for i in range(2000))
    assert 900 < first < 1100
    other = [sides(str(i), ("sft", "dpo"), 1)[0] for i in range(50)]
    assert other != [sides(str(i), ("sft", "dpo"), 0)[0] for i in range(50)]


def test_a_vote_that_was_changed_since_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    votes = Votes(path)
    for prompt in ("p", "q"):
        votes.add(Vote(1.0, prompt, "dpo", "sft", "first", 0, ("a", "b")))
    assert len(Votes(path).all()) == 2
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b'"first":"dpo"', b'"first":"dpp"'))
    with pytest.raises(UserError, match=r"votes\.jsonl:2: not a vote .*checksum.*remove the line"):
        Votes(path)
