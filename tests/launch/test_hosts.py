"""Host files: written, read as mlx.launch reads them, and tried on this machine without ssh."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import localdpo

from localdpo.core.errors import UserError
from localdpo.launch import hosts
from localdpo.launch.hosts import Host, HostFile, HostReport, check_hosts, parse_host, read_hosts, write_hosts


# MLX leaves the file open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_host_file_is_the_one_of_mlx_launch(tmp_path: Path) -> None:
    from mlx._distributed_utils.common import Hostfile

    written = [parse_host("127.0.0.1"), parse_host("me@mac-2.local=10.0.0.2,10.0.1.2")]
    file = tmp_path / "hosts.json"
    write_hosts(file, written)
    read = Hostfile.from_file(file)
    assert [(host.ssh_hostname, tuple(host.ips)) for host in read.hosts] == [
        ("127.0.0.1", ("127.0.0.1",)),
        ("me@mac-2.local", ("10.0.0.2", "10.0.1.2")),
    ]
    assert (read.backend, read_hosts(file)) == ("ring", HostFile(tuple(written)))
    write_hosts(file, written[:1])
    assert len(read_hosts(file).hosts) == 1


def test_a_file_is_written_where_it_is_wanted_and_asked_for_where_it_is_not(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "hosts.json"
    with pytest.raises(UserError, match=r"no such file; name the machines .*localdpo hosts mac-1.local "):
        read_hosts(file)
    write_hosts(file, [parse_host("127.0.0.1")])
    assert len(read_hosts(file).hosts) == 1


def test_a_file_that_says_more_is_not_replaced(tmp_path: Path) -> None:
    """As mlx.distributed_config writes it for Thunderbolt."""
    file = tmp_path / "hosts.json"
    content = {"backend": "jaccl", "hosts": [{"ssh": "a", "ips": ["10.0.0.1"], "rdma": [None]}]}
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"hosts\.json: has what is not written here \(backend jaccl"):
        write_hosts(file, [parse_host("127.0.0.1")])
    assert json.loads(file.read_text()) == content


@pytest.mark.parametrize(
    "text",
    [
        *("", "=10.0.0.1", "-oProxyCommand=x", "no-such-host.invalid", "a=no-such-host.invalid", "a..b"),
        *("a=10.0.0.1,", "a=fe80::1", "::1"),
    ],
)
def test_a_name_that_cannot_be_a_host_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"expected NAME|no address|expected an address|an address of IPv6"):
        parse_host(text)


def test_an_address_is_a_number_as_the_ring_takes_it() -> None:
    assert parse_host("mac-2=localhost") == Host("mac-2", ("127.0.0.1",))


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "3", '{"hosts": [{"ips": []}]}', '{"hosts": 1}', '[{"ssh": "a", "ips": "10.0.0.1"}]'),
        *('[{"ssh": 1}]', '[{"ssh": "a", "ips": [1]}]', '{"hosts": [{"ssh": "a"}], "envs": {"A": "1"}}'),
    ],
)
def test_what_is_no_host_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "hosts.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"not a host file|names no hosts"):
        read_hosts(file)


def test_hosts_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Host("127.0.0.1", ("127.0.0.1",))
    file = HostFile((here,))
    (report,) = check_hosts(file, sys.executable)
    assert report.problem is None
    assert report.versions["mlx"]
    monkeypatch.setattr(hosts, "_own_versions", lambda: report.versions | {"mlx": "0.1"})
    (other,) = check_hosts(file, sys.executable)
    assert other.problem == f"mlx {report.versions['mlx']} (here 0.1)"
    (missing,) = check_hosts(file, "/no/such/python")
    assert missing.problem is not None
    assert json.dumps(dataclasses.asdict(missing))


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("Welcome!\n{versions}\nbye\n", None),
        ("Welcome!\n", "python answered 'Welcome!', not with its versions"),
    ],
)
def test_what_the_shell_of_a_host_says_itself_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, said: str, problem: str | None
) -> None:
    own = hosts._own_versions()

    def answer(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, said.replace("{versions}", json.dumps(own)), "")

    monkeypatch.setattr(subprocess, "run", answer)
    (report,) = check_hosts(HostFile((Host("mac-2", ("10.0.0.2",)),)), "python")
    assert report.problem == problem


def test_an_address_that_others_cannot_reach_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranks would wait for it for minutes. The names of many Linux machines lead there, too."""
    monkeypatch.setattr(hosts, "_check", lambda host, python, own: HostReport(host, {}, None))
    names = [("127.0.0.1", "127.0.0.1"), ("mac-1", "127.0.1.1"), ("mac-2", "10.0.0.2")]
    both = HostFile(tuple(Host(ssh, (ip,)) for ssh, ip in names))
    problems = [report.problem for report in check_hosts(both, "python")]
    assert problems == [
        "the other machines cannot reach 127.0.0.1; give its address in the network: 127.0.0.1=ADDRESS",
        "the other machines cannot reach 127.0.1.1; give its address in the network: mac-1=ADDRESS",
        None,
    ]
    one = HostFile((Host("127.0.0.1", ("127.0.0.1",)), Host("localhost", ("127.0.0.1",))))
    assert [report.problem for report in check_hosts(one, "python")] == [None, None]
    (bare,) = check_hosts(HostFile((Host("mac-2", ()),)), "python")
    assert bare.problem == "no address, and the ring needs one"


def test_the_command_that_is_printed_fits_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_check", lambda host, python, own: HostReport(host, {}, None))
    file = tmp_path / "my hosts.json"
    done = localdpo(
        "hosts", "127.0.0.1", "127.0.0.1", "--file", str(file), "--python", "/opt/my env/bin/python"
    )
    assert done.returncode == 0, done.stderr
    launch, *words = shlex.split(done.stderr.partition("to train on them: ")[2])
    assert Path(launch).name == "mlx.launch"
    assert shutil.which(launch) == str(Path(sys.executable).with_name("mlx.launch"))
    assert words == ["--hostfile", str(file), "--", "/opt/my env/bin/localdpo", "train", "RECIPE"]
