"""`localdpo chat`: a conversation with the models of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localdpo.cli import options as opt
from localdpo.core.errors import UserError
from localdpo.out import has_screen, note, say, say_errors
from localdpo.records.answers import Sampling
from localdpo.records.rundir import find_run

if TYPE_CHECKING:
    from localdpo.answering.chat import Conversation, Speakers


def chat(
    run: opt.RunArgument = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Who answers: base, sft, dpo or all. Default: the trained one."),
    ] = None,
    system_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The conversation's system prompt.")
    ] = None,
    max_tokens: opt.MaxTokensOption = 256,
    temperature: opt.TemperatureOption = 0.0,
    seed: opt.SeedOption = 0,
    plain: Annotated[
        bool, typer.Option("--plain", help="A question a line on stdin, answers on stdout, no screen.")
    ] = False,
    runs_dir: opt.RunsDirOption = Path("runs"),
) -> None:
    """Talk to base, SFT and trained model, alone or side by side.

    The base is loaded once for all three.
    """
    found = find_run(runs_dir, run)
    note(f"loading the models of {found.path}")
    from localdpo.answering.chat import Conversation

    talk = Conversation(
        found,
        system=system_prompt,
        sampling=Sampling(max_tokens, temperature, seed),
        note=note,
    )
    if model is not None:
        talk.choose(model)
    if plain or not has_screen():
        from localdpo.answering.chat import Speakers

        talk_in_lines(talk, Speakers(talk))
        return
    from localdpo.cli.chat_screen import ChatScreen
    from localdpo.dashboard.appbase import ScreenApp, run_app

    screen = ChatScreen(talk)
    run_app(ScreenApp(screen))
    screen.speaking.join()


def talk_in_lines(talk: Conversation, speakers: Speakers) -> None:
    """Answer the lines of stdin; Ctrl-C ends an answer, and at the prompt the conversation."""
    asks = sys.stdin.isatty()
    if asks:
        say(f"a line asks {talk.choice}; /new begins anew, /{', /'.join(talk.choices)} choose who answers")
    said = 0
    while True:
        if asks:
            say("> ", end="")
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            # The terminal's ^C is behind the prompt; the shell's own prompt begins a line.
            say("")
            raise
        if not line:
            break
        try:
            if line.strip() and talk.take(line.strip()):
                said += 1
                say_answers(talk, speakers)
        except KeyboardInterrupt:
            say("")
        except UserError as error:
            if not asks:
                raise
            say_errors(error)
    if asks:
        say("")
    elif said == 0:
        raise UserError("chat: nothing to answer: stdin is empty, and a conversation needs a question a line")


def say_answers(talk: Conversation, speakers: Speakers) -> None:
    """Print what is missing, piece by piece as it is drawn; with several models each after its name."""
    while (name := talk.missing()) is not None:
        say(f"{talk.models[name]}: " if len(talk.shown) > 1 else "", end="")
        printed = 0
        for answer in speakers.answer(name):
            say(answer.text[printed:], end="")
            printed = len(answer.text)
        say("")
