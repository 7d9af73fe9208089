"""What the machine and the worker use: processor, memory, GPU, power.

Linux says it in /proc, an NVIDIA GPU through nvidia-smi. On a Mac it is ps, vm_stat and ioreg, whose output
is parsed as others recorded it: this was never run on a Mac. Of Apple silicon ioreg has no power of the GPU
alone, but on portables that of the whole machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_PROC: Final = Path("/proc")
_TIMEOUT_SECONDS: Final = 3.0
_NVIDIA: Final = (
    "nvidia-smi",
    "--query-gpu=utilization.gpu,memory.used,power.draw",
    "--format=csv,noheader,nounits",
)
_IOREG: Final = ("/usr/sbin/ioreg", "-r", "-d", "1", "-w", "0", "-c")


@dataclass(frozen=True)
class SystemUsage:
    """One look; None where nothing is known. Shares are of 1, memory is in GB, power in W.

    Attributes:
        cpu: share of all cores that is at work. worker_cpu: cores that the worker keeps busy.
        memory, total: used and present in the machine. worker_memory: resident memory of the worker.
        gpu, gpu_memory: share of the time that the GPU is at work, and its memory in use.
        power: of the GPU, or of the whole machine as `power_of` says.
    """

    cpu: float | None = None
    memory: float | None = None
    total: float | None = None
    worker_cpu: float | None = None
    worker_memory: float | None = None
    gpu: float | None = None
    gpu_memory: float | None = None
    power: float | None = None
    power_of: str = "GPU"


class SystemMonitor:
    """Looks at this machine. On Linux processor shares are those since the look before, none at first."""

    def __init__(self) -> None:
        self._before: tuple[int, int, int | None, int] | None = None

    def look(self, pid: int | None) -> SystemUsage:
        """The usage now; `pid`: of the worker, None without one."""
        return self._mac(pid) if sys.platform == "darwin" else self._linux(pid)

    def _linux(self, pid: int | None) -> SystemUsage:
        total, idle = cpu_ticks(_read(_PROC / "stat"))
        ticks, pages = worker_ticks(_read(_PROC / str(pid) / "stat")) if pid is not None else (None, None)
        before, self._before = self._before, (total, idle, pid, ticks or 0)
        cpu = worker_cpu = None
        if before is not None and total > before[0]:
            # The counts are of whole ticks and not of one moment, and the kernel may take idle ones back.
            passed, cores = total - before[0], os.cpu_count() or 1
            cpu = min(1.0, max(0.0, 1 - (idle - before[1]) / passed))
            if ticks is not None and pid == before[2]:
                worker_cpu = min(float(cores), (ticks - before[3]) / passed * cores)
        memory, present = memory_linux(_read(_PROC / "meminfo"))
        worker_memory = None if pages is None else pages * os.sysconf("SC_PAGE_SIZE") / 1e9
        gpu = nvidia(_said(*_NVIDIA)) if shutil.which(_NVIDIA[0]) else {}
        return SystemUsage(cpu, memory, present, worker_cpu, worker_memory, **gpu)

    def _mac(self, pid: int | None) -> SystemUsage:
        cpu, worker_cpu, worker_memory = processes(_said("/bin/ps", "-A", "-o", "pid=,%cpu=,rss="), pid)
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        memory = memory_mac(_said("/usr/bin/vm_stat"))
        registry = _said(*_IOREG, "IOAccelerator") + _said(*_IOREG, "AppleSmartBattery")
        share = min(1.0, cpu / (os.cpu_count() or 1))
        return SystemUsage(share, memory, total, worker_cpu, worker_memory, **registry_gpu(registry))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the worker has ended, or there is no /proc
        return ""


def _said(*command: str) -> str:
    """What a program of the system prints; nothing where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


# --- parsers ---------------------------------------------------------------------------------------------


def cpu_ticks(stat: str) -> tuple[int, int]:
    """(all, idle) ticks of all cores since the start, from /proc/stat; zeros without it."""
    # user nice system idle iowait irq softirq steal; guests are counted in user already.
    ticks = [int(part) for part in stat.partition("\n")[0].split()[1:9]]
    return sum(ticks), sum(ticks[3:5])


def worker_ticks(stat: str) -> tuple[int | None, int | None]:
    """(ticks of all its threads, resident pages) of a process from /proc/PID/stat; None without it."""
    # Its name, which may hold anything, is in parentheses.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12]), int(fields[21])) if len(fields) > 21 else (None, None)


def memory_linux(meminfo: str) -> tuple[float | None, float | None]:
    """(used, present) GB from /proc/meminfo."""
    found = {name: int(kib) * 1024 / 1e9 for name, kib in re.findall(r"(\w+): +(\d+) kB", meminfo)}
    total, free = found.get("MemTotal"), found.get("MemAvailable")
    return (None if total is None or free is None else total - free), total


def memory_mac(vm_stat: str) -> float | None:
    """GB in use (active, wired, compressed) from vm_stat; None without it."""
    size = re.search(r"page size of (\d+) bytes", vm_stat)
    names = ("Pages active", "Pages wired down", "Pages occupied by compressor")
    pages = [re.search(rf"{name}: +(\d+)", vm_stat) for name in names]
    if size is None:
        return None
    return sum(int(found[1]) for found in pages if found) * int(size[1]) / 1e9


def processes(ps: str, pid: int | None) -> tuple[float, float | None, float | None]:
    """(cores at work, cores of the worker, its GB) from the lines `pid %cpu rss` of ps, rss in KiB."""
    cores, own = 0.0, dict[str, tuple[float, float]]()
    for line in ps.splitlines():
        number, percent, rss = line.split()
        used = float(percent.replace(",", ".")) / 100
        cores += used
        own[number] = used, int(rss) * 1024 / 1e9
    return cores, *own.get(str(pid), (None, None))


def registry_gpu(ioreg: str) -> dict[str, Any]:
    """Fields of SystemUsage from ioreg's IOAccelerator and AppleSmartBattery; of two GPUs the larger numbers.

    Power is that of the GPU (`Total Power(W)`, of AMD's) or else the load of the machine in mW.
    """
    patterns = {
        "gpu": (r'"Device Utilization %"=(\d+)', 100),
        "gpu_memory": (r'"In use system memory"=(\d+)', 1e9),
        "power": (r'"Total Power\(W\)"=(\d+)', 1),
    }
    found: dict[str, Any] = {
        name: max(map(int, values)) / unit
        for name, (pattern, unit) in patterns.items()
        if (values := re.findall(pattern, ioreg))
    }
    load = re.search(r'"PowerTelemetryData" = \{[^}]*"SystemLoad"=(\d+)', ioreg)
    if load is None or "power" in found:
        return found
    return {**found, "power": int(load[1]) / 1000, "power_of": "machine"}


def nvidia(line: str) -> dict[str, Any]:
    """Fields of a SystemUsage from `nvidia-smi`: `41, 12034, 287.15` of the first GPU, in %, MiB and W."""
    values = [re.fullmatch(r"[\d.]+", part.strip()) for part in line.partition("\n")[0].split(",")]
    units = {"gpu": 100, "gpu_memory": 1e9 / 1024**2, "power": 1}
    return {
        name: float(value[0]) / unit
        for (name, unit), value in zip(units.items(), values, strict=False)
        if value is not None
    }
