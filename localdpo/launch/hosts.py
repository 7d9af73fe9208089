"""Host files of `mlx.launch`: written from names, and tried before a run depends on them."""

from __future__ import annotations

import json
import platform
import shlex
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from localdpo.core.atomic import write_text
from localdpo.core.errors import UserError

# What mlx.launch starts without ssh.
_LOCAL: Final = "127.0.0.1"
_PACKAGES: Final = ("localdpo", "mlx", "mlx-lm", "transformers")
# Runs on every host; JSON on its last line.
_SURVEY: Final = (
    "import importlib.metadata as m, json, platform, sys; "
    f"print(json.dumps({{'python': platform.python_version()}} | {{n: m.version(n) for n in {_PACKAGES}}}))"
)
_SSH: Final = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
_SECONDS: Final = 30


@dataclass(frozen=True)
class Host:
    """A host: what ssh calls it, and the addresses that the ranks use among themselves."""

    ssh: str
    ips: tuple[str, ...]
    rdma: tuple[Any, ...] = ()


@dataclass(frozen=True)
class HostReport:
    """What became of a host. `problem`: None where it can train; `versions`: of what it runs."""

    host: Host
    versions: dict[str, str]
    problem: str | None


def parse_host(text: str) -> Host:
    """`NAME` or `NAME=ADDRESS[,ADDRESS...]`. Raises UserError where a name has no address."""
    name, _, given = text.partition("=")
    if not name or name.startswith("-"):
        raise UserError(f"{text!r}: expected NAME or NAME=ADDRESS, such as mac-2.local=192.168.1.12")
    if given:
        return Host(name, tuple(given.split(",")))
    try:
        # After `user@`, which is for ssh alone. The ring takes numbers.
        return Host(name, (socket.gethostbyname(name.rpartition("@")[2]),))
    except OSError as error:
        raise UserError(f"{name}: no address is known for this name; give it as {name}=ADDRESS") from error


def write_hosts(file: Path, hosts: Sequence[Host]) -> None:
    """Write the host file, for MLX's ring over TCP."""
    entries = [{"ssh": host.ssh, "ips": list(host.ips), "rdma": list(host.rdma)} for host in hosts]
    write_text(file, json.dumps({"backend": "ring", "envs": [], "hosts": entries}, indent=2) + "\n")


def read_hosts(file: Path) -> list[Host]:
    """The hosts of a file, as `mlx.launch` reads it. Raises UserError for anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = content["hosts"] if isinstance(content, dict) else content
        hosts = [Host(str(e["ssh"]), tuple(e.get("ips", ())), tuple(e.get("rdma", ()))) for e in entries]
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: not a host file of mlx.launch: expected "
            '{"hosts": [{"ssh": NAME, "ips": [ADDRESS]}, ...]}'
        ) from error
    if not hosts:
        raise UserError(f"{file}: names no hosts")
    return hosts


def check_hosts(hosts: Sequence[Host], python: str) -> list[HostReport]:
    """Try every host, all at once: over ssh, whether `python` there has the packages of this machine.

    A local host is tried without ssh.
    """
    own = _own_versions()
    with ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(lambda host: _check(host, python, own), hosts))


def _own_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def _check(host: Host, python: str, own: dict[str, str]) -> HostReport:
    command = [python, "-c", _SURVEY]
    if host.ssh != _LOCAL:
        command = [*_SSH, host.ssh, shlex.join(command)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return HostReport(host, {}, f"no answer within {_SECONDS} s")
    except OSError as error:
        return HostReport(host, {}, f"{command[0]} cannot be started ({error.strerror})")
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode != 0 or not said:
        who = "ssh" if done.returncode == 255 else python
        return HostReport(host, {}, f"{who} failed: {said[-1] if said else f'exit code {done.returncode}'}")
    versions = json.loads(said[-1])
    differ = [f"{name} {versions[name]} (here {own[name]})" for name in own if versions[name] != own[name]]
    return HostReport(host, versions, ", ".join(differ) or None)
