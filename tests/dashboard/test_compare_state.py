"""What the compare screen shows, without a screen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_answers import TEXTS, header, record, write_answers, write_verdict

from localdpo.dashboard.compare_state import FILTERS, CompareState, Verdicts
from localdpo.dashboard.compare_texts import CompareTexts, beginnings, logps_text, titles
from localdpo.dashboard.terminal import PALETTES, Abilities
from localdpo.records.answers import AnswersWriter, answers_path, read_answers
from localdpo.records.votes import Votes


def state_of(run: Path, path: Path | None = None) -> CompareState:
    verdicts = Verdicts(run / "eval" / "verdicts.jsonl")
    verdicts.poll()
    return CompareState(read_answers(path or write_answers(run)), Votes(run / "votes.jsonl"), verdicts)


def texts_of(state: CompareState, unicode: bool = True, **more: bool) -> CompareTexts:
    return CompareTexts(state, PALETTES["dark"], Abilities(unicode=unicode), **more)


def filtered(state: CompareState, name: str) -> list[int]:
    state.filter = [each.name for each in FILTERS].index(name)
    return [view.index for view in state.visible()]


def test_filters_keep_what_they_say(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    assert filtered(state, "all") == [0, 1, 2, 3]
    assert filtered(state, "differing") == [0, 2, 3]
    assert filtered(state, "longer") == [0, 3]
    assert filtered(state, "shorter") == [2]
    assert filtered(state, "lost") == []


def test_a_judge_must_prefer_the_other_in_both_orders(tmp_path: Path) -> None:
    (_, sft, dpo), three = TEXTS[0], TEXTS[2]
    write_verdict(tmp_path, "id0", (dpo, sft), "second")
    write_verdict(tmp_path, "id2", (three[2], three[1]), "second")
    write_verdict(tmp_path, "id2", (three[1], three[2]), "second")
    write_verdict(tmp_path, "id3", TEXTS[3][1:], None)
    state = state_of(tmp_path)
    assert filtered(state, "lost") == []
    write_verdict(tmp_path, "id0", (sft, dpo), "first", judge="another")
    assert state.verdicts.poll()
    assert filtered(state, "lost") == []
    write_verdict(tmp_path, "id0", (sft, dpo), "first")
    assert state.verdicts.poll()
    assert not state.verdicts.poll()
    assert filtered(state, "lost") == [0]


def test_damage_in_the_journal_is_passed_over(tmp_path: Path) -> None:
    write_verdict(tmp_path, "id0", ("a", "b"), "first")
    path = tmp_path / "eval" / "verdicts.jsonl"
    path.write_text("nonsense\n[]\n{}\n" + path.read_text() + '{"torn')
    verdicts = Verdicts(path)
    assert verdicts.poll()
    assert verdicts
    assert not Verdicts(tmp_path / "none.jsonl").poll()


def test_filters_without_verdicts_are_passed_over(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    names = []
    for _ in range(len(FILTERS)):
        names.append(FILTERS[state.filter].name)
        state.next_filter()
    assert names == ["all", "differing", "longer", "shorter", "all"]
    write_verdict(tmp_path, "id0", ("a", "b"), "first")
    state.verdicts.poll()
    state.filter = names.index("shorter")
    state.next_filter()
    assert FILTERS[state.filter].name == "lost"


def test_it_is_compared_with_sft_first_then_with_the_others(tmp_path: Path) -> None:
    state = state_of(tmp_path, write_answers(tmp_path, ("base", "sft", "dpo", "run:b")))
    seen = []
    for _ in range(4):
        seen.append(state.other)
        state.next_other()
    assert seen == ["sft", "base", "run:b", "sft"]
    assert state.trained == "dpo"


def test_without_a_start_adapter_it_is_the_base(tmp_path: Path) -> None:
    state = state_of(tmp_path, write_answers(tmp_path, ("base", "dpo")))
    assert (state.trained, state.other) == ("dpo", "base")


def test_answers_come_one_by_one(tmp_path: Path) -> None:
    path = answers_path(tmp_path, "k1")
    with AnswersWriter(path, header()) as writer:
        state = state_of(tmp_path, path)
        for name, mark in (("base", "waiting"), ("dpo", "waiting"), ("sft", "differs")):
            writer.answers(record(0, name))
            state.tail.poll()
            assert state.views()[0].mark == mark
    assert state.views()[1].pair is None
    assert filtered(state, "differing") == [0]


def test_a_vote_is_about_the_two_texts(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    state.blind = True
    view, same = state.views()[:2]
    assert state.hidden(view)
    assert state.panes(view) == state.sides(view)
    assert not state.vote(same, "tie", 1.0), "equal answers have no better one"
    first, _ = state.sides(view)
    assert state.vote(view, "first", 1.0)
    vote = state.vote_of(view)
    assert vote is not None
    assert vote.winner == first
    assert not state.hidden(view)
    assert state.tally() == ((1, 0, 0) if first == "dpo" else (0, 0, 1))
    again = state_of(tmp_path, answers_path(tmp_path, "k1"))
    assert again.vote_of(view) == vote
    # With another answer the vote counts no more.
    again.tail.records[0, "dpo"] = replace(again.tail.records[0, "dpo"], text="Something else.")
    assert again.vote_of(again.views()[0]) is None
    assert state.undo(view) == vote
    assert state.undo(view) is None
    assert state.hidden(view)


def test_the_next_prompt_differs_or_waits_for_a_vote(tmp_path: Path) -> None:
    state = state_of(tmp_path)

    def following(index: int) -> int | None:
        found = state.next_after(index)
        return None if found is None else found.index

    assert [following(index) for index in (0, 2, 3)] == [2, 3, 0]
    state.blind = True
    state.vote(state.views()[2], "tie", 1.0)
    assert following(0) == 3
    for index in (0, 3):
        state.vote(state.views()[index], "tie", 1.0)
    assert following(0) is None
    assert state.tally() == (0, 3, 0)


def test_names_are_nowhere_before_the_vote(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    state.blind = True
    view = state.views()[0]
    texts = texts_of(state)
    shown = [texts.figures(view), texts.tabs(view, state.panes(view), 0)]
    for place, name in enumerate(state.panes(view)):
        shown += texts.pane(view, name, place, 40)
    plain = " ".join(each.plain for each in shown)
    for word in ("DPO", "SFT", "base", "−", "«", "⟨", "new", "gone"):  # noqa: RUF001
        assert word not in plain
    assert "answer 1" in plain
    state.vote(view, "second", 1.0)
    told = [texts.title(view, name, place) for place, name in enumerate(state.panes(view))]
    assert sorted(title[6:9] for title in told) == ["DPO", "SFT"]
    assert told[1].endswith("your vote")


def test_words_that_differ_are_marked_on_both_sides(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    view = state.views()[0]
    plain = {
        name: texts_of(state, unicode=False).pane(view, name, 0, 60)[0].plain for name in state.header.names
    }
    assert plain["base"] == "It is."
    assert "{+" in plain["dpo"]
    assert "[-" in plain["sft"]
    bare = texts_of(state, marked=False)
    assert bare.pane(view, "dpo", 0, 60)[0].plain == TEXTS[0][2]
    assert "words new" in texts_of(state).figures(view).plain


def test_text_steers_nothing(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    body = texts_of(state).pane(state.views()[2], "base", 0, 60)[0]
    assert "\x1b" not in body.plain
    assert "[31mred" in body.plain


def test_log_probabilities_fit_the_frame() -> None:
    logps = {"base": -1.314, "sft": -0.92, "dpo": -1.0}
    labels = {"base": "base", "sft": "SFT", "dpo": "DPO"}
    assert logps_text(logps, labels, False, 60) == "base -1.31  SFT -0.92  DPO -1.00"
    assert logps_text(logps, labels, False, 24) == "b-1.31 S-0.92 D-1.00"
    assert logps_text({}, {}, True, 10) == ""
    assert beginnings(["SFT", "SIMPO", "base"]) == ["SF", "SI", "ba"]
    assert beginnings(["a", "a"]) == ["a", "a"]


@pytest.mark.parametrize("generating", [True, False])
def test_lines_say_what_is_missing(generating: bool, tmp_path: Path) -> None:
    state = state_of(tmp_path, write_answers(tmp_path, prompts=2, scores=False))
    texts = texts_of(state, generating=generating)
    status = texts.status().plain
    assert status.startswith("6/12 answers")
    assert ("generating" in status) == generating
    assert ("g resumes" in status) != generating
    assert "temperature 0.7, seed 3, at most 64 tokens" in status
    assert "[all] DPO≠SFT" in texts.filters().plain
    assert texts_of(state, unicode=False).filters().plain.isascii()
    waiting = texts.pane(state.views()[3], "dpo", 0, 40)[0].plain
    assert waiting.endswith("being generated" if generating else "not generated yet")


def test_titles_leave_out_what_all_prompts_begin_with(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    views = state.views()
    assert titles(views)[0] == "Why is the sky blue?"
    assert titles(views[:3]) == ["the sky blue?", "[bold]grass[/bold] green?", "snow white?"]
    assert titles(views[:1]) == ["Why is the sky blue?"]
    assert titles([views[0], views[0]]) == ["Why is the sky blue?"] * 2
    assert titles([]) == []


def test_a_journal_line_holds_what_is_read(tmp_path: Path) -> None:
    write_verdict(tmp_path, "id0", ("a", "b"), "first")
    assert json.loads((tmp_path / "eval" / "verdicts.jsonl").read_text())["verdict"]["choice"] == "first"
