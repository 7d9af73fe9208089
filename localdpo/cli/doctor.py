"""`localdpo doctor`: what this machine offers and what is missing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Annotated, Final, Literal

import typer

from localdpo.out import print_json, say

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


@dataclass(frozen=True)
class Finding:
    """One line of the report: `missing` is what a person may want to mend, `hint` says how."""

    name: str
    value: str
    state: State = "info"
    hint: str | None = None


def doctor(
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Compare training on this device with the CPU in float32 (a few minutes); exit code 1 if it "
            "differs. Copy what it prints into a report of a problem.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array; of --check one object.")] = False,
) -> None:
    """Show device, memory, versions, BLAS, keys (present or not) and the demo bundle.

    LOCALDPO_DEVICE says where every command computes: cpu, gpu or auto (a GPU if there is one).
    """
    if check:
        from localdpo.cli.doctor_check import check_device

        raise typer.Exit(check_device(as_json=as_json))
    findings = examine(os.environ)
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        hint = f"; {finding.hint}" if finding.hint else ""
        say(f"{finding.state:7}  {finding.name.ljust(width)}  {finding.value}{hint}")


def examine(environment: Mapping[str, str]) -> list[Finding]:
    """Every finding, in the order of the report."""
    return [
        *devices(),
        memory(),
        *memory_given(environment),
        Finding("python", platform.python_version(), "ok"),
        *(package(name) for name in PACKAGES),
        blas(),
        *(key(name, environment) for name in KEYS),
        demo(),
    ]


def devices() -> list[Finding]:
    """The system, and the device that MLX evaluates on."""
    if sys.platform == "darwin":
        chip = sysctl("machdep.cpu.brand_string") or platform.machine()
        system = f"macOS {platform.mac_ver()[0]}, {chip}"
    else:
        system = f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores"
    return [Finding("system", system, "ok"), mlx_device()]


def mlx_device() -> Finding:
    """Metal, CUDA or CPU; an MLX that cannot be loaded is a finding, not a failure."""
    from localdpo.model.backend import DEVICE_SWITCH, choose_device, device_name

    try:
        choose_device()
        name = device_name()
    except (ImportError, RuntimeError) as error:
        return Finding("device", "none", "missing", f"MLX cannot be loaded: {' '.join(str(error).split())}")
    chosen = os.environ.get(DEVICE_SWITCH, "auto")
    if chosen != "auto":
        return Finding("device", name, "ok", f"by {DEVICE_SWITCH}={chosen}")
    hint = "this Mac's MLX has no Metal; training on the CPU is slow" if _is_mac_on_cpu(name) else None
    return Finding("device", name, "missing" if hint else "ok", hint)


def _is_mac_on_cpu(device: str) -> bool:
    return sys.platform == "darwin" and device == "cpu"


def memory(read: Callable[[str], int] = os.sysconf) -> Finding:
    """Physical memory of the machine."""
    total = read("SC_PAGE_SIZE") * read("SC_PHYS_PAGES")
    return Finding("memory", f"{total / 2**30:.1f} GiB", "ok")


def memory_given(environment: Mapping[str, str]) -> list[Finding]:
    """What LOCALDPO_MEMORY_GB says. Raises UserError where it says what cannot be."""
    from localdpo.model.backend import MEMORY_SWITCH, device_name, memory_limit

    if MEMORY_SWITCH not in environment:
        return []
    return [Finding(MEMORY_SWITCH, f"training may use {memory_limit(device_name()) / 1e9:g} GB", "ok")]


def package(name: str) -> Finding:
    """The installed version of a package; nothing is imported."""
    try:
        return Finding(name, metadata.version(name), "ok")
    except metadata.PackageNotFoundError:
        return Finding(name, "not installed", "missing", "run `make setup`")


def blas() -> Finding:
    """OpenBLAS on Linux, which MLX's CPU backend is slow without; other systems bring their own."""
    from localdpo.core.preload import find_openblas
    from localdpo.model.backend import OPENBLAS_HINT

    if not sys.platform.startswith("linux"):
        return Finding("blas", "Accelerate", "ok")
    found = find_openblas()
    return Finding("blas", found, "ok") if found else Finding("blas", "no OpenBLAS", "missing", OPENBLAS_HINT)


def key(name: str, environment: Mapping[str, str]) -> Finding:
    """Whether a key is set. None is needed to train."""
    return Finding(name, "present" if environment.get(name) else "not set")


def demo() -> Finding:
    """Whether every `demo:` name leads somewhere."""
    from localdpo.core.errors import UserError
    from localdpo.core.names import DEMO_NAMES, resolve

    missing = []
    for name in DEMO_NAMES:
        try:
            resolve(name)
        except UserError:
            missing.append(name)
    if missing:
        what = f"without {', '.join(missing)}"
        return Finding("demo bundle", what, "missing", "make it with `python -m localdpo.demo.build`")
    return Finding("demo bundle", "complete", "ok")


def sysctl(name: str) -> str | None:
    """A value of the macOS kernel, None if it does not know the name."""
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
