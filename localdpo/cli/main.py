"""The `localdpo` command: its subcommands, and how every error ends.

Exit codes: 0 done; 2 a mistake that the user can fix (one `error:` line on stderr for each problem);
3 stopped on request; 4 the device failed or memory ran out (an `error:` line that says what to do); 130
stopped by Ctrl-C; 141 the reader of the output has gone (`| head`); 1 anything else.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from localdpo.cli.bench import bench
from localdpo.cli.chat import chat
from localdpo.cli.compare import compare
from localdpo.cli.doctor import doctor
from localdpo.cli.eval import evaluate
from localdpo.cli.export import export, import_model
from localdpo.cli.generate import generate, serve
from localdpo.cli.hosts import hosts
from localdpo.cli.init import init, schema
from localdpo.cli.inspect import inspect
from localdpo.cli.mcp import mcp
from localdpo.cli.prefs import prefs
from localdpo.cli.rounds import rounds
from localdpo.cli.runs import ctl, report, runs_group
from localdpo.cli.sweep import sweep
from localdpo.cli.train import train
from localdpo.cli.watch import watch
from localdpo.core.atomic import disk_refusals
from localdpo.core.errors import USER_ERROR_EXIT, LocalDPOError, UserError
from localdpo.core.names import program, remember_program
from localdpo.core.process import launched_rank
from localdpo.core.text import printable
from localdpo.out import OutputError, guard, say, say_device_error, say_errors

# The class of every mistake in the command line, which typer does not export by its own name.
USAGE_ERROR: Final[type[Any]] = typer.BadParameter.__bases__[0]
# How typer and pydantic open the message about a bad value.
_BAD_VALUE: Final = re.compile(r"Invalid value for (?P<name>'.+?'): (Value error, )?")

# The commands as --help lists them: under what one wants to do, in the order in which one comes to it.
COMMANDS: Final[Mapping[str, Mapping[str, Callable[..., None] | typer.Typer]]] = {
    "Train": {"init": init, "train": train, "rounds": rounds, "sweep": sweep},
    "Follow and steer": {
        "watch": watch,
        "runs": runs_group,
        "ctl": ctl,
        "inspect": inspect,
        "report": report,
    },
    "Compare and evaluate": {"compare": compare, "eval": evaluate},
    "Use the result": {"chat": chat, "generate": generate, "serve": serve, "export": export},
    "Data and models": {"prefs": prefs, "import": import_model},
    "Machines and programs": {"doctor": doctor, "bench": bench, "hosts": hosts, "schema": schema, "mcp": mcp},
}


class Grouped(TyperGroup):
    """The program, whose help lists its commands under the headings of COMMANDS."""

    def __init__(self, *, commands: Mapping[str, Any], **settings: Any) -> None:
        names = (name for group in COMMANDS.values() for name in group)
        super().__init__(commands={name: commands[name] for name in names}, **settings)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        widest = max(map(len, self.commands))
        for heading, names in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [
                        (name.ljust(widest), self.commands[name].get_short_help_str(formatter.width))
                        for name in names
                    ]
                )


# Without markup typer does not load rich for help and errors: half of the time that --help would take.
app = typer.Typer(
    name="localdpo",
    cls=Grouped,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _command in (entry for commands in COMMANDS.values() for entry in commands.items()):
    if isinstance(_command, typer.Typer):
        app.add_typer(_command)
    else:
        app.command(_name)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        from localdpo import __version__

        say(f"localdpo {__version__}")
        raise typer.Exit


@app.callback()
def localdpo(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train language models on human preferences (DPO) with MLX, on your own machine.

    To begin: init demo writes recipes that run offline, train carries one out, eval says whether it helped.
    """
    # Each rank would carry it out by itself, in the same folders.
    if context.invoked_subcommand != "train" and launched_rank() is not None:
        name = context.invoked_subcommand
        raise UserError(f"{name}: only `train` is for several processes; start it without mlx.launch")


@cache
def command_tree() -> Any:
    """The command with its subcommands, as typer builds it from `app`."""
    return typer.main.get_command(app)


def run() -> None:
    """Entry of the console script: run the command that sys.argv names and exit."""
    guard()
    remember_program()
    if sys.stdin is None:  # the parent process closed it: nothing can be typed
        sys.stdin = open(os.devnull)  # noqa: SIM115
    try:
        with disk_refusals():
            # Not standalone: typer would print usage errors in four lines, and end the process itself.
            sys.exit(command_tree()(prog_name=_called(), standalone_mode=False) or 0)
    except USAGE_ERROR as error:
        say(usage_text(error), error=True)
        sys.exit(USER_ERROR_EXIT)
    except LocalDPOError as error:
        say_errors(error)
        sys.exit(USER_ERROR_EXIT)
    except OutputError as error:
        say(f"error: the output cannot be written: {error.strerror}", error=True)
        sys.exit(USER_ERROR_EXIT)
    except (RuntimeError, MemoryError) as error:
        sys.exit(say_device_error(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _called() -> str:
    """How the program was called; for a shell that completes its words by the one name that shells know."""
    completes = "_LOCALDPO_COMPLETE" in os.environ or {"--install-completion", "--show-completion"} & {
        *sys.argv
    }
    return "localdpo" if completes else program()


def usage_text(error: Any) -> str:
    """The `error:` line of a mistake in the command line: the mistake, what was expected, which help to read.

    The help itself where a group of commands was called without one.
    """
    message = error.format_message()
    if error.ctx is not None and message == error.ctx.get_help():
        return str(message)
    if bad_value := _BAD_VALUE.match(message):
        # An option with two names is quoted as '--temperature' / '--temp'.
        name = bad_value["name"].replace("'", "")
        said = message[bad_value.end() :].replace("Input should be", "the value should be")
        message = f"{name}: {said}"
    else:
        message = (message[0].lower() + message[1:]).replace(". Did you mean", "; did you mean").rstrip(".?")
        if error.ctx is not None:
            message = f"{message}; {_expected(error.ctx)}"
    return f"error: {printable(message).rstrip('.')}; see `{_command_words()} --help`"


def _expected(context: typer.Context) -> str:
    """The commands of a group, or the arguments of a command."""
    commands = getattr(context.command, "commands", None)
    if commands:
        return f"expected one of {', '.join(commands)}"
    # A long one comes in indented lines.
    return f"expected `{' '.join(context.get_usage().split()).removeprefix('Usage: ')}`"


def _command_words() -> str:
    """The program, followed by the commands that sys.argv names. A parser error does not know its command."""
    words, command = [program()], command_tree()
    for argument in sys.argv[1:]:
        command = getattr(command, "commands", {}).get(argument)
        if command is None:
            break
        words.append(argument)
    return " ".join(words)
