"""`localdpo hosts`: the machines that train together."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from localdpo.cli.options import JsonOption
from localdpo.core.errors import UserError, UserErrors
from localdpo.out import note, print_json, say


def hosts(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME[=ADDRESS]",
            help="The machines as ssh knows them, rank 0 first, and their addresses in the network "
            "between them. Default: those of the file.",
        ),
    ] = None,
    file: Annotated[Path, typer.Option(metavar="FILE", help="The host file of mlx.launch.")] = Path(
        "hosts.json"
    ),
    python: Annotated[
        str | None, typer.Option(metavar="PATH", help="Python on the machines. Default: this one's path.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Name the machines that train one run together, and try each.

    It writes the host file of mlx.launch. Each machine is reached over ssh, without a password, and must have
    the versions of Python, localdpo, mlx, mlx-lm and transformers that are here. It prints a line for each;
    the exit code is 1 if one cannot train.
    """
    from localdpo.launch.hosts import check_hosts, parse_host, read_hosts, write_hosts

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
    # Which every host should have at the same place.
    python = python or sys.executable
    reports = check_hosts(read_hosts(file), python)
    if as_json:
        print_json({"file": str(file), "hosts": [asdict(report) for report in reports]})
    else:
        for rank, report in enumerate(reports):
            versions = " ".join(f"{name} {number}" for name, number in report.versions.items())
            state = f"ok, {versions}" if report.problem is None else report.problem
            say(f"rank {rank} {report.host.ssh} ({', '.join(report.host.ips) or 'no address'}): {state}")
    if any(report.problem is not None for report in reports):
        raise typer.Exit(1)
    beside = Path(sys.executable).with_name("mlx.launch")
    # A shell finds it only where its environment is active.
    launch = beside.name if shutil.which(beside.name) == str(beside) else str(beside)
    command = [
        launch,
        "--hostfile",
        str(file),
        "--",
        str(Path(python).with_name("localdpo")),
        "train",
        "RECIPE",
    ]
    note(f"to train on them: {shlex.join(command)}")
