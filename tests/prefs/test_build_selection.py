"""Which answers make a pair, and where it goes: against cases worked out by hand, and as properties."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo.judging.base import PairVerdict
from localdpo.prefs import selection
from localdpo.prefs.rewrite import split_by_prompt
from localdpo.prefs.selection import BuiltPair, against_cut, best_and_low, by_choice, by_scores, usable
from localdpo.records.answers import AnswerRecord
from localdpo.records.verdicts import Verdict


def answer(text: str, finished: bool = True) -> AnswerRecord:
    return AnswerRecord(0, "1", text, len(text), finished)


def said(first: str, second: str) -> PairVerdict:
    return PairVerdict("0", Verdict("ok", choice=first), Verdict("ok", choice=second))  # type: ignore[arg-type]


def scored(value: float) -> Verdict:
    return Verdict("ok", score=value)


def test_empty_cut_and_repeated_answers_are_not_judged() -> None:
    answers = {
        "1": answer(" \n"),
        "2": answer("yes"),
        "3": answer("never en", finished=False),
        "4": answer("yes\n"),
        "5": answer("no"),
    }
    kept, dropped = usable(answers)
    assert kept == ["2", "5"]
    assert dropped == Counter({selection.EMPTY: 1, selection.CUT: 1, selection.SAME: 1})


def test_answers_with_too_few_words_are_not_judged() -> None:
    texts = {"1": " one two\n", "2": "one  two three", "3": "", "4": "a b c d"}
    kept, dropped = usable({name: answer(text) for name, text in texts.items()}, min_words=3)
    assert kept == ["2", "4"]
    assert dropped == Counter({selection.SHORT: 1, selection.EMPTY: 1})


def test_answers_that_were_cut_are_judged_like_others_where_they_count() -> None:
    answers = {
        "1": answer("one two thr\ufffd", finished=False),
        "2": answer("one", finished=False),
        "3": answer("one two thr\n"),
        "4": answer("\ufffd", finished=False),
    }
    kept, dropped = usable(answers, min_words=2, cut=True)
    assert kept == ["1"]
    assert dropped == Counter({selection.SHORT: 1, selection.SAME: 1, selection.EMPTY: 1})
    assert [selection.text_of(answers[name]) for name in "13"] == ["one two thr", "one two thr\n"]
    assert usable(answers) == (["3"], Counter({selection.CUT: 3}))


@pytest.mark.parametrize(
    ("choices", "found", "scored"),
    [
        (("first", "second"), BuiltPair(3, "ended", "cut"), BuiltPair(3, "ended", "cut")),
        (("tie", "tie"), BuiltPair(3, "ended", "cut"), BuiltPair(3, "ended", "cut")),
        (("second", "first"), selection.CUT_PREFERRED, BuiltPair(3, "ended", "cut")),
        (("first", "first"), selection.FLIPPED, selection.FLIPPED),
    ],
)
def test_an_answer_that_was_cut_is_rejected_or_makes_no_pair(
    choices: tuple[str, str], found: object, scored: object
) -> None:
    pair = by_choice(3, ("ended", "cut"), said(*choices))
    assert against_cut(pair, 3, "ended", "cut", scored=False) == found
    assert against_cut(pair, 3, "ended", "cut", scored=True) == scored


def test_a_penalty_is_taken_from_the_score_of_the_answer_that_was_cut() -> None:
    pair = BuiltPair(3, "ended", "cut")
    assert selection.with_scores(pair, scored(3), scored(4), 2.0) == BuiltPair(3, "ended", "cut", (3, 2))
    assert selection.with_scores(pair, scored(3), scored(5), 2.0) == selection.CUT_NOT_BELOW
    lengths = {"1": 9, "2": 12, "3": 12}
    # 5 - 3 = 2 is the lowest; the best of those that ended is chosen, though one that was cut scored higher.
    scores = {"1": 4.0, "2": 5.0, "3": 3.0}
    assert by_scores(0, scores, lengths, {"2": 3.0}) == BuiltPair(0, "1", "2", (4.0, 2.0))
    assert by_scores(0, scores, lengths, {"2": 3.0, "3": 3.0}) == BuiltPair(0, "1", "3", (4.0, 0.0))
    # Nothing is below the only one that ended.
    assert by_scores(0, scores, lengths, {"1": 0.5, "2": 0.5}) == selection.CUT_NOT_BELOW
    assert by_scores(0, {"1": 4.0, "2": 5.0}, lengths, {"2": 1.0}) == selection.ALL_EQUAL
    assert (
        by_scores(0, {"1": None, "2": 5.0, "3": 3.0}, lengths, {"2": 1.0, "3": 1.0})
        == selection.CUT_NOT_BELOW
    )


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=2, max_size=9), st.integers(1, 6))
def test_an_answer_that_was_cut_is_never_chosen(candidates: list[tuple[int, bool]], penalty: int) -> None:
    scores = {str(i): float(score) for i, (score, _) in enumerate(candidates)}
    penalties = {str(i): float(penalty) for i, (_, ended) in enumerate(candidates) if not ended}
    after = {name: score - penalties.get(name, 0.0) for name, score in scores.items()}
    pair = by_scores(0, scores, dict.fromkeys(scores, 9), penalties)
    best = max((score for name, score in after.items() if name not in penalties), default=None)
    if best is None or min(after.values()) >= best:
        assert isinstance(pair, str)
        return
    assert isinstance(pair, BuiltPair)
    assert pair.chosen not in penalties
    assert pair.scores == (best, after[pair.rejected])
    assert after[pair.rejected] < best


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("first", "second", BuiltPair(3, "a", "b")),
        ("second", "first", BuiltPair(3, "b", "a")),
        ("first", "first", selection.FLIPPED),
        ("first", "tie", selection.FLIPPED),
        ("tie", "tie", selection.TIE),
    ],
)
def test_both_orders_must_agree(first: str, second: str, found: object) -> None:
    assert by_choice(3, ("a", "b"), said(first, second)) == found


def test_a_verdict_that_says_nothing_makes_no_pair() -> None:
    verdict = PairVerdict("0", Verdict("ok", choice="first"), Verdict("refused"))
    assert by_choice(0, ("a", "b"), verdict) == selection.NO_VERDICT


def test_scores_must_say_what_the_choice_says() -> None:
    pair = BuiltPair(3, "a", "b")
    assert selection.with_scores(pair, scored(4), scored(3)) == BuiltPair(3, "a", "b", (4, 3))
    assert selection.with_scores(pair, scored(3), scored(3)) == selection.CONTRADICTED
    assert selection.with_scores(pair, scored(2), scored(3)) == selection.CONTRADICTED
    assert selection.with_scores(pair, scored(2), Verdict("truncated")) == selection.UNSCORED


@pytest.mark.parametrize(
    ("scores", "places"),
    [
        # mean 3, sd sqrt(2), mean - 2 sd = 0.17: the lowest.
        ([1, 2, 3, 4, 5], (4, 0)),
        # mean 4.6, sd 1.2, target 2.2: 1 is 1.2 away, 5 is 2.8 away.
        ([5] * 9 + [1], (0, 9)),
        # mean 4.05, sd 1.071, target 1.908: 2 is nearer than the very worst.
        ([5] * 8 + [4] * 8 + [3] * 2 + [2, 1], (0, 18)),
        # mean 4.96, sd 0.398, target 4.164: a 5 is nearest, but a rejected answer must be worse.
        ([5] * 99 + [1], (0, 99)),
        # Of equally good ones the first, of equally bad ones the first.
        ([2, 4, 2, 4], (1, 0)),
        ([3, 3, 3], None),
    ],
)
def test_best_against_the_one_nearest_to_two_deviations_below(
    scores: list[float], places: tuple[int, int] | None
) -> None:
    assert best_and_low(scores, [20] * len(scores)) == places


def test_of_equal_scores_those_of_nearly_one_length_make_the_pair() -> None:
    scores, lengths = [5, 5, 5, 1, 1, 3], [10, 40, 80, 200, 75, 81]
    assert best_and_low(scores, lengths) == (2, 4)
    pair = by_scores(0, dict(zip("abcdef", scores, strict=True)), dict(zip("abcdef", lengths, strict=True)))
    assert pair == BuiltPair(0, "c", "e", (5, 1))


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 99)), min_size=2, max_size=40))
def test_the_rejected_answer_is_always_worse(candidates: list[tuple[int, int]]) -> None:
    scores, lengths = [list(column) for column in zip(*candidates, strict=True)]
    places = best_and_low(scores, lengths)
    if len(set(scores)) == 1:
        assert places is None
    else:
        assert places is not None
        assert scores[places[0]] == max(scores)
        assert scores[places[1]] < max(scores)


def test_candidates_without_a_score_are_left_out() -> None:
    lengths = {"1": 9, "2": 9, "3": 30}
    assert by_scores(7, {"1": 2.0, "2": None, "3": 4.5}, lengths) == BuiltPair(7, "3", "1", (4.5, 2.0))
    assert by_scores(7, {"1": 2.0, "2": None}, lengths) == selection.UNSCORED
    assert by_scores(7, {"1": 2.0, "2": 2.0}, lengths) == selection.ALL_EQUAL


NAMES = st.lists(st.sampled_from([f"prompt {i}" for i in range(30)]), max_size=60)


@given(NAMES, st.integers(0, 60), st.integers(0, 3))
def test_no_prompt_is_on_both_sides(names: list[str], wanted: int, seed: int) -> None:
    held = split_by_prompt(names, wanted, seed)
    sides = {(name, side) for name, side in zip(names, held, strict=True)}
    assert len(sides) == len(set(names))
    assert sum(held) <= wanted
    assert held == split_by_prompt(names, wanted, seed)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 3))
def test_without_repeats_exactly_so_many_are_held_out(count: int, wanted: int, seed: int) -> None:
    names = [str(i) for i in range(count)]
    held = split_by_prompt(names, wanted, seed)
    assert sum(held) == min(wanted, count)
    # The order of the rows does not matter.
    assert dict(zip(names, held, strict=True)) == dict(
        zip(names[::-1], split_by_prompt(names[::-1], wanted, seed), strict=True)
    )
