"""What the system's files and programs say, in their own form; none of it was recorded by this project."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from localdpo.dashboard import system
from localdpo.dashboard.system import SystemMonitor, SystemUsage
from localdpo.dashboard.widgets.tiles import system_tiles

IOREG = """\
+-o AGXAcceleratorG14X  <class AGXAcceleratorG14X, id 0x1000003c1, registered, matched, active, busy 0 (8 ms)>
  {
    "PerformanceStatistics" = {"In use system memory (driver)"=0,"Alloc system memory"=9011625984,"Tiler Utilization %"=3,"recoveryCount"=0,"Renderer Utilization %"=88,"Device Utilization %"=91,"SplitSceneCount"=0,"In use system memory"=6442450944}
    "model" = "Apple M2 Pro"
  }
+-o AppleSmartBattery  <class AppleSmartBattery, id 0x1000002d4, registered, matched, active, busy 0 (0 ms)>
  {
    "Voltage" = 12655
    "PowerTelemetryData" = {"SystemEnergyConsumed"=4155,"SystemLoad"=28460,"SystemCurrentIn"=751,"SystemPowerIn"=29120}
  }
"""  # noqa: E501
RADEON = """\
    "PerformanceStatistics" = {"Device Utilization %"=7,"In use system memory"=268435456}
    "PerformanceStatistics" = {"Device Utilization %"=64,"vramUsedBytes"=2147483648,"Total Power(W)"=38}
    "PowerTelemetryData" = {"SystemLoad"=60000}
"""
VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10000.
Pages active:                            200000.
Pages inactive:                          190000.
Pages wired down:                        100000.
Pages occupied by compressor:             50000.
"""


def test_a_mac_as_its_programs_describe_it(monkeypatch: pytest.MonkeyPatch):
    ps = "    1   0,4   12000\n  612 150.6 2000000\n"
    said = {"rss=": ps, "vm_stat": VM_STAT, "IOAccelerator": IOREG, "AppleSmartBattery": ""}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(
        system,
        "_said",
        lambda *command: next(text for end, text in said.items() if command[-1].endswith(end)),
    )
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    usage = SystemMonitor().look(612)
    assert usage.cpu == pytest.approx(0.151)
    assert usage.memory == pytest.approx(350_000 * 16384 / 1e9)
    assert (usage.worker_cpu, usage.worker_memory) == pytest.approx((1.506, 2.048))
    assert (usage.gpu, usage.gpu_memory, usage.power, usage.power_of) == (0.91, 6.442450944, 28.46, "machine")
    names = [tile.name for tile in system_tiles([usage])]
    assert names[-3:] == ["GPU", "GPU memory", "machine power"]


def test_of_two_gpus_the_busier_and_its_own_power():
    assert system.registry_gpu(RADEON) == {"gpu": 0.64, "gpu_memory": 0.268435456, "power": 38.0}
    assert system.registry_gpu("") == {}
    assert system.memory_mac("") is None
    assert system.processes("", 1) == (0.0, None, None)


def test_an_nvidia_gpu_of_which_something_is_not_known():
    assert system.nvidia("41, 12034, 287.15\n0, 1, 2\n") == {
        "gpu": 0.41,
        "gpu_memory": pytest.approx(12.618563584),
        "power": 287.15,
    }
    assert system.nvidia("7, 100, [N/A]\n") == {"gpu": 0.07, "gpu_memory": pytest.approx(0.1048576)}
    assert system.nvidia("") == {}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine_and_this_process():
    monitor = SystemMonitor()
    first = monitor.look(os.getpid())
    assert first.cpu is None
    deadline = os.times().user + 0.05
    while os.times().user < deadline:
        pass
    usage = monitor.look(os.getpid())
    assert usage.cpu is not None
    assert 0 < usage.cpu <= 1
    assert usage.worker_cpu is not None
    assert 0 < usage.worker_cpu <= (os.cpu_count() or 1)
    assert usage.memory is not None
    assert usage.total is not None
    assert 0 < usage.memory < usage.total
    assert usage.worker_memory is not None
    assert 0.01 < usage.worker_memory < usage.total
    assert monitor.look(None).worker_cpu is None
    assert monitor.look(2**22 + 1).worker_memory is None


@pytest.mark.parametrize(
    ("idle", "cpu"), [(93, 1.0), (111, 0.0)], ids=["idle ticks taken back", "ticks late"]
)
def test_shares_of_counts_that_do_not_agree_stay_within_their_bounds(
    idle: int, cpu: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(system, "_PROC", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    (tmp_path / "7").mkdir()
    monitor = SystemMonitor()
    for user, others, ticks in ((100, 100, 50), (210 - idle, idle, 61)):
        (tmp_path / "stat").write_text(f"cpu  {user} 0 0 {others} 0 0 0 0 0 0\n")
        (tmp_path / "7" / "stat").write_text(f"7 (python) R{' 0' * 10} {ticks}{' 0' * 12}\n")
        usage = monitor.look(7)
    assert (usage.cpu, usage.worker_cpu) == (cpu, 1.0)


def test_the_tiles_have_the_course_of_what_is_known():
    tiles = system_tiles(
        [SystemUsage(cpu=None, memory=2.0, total=8.0), SystemUsage(cpu=0.876, memory=3.0, total=8.0)]
    )
    assert [(tile.name, tile.figure, tile.course) for tile in tiles] == [
        ("machine cpu", "88%", (0.876,)),
        ("machine memory", "3/8 GB", (2.0, 3.0)),
    ]
