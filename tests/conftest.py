"""OpenBLAS, where the system has it, must be loaded before anything imports MLX.

The tiny model folders of the session are made when a test asks for one.
"""

from __future__ import annotations

import gc
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from localdpo.core.process import preload

# Nothing of a test comes from the hub; huggingface_hub reads this when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Every core runs tests, and their matrices are tiny: threads of OpenBLAS would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
preload()
# Whatever starts the tests, commands that are printed are those of the console script.
os.environ["LOCALDPO_PROGRAM"] = "localdpo"
# A pipe is no terminal, whatever whoever runs the tests has told Rich of theirs.
for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)
# Expected numbers are those of the CPU backend, to the bit where tests say so; processes that a test starts
# inherit this. LOCALDPO_DEVICE=gpu runs the tests on a GPU all the same.
os.environ.setdefault("LOCALDPO_DEVICE", "cpu")
# Expected numbers are those of exact float32; MLX reads this at its first product.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

from localdpo.model.backend import choose_device  # noqa: E402

choose_device()
import mlx.core as mx  # noqa: E402

# How long a case takes says how busy the machine is.
UNTIMED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
# `make test` says the same of the same code; `make test-long` looks for what nobody has seen.
settings.register_profile("suite", max_examples=25, derandomize=True, **UNTIMED)
settings.register_profile("long", max_examples=400, derandomize=False, **UNTIMED)
settings.load_profile("suite")

# Files that take longest, in this order. Each file is run by one process, so a long one that came last would
# leave the other processes with nothing to do.
LONG = (
    "test_terminal",
    "test_prefs_build",
    "test_app",
    "test_live_screen",
    "test_reliability",
    "test_loop",
    "test_answers",
    "test_evaluator",
    "test_anthropic_judge",
    "test_commands",
    "test_export",
    "test_leaving",
    "test_ranks",
    "test_unpaired",
    "test_train_command",
    "test_watch_command",
    "test_prefs_check",
    "test_escapes",
    "test_eval_pages",
    "test_losses",
    "test_openai_judge",
    "test_forward",
    "test_reference",
    "test_step",
    "test_train_twice",
    "test_runs_screen",
    "test_memory",
    "test_checkpoint",
    "test_supervise",
    "test_judge_kill",
    "test_bench",
    "test_golden",
    "test_mixture",
    "test_compare_screen",
    "test_launch",
    "test_pages",
    "test_moving_reference",
    "test_ctl_command",
    "test_readers",
    "test_prefs_broken_rows",
    "test_frames",
    "test_stop_at_once",
    "test_judge_screen",
    "test_assemble",
    "test_screen_escapes",
    "test_anthropic_batches",
    "test_throttle",
    "test_inputs",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    cases: Counter[object] = Counter()
    for item in items:
        if (kept := item.get_closest_marker("every")) is not None:
            if cases[item.function] % kept.args[0]:
                item.add_marker("long")
            cases[item.function] += 1
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


def pytest_collection_finish() -> None:
    """Take what imports made, which lives as long as the process, out of the garbage collector's sight.

    With everything loaded it takes a seventh of the time of the tests otherwise.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test finds what an earlier session left in a cache, nor leaves anything in a person's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALDPO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws without a seed is the same whenever it runs, and whichever ran before it."""
    random.seed(0)
    mx.random.seed(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random qwen3 model folder, float32."""
    from tiny_folders import make_model_folder

    return make_model_folder(tmp_path_factory.mktemp("models") / "qwen3")


@pytest.fixture(scope="session")
def quantised_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama model folder, 4-bit."""
    from tiny_folders import make_model_folder

    return make_model_folder(tmp_path_factory.mktemp("models") / "llama", family="llama", quantised=True)


@pytest.fixture(scope="session")
def sft_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A random adapter of `tiny_model` as an SFT run would leave one: rank 4, all layers."""
    from tiny_folders import make_adapter

    folder = tmp_path_factory.mktemp("adapters") / "sft"
    make_adapter(folder, tiny_model)
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LOCALDPO_CACHE", str(folder))
    return folder
