"""`localdpo mcp`: runs as tools of a program that speaks the Model Context Protocol."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from localdpo.cli.options import RunsDirOption
from localdpo.core.errors import UserError


def mcp(runs_dir: RunsDirOption = Path("runs")) -> None:
    """Serve the runs to a program that speaks MCP on stdin and stdout: read, start, steer, evaluate."""
    if find_spec("mcp") is None:
        raise UserError("mcp needs the package mcp: pip install 'localdpo[mcp]'")
    from localdpo.api.tools import make_server
    from localdpo.out import raw_stdout

    with raw_stdout():
        make_server(runs_dir).run()
