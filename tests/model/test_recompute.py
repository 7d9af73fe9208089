"""Arrays that are rebuilt in the backward pass: the same numbers in less memory."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import llama
from mlx_lm.tuner.lora import LoRALinear
from model_families import FAMILIES, tiny, with_lora
from random_batches import random_rows

from localdpo.data.batches import collate
from localdpo.model import cpu, lora
from localdpo.model.arrays import recomputed
from localdpo.model.forward import Forward, batch_arrays
from localdpo.model.packed import can_share

pytestmark = pytest.mark.slow


def peak_of(compute: Callable[[], object]) -> int:
    """Bytes that MLX takes on top of what is alive before: the least of three tries.

    MLX evaluates behind Python's back, and on a busy machine it frees arrays late.
    """
    return min(_peak(compute) for _ in range(3))


def _peak(compute: Callable[[], object]) -> int:
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(compute())
    return mx.get_peak_memory() - before


def test_trees_of_arguments_and_results_have_the_gradients_of_the_plain_function() -> None:
    def function(weights: dict[str, mx.array], pair: list[mx.array], none: list[mx.array]) -> list[mx.array]:
        return [mx.tanh(pair[0] @ weights["w"]) * pair[1], pair[1].sum(axis=0)]

    mx.random.seed(0)
    weights, pair = {"w": mx.random.normal((3, 3))}, [mx.random.normal((4, 3)), mx.random.normal((4, 3))]

    def loss(f: Callable[..., list[mx.array]]) -> Callable[..., mx.array]:
        return lambda weights, pair: sum(mx.square(part).sum() for part in f(weights, pair, []))

    expected = mx.value_and_grad(loss(function), argnums=(0, 1))(weights, pair)
    found = mx.value_and_grad(loss(recomputed(function)), argnums=(0, 1))(weights, pair)
    for mine, theirs in zip(tree_flatten(found), tree_flatten(expected), strict=True):
        np.testing.assert_array_equal(np.array(mine[1]), np.array(theirs[1]))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_mask_is_differentiated_with_a_checkpointed_block(
    family: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuDNN's attention raises when a gradient of its mask is asked for."""
    handed: list[mx.array] = []
    vjp = mx.vjp

    def spy(function: Callable[..., list[mx.array]], primals: list[mx.array], flow: list[mx.array]) -> object:
        handed.extend(primals)
        return vjp(function, primals, flow)

    monkeypatch.setattr(mx, "vjp", spy)
    model = with_lora(tiny(family), keys=["self_attn.o_proj"])
    rows = random_rows(3, seed=1, prompt=(20, 30), response=(17, 30))
    arrays = batch_arrays(collate(rows, 0, np.arange(3)), shared=shared)
    forward = Forward(model, shared=shared, checkpoint=True)
    mx.eval(nn.value_and_grad(model, lambda: forward.logps(arrays, gradient=True).sum())())
    assert len(handed) >= 2 * len(model.layers)
    assert {array.dtype for array in handed} == {mx.float32}
    # Hidden states end in the hidden size; a mask ends in a width.
    assert {array.shape[-1] for array in handed if array.ndim > 2} == {64}


def test_a_block_that_is_computed_again_gives_its_layers_their_weights_back() -> None:
    model = with_lora(tiny("llama"))
    arrays = batch_arrays(collate(random_rows(2, seed=1), 0, np.arange(2)), shared=True)
    forward = Forward(model, checkpoint=True)
    held: list[list[mx.array]] = []

    def weights() -> list[mx.array]:
        return [array for _, array in tree_flatten(model.trainable_parameters())]

    def loss() -> mx.array:
        held.append(weights())
        return forward.logps(arrays, gradient=True).sum()

    nn.value_and_grad(model, loss)()
    assert all(after is before for after, before in zip(weights(), held[0], strict=True))


@pytest.mark.parametrize("sharing", [0, 2])
def test_what_a_layer_hands_on_to_later_ones_has_its_gradient(sharing: int) -> None:
    """gemma4's layers return their keys and values in a tuple, and later ones attend to them."""
    model = with_lora(tiny("gemma4_text", num_kv_shared_layers=sharing))
    batch = collate(random_rows(2, seed=1), 0, np.arange(2))
    for shared in {False, can_share(model)}:
        arrays = batch_arrays(batch, shared=shared)
        found, expected = (
            nn.value_and_grad(model, lambda f=forward, a=arrays: f.logps(a, gradient=True).sum())()
            for forward in (Forward(model, shared=shared, checkpoint=checked) for checked in (True, False))
        )
        for (name, mine), (_, given) in zip(tree_flatten(found), tree_flatten(expected), strict=True):
            np.testing.assert_allclose(mine, given, atol=1e-4 * np.abs(given).max(), err_msg=name)


def test_results_that_are_whole_numbers_have_no_gradient() -> None:
    @recomputed
    def with_length(x: mx.array, y: mx.array) -> list[mx.array]:
        return [x * y, mx.array([x.size])]

    def loss(x: mx.array) -> mx.array:
        products, length = with_length(x, x)
        return (products / length).sum()

    np.testing.assert_array_equal(np.array(mx.grad(loss)(mx.array([1.0, 2.0]))), [1.0, 2.0])


def test_what_is_no_number_gets_no_gradient_and_reaches_the_function() -> None:
    @recomputed
    def picked(x: mx.array, mask: mx.array, ids: mx.array) -> mx.array:
        return mx.where(mask, mx.square(x), 0.0)[ids]

    x, mask, ids = mx.array([1.0, 2.0, 3.0]), mx.array([True, False, True]), mx.array([2, 0])
    grad = mx.grad(lambda x: (picked(x, mask, ids) * mx.array([1.0, 10.0])).sum())(x)
    np.testing.assert_array_equal(np.array(grad), [20.0, 0.0, 6.0])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_dropout_is_drawn_again_as_it_was(shared: bool, compiled: bool) -> None:
    """The gradient is that of the loss, whose central differences have the same units dropped."""
    model = tiny("llama")
    model.freeze()
    lora.attach(model, lora.LoraConfig("lora", -1, 4, 8.0, dropout=0.5), seed=0)
    rng = np.random.default_rng(1)
    model.update(tree_map(lambda w: mx.array(rng.normal(size=w.shape) * 0.05), model.trainable_parameters()))
    model.train()
    arrays = batch_arrays(collate(random_rows(2, seed=1), 0, np.arange(2)), shared=shared)
    forward = Forward(model, shared=shared, checkpoint=True)

    def loss(weights: object) -> mx.array:
        model.update(weights)
        return forward.logps(arrays, gradient=True).sum()

    value_and_grad = mx.value_and_grad(loss)
    if compiled:
        value_and_grad = mx.compile(value_and_grad, inputs=mx.random.state, outputs=mx.random.state)

    def at(weights: object) -> tuple[float, object]:
        mx.random.seed(3)
        value, grad = value_and_grad(weights)
        return value.item(), grad

    start = model.trainable_parameters()
    way = tree_map(lambda w: mx.array(rng.normal(size=w.shape)), start)

    def along(step: float) -> float:
        return at(tree_map(lambda w, d: w + step * d, start, way))[0]

    value, grad = at(start)
    assert at(start)[0] == value
    parts = zip(tree_flatten(grad), tree_flatten(way), strict=True)
    slope = sum(float((g * d).sum().item()) for (_, g), (_, d) in parts)
    assert slope == pytest.approx((along(5e-4) - along(-5e-4)) / 1e-3, rel=0.02)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("bits", [None, 4])
def test_an_adapted_layer_computes_what_mlx_lms_computes(dtype: mx.Dtype, bits: int | None) -> None:
    model = tiny("llama")
    model.set_dtype(dtype)
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
    model.freeze()
    lora.attach(model, lora.LoraConfig("lora", -1, 4, 8.0), seed=0)
    ours = model.layers[0].mlp.down_proj
    theirs = LoRALinear.from_base(ours.linear, r=4, scale=8.0)
    ours.lora_b = mx.random.normal(ours.lora_b.shape) * 0.1
    theirs.update(ours.trainable_parameters())
    x = mx.random.normal((2, 5, 96)).astype(dtype)

    def outcome(layer: LoRALinear) -> list[np.ndarray]:
        def loss(weights: dict[str, mx.array], x: mx.array) -> mx.array:
            layer.update(weights)
            return mx.square(layer(x).astype(mx.float32)).sum()

        weights = {"lora_a": ours.lora_a, "lora_b": ours.lora_b}
        value, (grads, slope) = mx.value_and_grad(loss, argnums=(0, 1))(weights, x)
        return [np.array(a.astype(mx.float32)) for a in (value, grads["lora_a"], grads["lora_b"], slope)]

    assert type(ours) is lora.LeanLoRALinear
    # In float32 the scale comes before the second product, not after it.
    rounding = 1e-5 if dtype == mx.float32 else 0.0
    for mine, given in zip(outcome(ours), outcome(theirs), strict=True):
        np.testing.assert_allclose(mine, given, rtol=rounding, atol=rounding * np.abs(given).max())


def test_adapted_layers_keep_no_float32_copy_of_a_16_bit_input() -> None:
    """256 tokens of 128 features are 64 KB, or 128 KB in float32, and 8 layers keep them."""
    mx.random.seed(0)
    layers = [LoRALinear(128, 128, r=4) for _ in range(8)]
    for layer in layers:
        layer.linear.weight = layer.linear.weight.astype(mx.bfloat16)
        layer.linear.freeze()
    x = mx.random.normal((256, 128)).astype(mx.bfloat16)
    chain = nn.Sequential(*layers)
    mx.eval(chain.parameters(), x)

    def gradients() -> object:
        return nn.value_and_grad(chain, lambda: chain(x).astype(mx.float32).sum())()

    theirs = peak_of(gradients)
    for layer in layers:
        layer.__class__ = lora.LeanLoRALinear
    ours = peak_of(gradients)
    assert ours < theirs - 200_000


def test_an_adapted_layer_multiplies_the_output_of_swiglu_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 tokens of 512 features are 512 KB; 24 layers keep gate, sigmoid and up of them."""
    mx.random.seed(0)
    gate, up = mx.random.normal((512,)), mx.random.normal((512,))
    layers = [LoRALinear(512, 512, r=4) for _ in range(24)]
    for layer in layers:
        layer.__class__ = lora.LeanLoRALinear
        layer.linear.freeze()
        layer.lora_b = mx.random.normal(layer.lora_b.shape)
    x = mx.random.normal((256, 512))
    chain = nn.Sequential(*layers)
    mx.eval(chain.parameters(), x)

    def through(x: mx.array) -> mx.array:
        for layer in layers:
            x = layer(cpu.swiglu(x * gate, x * up))
        return x

    def gradients() -> object:
        return nn.value_and_grad(chain, lambda: through(x).sum())()

    ours, found = peak_of(gradients), gradients()
    assert not cpu._factors
    monkeypatch.setattr(lora, "factors_of", lambda x: ())
    for mine, given in zip(tree_flatten(found), tree_flatten(gradients()), strict=True):
        np.testing.assert_array_equal(np.array(mine[1]), np.array(given[1]))
    # What is queued ahead of the backward pass hides some of it.
    assert ours < peak_of(gradients) - 10 * x.nbytes


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_block_that_is_computed_again_keeps_the_output_of_swiglu(
    checkpoint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there already when it would be multiplied again, so that both would be alive."""
    monkeypatch.setattr(llama, "swiglu", cpu.swiglu)
    found = []
    monkeypatch.setattr(lora, "factors_of", lambda x: found.append(cpu.factors_of(x)) or found[-1])
    model = tiny("llama")
    model.freeze()
    lora.attach(model, lora.LoraConfig("lora", -1, 4, 8.0, keys=("mlp.down_proj",)), seed=0)
    arrays = batch_arrays(collate(random_rows(2, seed=1), 0, np.arange(2)), shared=True)
    forward = Forward(model, checkpoint=checkpoint)
    nn.value_and_grad(model, lambda: forward.logps(arrays, gradient=True).sum())()
    assert len(found) == len(model.layers) * (1 + checkpoint)
    assert {len(factors) for factors in found} == {0 if checkpoint else 3}
