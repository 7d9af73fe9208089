"""One optimizer step on a real session: micro-batches, compilation, what moves and what does not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny_folders import make_adapter, recipe_text, write_pairs, write_rows
from training_runs import session_of, step_of, weights_of

from localdpo.model import lora
from localdpo.objective.scores import ResponseScores
from localdpo.train.assemble import Session
from localdpo.train.data import DrawnRows
from localdpo.train.fit import CPU_TOKENS
from localdpo.train.step import StepArrays, StepResult, TrainStep

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]
BETA = 0.1
RATE = 2.0**20


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", 11)


def prepared(folder: Path, text: str) -> Session:
    """A session whose reference is scored."""
    session = session_of(folder, text)
    if session.train_scores is not None:
        with lora.use(session.base.model, session.reference):
            session.train_scores.fill(session.forward, lambda done, total: True)
    return session


def sgd_step(session: Session, **options: Any) -> tuple[StepResult, dict[str, np.ndarray]]:
    """The first step with SGD, and how far each weight went by the rate: its gradient.

    The rate is so large that the difference of two weights is known as well as the gradient itself.
    """
    before = weights_of(session)
    step = step_of(session, optim.SGD(RATE), **options)
    result = step(session.feed.arrays(session.feed.batches(0)), RATE)
    after = weights_of(session)
    return result, {name: (before[name] - after[name]) / RATE for name in before}


def make_the_reference_another(session: Session) -> None:
    """Move its scores away from the policy's, so that rewards and accuracies mean something."""
    if session.train_scores is not None:
        noise = np.random.default_rng(3).normal(size=session.train_scores.values.shape) * 3
        session.train_scores.values += noise.astype(np.float32)


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Relative to each gradient's norm, or to a thousandth of the largest one."""
    assert found.keys() == expected.keys()
    floor = 1e-3 * max(float(np.linalg.norm(g)) for g in expected.values())
    gaps = {
        name: float(np.linalg.norm(found[name] - g)) / max(float(np.linalg.norm(g)), floor)
        for name, g in expected.items()
    }
    assert max(gaps.values()) < 1e-5, gaps


def test_micro_batches_add_up_to_the_batch(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    """8 pairs at once; in threes with a ragged last one; one by one."""

    def step(loss: Any, micro: int) -> tuple[StepResult, dict[str, np.ndarray]]:
        options = {"batch_size": 8, "micro_batch_size": micro}
        session = prepared(
            tmp_path,
            recipe_text(tiny_model, pairs, adapter=str(sft_adapter), train=options, loss=loss),
        )
        make_the_reference_another(session)
        return sgd_step(session)

    for loss in (
        {"type": "sigmoid"},
        {"type": ["ipo", "sft"]},
        {"type": "sigmoid", "ld_alpha": 0.25, "use_weighting": True},
    ):
        whole, expected = step(loss, 8)
        assert 0 < whole.metrics["rewards/accuracies"] < 1
        for micro in (3, 1):
            result, gradients = step(loss, micro)
            assert_close(gradients, expected)
            assert result.loss == pytest.approx(whole.loss, rel=1e-5)
            assert result.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
            # Sums of 40 nats are known to 4e-6, and means of rewards may cancel to nearly 0.
            assert result.metrics == pytest.approx(whole.metrics, rel=1e-5, abs=2e-6)


def test_micro_batches_of_demonstrations_weigh_every_token_the_same(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": f"Question {n}?", "completion": "good " * (1 + n * n)} for n in range(5)]
    data = write_rows(tmp_path / "sft.jsonl", rows)

    def step(micro: int) -> tuple[StepResult, dict[str, np.ndarray]]:
        options = {"batch_size": 4, "micro_batch_size": micro}
        return sgd_step(
            session_of(tmp_path, recipe_text(tiny_model, data, loss={"type": "sft"}, train=options))
        )

    whole, expected = step(4)
    result, gradients = step(3)
    assert_close(gradients, expected)
    assert result.loss == pytest.approx(whole.loss, rel=1e-5)
    assert result.metrics == pytest.approx(whole.metrics, rel=1e-5)
    assert result.metrics["loss"] == pytest.approx(result.loss, rel=1e-6)


@pytest.mark.parametrize("start", ["base", "sft", "sft, desensitised"])
def test_the_first_loss_is_ln_2_and_the_reference_holds_the_start_adapter(
    start: str, tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    adapter = {} if start == "base" else {"adapter": str(sft_adapter)}
    loss = {"ld_alpha": 0.3} if start == "sft, desensitised" else {}
    session = prepared(
        tmp_path, recipe_text(tiny_model, pairs, train={"batch_size": 11}, loss=loss, **adapter)
    )
    result, _ = sgd_step(session)
    assert abs(result.loss - math.log(2)) < 1e-6
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert abs(result.metrics[name]) < 1e-5
    if start == "sft":
        plain = prepared(tmp_path / "plain", recipe_text(tiny_model, pairs))
        assert session.train_scores is not None
        assert plain.train_scores is not None
        assert np.nanmin(np.abs(session.train_scores.values - plain.train_scores.values)) > 0.1


def test_the_gradient_at_the_start_is_half_beta_times_that_of_the_margin(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    """d loss / d logp is -beta/2 for the chosen response, +beta/2 for the rejected one, over the pairs."""
    session = prepared(
        tmp_path, recipe_text(tiny_model, pairs, adapter=str(sft_adapter), loss={"beta": BETA})
    )
    (arrays,) = session.feed.arrays(session.feed.batches(0))
    n = int(arrays.lengths_N.shape[0]) // 2

    def margin(tree: Any) -> mx.array:
        session.base.model.update(tree)
        logps = session.forward.logps(arrays, gradient=True)
        return (logps[:n] - logps[n:]).sum()

    trainable = session.base.model.trainable_parameters()
    of_margin = {name: np.array(g) for name, g in tree_flatten(mx.grad(margin)(trainable))}
    session.base.model.update(trainable)
    _, gradients = sgd_step(session)
    assert_close(gradients, {name: -BETA / 2 / n * g for name, g in of_margin.items()})


@pytest.mark.parametrize("compiled", [False, True])
def test_every_trainable_weight_moves_in_one_step_and_nothing_else(
    compiled: bool, tmp_path: Path, pairs: Path, quantised_model: Path
) -> None:
    adapter = tmp_path / "adapter"
    make_adapter(adapter, quantised_model)
    session = prepared(tmp_path, recipe_text(quantised_model, pairs, adapter=str(adapter)))
    model = session.base.model
    trainable = {name for name, _ in tree_flatten(model.trainable_parameters())}
    before = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    reference = {name: np.array(value) for name, value in tree_flatten(session.reference)}
    step = step_of(session, optim.Adam(1e-2, bias_correction=True), compiled=compiled)
    step(session.feed.arrays(session.feed.batches(0)), 1e-2)
    after = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == trainable
    assert len(trainable) == 2 * 2 * 7
    for name, value in tree_flatten(session.reference):
        np.testing.assert_array_equal(np.array(value), reference[name])


def test_fresh_adapters_move_wholly_in_two_steps(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    """lora_b starts at 0, so lora_a has no gradient in the first step."""
    session = prepared(tmp_path, recipe_text(tiny_model, pairs))
    step = step_of(session, optim.Adam(1e-2, bias_correction=True))
    start = weights_of(session)
    for number in (0, 1):
        step(session.feed.arrays(session.feed.batches(number)), 1e-2)
        now = weights_of(session)
        still = {name.rsplit(".", 1)[1] for name in start if np.array_equal(start[name], now[name])}
        assert still == ({"lora_a"} if number == 0 else set())


def test_compiled_equals_eager_with_micro_batches_and_dropout(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    text = recipe_text(
        tiny_model,
        pairs,
        train={"batch_size": 4, "micro_batch_size": 3},
        lora={"dropout": 0.3},
        loss={"type": ["sigmoid", "sft"], "ld_alpha": 0.5, "use_weighting": True},
    )
    found = {}
    for compiled in (False, True):
        session = prepared(tmp_path, text)
        mx.random.seed(0)
        step = step_of(session, optim.Adam(1e-3, bias_correction=True), compiled=compiled, clip=1.0)
        results = [step(session.feed.arrays(session.feed.batches(k)), 1e-3) for k in range(3)]
        found[compiled] = ([r.loss for r in results], weights_of(session))
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-4)
    for name, value in found[False][1].items():
        np.testing.assert_allclose(found[True][1][name], value, atol=2e-4)


@pytest.mark.parametrize(("micro", "packed"), [(2, False), (2, True), (3, True)])
def test_padding_to_the_shapes_of_a_run_changes_no_number(
    micro: int, packed: bool, tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    """Packed, lines have places for rows that are not there."""
    text = recipe_text(
        tiny_model,
        pairs,
        adapter=str(sft_adapter),
        train={"batch_size": 7, "micro_batch_size": 2},
        loss={"type": ["sigmoid", "sft"], "ld_alpha": 0.5, "use_weighting": True},
    )
    session = prepared(tmp_path, text)
    make_the_reference_another(session)
    plain, expected = sgd_step(session)
    drawn = DrawnRows(session.train, batch_size=7, seed=0, steps=session.schedule.total)
    session = prepared(tmp_path, text)
    make_the_reference_another(session)
    session.feed.shapes = drawn.shapes(micro, shared=True, packed=packed, most=2)
    micro_batches = session.feed.arrays(session.feed.batches(0))
    assert len({arrays.line_4S.shape for arrays in micro_batches}) == 2
    counts = [arrays.lengths_N.size // 2 for arrays in micro_batches]
    assert len(set(counts)) == (1 if packed else 2)
    assert (sum(counts) > 7) == packed
    padded, found = sgd_step(session)
    assert_close(found, expected)
    assert padded.loss == pytest.approx(plain.loss, rel=1e-5)
    assert padded.metrics == pytest.approx(plain.metrics, rel=1e-5, abs=2e-6)


class _Sums(nn.Module):
    """Stands for a forward pass and an objective: the loss is the sum of `valid_T` times the first weight."""

    def __init__(self, weights: int = 1) -> None:
        super().__init__()
        self.weight = mx.ones((weights,))

    @property
    def model(self) -> nn.Module:
        return self

    def scores(self, arrays: StepArrays, *, gradient: bool) -> ResponseScores:
        return ResponseScores(arrays.valid_T * self.weight[:1])

    def sums(self, scores: ResponseScores, *_: Any) -> dict[str, mx.array]:
        return {"loss": mx.stack([scores.policy.sum(), mx.array(1.0)])}


def arrays_of(width: int) -> StepArrays:
    """Those that _Sums reads; the others are ballast."""
    ids, x = mx.zeros((1,), dtype=mx.int32), mx.arange(width).astype(mx.float32)
    return StepArrays(
        gather_T=ids,
        targets_T=ids,
        owner_T=ids,
        valid_T=x,
        public_T=x,
        responses_N=ids,
        lengths_N=ids,
        count=mx.array(2.0),
    )


def test_one_trace_serves_every_place_of_a_micro_batch_and_too_many_are_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """First, middle and last micro-batch are one function; a shape over the bound drops the traces."""
    monkeypatch.setattr("localdpo.train.step.MAX_SHAPES", 2)
    found = {}
    for compiled in (False, True):
        parts: Any = _Sums()
        step = TrainStep(parts, parts, optim.SGD(1e-2), max_grad_norm=1.0, compiled=compiled)
        counted = []
        for widths in ((4, 4, 4), (4,), (6, 4), (4, 6, 6), (8,), (4, 8)):
            result = step([arrays_of(n) for n in widths], 1e-2)
            counted.append((step.traces, result.loss, result.grad_norm))
        found[compiled] = counted
    # The update is the second trace of the first step; 8 is a shape too many, then 4 is traced again.
    assert [traces for traces, *_ in found[True]] == [2, 2, 3, 3, 4, 5]
    assert [traces for traces, *_ in found[False]] == [0] * 6
    for (_, *traced), (_, *eager) in zip(found[True], found[False], strict=True):
        assert traced == pytest.approx(eager, rel=1e-6)


def test_micro_batches_that_are_not_traced_keep_no_gradients_but_their_sum() -> None:
    parts: Any = _Sums(500_000)
    step = TrainStep(parts, parts, optim.SGD(1e-2), max_grad_norm=1.0, compiled=False)

    def peak(micro_batches: int) -> int:
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        step([arrays_of(4) for _ in range(micro_batches)], 1e-2)
        return mx.get_peak_memory() - before

    assert peak(40) < peak(4) + 4 * parts.weight.nbytes


def test_gradients_are_clipped_to_the_norm_and_reported_unclipped(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    text = recipe_text(tiny_model, pairs)
    free, gradients = sgd_step(prepared(tmp_path, text))
    norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
    assert free.grad_norm == pytest.approx(norm, rel=1e-5)
    clipped, short = sgd_step(prepared(tmp_path, text), clip=norm / 10)
    assert clipped.grad_norm == pytest.approx(norm, rel=1e-5)
    assert_close({name: 10 * g for name, g in short.items()}, gradients)


def test_a_ragged_last_batch_and_fewer_rows_than_a_batch_count_their_own_pairs(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    session = prepared(
        tmp_path, recipe_text(tiny_model, pairs, pairs, train={"batch_size": 4, "micro_batch_size": 2})
    )
    assert sorted(len(b.indices) for b in session.feed.batches(2)) == [1, 2]
    assert session.feed.arrays(session.feed.batches(2))[0].count.item() == 3
    options = {"batch_size": 64, "micro_batch_size": 64}
    few = prepared(tmp_path, recipe_text(tiny_model, pairs, pairs, train=options))
    assert (few.schedule.total, [len(b.indices) for b in few.feed.batches(0)]) == (1, [11])
    result, _ = sgd_step(few)
    assert abs(result.loss - math.log(2)) < 1e-6


def test_a_cpu_takes_a_batch_in_parts_of_similar_length_unless_told_otherwise(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    def session(**train: int) -> Any:
        return session_of(tmp_path, recipe_text(tiny_model, pairs, pairs, train={"batch_size": 8, **train}))

    own = session()
    assert own.layout.micro == min(
        8, int(CPU_TOKENS // np.median(own.train.lengths(np.arange(len(own.train)))))
    )
    assert 1 <= own.layout.micro < 8
    parts = own.feed.batches(0)
    assert sum(len(batch.indices) for batch in parts) == 8
    assert session(micro_batch_size=8).layout.micro == 8
    aot = session_of(
        tmp_path, recipe_text(tiny_model, pairs, pairs, loss={"type": "aot"}, train={"batch_size": 8})
    )
    assert aot.layout.micro == 8


def test_the_learning_rate_is_that_of_the_call(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    session = prepared(tmp_path, recipe_text(tiny_model, pairs))
    step, before = step_of(session, optim.SGD(1.0)), weights_of(session)
    step(session.feed.arrays(session.feed.batches(0)), 0.0)
    after = weights_of(session)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("compiled", [False, True])
def test_dropout_is_on_while_a_step_is_taken_and_only_then(
    compiled: bool, tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    text = recipe_text(tiny_model, pairs, adapter=str(sft_adapter), lora={"dropout": 0.5})
    session = prepared(tmp_path, text)
    (batch,) = session.feed.batches(0)
    before = np.array(session.forward.score(batch))
    step = step_of(session, optim.SGD(0.0), compiled=compiled)
    losses = [step(session.feed.arrays([batch]), 0.0).loss for _ in range(2)]
    assert abs(losses[0] - math.log(2)) > 1e-3
    assert abs(losses[0] - losses[1]) > 1e-4
    np.testing.assert_array_equal(np.array(session.forward.score(batch)), before)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_micro_batch_leaves_nothing_of_its_graph_in_the_model(
    checkpoint: bool, tmp_path: Path, pairs: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one, which is built before this one is computed, would wait for it."""
    options = {"batch_size": 8, "micro_batch_size": 4, "gradient_checkpointing": checkpoint}
    session = prepared(tmp_path, recipe_text(tiny_model, pairs, train=options))
    seen = []

    def weights() -> list[mx.array]:
        return [array for _, array in tree_flatten(session.base.model.trainable_parameters())]

    def one_by_one(build: Any, items: Any, lanes: int) -> Any:
        for item in items:
            before = weights()
            built = build(item)
            seen.append([a is b for a, b in zip(weights(), before, strict=True)])
            yield built

    monkeypatch.setattr("localdpo.train.step.side_by_side", one_by_one)
    step_of(session, optim.SGD(0.0))(session.feed.arrays(session.feed.batches(0)), 0.0)
    assert len(seen) == 2
    assert all(map(all, seen))
