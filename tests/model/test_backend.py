"""What the process knows of its device: memory, the cache of buffers, exact float32."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from types import SimpleNamespace
from typing import cast

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator
from mlx_lm.tokenizer_utils import TokenizerWrapper
from model_families import tiny

from localdpo.core.errors import UserError
from localdpo.core.process import preload
from localdpo.model import backend
from localdpo.model.backend import cache_limit, may_use_tf32, memory_limit, prepare, wire
from localdpo.model.forward import Forward
from localdpo.model.generate import generate
from localdpo.train.assemble import tolerance

GB = 10**9


def test_the_environment_can_choose_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepare().device == "cpu"
    chosen: list[object] = []
    monkeypatch.setattr(mx, "set_default_device", chosen.append)
    for name, expected in (("cpu", [mx.cpu]), ("gpu", [mx.gpu]), ("auto", [])):
        monkeypatch.setenv("LOCALDPO_DEVICE", name)
        chosen.clear()
        prepare()
        assert chosen == expected
    for wrong in ("", "CPU", "cuda", "tpu"):
        monkeypatch.setenv("LOCALDPO_DEVICE", wrong)
        with pytest.raises(UserError, match=f"LOCALDPO_DEVICE: expected cpu, gpu or auto, got '{wrong}'"):
            prepare()


@pytest.mark.skipif(mx.device_count(mx.gpu) > 0, reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALDPO_DEVICE", "gpu")
    with pytest.raises(UserError, match="LOCALDPO_DEVICE=gpu: MLX as it is installed here has no GPU"):
        prepare()


def test_the_limit_on_cuda_is_what_the_device_has_free_and_what_we_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = {"total_memory": 80 * GB, "free_memory": 50 * GB}
    monkeypatch.setattr(mx, "device_info", lambda: info)
    monkeypatch.setattr(mx, "get_active_memory", lambda: 3 * GB)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 1 * GB)
    assert memory_limit("cuda") == 54 * GB
    info["free_memory"] = 79 * GB
    assert memory_limit("cuda") == 80 * GB


@pytest.mark.parametrize(("memory", "cache"), [(8, 1), (16, 1), (24, 1.5), (32, 2), (192, 2)])
def test_the_cache_may_keep_a_sixteenth_of_the_memory_but_one_or_two_gigabytes(
    memory: int, cache: float
) -> None:
    assert cache_limit(memory * GB) == cache * GB


@pytest.mark.parametrize(
    ("version", "environment", "wired"),
    [
        ("15.1", {}, [90 * GB]),
        ("26.5.2", {}, [90 * GB]),
        ("26.0", {"LOCALDPO_MEMORY_GB": "20"}, [20 * GB]),
        ("26.0", {"LOCALDPO_MEMORY_GB": "500"}, [90 * GB]),
        ("26.0", {"LOCALDPO_WIRED": "off"}, [0]),
        ("14.7.1", {}, []),
        ("", {}, []),
    ],
)
def test_memory_is_wired_as_far_as_metal_recommends(
    version: str, environment: dict[str, str], wired: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 90 * GB})
    monkeypatch.setattr(mx, "set_wired_limit", asked.append)
    monkeypatch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
    for name in ("LOCALDPO_MEMORY_GB", "LOCALDPO_WIRED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    wire("metal")
    assert asked == wired
    wire("cuda")
    wire("cpu")
    assert asked == wired


def test_what_a_generator_does_to_the_wired_limit_is_undone_at_once_and_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit, seen = [20 * GB], []

    def set_limit(wanted: int) -> int:
        before, limit[0] = limit[0], wanted
        return before

    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 90 * GB})
    monkeypatch.setattr(mx, "set_wired_limit", set_limit)
    monkeypatch.setattr(platform, "mac_ver", lambda: ("26.0", ("", "", ""), "arm64"))
    monkeypatch.setattr("localdpo.model.generate.device_name", lambda: "metal")
    monkeypatch.setenv("LOCALDPO_MEMORY_GB", "20")
    next_generated = BatchGenerator.next_generated
    monkeypatch.setattr(
        BatchGenerator, "next_generated", lambda self: seen.append(limit[0]) or next_generated(self)
    )
    tokenizer = SimpleNamespace(eos_token_ids={0}, decode=lambda ids, **_: "")
    generate(tiny("qwen3"), cast("TokenizerWrapper", tokenizer), [[1, 2], [3]], max_tokens=2)
    assert set(seen) == {20 * GB}
    assert limit == [20 * GB]


def test_a_mac_s_gpu_driver_is_asked_for_patience_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switch = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"
    monkeypatch.delenv(switch, raising=False)
    preload()
    assert switch not in os.environ
    monkeypatch.setattr(sys, "platform", "darwin")
    preload()
    assert os.environ[switch] == "1"
    monkeypatch.setenv(switch, "0")
    preload()
    assert os.environ[switch] == "0"


def test_preparing_limits_the_cache_of_freed_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    before = mx.set_cache_limit(0)
    try:
        monkeypatch.setattr(backend, "cache_limit", lambda memory: 3_000_000)
        monkeypatch.setattr(backend, "keep_freed", lambda limit: False)
        prepare()
        mx.clear_cache()
        for size in range(400_000, 900_000, 50_000):
            mx.eval(mx.zeros((size,), dtype=mx.uint8) + 1)
            assert mx.get_cache_memory() <= 3_000_000
        assert mx.get_cache_memory() > 1_000_000
        monkeypatch.setattr(backend, "keep_freed", lambda limit: True)
        prepare()
        mx.eval(mx.zeros((500_000,), dtype=mx.uint8) + 1)
        assert mx.get_cache_memory() == 0
    finally:
        mx.set_cache_limit(before)


def test_a_gpu_is_sent_no_more_work_than_training_may_use_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(mx, "set_memory_limit", limits.append)
    monkeypatch.setenv("LOCALDPO_MEMORY_GB", "3")
    prepare()
    assert limits == []
    monkeypatch.setattr(backend, "device_name", lambda: "cuda")
    prepare()
    assert limits == [3_000_000_000]


def test_the_environment_can_say_how_much_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_limit("cpu") > 10**8
    monkeypatch.setenv("LOCALDPO_MEMORY_GB", "12.5")
    assert memory_limit("cpu") == memory_limit("metal") == 12_500_000_000
    for wrong in ("", "lots", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("LOCALDPO_MEMORY_GB", wrong)
        with pytest.raises(UserError, match="LOCALDPO_MEMORY_GB: expected a number of GB above 0"):
            memory_limit("cpu")


def test_float32_bars_are_wider_only_where_a_gpu_may_round_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, logps, lengths = Forward(tiny("qwen3")), np.array([-50.0]), np.array([64])
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    assert not may_use_tf32()
    np.testing.assert_allclose(tolerance(logps, lengths, forward), 1e-3)
    monkeypatch.setattr(backend, "device_name", lambda: "metal")
    assert may_use_tf32()
    np.testing.assert_allclose(tolerance(logps, lengths, forward), 0.05)
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    np.testing.assert_allclose(tolerance(logps, lengths, forward), 1e-3)


HOLDS_MEMORY = """
import mlx.core as mx
from localdpo.model.backend import give_back_memory, keep_freed

def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * 4096

assert keep_freed(2 * 10**9)
arrays = [mx.full((2**20,), float(i)) for i in range(100)]
mx.eval(arrays)
mx.set_cache_limit(0)
last = mx.full((2**10,), 1.0)
mx.eval(last)
del arrays, last
kept = resident()
give_back_memory()
print(kept, resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MLX takes its memory elsewhere")
def test_what_a_model_took_goes_back_to_the_system() -> None:
    words = subprocess.run(
        [sys.executable, "-c", "import localdpo.model\n" + HOLDS_MEMORY],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    kept, left = map(int, words)
    assert kept - left > 350e6
