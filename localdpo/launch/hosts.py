"""Host files of `mlx.launch`: written from names, and tried before a run depends on them."""

from __future__ import annotations

import ipaddress
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

from localdpo.core.atomic import make_folder, write_text
from localdpo.core.errors import UserError
from localdpo.core.names import command_line

# What mlx.launch starts without ssh.
_LOCAL: Final = "127.0.0.1"
_PACKAGES: Final = ("localdpo", "mlx", "mlx-lm", "transformers")
# Runs on every host; JSON on a line.
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
class HostFile:
    """A host file. `backend`: of MLX; none: the ring, or NCCL where there is CUDA."""

    hosts: tuple[Host, ...]
    backend: str = "ring"
    envs: tuple[str, ...] = ()


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
    # `user@` is for ssh alone.
    return Host(name, tuple(_address(name, part) for part in (given or name.rpartition("@")[2]).split(",")))


def _address(name: str, text: str) -> str:
    """The number of an address, which MLX's ring takes: of IPv4, as its places are `ADDRESS:PORT`."""
    try:
        if ipaddress.ip_address(text).version == 4:
            return text
        raise UserError(
            f"{name}: {text} is an address of IPv6, which MLX's ring cannot use; give one of IPv4"
        )
    except ValueError:
        pass
    try:
        # No name is one to it, too.
        if text:
            return socket.gethostbyname(text)
        raise UserError(f"{name}: expected an address on both sides of a comma")
    # Of a text that cannot be a name at all.
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{name}: no address is known for {text!r}; give it as {name}=ADDRESS, such as 192.168.1.12"
        ) from error


def write_hosts(file: Path, hosts: Sequence[Host]) -> None:
    """Write the host file, for MLX's ring over TCP.

    Raises UserError where the file that is there says more than this one would.
    """
    if file.exists():
        before = read_hosts(file)
        if before.envs or before.backend not in ("", "ring") or any(host.rdma for host in before.hosts):
            raise UserError(
                f"{file}: has what is not written here (backend {before.backend}, envs or rdma); "
                "name another file with --file, or remove this one"
            )
    make_folder(file.parent)
    entries = [{"ssh": host.ssh, "ips": list(host.ips), "rdma": list(host.rdma)} for host in hosts]
    write_text(file, json.dumps({"backend": "ring", "envs": [], "hosts": entries}, indent=2) + "\n")


def read_hosts(file: Path) -> HostFile:
    """A host file, as `mlx.launch` reads it. Raises UserError for anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        content = content if isinstance(content, dict) else {"hosts": content}
        hosts = tuple(
            Host(_text(entry["ssh"]), _texts(entry.get("ips", [])), tuple(entry.get("rdma", [])))
            for entry in content["hosts"]
        )
        found = HostFile(hosts, _text(content.get("backend", "")), _texts(content.get("envs", [])))
    except FileNotFoundError as error:
        how = command_line("hosts", "mac-1.local", "mac-2.local", "--file", str(file))
        raise UserError(f"{file}: no such file; name the machines to write it, as in `{how}`") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: not a host file of mlx.launch: expected "
            '{"hosts": [{"ssh": NAME, "ips": [ADDRESS]}, ...]}'
        ) from error
    if not found.hosts:
        raise UserError(f"{file}: names no hosts")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(map(_text, value))


def check_hosts(file: HostFile, python: str) -> list[HostReport]:
    """Try every host, all at once: over ssh, whether `python` there has the packages of this machine.

    A local host is tried without ssh.
    """
    own = _own_versions()
    machines = {_LOCAL if host.ssh == "localhost" else host.ssh for host in file.hosts}

    def check(host: Host) -> HostReport:
        problem = _unreachable(host, file.backend, alone=len(machines) == 1)
        return _check(host, python, own) if problem is None else HostReport(host, {}, problem)

    with ThreadPoolExecutor(len(file.hosts)) as pool:
        return list(pool.map(check, file.hosts))


def _unreachable(host: Host, backend: str, *, alone: bool) -> str | None:
    """Why the other ranks would wait for this one in vain, by its addresses."""
    if backend in ("", "ring") and not host.ips:
        return "no address, and the ring needs one"
    local = [ip for ip in host.ips if _is_local(ip)]
    if local and not alone:
        return (
            f"the other machines cannot reach {local[0]}; give its address in the network: {host.ssh}=ADDRESS"
        )
    return None


def _is_local(ip: str) -> bool:
    try:
        address = ipaddress.ip_address(ip)
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return False


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
    # The shell there may say more around it.
    line = next((line for line in reversed(said) if line.startswith('{"python": ')), "")
    try:
        versions = json.loads(line)
    except ValueError:
        return HostReport(host, {}, f"{python} answered {said[-1]!r}, not with its versions")
    differ = [f"{name} {versions[name]} (here {own[name]})" for name in own if versions[name] != own[name]]
    return HostReport(host, versions, ", ".join(differ) or None)
