"""Runs the `localdpo` command in this process: a test takes milliseconds where a process takes a second."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from unittest import mock

from localdpo.cli import main


def localdpo(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The outcome of the command with these arguments; none of its streams is a terminal."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", ["localdpo", *arguments]),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main.run()
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int), code
    return subprocess.CompletedProcess(["localdpo", *arguments], code, out.getvalue(), err.getvalue())
