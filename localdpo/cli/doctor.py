"""`localdpo doctor`: what this machine has and lacks; with --check, the self-check of its device."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Annotated, Any, Final, Literal

import typer

from localdpo.cli.options import JsonOption
from localdpo.core.errors import USER_ERROR_EXIT, UserError
from localdpo.core.names import DEMO_NAMES, resolve
from localdpo.core.process import find_openblas
from localdpo.core.text import aligned, counted
from localdpo.launch.explain import failure
from localdpo.out import result, say

State = Literal["ok", "info", "missing"]

PACKAGES: Final = ("mlx", "mlx-lm", "transformers", "datasets", "textual", "anthropic")
# Presence is shown, never a value or its length.
KEYS: Final = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "HF_TOKEN",
    "LOCALDPO_JUDGE_KEY",
    "OPENAI_API_KEY",
)

SELFCHECK: Final = (sys.executable, "-m", "localdpo.train.selfcheck")
# Longer than any check takes on a machine that is fit to train on.
CHECK_SECONDS: Final = 600.0
# That the API may take to say how long a judge's model lives.
LOOK_UP_SECONDS: Final = 20.0
DIFFERS_EXIT: Final = 1
BAD_STATES: Final = frozenset({"differs", "error"})
# A path, which is hidden; not a fraction such as 3/4, nor a name such as rewards/margins.
_PATH: Final = re.compile(r"(?<![\w.])(?:~|[A-Za-z]:\\|(?=/\w))[^\s'\"`,;:()|]+")


@dataclass(frozen=True)
class MachineFact:
    """One line of the report: `missing` is what the user may want to fix, `hint` says how."""

    name: str
    value: str
    state: State = "info"
    hint: str | None = None


def doctor(
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Compare training on this device with the CPU in float32 (a few minutes). The exit code is "
            "1 if they differ. Paste the output into a bug report.",
        ),
    ] = False,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="anthropic[:MODEL]",
            help="Say when this model retires, too: by the API if a key is set, else by the package's table.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what this machine has, and what it lacks.

    Device, memory, versions, BLAS, API keys (present or not) and the demo bundle.
    LOCALDPO_DEVICE sets the device of every command: cpu, gpu or auto (a GPU if there is one).
    """
    if check:
        raise typer.Exit(check_device(as_json=as_json))
    findings = [*examine(os.environ), *([] if judge is None else [judge_model(judge)])]
    lines = aligned(
        [(f"{one.state:7}", one.name, "; ".join(filter(None, (one.value, one.hint)))) for one in findings]
    )
    result([asdict(finding) for finding in findings], lines, as_json=as_json)


def examine(environment: Mapping[str, str]) -> list[MachineFact]:
    """Every fact, in the order of the report."""
    return [
        *devices(),
        memory(),
        *memory_given(environment),
        MachineFact("python", platform.python_version(), "ok"),
        *(package(name) for name in PACKAGES),
        blas(),
        *(key(name, environment) for name in KEYS),
        demo(),
    ]


def devices() -> list[MachineFact]:
    """The system, and the device that MLX evaluates on."""
    if sys.platform == "darwin":
        chip = sysctl("machdep.cpu.brand_string") or platform.machine()
        system = f"macOS {platform.mac_ver()[0]}, {chip}"
    else:
        system = (
            f"{platform.system()} {platform.release()}, {platform.machine()}, "
            f"{counted(os.cpu_count() or 1, 'core')}"
        )
    return [MachineFact("system", system, "ok"), mlx_device()]


def mlx_device() -> MachineFact:
    """Metal, CUDA or CPU; an MLX that cannot be loaded is reported, and no failure."""
    from localdpo.model.backend import DEVICE_SWITCH, choose_device, device_name

    try:
        choose_device()
        name = device_name()
    except (ImportError, RuntimeError) as error:
        return MachineFact(
            "device", "none", "missing", f"MLX cannot be loaded: {' '.join(str(error).split())}"
        )
    chosen = os.environ.get(DEVICE_SWITCH, "auto")
    if chosen != "auto":
        return MachineFact("device", name, "ok", f"by {DEVICE_SWITCH}={chosen}")
    has_no_metal = sys.platform == "darwin" and name == "cpu"
    hint = "this Mac's MLX has no Metal; training on the CPU is slow" if has_no_metal else None
    return MachineFact("device", name, "missing" if hint else "ok", hint)


def memory(read: Callable[[str], int] = os.sysconf) -> MachineFact:
    """Physical memory of the machine."""
    total = read("SC_PAGE_SIZE") * read("SC_PHYS_PAGES")
    return MachineFact("memory", f"{total / 2**30:.1f} GiB", "ok")


def memory_given(environment: Mapping[str, str]) -> list[MachineFact]:
    """The memory that LOCALDPO_MEMORY_GB allows. Raises UserError for an impossible value."""
    from localdpo.model.backend import MEMORY_SWITCH, device_name, memory_limit

    if MEMORY_SWITCH not in environment:
        return []
    return [MachineFact(MEMORY_SWITCH, f"training may use {memory_limit(device_name()) / 1e9:g} GB", "ok")]


def package(name: str) -> MachineFact:
    """The installed version of a package; nothing is imported."""
    from importlib import metadata

    try:
        return MachineFact(name, metadata.version(name), "ok")
    except metadata.PackageNotFoundError:
        return MachineFact(name, "not installed", "missing", "run `make setup`")


def blas() -> MachineFact:
    """OpenBLAS on Linux, without which MLX's CPU backend is slow; other systems have their own."""
    from localdpo.model.backend import OPENBLAS_HINT

    if not sys.platform.startswith("linux"):
        return MachineFact("blas", "Accelerate", "ok")
    library = find_openblas()
    if library is None:
        return MachineFact("blas", "no OpenBLAS", "missing", OPENBLAS_HINT)
    return MachineFact("blas", library, "ok")


def key(name: str, environment: Mapping[str, str]) -> MachineFact:
    """Whether an API key is set. Training needs none."""
    return MachineFact(name, "present" if environment.get(name) else "not set")


def demo() -> MachineFact:
    """Whether every `demo:` name exists."""
    missing = []
    for name in DEMO_NAMES:
        try:
            resolve(name)
        except UserError:
            missing.append(name)
    if missing:
        value = f"without {', '.join(missing)}"
        return MachineFact("demo bundle", value, "missing", "rebuild it with `python -m localdpo.demo.build`")
    return MachineFact("demo bundle", "complete", "ok")


def judge_model(spec: str) -> MachineFact:
    """When the model of a judge retires, if that is known. Raises UserError for another kind of judge."""
    from localdpo.judging.anthropic import AnthropicJudge
    from localdpo.judging.base import JudgeBusy, JudgeStopped
    from localdpo.judging.registry import make_judge

    judge = make_judge(spec)
    if not isinstance(judge, AnthropicJudge):
        raise UserError(
            f"--judge {spec}: only models of anthropic have a known end; expected anthropic[:MODEL]"
        )
    judge.timeout = LOOK_UP_SECONDS
    name = f"judge {judge.model}"
    try:
        life = judge.life()
    except (JudgeStopped, JudgeBusy) as error:
        return MachineFact(name, "cannot be looked up", "missing", str(error))
    if life.stage == "retired" and life.retires is not None:
        told = f"retired {life.retires}"
    else:
        retires = "no date of its end" if life.retires is None else f"retires {life.retires}"
        told = ", ".join(filter(None, (life.stage, retires)))
    value = f"{told}, says {life.source}"
    if life.stage in (None, "active"):
        return MachineFact(name, value, "info" if life.stage is None else "ok")
    return MachineFact(name, value, "missing", "choose another model in time")


def sysctl(name: str) -> str | None:
    """A value of the macOS kernel, None for an unknown name."""
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


# --- doctor --check ----------------------------------------------------------------------------------------


@dataclass
class CheckLine:
    """A check and its outcome: see `localdpo.train.selfcheck`."""

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
class DeviceReport:
    """All results. `facts`: of the machine."""

    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[CheckLine] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether checks were run and none failed."""
        return bool(self.lines) and not any(line.state in BAD_STATES for line in self.lines)

    @property
    def summary(self) -> str:
        """The last line: how many checks passed, and which did not."""
        failed = [line.name for line in self.lines if line.state in BAD_STATES]
        passed = sum(line.state == "ok" for line in self.lines)
        seconds = sum(line.seconds for line in self.lines)
        result = f"{len(failed)} not: {'; '.join(failed)}" if failed else "nothing differs"
        return f"{counted(passed, 'check')} OK in {seconds:.0f} s, {result}"


def check_device(*, as_json: bool, command: Sequence[str] = SELFCHECK) -> int:
    """Run the checks, show each as it ends, and return the exit code: 0, or 1 if anything differs.

    Raises:
        UserError: the checks cannot begin.
    """
    report = DeviceReport()
    if not as_json:
        say("localdpo doctor --check: a few minutes. The lines below name no file, user or key:")
        say("paste all of them into a bug report.")
    for found in run_checks(report, command):
        if not as_json:
            say(fact_lines(found) if isinstance(found, dict) else found.text)
    lines = [asdict(line) for line in report.lines]
    text = "\n".join([fact_lines(report.facts), *(line.text for line in report.lines), report.summary])
    record = {"ok": report.is_good, "facts": report.facts, "checks": lines, "text": text}
    result(record, [report.summary], as_json=as_json)
    return 0 if report.is_good else DIFFERS_EXIT


def fact_lines(facts: Mapping[str, Any]) -> str:
    """The machine in lines for a person."""
    lines = [f"{name}: {value}" for name, value in facts.items() if value not in (None, "")]
    if facts.get("device") == "cpu":
        lines.append(
            "MLX computes on the CPU here: its float32 on the plain path, not traced, is the reference for "
            "the other path, for recomputed, traced and quantised models, and for 16 bits."
        )
    else:
        lines.append("The reference is the CPU of this machine, in float32, on the plain path, not traced.")
    if facts.get("device") == "cuda":
        lines.append("The first time, MLX builds kernels for CUDA, which takes minutes; it caches them.")
    return "\n".join(lines)


def run_checks(report: DeviceReport, command: Sequence[str]) -> Iterator[dict[str, Any] | CheckLine]:
    """The facts and each line as they come, also put into `report`.

    If the process crashes in a check, another one resumes after that check.
    """
    with tempfile.TemporaryDirectory(prefix="localdpo-check-") as folder:
        yield from _run(report, [*command, folder])


def _run(report: DeviceReport, command: Sequence[str]) -> Iterator[dict[str, Any] | CheckLine]:
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
            try:
                for message in _messages(process):
                    if "facts" in message:
                        if not report.facts:
                            report.facts = _private(message["facts"])
                            yield report.facts
                    elif "begin" in message:
                        begun = message["begin"]
                    else:
                        begun = None
                        line = CheckLine(**_private(message))
                        report.lines.append(line)
                        yield line
                how = failure(process.wait())
            except Empty:
                how = f"did not end in {CHECK_SECONDS:.0f} s"
            finally:
                process.kill()
                process.wait()
            errors.seek(0)
            output = [line.strip() for line in errors.read().splitlines() if line.strip()]
        if process.returncode == 0:
            return
        if begun is None and process.returncode == USER_ERROR_EXIT:
            raise UserError(
                "; ".join(line.removeprefix("error: ") for line in output) or "the checks cannot begin"
            )
        what = _private(f"the process {how}: {' | '.join(output[-4:]) or 'no message'}")
        line = CheckLine(begun or "start", "error", what)
        report.lines.append(line)
        yield line
        if begun is None:
            return
        after = [begun]


def _messages(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """The messages among what the process prints; libraries print too.

    Raises queue.Empty if it prints no line for CHECK_SECONDS.
    """
    assert process.stdout is not None
    lines: SimpleQueue[str] = SimpleQueue()

    def read(stream: IO[str]) -> None:
        with stream:
            for line in stream:
                lines.put(line)
        lines.put("")

    threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
    while line := lines.get(timeout=CHECK_SECONDS):
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if isinstance(message, dict) and message.keys() & {"facts", "begin", "state"}:
            yield message


def _private(value: Any) -> Any:
    """`value` without paths, the user's name and the values of keys."""
    if isinstance(value, dict):
        return {name: _private(item) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    text = _PATH.sub("<path>", value)
    for secret in _secrets():
        text = text.replace(secret, "<hidden>")
    return text


def _secrets() -> list[str]:
    """The user's name, the home folder and the values of keys."""
    import getpass

    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = ""
    secrets = [str(Path.home()), *(os.environ.get(name, "") for name in KEYS)]
    # A short name, such as mx, is part of many words; paths are hidden already.
    return [text for text in [*secrets, user if len(user) > 4 else ""] if text not in ("", "/")]
