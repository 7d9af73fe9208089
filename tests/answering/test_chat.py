"""Conversations with a run's models: what each is asked, what it answers, what stays of it."""

from __future__ import annotations

import io
import itertools
import shlex
import sys
from pathlib import Path

import pytest
from answering_runs import run_folder
from command import localdpo

from localdpo.answering.chat import ALL, Conversation, Speakers
from localdpo.answering.generator import answer_all
from localdpo.cli import chat as command
from localdpo.core.errors import UserError
from localdpo.core.text import escaped
from localdpo.data.prompts import PromptRow
from localdpo.records.answers import Sampling
from localdpo.records.rundir import RunDir
from localdpo.records.wording import closing_lines

pytestmark = pytest.mark.slow

QUESTIONS = ("What is question number 7?", "And the answer to it?")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, sft_adapter: Path) -> RunDir:
    return run_folder(tmp_path_factory.mktemp("runs") / "a", tiny_model, sft_adapter)


def conversation(run: RunDir, *, system: str | None = None, sampling: Sampling | None = None) -> Conversation:
    return Conversation(run, system=system, sampling=sampling or Sampling(max_tokens=6), note=print)


def answered(talk: Conversation, speakers: Speakers) -> dict[str, list[str]]:
    """The texts of all answers, once nothing is missing."""
    while (name := talk.missing()) is not None:
        for _ in speakers.answer(name):
            pass
    return {name: [answer.text for answer in every] for name, every in talk.answers.items()}


def test_each_model_goes_on_with_its_own_answers_and_says_what_compare_says(run: RunDir) -> None:
    talk = conversation(run)
    speakers = Speakers(talk)
    talk.take(QUESTIONS[0])
    assert [*answered(talk, speakers).values()][:2] == [[], []]
    talk.take("/all")
    first = answered(talk, speakers)
    rows = answer_all(run, talk.contestants, [PromptRow(QUESTIONS[0])], talk.sampling, scores=False)
    assert first == {name: [record.text for record in records] for name, records in rows.items()}
    talk.take(QUESTIONS[1])
    second = answered(talk, speakers)
    for name in talk.models:
        turns = [
            {"role": "user", "content": QUESTIONS[0]},
            {"role": "assistant", "content": first[name][0]},
            {"role": "user", "content": QUESTIONS[1]},
        ]
        again = answer_all(
            run,
            talk.contestants,
            [PromptRow(turns)],
            talk.sampling,
            scores=False,  # type: ignore[arg-type]
        )
        assert second[name] == [first[name][0], again[name][0].text]


def test_pieces_grow_to_the_answer_and_what_was_said_before_a_stop_stays(run: RunDir) -> None:
    talk = conversation(run, system="Be short.", sampling=Sampling(6, temperature=1.0, seed=3))
    assert talk.choice == "dpo"
    speakers = Speakers(talk)
    talk.take(QUESTIONS[0])
    assert talk.messages("dpo")[0] == {"role": "system", "content": "Be short."}
    pieces = [piece.text for piece in speakers.answer("dpo")]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(pieces))
    talk.new()
    talk.take(QUESTIONS[0])
    pieces_of = speakers.answer("dpo")
    next(pieces_of), next(pieces_of)
    pieces_of.close()
    (cut,) = talk.answers["dpo"]
    assert cut.text == pieces[1]
    assert not cut.finished
    assert talk.missing() is None


def test_lines_of_stdin_are_answered(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = conversation(run)
    speakers = Speakers(talk)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTIONS[0]}\n\n/all\n/new\n/sft\n{QUESTIONS[1]}\n"))
    command.talk_in_lines(talk, speakers)
    first = conversation(run)
    first.take("/all")
    first.take(QUESTIONS[0])
    texts = {
        name: [escaped(text) for text in every]
        for name, every in answered(first, speakers_of(first, speakers)).items()
    }
    shown = capsys.readouterr().out
    (last,) = talk.answers["sft"]
    of_all = f"base: {texts['base'][0]}\nSFT: {texts['sft'][0]}\n"
    assert shown == f"{texts['dpo'][0]}\n{of_all}{escaped(last.text)}\n"


def speakers_of(talk: Conversation, speakers: Speakers) -> Speakers:
    """The loaded models for another conversation."""
    speakers._conversation = talk
    return speakers


def test_the_command_at_the_end_of_a_run_works_as_it_is_printed(run: RunDir) -> None:
    program, *words = shlex.split(closing_lines(run, [])[-1].removeprefix("try it: "))
    done = localdpo(*words, "--max-tokens", "4", stdin=f"{QUESTIONS[0]}\n")
    assert (program, done.returncode) == ("localdpo", 0)
    assert done.stdout.strip()


def test_a_line_with_a_slash_is_a_command_or_an_error(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = conversation(run)
    for words in ("/gpt who?", "/", "/dpoo", "/ new"):
        with pytest.raises(UserError, match="no such command; expected /new, /base, /sft, /dpo, /all; begin"):
            talk.take(words)
    assert talk.take("//etc/hosts, what is it?")
    assert talk.take("a/b")
    assert talk.questions == ["/etc/hosts, what is it?", "a/b"]
    speakers = Speakers(talk)
    monkeypatch.setattr(sys, "stdin", io.StringIO("/gpt\n/new\n"))
    with pytest.raises(UserError, match="/gpt: no such command"):
        command.talk_in_lines(talk, speakers)
    # At a terminal the person goes on.
    monkeypatch.setattr(sys, "stdin", stdin := io.StringIO("/gpt\n/new\n"))
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    command.talk_in_lines(talk, speakers)
    assert capsys.readouterr().err.startswith("error: /gpt: no such command")
    assert talk.questions == []


def test_mistakes_are_one_line(run: RunDir) -> None:
    with pytest.raises(UserError, match="--model gpt: expected one of base, sft, dpo, all"):
        conversation(run).choose("gpt")
    assert conversation(run).choices[-1] == ALL
    done = localdpo("chat", run.name, "--runs-dir", str(run.path.parent))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: chat: nothing to answer: stdin is empty")


def test_ctrl_c_at_the_prompt_ends_its_line(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def readline(self, size: int | None = -1, /) -> str:
            raise KeyboardInterrupt

    talk = conversation(run)
    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(KeyboardInterrupt):
        command.talk_in_lines(talk, Speakers(talk))
    assert capsys.readouterr().out.endswith("choose who answers\n> \n")
