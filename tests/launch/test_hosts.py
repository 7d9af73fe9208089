"""Host files: written, read as mlx.launch reads them, and tried on this machine without ssh."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from localdpo.core.errors import UserError
from localdpo.launch import hosts
from localdpo.launch.hosts import Host, check_hosts, parse_host, read_hosts, write_hosts


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
    assert (read.backend, read_hosts(file)) == ("ring", written)


@pytest.mark.parametrize("text", ["", "=10.0.0.1", "-oProxyCommand=x", "no-such-host.invalid"])
def test_a_name_that_cannot_be_a_host_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"expected NAME|no address"):
        parse_host(text)


@pytest.mark.parametrize("content", ["", "[]", "3", '{"hosts": [{"ips": []}]}', '{"hosts": 1}'])
def test_what_is_no_host_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "hosts.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"not a host file|names no hosts"):
        read_hosts(file)


def test_hosts_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Host("127.0.0.1", ("127.0.0.1",))
    (report,) = check_hosts([here], sys.executable)
    assert report.problem is None
    assert report.versions["mlx"]
    monkeypatch.setattr(hosts, "_own_versions", lambda: report.versions | {"mlx": "0.1"})
    (other,) = check_hosts([here], sys.executable)
    assert other.problem == f"mlx {report.versions['mlx']} (here 0.1)"
    (missing,) = check_hosts([here], "/no/such/python")
    assert missing.problem is not None
    assert json.dumps(dataclasses.asdict(missing))
