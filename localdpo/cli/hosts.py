"""`localdpo hosts`: the machines that train together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localdpo.cli.options import JsonOption


def hosts(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME[=ADDRESS]]...",
            help="The machines as ssh knows them, rank 0 first, and their addresses in the network "
            "between them. Default: those of the file.",
        ),
    ] = None,
    file: Annotated[Path, typer.Option("--file", metavar="FILE", help="The host file of mlx.launch.")] = Path(
        "hosts.json"
    ),
    python: Annotated[
        str | None,
        typer.Option("--python", metavar="PATH", help="Python on the machines. Default: this one's path."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the host file of the machines that train together, and try each of them.

    Each is reached over ssh, without a password, and must have the versions of Python, localdpo, mlx, mlx-lm
    and transformers that are here. A line each; the exit code is 1 if one cannot train.
    """
    from localdpo.core.errors import UserError, UserErrors
    from localdpo.launch.hosts import check_hosts, parse_host, read_hosts, this_python, write_hosts
    from localdpo.out import note, print_json, say

    if names:
        parsed, problems = [], []
        for name in names:
            try:
                parsed.append(parse_host(name))
            except UserError as error:
                problems.append(error)
        if problems:
            raise UserErrors(problems)
        write_hosts(file, parsed)
    reports = check_hosts(read_hosts(file), python or this_python())
    if as_json:
        print_json({"file": str(file), "hosts": [report.to_json() for report in reports]})
    else:
        for rank, report in enumerate(reports):
            versions = " ".join(f"{name} {number}" for name, number in report.versions.items())
            state = f"ok, {versions}" if report.problem is None else report.problem
            say(f"rank {rank} {report.host.ssh} ({', '.join(report.host.ips) or 'no address'}): {state}")
    if any(report.problem is not None for report in reports):
        raise typer.Exit(1)
    command = Path(python or this_python()).parent / "localdpo"
    note(f"to train on them: mlx.launch --hostfile {file} -- {command} train RECIPE")
