"""`doctor --check`: what is shown of the checks, and that a process that dies takes no other check along."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path

import pytest

from localdpo.cli import doctor
from localdpo.cli.doctor import CheckLine, DeviceReport, check_device, run_checks
from localdpo.core.errors import UserError

# A process that makes three checks as the real one does, and does in the second what it is told.
PROCESS = """
import json, os, signal, sys, time
def tell(value): print(json.dumps(value), flush=True)
names = ["one", "two", "three"]
if len(sys.argv) > 2: names = names[names.index(sys.argv[-1]) + 1:]
tell({"facts": {"device": "cpu", "mlx": "0.0", "device_info": {"device_name": "chip"}}})
print("a library's own words")
for name in names:
    tell({"begin": name})
    if name == "two":
        %s
    tell({"name": name, "state": "ok", "value": "gap 0", "bar": "at most 1", "seconds": 0.5})
"""


def command(tmp_path: Path, second: str) -> list[str]:
    file = tmp_path / "checks.py"
    file.write_text(PROCESS % second)
    return [sys.executable, str(file)]


def outcome(tmp_path: Path, second: str) -> DeviceReport:
    report = DeviceReport()
    list(run_checks(report, command(tmp_path, second)))
    return report


def test_every_check_is_a_line_and_all_good_is_code_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_device(as_json=False, command=command(tmp_path, "pass")) == 0
    said = capsys.readouterr().out
    assert "device: cpu" in said
    assert "ok         0.5 s  two: gap 0 (at most 1)" in said
    assert said.splitlines()[-1] == "3 checks OK in 2 s, nothing differs"


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGABRT)", "the process was killed by SIGABRT: no message"),
        ("sys.exit('Metal is gone')", "the process failed (exit code 1): Metal is gone"),
    ],
)
def test_a_process_that_dies_in_a_check_is_followed_by_one_that_goes_on(
    tmp_path: Path, second: str, words: str
) -> None:
    report = outcome(tmp_path, second)
    assert [(line.name, line.state) for line in report.lines] == [
        ("one", "ok"),
        ("two", "error"),
        ("three", "ok"),
    ]
    assert report.lines[1].value == words
    assert not report.is_good
    assert report.summary.endswith("1 not: two")


def test_a_check_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECK_SECONDS", 1.0)
    report = outcome(tmp_path, "time.sleep(60)")
    assert [line.state for line in report.lines] == ["ok", "error", "ok"]
    assert "did not end in 1 s" in report.lines[1].value


def test_what_differs_is_code_one_also_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = {"name": "two", "state": "differs", "value": "gap 2", "bar": "at most 1", "seconds": 1.0}
    second = f"tell({line}); continue"
    assert check_device(as_json=True, command=command(tmp_path, second)) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert [check["state"] for check in found["checks"]] == ["ok", "differs", "ok"]
    assert "differs    1.0 s  two: gap 2 (at most 1)" in found["text"]


def test_checks_that_cannot_begin_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "checks.py"
    file.write_text("import sys; print('error: LOCALDPO_DEVICE: expected cpu', file=sys.stderr); sys.exit(2)")
    with pytest.raises(UserError, match="LOCALDPO_DEVICE: expected cpu"):
        list(run_checks(DeviceReport(), [sys.executable, str(file)]))


def test_files_users_and_keys_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-canary-4711")
    monkeypatch.setattr(getpass, "getuser", lambda: "winston")
    found = doctor._private(
        "FileNotFoundError: '/home/winston/x/y.json' for winston, sk-canary-4711, ~/x; 3/4 rewards/margins"
    )
    assert found == "FileNotFoundError: '<path>' for <hidden>, <hidden>, <path>; 3/4 rewards/margins"


def test_nothing_is_left_of_a_process_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made"
    made.mkdir()
    monkeypatch.setattr(doctor.tempfile, "tempdir", str(made))
    outcome(tmp_path, "open(sys.argv[1] + '/left', 'w').close(); os.kill(os.getpid(), signal.SIGKILL)")
    assert list(made.iterdir()) == []


def test_nothing_found_is_not_good() -> None:
    assert not DeviceReport().is_good
    assert DeviceReport(lines=[CheckLine("one", "skipped", "no compiler")]).is_good
