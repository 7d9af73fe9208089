"""What the process knows of its device: memory, the cache of buffers, exact float32."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from model_families import tiny

from localdpo.core.errors import UserError
from localdpo.model import backend
from localdpo.model.backend import cache_limit, may_use_tf32, memory_limit, prepare
from localdpo.model.forward import Forward
from localdpo.train.session import tolerance

GB = 10**9


def test_the_environment_can_choose_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALDPO_DEVICE", "cpu")
    assert prepare().device == "cpu"
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


def test_preparing_limits_the_cache_of_freed_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    before = mx.set_cache_limit(0)
    try:
        monkeypatch.setattr(backend, "cache_limit", lambda memory: 3_000_000)
        prepare()
        mx.clear_cache()
        for size in range(400_000, 900_000, 50_000):
            mx.eval(mx.zeros((size,), dtype=mx.uint8) + 1)
            assert mx.get_cache_memory() <= 3_000_000
        assert mx.get_cache_memory() > 1_000_000
    finally:
        mx.set_cache_limit(before)


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
