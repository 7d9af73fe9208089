"""The self-check: what is right passes it, and what is wrong does not."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from localdpo.model import packed
from localdpo.model.backend import Backend
from localdpo.train.selfcheck import CheckResult, Differs, compared, numbers, probes, working
from localdpo.train.selfcheck.__main__ import checks, facts, outcome

pytestmark = pytest.mark.slow

CPU, GPU = Backend("cpu", None, True, ()), Backend("metal", None, True, ())


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_right_passes(shared: bool) -> None:
    assert numbers.compare("float32", shared=shared, checkpoint=True).state == "ok"
    assert numbers.compare("4-bit", shared=shared, tokens=3).state == "ok"


def test_short_answers_pass_and_say_how_long_they_were() -> None:
    found = numbers.short("float32", shared=True, checkpoint=False)
    assert found.state == "ok"
    assert found.value.startswith("1 to 9 tokens; of 9: log-probability ")


def test_a_mask_that_lets_rows_see_each_other_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def causal(self: packed.LineCache, N: int, **options: object) -> mx.array:
        return (mx.arange(N)[:, None] >= mx.arange(N)[None])[None, None]

    monkeypatch.setattr(packed.LineCache, "make_mask", causal)
    found = numbers.compare("float32", shared=True)
    assert found.state == "differs"
    assert numbers.compare("float32", shared=False).state == "ok"


def test_gradients_that_are_lost_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "recomputed", lambda f: lambda *a: f(*map(_without_gradient, a)))
    assert numbers.compare("float32", shared=True, checkpoint=True).state == "differs"


def _without_gradient(tree: object) -> object:
    return [mx.stop_gradient(a) for a in tree] if isinstance(tree, list) else tree


def test_a_step_and_a_checkpoint_pass(tmp_path: Path) -> None:
    assert working.optimizer_step("float32", compiled=False).state == "ok"
    assert working.save_and_load(tmp_path / "run").state == "ok"


def test_the_demo_model_generates_its_likeliest_tokens() -> None:
    assert working.generation().state == "ok"


def test_measurements_are_made() -> None:
    assert probes.memory().state == "ok"
    assert probes.float32_products().value.endswith("float32")
    assert probes.scatter_add().value == "the same each time"
    assert "agree with 12 of 12" in probes.attention(mx.float32, "causal").value
    assert probes.mask_in_checkpoint(mx.float32).value == "works"


def test_whatever_happens_in_a_check_is_its_outcome() -> None:
    def breaks() -> CheckResult:
        raise MemoryError("[metal::malloc] Resource limit")

    def wrong() -> CheckResult:
        raise Differs("not whole")

    assert outcome(("a", breaks))["value"] == "MemoryError: [metal::malloc] Resource limit"
    assert outcome(("a", breaks))["state"] == "error"
    assert outcome(("b", wrong))["state"] == "differs"


def test_a_number_that_is_none_is_above_every_bar() -> None:
    assert compared({"a": (1.0, 1.0), "b": (0.0, 1e-6)}).state == "ok"
    assert compared({"a": (float("nan"), 1.0)}).state == "differs"
    assert compared({"a": (0.0, 1.0), "b": (2.0, 1.0)}) == CheckResult("differs", "a 0, b 2", "at most 1, 1")


def test_checks_have_names_of_their_own_and_a_gpu_has_all_that_the_cpu_has(tmp_path: Path) -> None:
    cpu, gpu = ([name for name, _ in checks(backend, tmp_path)] for backend in (CPU, GPU))
    assert len(set(gpu)) == len(gpu)
    assert {name for name in set(cpu) - set(gpu) if "traced" not in name} == {"gradients twice, float32"}
    # A trace is minutes of building kernels on CUDA.
    assert sum("traced" in name for name in gpu) == 5


def test_the_facts_name_no_single_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"device_name": "chip", "uuid": "GPU-1234", "pci_bus_id": "0000:01:00.0"}
    monkeypatch.setattr(mx, "device_info", lambda: info)
    assert facts(CPU)["device_info"] == {"device_name": "chip"}
