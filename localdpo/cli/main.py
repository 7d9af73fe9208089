"""The `localdpo` command: its verbs, and what becomes of an error.

Exit codes: 0 done; 2 the person can mend it (an `error:` line on stderr for each problem); 3 stopped on
request; 4 the device or memory gave up (an `error:` line with what to do); 130 stopped by Ctrl-C; 141 nobody
reads the output any more (`| head`); 1 anything else.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from localdpo.cli.compare import compare
from localdpo.cli.ctl import ctl
from localdpo.cli.doctor import doctor
from localdpo.cli.eval import evaluate
from localdpo.cli.inspect import inspect
from localdpo.cli.prefs import prefs
from localdpo.cli.report import report
from localdpo.cli.runs import runs
from localdpo.cli.train import train
from localdpo.cli.watch import watch
from localdpo.core.errors import USER_ERROR_EXIT, LocalDPOError
from localdpo.out import OutputError, guard, say, say_device_error, say_errors

# Without markup typer does not load rich for help and errors: half of the time that --help would take.
app = typer.Typer(
    name="localdpo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command()(ctl)
app.command()(watch)
app.command()(runs)
app.command()(compare)
app.command("eval")(evaluate)
app.command()(inspect)
app.command()(report)
app.command()(doctor)
app.add_typer(prefs)


def _version(wanted: bool) -> None:
    if wanted:
        from localdpo import __version__

        say(f"localdpo {__version__}")
        raise typer.Exit


@app.callback()
def localdpo(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train language models on human preferences (DPO) with MLX, on your own machine."""


def run() -> None:
    """Entry of the console script: run the command that sys.argv asks for and exit."""
    guard()
    try:
        app()
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
