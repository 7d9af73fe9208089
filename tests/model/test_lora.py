"""Adapters: mlx-lm's file format, exact fit, and the exchange of weights in one model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters
from model_families import tiny
from tiny_folders import make_adapter

from localdpo.core.errors import LocalDPOError, UserError, UserErrors
from localdpo.model import lora
from localdpo.model.load import load_base

IDS = mx.array([[5, 6, 7, 8, 9]])
FULL = lora.LoraConfig("lora", -1, 4, 8.0)


def write_config(folder: Path, content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / lora.CONFIG_FILE).write_text(text)
    return folder


def logits(model: Any) -> np.ndarray:
    return np.array(model(IDS))


def test_a_configuration_is_what_it_was(tmp_path: Path) -> None:
    config = lora.LoraConfig("dora", 3, 6, 2.5, 0.1, ("self_attn.q_proj",))
    assert lora.read_config(write_config(tmp_path, config.to_json("org/model"))) == config
    assert lora.read_config(write_config(tmp_path, FULL.to_json("m"))) == FULL
    assert "keys" not in FULL.to_json("m")["lora_parameters"]
    assert FULL.to_json("org/model")["model"] == "org/model"


def test_what_mlx_lm_leaves_out_or_adds_is_understood(tmp_path: Path) -> None:
    """mlx-lm writes all its training options into the file; older ones have no fine_tune_type."""
    content = {"lora_parameters": {"rank": 8, "scale": 20}, "num_layers": 0, "optimizer": "adam", "iters": 3}
    assert lora.read_config(write_config(tmp_path, content)) == lora.LoraConfig("lora", -1, 8, 20.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", ":1: not valid JSON"),
        ("\x00", ":1: not valid JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"num_layers": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[]", "expected a JSON object {...}, got list"),
        ({}, "lora_parameters: expected an object with rank and scale, got nothing"),
        ({"lora_parameters": {"rank": 4, "scale": 1.0}}, "num_layers: expected a whole number, got nothing"),
        ({"fine_tune_type": "full", "num_layers": 4}, 'expected lora or dora, got "full"'),
        ({"fine_tune_type": ["lora"], "num_layers": 4}, 'expected lora or dora, got ["lora"]'),
        ({"num_layers": 4, "lora_parameters": {"rank": 0, "scale": 1.0}}, "rank: expected a whole number"),
        ({"num_layers": 4, "lora_parameters": {"rank": math.inf, "scale": 1.0}}, "got Infinity"),
        ({"num_layers": 4, "lora_parameters": {"rank": 4, "scale": math.nan}}, "scale: expected a number"),
        ({"num_layers": 4, "lora_parameters": {"rank": 4, "scale": 10**400}}, "scale: expected a number"),
        ({"num_layers": 4, "lora_parameters": {"rank": 4, "scale": 1, "dropout": 1}}, "dropout: expected"),
        ({"num_layers": 4, "lora_parameters": {"rank": 4, "scale": 1.0, "keys": 3}}, "keys: expected a list"),
        ({"num_layers": 4, "lora_parameters": {"rank": 4, "scale": 1.0, "keys": [None]}}, "got [null]"),
    ],
)
def test_a_configuration_that_is_none(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(LocalDPOError) as caught:
        lora.read_config(write_config(tmp_path, content))
    assert message in str(caught.value)
    assert str(tmp_path / lora.CONFIG_FILE) in str(caught.value)


def test_an_adapter_folder_needs_both_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        lora.open_adapter(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"adapter_config.json and adapters.safetensors missing"):
        lora.open_adapter(str(tmp_path))
    write_config(tmp_path, {})
    with pytest.raises(UserError, match=r": adapters.safetensors missing"):
        lora.open_adapter(str(tmp_path))
    with pytest.raises(UserError, match="no such demo name"):
        lora.open_adapter("demo:stf")


@pytest.mark.parametrize(
    ("kind", "bits", "told"), [("dora", 4, True), ("dora", None, False), ("lora", 4, False)]
)
def test_dora_on_a_quantised_base_is_told(kind: str, bits: int | None, told: bool) -> None:
    model = tiny("llama", bits=bits)
    assert not lora.dequantises(model)
    lora.attach(model, lora.LoraConfig(kind, -1, 4, 8.0), seed=0)
    assert lora.dequantises(model) is told


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_fresh_adapters_change_nothing_and_are_seeded(kind: str, tiny_model: Path) -> None:
    def attached(seed: int) -> Any:
        model = load_base(str(tiny_model)).model
        lora.attach(model, lora.LoraConfig(kind, -1, 4, 8.0), seed=seed)
        return model

    base = logits(load_base(str(tiny_model)).model)
    first, again, other = attached(1), attached(1), attached(2)
    np.testing.assert_allclose(logits(first), base, atol=1e-5)
    weights = [dict(tree_flatten(model.trainable_parameters())) for model in (first, again, other)]
    name = next(name for name in weights[0] if name.endswith("lora_a"))
    assert np.array_equal(np.array(weights[0][name]), np.array(weights[1][name]))
    assert not np.array_equal(np.array(weights[0][name]), np.array(weights[2][name]))
    assert {key.rsplit(".", 1)[1] for key in weights[0]} == (
        {"lora_a", "lora_b"} | ({"m"} if kind == "dora" else set())
    )
    assert len([key for key in weights[0] if key.endswith("lora_a")]) == 2 * 7
    assert not first.training


def test_layers_and_keys_choose_what_is_adapted(tiny_model: Path) -> None:
    model = load_base(str(tiny_model)).model
    lora.attach(model, lora.LoraConfig("lora", 1, 4, 8.0, keys=("mlp.up_proj",)), seed=0)
    assert sorted(dict(tree_flatten(model.trainable_parameters()))) == [
        "model.layers.1.mlp.up_proj.lora_a",
        "model.layers.1.mlp.up_proj.lora_b",
    ]


def test_a_model_without_layers_that_take_adapters_is_refused() -> None:
    """As bitnet, whose layers are of its own."""
    model: Any = nn.Module()
    model.layers = [nn.RMSNorm(8), nn.RMSNorm(8)]
    model.freeze()
    with pytest.raises(UserError, match=r"^lora: no layer of the model's blocks takes an adapter"):
        lora.attach(model, FULL, seed=0)


def test_every_key_has_to_name_a_layer(tiny_model: Path) -> None:
    """mlx-lm would leave out the ones that name none, without a word."""
    keys = ("self_attn.q_proj", "q_proj", "self_attn.v_porj", "input_layernorm", "lm_head.weight")
    with pytest.raises(UserErrors) as caught:
        lora.attach(load_base(str(tiny_model)).model, lora.LoraConfig("lora", -1, 4, 8.0, keys=keys), seed=0)
    bad = 'lora.keys: "{}" is no linear layer of the model\'s blocks; {}'
    assert caught.value.lines[:2] == (
        bad.format("q_proj", "did you mean self_attn.q_proj?"),
        bad.format("self_attn.v_porj", "did you mean self_attn.v_proj?"),
    )
    assert [line.split('"')[1] for line in caught.value.lines[2:]] == ["input_layernorm", "lm_head.weight"]


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_loaded_weights_compute_what_mlx_lm_computes(kind: str, tmp_path: Path, tiny_model: Path) -> None:
    config = make_adapter(tmp_path / "adapter", tiny_model, kind=kind)
    ours = load_base(str(tiny_model)).model
    lora.attach(ours, lora.read_config(tmp_path / "adapter"), seed=0)
    lora.load_weights(ours, tmp_path / "adapter")
    theirs = load_adapters(load_base(str(tiny_model)).model, str(tmp_path / "adapter"))
    theirs.eval()
    np.testing.assert_allclose(logits(ours), logits(theirs), atol=1e-6)
    assert np.abs(logits(ours) - logits(load_base(str(tiny_model)).model)).max() > 0.1
    assert config == lora.read_config(tmp_path / "adapter")


def test_weights_must_fit_exactly(tmp_path: Path, tiny_model: Path, sft_adapter: Path) -> None:
    model = load_base(str(tiny_model)).model
    lora.attach(model, FULL, seed=0)
    before = logits(model)
    good = mx.load(str(sft_adapter / lora.WEIGHTS_FILE))
    name = sorted(good)[0]

    def load(weights: dict[str, mx.array]) -> str:
        mx.save_safetensors(str(tmp_path / lora.WEIGHTS_FILE), weights)
        with pytest.raises(UserError) as caught:
            lora.load_weights(model, tmp_path)
        return str(caught.value)

    assert f"{name} is missing" in load({k: v for k, v in good.items() if k != name})
    assert "model.extra.lora_a is not in the model" in load({**good, "model.extra.lora_a": mx.ones((1,))})
    wrong = load({k: v[:-1] for k, v in good.items()})
    assert f"{name} has shape" in wrong
    assert "(and 25 more)" in wrong
    # Training would change nothing, or show NaN and blame the learning rate.
    for values in (mx.ones(good[name].shape, mx.int32), mx.full(good[name].shape, float("nan"))):
        assert f"{name}: expected finite floating-point numbers" in load({**good, name: values})
    # A frozen weight of the base under its own name is no adapter weight.
    assert "is not in the model" in load({**good, "model.norm.weight": mx.ones((64,))})
    np.testing.assert_array_equal(logits(model), before)


def test_weights_of_another_precision_are_cast(tmp_path: Path, tiny_model: Path, sft_adapter: Path) -> None:
    good = mx.load(str(sft_adapter / lora.WEIGHTS_FILE))
    half = {name: value.astype(mx.float16) for name, value in good.items()}
    mx.save_safetensors(str(tmp_path / lora.WEIGHTS_FILE), half)
    model = load_base(str(tiny_model)).model
    lora.attach(model, FULL, seed=0)
    lora.load_weights(model, tmp_path)
    loaded = dict(tree_flatten(model.trainable_parameters()))
    assert {value.dtype for value in loaded.values()} == {mx.float32}
    for name, value in half.items():
        np.testing.assert_array_equal(np.array(loaded[name]), np.array(value.astype(mx.float32)))


def test_use_exchanges_the_weights_and_restores_them_whatever_happens(
    tiny_model: Path, sft_adapter: Path
) -> None:
    model = load_base(str(tiny_model)).model
    lora.attach(model, lora.LoraConfig("lora", -1, 4, 8.0, dropout=0.5), seed=0)
    start = model.trainable_parameters()
    of_start = logits(model)
    lora.load_weights(model, sft_adapter)
    of_sft = logits(model)
    model.train()
    with lora.use(model, start):
        assert not model.training
        np.testing.assert_array_equal(logits(model), of_start)
    assert model.training

    def fails() -> None:
        with lora.use(model, start):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert model.training
    model.eval()
    with lora.use(model, start):
        pass
    assert not model.training
    np.testing.assert_array_equal(logits(model), of_sft)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_detached_adapters_leave_the_base_and_room_for_others(kind: str, tiny_model: Path) -> None:
    base = load_base(str(tiny_model))
    ids = mx.array([[5, 6, 7]])
    plain, names = base.model(ids), [name for name, _ in tree_flatten(base.model.parameters())]
    lora.attach(base.model, lora.LoraConfig(kind, -1, 4, 8.0), seed=1)
    lora.detach(base.model)
    assert [name for name, _ in tree_flatten(base.model.parameters())] == names
    assert tree_flatten(base.model.trainable_parameters()) == []
    assert mx.array_equal(base.model(ids), plain)
    lora.detach(base.model)
    lora.attach(base.model, lora.LoraConfig("lora", 1, 2, 8.0, keys=("self_attn.q_proj",)), seed=1)
    assert len(tree_flatten(base.model.trainable_parameters())) == 2
