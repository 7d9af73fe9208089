"""`localdpo bench` on a very small shape: what is measured, and what is counted."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from localdpo.cli.main import app
from localdpo.core.errors import UserError, UserErrors
from localdpo.model.backend import prepare
from localdpo.model.memory import BatchShape, ModelShape, operations
from localdpo.train import bench

SMALL: dict[str, Any] = bench.SHAPES["tiny"] | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 2048,
}


@pytest.mark.slow
def test_a_shape_is_measured_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.SHAPES, "small", SMALL)
    monkeypatch.setattr(bench, "matmul_rate", lambda dtype: (1e12, 1024))
    workload = bench.Workload(batch_size=2, prompt_tokens=24, response_tokens=16, steps=2, generated=4)
    ways = (bench.Way(False, False), bench.Way(True, False))
    lines: list[str] = []
    results = list(
        bench.measure("small", tmp_path, prepare(), bits=4, workload=workload, ways=ways, note=lines.append)
    )
    assert [result.way for result in results] == ["eager", "eager, checkpointed"]
    assert len([line for line in lines if line.startswith("memory: about")]) == 2
    for result in results:
        assert (result.bits, result.pairs) == (32, 2)  # the CPU's
        assert 2 * 20 < result.step_tokens < 2 * 200
        assert result.loss == pytest.approx((0.6931, 0.6931), abs=1e-2)
        assert min(result.step, result.reference, *result.generated_per_second, result.share) > 0
        assert result.estimate == pytest.approx(result.peak, rel=1.0)
        assert json.loads(json.dumps(result.to_json()))["share"] == result.share
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-5)
    assert results[1].active < 1.5 * results[0].active  # the first model is gone
    heading, *rows = bench.table(results)
    assert len(rows) == 2
    assert {len(row) for row in rows} == {len(heading)}


def test_a_way_that_does_not_fit_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(recipe: Any, *_: Any) -> Any:
        raise UserError(f"too much at {recipe.train.gradient_checkpointing}")

    monkeypatch.setitem(bench.SHAPES, "small", SMALL)
    monkeypatch.setattr(bench, "matmul_rate", lambda dtype: (1.0,))
    monkeypatch.setattr(bench, "assemble", refused)
    lines: list[str] = []
    options: Any = {"bits": 16, "workload": bench.Workload(steps=2), "note": lines.append}
    ways = (bench.Way(False), bench.Way(True))
    assert list(bench.measure("small", tmp_path, prepare(), ways=ways, **options)) == []
    assert lines == [
        "small, gradient_checkpointing=false: not measured: too much at False",
        "small, gradient_checkpointing=true: not measured: too much at True",
    ]


def test_operations_are_those_of_the_matrix_products() -> None:
    """Two rows of 10 tokens through one block: all products listed by hand."""
    shape = ModelShape(
        stored=0,
        weights=0,
        width=4,
        norm_width=4,
        blocks=1,
        hidden=8,
        inner=16,
        vocabulary=32,
        heads=2,
        query=12,
        keys=6,
        normed_heads=False,
        norms=2,
    )
    batch = BatchShape(tokens=20, keys=20, scores=110, most_scores=55, scored=7)
    projections = [(8, 12), (8, 6), (8, 6), (12, 8), (8, 16), (8, 16), (16, 8)]
    frozen = sum(2 * 20 * a * b for a, b in projections)
    attention = 2 * (2 * 110 * 6 * 2)  # two heads of six: scores, then values
    adapters = sum(2 * 20 * 3 * (a + b) for a, b in projections)
    head = 2 * 7 * 8 * 32
    assert (
        operations(shape, batch, rank=3, checkpoint=False)
        == 2 * frozen + 3 * (attention + adapters) + 2 * head
    )
    recomputed = operations(shape, batch, rank=3, checkpoint=True)
    assert recomputed == 3 * frozen + 4 * (attention + adapters) + 2 * head


def test_mistakes_are_named_together() -> None:
    outcome = CliRunner().invoke(app, ["bench", "tiny", "7b", "--bits", "5"])
    assert isinstance(outcome.exception, UserErrors)
    assert outcome.exception.lines == (
        "SHAPE: expected some of tiny, 135m, 0.6b, 1b, 8b, got 7b",
        "--bits: expected 4, 8 or 16, got 5",
    )


def test_a_model_without_room_is_refused_before_its_weights_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as little:
        little.setattr("localdpo.core.atomic.free_bytes", lambda path: 1000)
        with pytest.raises(UserError, match=r"model: no space left on the disk .* 1,000 free"):
            bench.make_model(tmp_path / "model", SMALL, 16)
    monkeypatch.setenv("LOCALDPO_MEMORY_GB", "0.0001")
    with pytest.raises(UserError, match=r"memory: the weights take about \d\.\d MB, but there are 0\.1 MB"):
        bench.make_model(tmp_path / "model", SMALL, 16)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_folder_of_models_goes_when_the_command_is_ended(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(name: str, folder: Path, *_: Any, **__: Any) -> Any:
        assert folder.parent == tmp_path
        os.kill(os.getpid(), number)
        return iter(())

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(bench, "measure", ended)
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        assert CliRunner().invoke(app, ["bench", "tiny"]).exit_code == 128 + number
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert list(tmp_path.iterdir()) == []
