"""The paths of the forward pass, on every family, against one full forward a row."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import phi
from model_families import FAMILIES, tiny, with_lora
from random_batches import full_logps, random_batch, random_rows

import localdpo
import localdpo.model.cpu as cpu
import localdpo.model.packed as packed
from localdpo.data.batches import Shape, collate
from localdpo.data.types import Batch
from localdpo.model.forward import Forward, ForwardArrays, batch_arrays, needed_shape, sum_by_owner
from localdpo.model.load import to_float32
from localdpo.model.packed import can_share, segments_for_attention, segments_of

pytestmark = pytest.mark.slow

ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
HYBRID = "qwen3_next"
MIXTURES = {"qwen3_moe", "gpt_oss", HYBRID}
# Small chunks, so that a batch has several and the last one is ragged.
CHUNK_BYTES = 4 * 160 * 64


# Bits of the base's weights; None is float32.
BITS = [None, 4, 8]


def adapted(family: str, bits: int | None = None) -> nn.Module:
    return with_lora(tiny(family, bits=bits), keys=ATTENTION if family in MIXTURES else None)


def unquantised(model: nn.Module) -> set[str]:
    """Kinds of the layers that could be quantised and are not."""
    return {type(m).__name__ for m in model.modules() if hasattr(m, "to_quantized")}


# Attention by segments, attention with an array mask, and the plain path.
FORMS = ("segments", "mask", "plain")
# Its attention computes with the mask that it is given.
ONLY_MASKS = {"gemma2"}


def forms(family: str) -> list[str]:
    return [form for form in FORMS if form != "segments" or family not in ONLY_MASKS]


def arrays_in(form: str, batch: Batch) -> ForwardArrays:
    """The arrays of a batch, whichever form of attention would be cheaper."""
    arrays = batch_arrays(batch, shared=form != "plain")
    lengths = batch.lengths.reshape(-1, len(batch.indices))
    segments = segments_of(batch.context.shape[1] - batch.context_pad, lengths) if form == "segments" else ()
    return replace(arrays, segments=segments)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert (np.abs(found - expected) <= np.maximum(1e-3, 2e-6 * np.abs(expected))).all(), found - expected


def gradients(model: nn.Module, forward: Forward, arrays: ForwardArrays) -> dict[str, np.ndarray]:
    """Gradients of a fixed linear function of the log-probabilities, by parameter name."""
    rows = arrays.lengths_N.shape[0]
    weights = mx.array(np.random.default_rng(0).normal(size=rows).astype(np.float32))
    _, grads = nn.value_and_grad(model, lambda: (forward.logps(arrays, gradient=True) * weights).sum())()
    return {name: np.array(g) for name, g in tree_flatten(grads)}


def relative(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Largest distance relative to a parameter's norm, or to a thousandth of the largest norm."""
    norms = {name: float(np.linalg.norm(g)) for name, g in expected.items()}
    floor = 1e-3 * max(norms.values())
    return max(float(np.linalg.norm(found[n] - g)) / max(norms[n], floor) for n, g in expected.items())


def autodiff_gradients(model: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    """The same gradients from full logits of unpadded rows, with MLX's own log-softmax."""
    pairs = len(batch.indices)
    weights = np.random.default_rng(0).normal(size=len(batch.lengths)).astype(np.float32)

    def total() -> mx.array:
        value = mx.array(0.0)
        for row, length in enumerate(batch.lengths):
            context = batch.context[row % pairs, batch.context_pad[row % pairs] :]
            ids = mx.array(np.concatenate([context, batch.response[row, : length + 1]])[None])
            logits = model(ids[:, :-1]).astype(mx.float32)
            logps = mx.take_along_axis(nn.log_softmax(logits), ids[:, 1:, None], axis=-1)[0, -int(length) :]
            value = value + float(weights[row]) * logps.sum()
        return value

    _, grads = nn.value_and_grad(model, total)()
    return {name: np.array(g) for name, g in tree_flatten(grads)}


@pytest.mark.parametrize("shared", [True, False])
def test_public_tokens_are_those_up_to_the_shorter_response(shared: bool) -> None:
    rows = random_rows(4, seed=3)
    model = adapted("qwen3")
    forward = Forward(model, shared=shared, split=True, chunk_bytes=CHUNK_BYTES)
    found = forward.measure(collate(rows, 0, np.arange(4)))
    assert len({len(r) for row in rows for r in row.responses}) > 1
    cut = [
        replace(row, responses=tuple(r[: min(len(r) for r in row.responses)] for r in row.responses))
        for row in rows
    ]
    assert_close(np.array(found.policy), full_logps(model, rows))
    assert_close(np.array(found.policy_public), full_logps(model, cut))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.every(5)
def test_all_paths_give_the_log_probabilities_of_a_full_forward(family: str, bits: int | None) -> None:
    model = adapted(family, bits)
    rows = random_rows(3, seed=1)
    batch = collate(rows, 0, np.arange(3))
    expected = full_logps(model, rows)
    assert can_share(model)
    for form in forms(family):
        forward = Forward(model, shared=form != "plain", chunk_bytes=CHUNK_BYTES)
        assert_close(np.array(forward.logps(arrays_in(form, batch), gradient=False)), expected)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.every(5)
def test_gradients_equal_those_of_full_logits_with_and_without_checkpointing(
    family: str, bits: int | None
) -> None:
    model = adapted(family, bits)
    batch = random_batch(seed=2)
    expected = autodiff_gradients(model, batch)
    for form in forms(family):
        arrays = arrays_in(form, batch)
        for checkpoint in (False, True):
            forward = Forward(model, shared=form != "plain", checkpoint=checkpoint, chunk_bytes=CHUNK_BYTES)
            assert relative(gradients(model, forward, arrays), expected) < 3e-5, (form, checkpoint)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.every(3)
def test_a_hybrid_takes_the_plain_path(bits: int | None) -> None:
    model = adapted(HYBRID, bits)
    rows = random_rows(2, seed=3)
    batch = collate(rows, 0, np.arange(2))
    forward = Forward(model, chunk_bytes=CHUNK_BYTES)
    assert not forward.shared
    assert_close(np.array(forward.score(batch)), full_logps(model, rows))
    expected = autodiff_gradients(model, batch)
    for checkpoint in (False, True):
        forward = Forward(model, checkpoint=checkpoint, chunk_bytes=CHUNK_BYTES)
        arrays = batch_arrays(batch, shared=False)
        assert relative(gradients(model, forward, arrays), expected) < 3e-5, checkpoint


@pytest.mark.parametrize("family", [*FAMILIES, HYBRID])
@pytest.mark.every(3)
def test_quantised_families_are_so_throughout_and_compute_something_else(family: str) -> None:
    rows = random_rows(2, seed=1)
    assert unquantised(tiny(family)) != set()
    plain = full_logps(tiny(family), rows)
    for bits in (4, 8):
        model = tiny(family, bits=bits)
        assert unquantised(model) == set()
        assert np.abs(full_logps(model, rows) - plain).max() > 1e-4


def test_a_quantised_base_and_its_float32_copy() -> None:
    model = tiny("qwen3", hidden_size=128, intermediate_size=128)
    nn.quantize(model, group_size=64, bits=4)
    with_lora(model)
    rows = random_rows(3, seed=4)
    batch = collate(rows, 0, np.arange(3))
    quantised = np.array(Forward(model).score(batch))
    assert_close(quantised, full_logps(model, rows))
    to_float32(model)
    assert not any(isinstance(m, nn.QuantizedLinear | nn.QuantizedEmbedding) for m in model.modules())
    assert_close(np.array(Forward(model).score(batch)), quantised)


def test_a_trained_head_gets_its_gradients() -> None:
    model = with_lora(tiny("llama"), keys=["lm_head", "self_attn.q_proj"])
    batch = random_batch(seed=5)
    expected = autodiff_gradients(model, batch)
    assert any("lm_head" in name for name in expected)
    for form in FORMS:
        found = gradients(model, Forward(model, chunk_bytes=CHUNK_BYTES), arrays_in(form, batch))
        assert relative(found, expected) < 3e-5, form


def test_padding_and_company_do_not_change_a_pair() -> None:
    model = adapted("qwen3")
    rows = random_rows(4, seed=6)
    forward = Forward(model)
    together = np.array(forward.score(collate(rows, 0, np.arange(4)))).reshape(2, 4)
    for i, row in enumerate(rows):
        alone = collate([row], 7, np.array([i]))
        wider = replace(
            alone,
            context=np.pad(alone.context, ((0, 0), (16, 0)), constant_values=9),
            context_pad=alone.context_pad + 16,
            response=np.pad(alone.response, ((0, 0), (0, 16)), constant_values=3),
        )
        assert_close(np.array(forward.score(alone)), together[:, i])
        assert_close(np.array(forward.score(wider)), together[:, i])


def test_the_rejected_response_does_not_reach_the_chosen_one() -> None:
    model = adapted("llama")
    rows = random_rows(2, seed=7)
    other = [replace(row, responses=(row.responses[0], row.responses[1][::-1] % 150 + 3)) for row in rows]
    forward = Forward(model)
    before = np.array(forward.score(collate(rows, 0, np.arange(2))))
    after = np.array(forward.score(collate(other, 0, np.arange(2))))
    np.testing.assert_array_equal(before[:2], after[:2])
    assert (before[2:] != after[2:]).all()


def test_the_first_response_token_is_scored_and_no_other_position() -> None:
    model = adapted("llama")
    rows = random_rows(2, seed=8, response=(1, 1))
    arrays = batch_arrays(collate(rows, 0, np.arange(2)), shared=True)
    assert float(arrays.valid_T.sum().item()) == 4
    np.testing.assert_array_equal(
        np.array(arrays.targets_T[:4]),
        [rows[0].responses[0][0], rows[1].responses[0][0], rows[0].responses[1][0], rows[1].responses[1][0]],
    )
    assert_close(np.array(Forward(model).score(collate(rows, 0, np.arange(2)))), full_logps(model, rows))


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", HYBRID])
def test_padding_to_a_shape_changes_neither_scores_nor_gradients(family: str) -> None:
    model = adapted(family)
    rows = random_rows(3, seed=9, prompt=(1, 60))
    batch = collate(rows, 0, np.arange(3))
    forward = Forward(model, chunk_bytes=CHUNK_BYTES)
    need = needed_shape(batch, shared=forward.shared)
    shape = Shape(3, need.width + 56, need.scored + 40)
    arrays = batch_arrays(batch, shared=forward.shared, shape=shape)
    inputs = arrays.line_4S if forward.shared else arrays.tokens_NL
    assert inputs is not None
    assert inputs.shape[-1] == shape.width
    assert arrays.gather_T.shape == (shape.scored,)
    assert_close(np.array(forward.logps(arrays, gradient=False)), full_logps(model, rows))
    assert relative(gradients(model, forward, arrays), autodiff_gradients(model, batch)) < 3e-5


@pytest.mark.parametrize("window", [4, 16])
@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss"])
def test_a_sliding_window_is_that_of_the_row_and_not_of_the_line(family: str, window: int) -> None:
    model = with_lora(tiny(family, sliding_window=window), keys=ATTENTION)
    rows = random_rows(3, seed=4, prompt=(10, 40), response=(17, 30))
    batch = collate(rows, 0, np.arange(3))
    expected = full_logps(model, rows)
    for form in FORMS:
        assert_close(np.array(Forward(model).logps(arrays_in(form, batch), gradient=False)), expected)


@pytest.mark.parametrize("window", [None, 16])
def test_blocks_of_queries_change_neither_scores_nor_gradients(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_lora(tiny("gemma3_text", sliding_window=window or 4096), keys=ATTENTION)
    batch = collate(random_rows(2, seed=5, prompt=(20, 40), response=(17, 30)), 0, np.arange(2))
    monkeypatch.setattr(packed, "CAUSAL_BLOCK", 7)
    monkeypatch.setattr(packed, "device_name", lambda: "cpu")
    assert len(packed.causal_blocks(20)) == 3
    assert packed.causal_blocks(21) == [(0, 7), (7, 14), (14, 21)]
    arrays, forward = arrays_in("segments", batch), Forward(model, chunk_bytes=CHUNK_BYTES)
    assert sum(map(sum, (s.scores for s in arrays.segments))) < sum(
        (s.end - s.start) * s.keys for s in arrays.segments
    )
    assert relative(gradients(model, forward, arrays), autodiff_gradients(model, batch)) < 3e-5


def test_the_cheaper_form_of_attention_is_taken() -> None:
    long, short = np.array([300, 200]), np.array([8, 9, 10, 7])
    assert segments_for_attention(long, np.array([[100, 80], [90, 120]])) == segments_of(
        long, np.array([[100, 80], [90, 120]])
    )
    assert segments_for_attention(short, np.tile(short, (2, 1))) == ()
    # However many there are, a mask of all of them is too large.
    many = np.full(200, 8)
    assert len(segments_for_attention(many, np.tile(many, (2, 1)))) == 600


def test_segments_cover_the_line_and_count_its_scores() -> None:
    contexts, lengths = np.array([5, 0, 3]), np.array([[2, 1, 4], [3, 2, 1]])
    segments = segments_of(contexts, lengths)
    assert [(s.start, s.end) for s in segments] == [
        (0, 5), (5, 8), (8, 10), (10, 11), (11, 15), (15, 18), (18, 20), (20, 21)
    ]  # fmt: skip
    assert [sum(s.scores) for s in segments] == [25, 9, 2 * 7, 1, 4 * 7, 3 * 8, 4, 1 * 4]


def test_sums_by_owner_are_those_of_numpy_and_so_are_their_gradients() -> None:
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(7, dtype=np.int32), rng.integers(1, 400, 7))
    values = (rng.normal(size=len(owner)) * 10.0 ** rng.integers(-6, 3, len(owner))).astype(np.float32)
    flow = rng.normal(size=9).astype(np.float32)
    exact = np.zeros(9)
    np.add.at(exact, owner, values.astype(np.float64))
    places = mx.arange(9, dtype=mx.int32)
    found = np.array(sum_by_owner(mx.array(values), mx.array(owner), places))
    assert found.dtype == np.float32
    # Half a unit in the last place of the largest partial sum, some times.
    np.testing.assert_allclose(found, exact, atol=4e-7 * np.abs(values).sum())
    np.testing.assert_array_equal(found[7:], 0.0)
    grad = mx.grad(lambda v: (sum_by_owner(v, mx.array(owner), places) * mx.array(flow)).sum())(
        mx.array(values)
    )
    np.testing.assert_array_equal(np.array(grad), flow[owner])


def test_nothing_that_computes_adds_by_scatter() -> None:
    """On a GPU a scatter adds in another order each time; the self-check asks the device whether it does."""
    scatters = re.compile(r"\.at\[|put_along_axis|scatter_add")
    files = [file for file in Path(localdpo.__file__).parent.rglob("*.py") if file.parent.name != "selfcheck"]
    found = [str(file) for file in files if scatters.search(file.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize("tokens", range(1, 10))
def test_no_attention_of_few_queries_is_fused(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metal's gradient of fused attention is said to refuse eight queries or fewer."""
    monkeypatch.setattr(packed, "device_name", lambda: "metal")
    monkeypatch.setattr(cpu, "device_name", lambda: "metal")
    batch = collate(random_rows(2, seed=0, prompt=(40, 50), response=(tokens, tokens)), 0, np.arange(2))
    masks: list[tuple[int, object]] = []
    attention = packed._attention

    def spy(queries: mx.array, *arrays: mx.array, mask: object, **options: object) -> mx.array:
        masks.append((queries.shape[2], mask))
        return attention(queries, *arrays, mask=mask, **options)

    monkeypatch.setattr(packed, "_attention", spy)
    Forward(tiny("llama")).logps(arrays_in("segments", batch), gradient=False)
    assert {isinstance(mask, str) for _, mask in masks} == {True, False}
    assert all(isinstance(mask, str) == (queries >= 16) for queries, mask in masks)
    assert batch_arrays(batch, shared=False).tokens_NL.shape[1] >= 16


def test_a_backbone_that_must_be_handed_its_cache_runs_on_both_paths() -> None:
    sizes = {"vocab_size": 160, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    model = phi.Model(phi.ModelArgs(**sizes, num_hidden_layers=2, intermediate_size=96))
    rows = random_rows(2, seed=0)
    batch = collate(rows, 0, np.arange(2))
    for form in FORMS:
        forward = Forward(model, shared=form != "plain")
        assert_close(np.array(forward.logps(arrays_in(form, batch), gradient=False)), full_logps(model, rows))
