"""`localdpo doctor --check`: the self-check of the device, shown as a table that can go into a bug report."""

from __future__ import annotations

import getpass
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from localdpo.core.errors import USER_ERROR_EXIT, UserError
from localdpo.out import print_json, say

COMMAND: Final = (sys.executable, "-m", "localdpo.train.selfcheck")
# No check takes as long on any machine that training is of use on.
CHECK_SECONDS: Final = 600.0
DIFFERS_EXIT: Final = 1
BAD: Final = frozenset({"differs", "error"})
# A path, of which nothing is shown; not a fraction such as 3/4, nor a name such as rewards/margins.
_PATH: Final = re.compile(r"(?<![\w.])(?:~|[A-Za-z]:\\|(?=/\w))[^\s'\"`,;:()|]+")


@dataclass
class Line:
    """A check and its outcome: see `localdpo.train.selfcheck.report`."""

    name: str
    state: str
    value: str
    bar: str = ""
    seconds: float = 0.0

    @property
    def text(self) -> str:
        bar = f" ({self.bar})" if self.bar else ""
        return f"{self.state:8}{self.seconds:6.1f} s  {self.name}: {self.value}{bar}"


@dataclass
class Report:
    """Everything that was found. `facts`: of the machine."""

    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether every check was made and none came out wrong."""
        return bool(self.lines) and not any(line.state in BAD for line in self.lines)

    @property
    def summary(self) -> str:
        """The last line: how many checks came out how."""
        wrong = [line.name for line in self.lines if line.state in BAD]
        good = sum(line.state == "ok" for line in self.lines)
        seconds = sum(line.seconds for line in self.lines)
        found = f"{good} checks OK in {seconds:.0f} s"
        return f"{found}, nothing differs" if not wrong else f"{found}, {len(wrong)} not: {'; '.join(wrong)}"


def check_device(*, as_json: bool, command: Sequence[str] = COMMAND) -> int:
    """Make the checks, show each as it ends, and give the exit code: 0, or 1 if anything differs.

    Raises:
        UserError: the checks cannot begin.
    """
    report = Report()
    if not as_json:
        say("localdpo doctor --check: a few minutes. The lines below name no file, user or key:")
        say("copy all of them into a report of a problem.")
    for found in run(report, command):
        if as_json:
            continue
        if isinstance(found, dict):
            say(fact_lines(found))
        else:
            say(found.text)
    if as_json:
        lines = [asdict(line) for line in report.lines]
        text = "\n".join([fact_lines(report.facts), *(line.text for line in report.lines), report.summary])
        print_json({"ok": report.is_good, "facts": report.facts, "checks": lines, "text": text})
    else:
        say(report.summary)
    return 0 if report.is_good else DIFFERS_EXIT


def fact_lines(facts: Mapping[str, Any]) -> str:
    """The machine in lines for a person."""
    lines = [f"{name}: {value}" for name, value in facts.items() if value not in (None, "")]
    if facts.get("device") == "cpu":
        lines.append(
            "MLX computes on the CPU here: its float32 on the plain path, not traced, is the truth, and is "
            "compared with itself on the other path, recomputed, traced, quantised and in 16 bits."
        )
    else:
        lines.append("The truth is the CPU of this machine, in float32, on the plain path, not traced.")
    if facts.get("device") == "cuda":
        lines.append("The first time MLX builds kernels for CUDA, which takes minutes; it keeps them.")
    return "\n".join(lines)


def run(report: Report, command: Sequence[str]) -> Iterator[dict[str, Any] | Line]:
    """The facts and each line as they come, also put into `report`.

    A process that dies in a check is followed by another one that goes on after it.
    """
    with tempfile.TemporaryDirectory(prefix="localdpo-check-") as folder:
        yield from _run(report, [*command, folder])


def _run(report: Report, command: Sequence[str]) -> Iterator[dict[str, Any] | Line]:
    after: list[str] = []
    while True:
        begun: str | None = None
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            process = subprocess.Popen(
                [*command, *after],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            assert process.stdout is not None
            watch = _Watch(process)
            try:
                for message in _messages(process.stdout):
                    watch.feed()
                    if "facts" in message:
                        if not report.facts:
                            report.facts = _private(message["facts"])
                            yield report.facts
                    elif "begin" in message:
                        begun = message["begin"]
                    else:
                        begun = None
                        line = Line(**_private(message))
                        report.lines.append(line)
                        yield line
                code = process.wait()
            finally:
                watch.end()
                process.kill()
                process.stdout.close()
                process.wait()
            errors.seek(0)
            said = [line.strip() for line in errors.read().splitlines() if line.strip()]
        if code == 0:
            return
        if begun is None and code == USER_ERROR_EXIT:
            raise UserError(
                "; ".join(line.removeprefix("error: ") for line in said) or "the checks cannot begin"
            )
        how = f"did not end in {CHECK_SECONDS:.0f} s" if watch.is_late else _ending(code)
        what = _private(f"the process {how}: {' | '.join(said[-4:]) or 'no message'}")
        line = Line(begun or "start", "error", what)
        report.lines.append(line)
        yield line
        if begun is None:
            return
        after = [begun]


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _messages(lines: IO[str]) -> Iterator[dict[str, Any]]:
    """The messages among what the process prints; libraries print too."""
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if isinstance(message, dict) and message.keys() & {"facts", "begin", "state"}:
            yield message


class _Watch:
    """Kills a process that says nothing for CHECK_SECONDS."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self.is_late = process, False
        self._start()

    def _start(self) -> None:
        self._timer = threading.Timer(CHECK_SECONDS, self._kill)
        self._timer.daemon = True
        self._timer.start()

    def _kill(self) -> None:
        self.is_late = True
        self._process.kill()

    def feed(self) -> None:
        """It said something: the time begins again."""
        self._timer.cancel()
        self._start()

    def end(self) -> None:
        """It has ended."""
        self._timer.cancel()


def _private(value: Any) -> Any:
    """`value` without what names a file, the user or a key."""
    if isinstance(value, dict):
        return {name: _private(item) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    text = _PATH.sub("<path>", value)
    for secret in _names():
        text = text.replace(secret, "<hidden>")
    return text


def _names() -> list[str]:
    """The user, the home folder and the values of keys."""
    from localdpo.cli.doctor import KEYS

    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = ""
    found = [str(Path.home()), *(os.environ.get(key, "") for key in KEYS)]
    # A short name, such as mx, stands in words of all kinds; paths are gone already.
    return [text for text in [*found, user if len(user) > 4 else ""] if text not in ("", "/")]
