"""Adapters go to PEFT's layout and back bit by bit; what one of the two cannot say is refused in words."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from command import localdpo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_families import tiny, with_lora
from tiny_folders import make_adapter

from localdpo.core.errors import LocalDPOError
from localdpo.interop.folder import require_same_names
from localdpo.interop.peft import WEIGHTS, from_peft, is_peft, to_peft
from localdpo.model import lora
from localdpo.model.arrays import load_arrays
from localdpo.model.load import load_base

LAYERS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def write_peft(folder: Path, config: dict[str, Any], tensors: dict[str, mx.array]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / lora.CONFIG_FILE).write_text(json.dumps(config))
    mx.save_safetensors(str(folder / WEIGHTS), tensors)
    return folder


def adapted(base: Path, adapter: Path) -> tuple[Any, lora.LoraConfig]:
    model, shape = load_base(str(base)).model, lora.read_config(adapter)
    lora.attach(model, shape, seed=0)
    lora.load_weights(model, adapter)
    return model, shape


def there_and_back(base: Path, adapter: Path, folder: Path) -> None:
    """Through PEFT's files, the same adapter comes out, to the bit."""
    model, shape = adapted(base, adapter)
    config, tensors = to_peft(model, shape, "org/original")
    written = write_peft(folder, config, tensors)
    assert is_peft(written)
    back, weights = from_peft(written, load_base(str(base)).model)
    before = load_arrays(adapter / lora.WEIGHTS_FILE)
    assert weights.keys() == before.keys()
    for name, array in weights.items():
        assert array.dtype == before[name].dtype
        assert np.array_equal(np.array(array), np.array(before[name])), name
    assert (back.type, back.rank, back.scale) == (shape.type, shape.rank, shape.scale)
    # Other words may name the same layers; what they adapt is the same.
    fresh = load_base(str(base)).model
    lora.attach(fresh, back, seed=0)
    lora.set_weights(fresh, weights, written)


@pytest.mark.slow
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["lora", "dora"]),
    rank=st.integers(1, 6),
    layers=st.sampled_from([-1, 1, 2]),
    keys=st.none() | st.sets(st.sampled_from(LAYERS), min_size=1).map(lambda names: tuple(sorted(names))),
)
def test_there_and_back_to_the_bit(
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    rank: int,
    layers: int,
    keys: tuple[str, ...] | None,
) -> None:
    folder = tmp_path_factory.mktemp("peft")
    make_adapter(folder / "adapter", tiny_model, kind=kind, rank=rank, layers=layers, keys=keys)
    there_and_back(tiny_model, folder / "adapter", folder / "peft")


def test_the_words_for_which_layers_stay_the_same(tiny_model: Path, tmp_path: Path) -> None:
    shapes = [
        lora.LoraConfig("lora", -1, 4, 8.0),
        lora.LoraConfig("lora", 1, 4, 8.0),
        lora.LoraConfig("dora", -1, 2, 0.5, 0.1, ("mlp.up_proj", "self_attn.q_proj")),
        lora.LoraConfig("lora", 1, 4, 8.0, keys=("self_attn.q_proj", "lm_head", "model.embed_tokens")),
        lora.LoraConfig(
            "lora", -1, 4, 8.0, keys=("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj")
        ),
    ]
    for number, shape in enumerate(shapes):
        model = load_base(str(tiny_model)).model
        lora.attach(model, shape, seed=0)
        folder = write_peft(tmp_path / str(number), *to_peft(model, shape, "base"))
        back, _ = from_peft(folder, load_base(str(tiny_model)).model)
        assert set(back.keys or ()) == set(shape.keys or ())
        assert (back.type, back.layers, back.rank, back.scale, back.dropout) == (
            shape.type,
            shape.layers,
            shape.rank,
            shape.scale,
            shape.dropout,
        )


def test_the_numbers_are_those_of_peft(tiny_model: Path, tmp_path: Path) -> None:
    """PEFT adds lora_alpha / r * B A to the weight [out, in], mlx-lm scale * (A B)^T."""
    make_adapter(tmp_path / "adapter", tiny_model, rank=3)
    model, shape = adapted(tiny_model, tmp_path / "adapter")
    config, tensors = to_peft(model, shape, "org/original")
    own = load_arrays(tmp_path / "adapter" / lora.WEIGHTS_FILE)
    assert config["base_model_name_or_path"] == "org/original"
    assert config["target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    layer = "model.layers.1.mlp.down_proj"
    a, b = (np.array(own[f"{layer}.{side}"], dtype=np.float64) for side in ("lora_a", "lora_b"))
    peft_a, peft_b = (
        np.array(tensors[f"base_model.model.{layer}.lora_{side}.weight"], dtype=np.float64) for side in "AB"
    )
    delta = config["lora_alpha"] / config["r"] * peft_b @ peft_a
    assert np.allclose(delta, shape.scale * (a @ b).T, rtol=1e-12)


def test_layers_that_are_not_adapted_are_not_named(tiny_model: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path / "adapter", tiny_model, layers=1, keys=("self_attn.q_proj",))
    model, shape = adapted(tiny_model, tmp_path / "adapter")
    config, _ = to_peft(model, shape, "base")
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("qwen3_moe", {}, "PEFT has no adapter for stacked experts"),
        ("qwen3", {"keys": ["model.embed_tokens"]}, "the output head, too"),
        ("llama", {"keys": ["model.embed_tokens"], "dora": True}, "DoRA of an embedding"),
    ],
)
def test_what_has_no_place_in_peft_is_refused(family: str, options: dict[str, Any], words: str) -> None:
    model = with_lora(tiny(family), **options)
    with pytest.raises(LocalDPOError, match=words):
        to_peft(model, lora.LoraConfig("lora", -1, 4, 4.0), "base")


def test_a_family_with_other_names_is_refused() -> None:
    with pytest.raises(LocalDPOError, match="model_type cohere2: its weights may have other names"):
        require_same_names({"model_type": "cohere2"})


BAD_CONFIGS = {
    "peft_type": ("LOHA", "peft_type: expected LORA, got LOHA"),
    "bias": ("all", "bias: expected none, got all"),
    "modules_to_save": (["lm_head"], "modules_to_save: mlx-lm's adapters have nothing like it"),
    "layer_replication": ([[0, 2]], "layer_replication"),
    "lora_bias": (True, "lora_bias"),
    "alpha_pattern": ([1], "alpha_pattern: mlx-lm has one scale"),
    "init_lora_weights": ("PiSSA_niter_4", "init_lora_weights: pissa_niter_4 changes the base, too"),
    "r": (True, "r: expected a whole number"),
    "lora_alpha": (True, "lora_alpha: expected a number"),
    "lora_dropout": (1.0, "lora_dropout: expected a number from 0"),
}


@pytest.fixture(scope="module")
def peft_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    make_adapter(folder / "adapter", tiny_model)
    model, shape = adapted(tiny_model, folder / "adapter")
    return write_peft(folder / "peft", *to_peft(model, shape, str(tiny_model)))


def changed(peft: Path, folder: Path, **changes: Any) -> Path:
    config = json.loads((peft / lora.CONFIG_FILE).read_text()) | changes
    return write_peft(folder, config, load_arrays(peft / WEIGHTS))


def test_what_mlx_lm_cannot_say_is_refused_all_at_once(
    peft_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = changed(peft_folder, tmp_path, **{name: value for name, (value, _) in BAD_CONFIGS.items()})
    with pytest.raises(LocalDPOError) as error:
        from_peft(folder, load_base(str(tiny_model)).model)
    assert len(error.value.lines) == len(BAD_CONFIGS)
    for _, words in BAD_CONFIGS.values():
        assert any(words in line and lora.CONFIG_FILE in line for line in error.value.lines), words


def test_rank_stabilised_scaling_becomes_a_scale(peft_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = changed(peft_folder, tmp_path, use_rslora=True, lora_alpha=16)
    shape, _ = from_peft(folder, load_base(str(tiny_model)).model)
    assert shape.scale == 16 / 2


def test_tensors_that_do_not_belong_are_named(peft_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    tensors = load_arrays(peft_folder / WEIGHTS)
    config = json.loads((peft_folder / lora.CONFIG_FILE).read_text())
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    for wrong, words in (
        ({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": mx.zeros((4, 64))}, "has no layer"),
        ({"base_model.model.lm_head.modules_to_save.weight": mx.zeros((4, 4))}, "expected a LoRA tensor"),
        ({f"{name}.lora_A.weight": mx.zeros((2, 64))}, "one rank for all layers"),
        ({f"{name}.lora_A.weight": mx.array(1.0)}, "expected a matrix"),
        ({f"{name}.lora_A.weight": mx.zeros((4, 64), mx.int32)}, "finite floating-point numbers"),
        ({f"{name}.lora_B.weight": mx.full((64, 4), float("nan"))}, "finite floating-point numbers"),
    ):
        folder = write_peft(tmp_path / words[:3], config, tensors | wrong)
        with pytest.raises(LocalDPOError, match=words):
            from_peft(folder, load_base(str(tiny_model)).model)
    with pytest.raises(LocalDPOError, match="there is no tensor in it"):
        from_peft(write_peft(tmp_path / "none", config, {}), load_base(str(tiny_model)).model)


# --- the command ---------------------------------------------------------------------------------------


def test_import_makes_an_adapter_that_training_takes(
    peft_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    result = localdpo("import", str(peft_folder), str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert f"lora adapter of rank 4, scale 8, for {tiny_model}" in result.stdout
    assert lora.open_adapter(str(tmp_path / "out")).digests.keys() == {lora.CONFIG_FILE, lora.WEIGHTS_FILE}
    again = localdpo("import", str(peft_folder), str(tmp_path / "out"))
    assert (again.returncode, "exists already; give another folder" in again.stderr) == (2, True)


def test_import_needs_a_base_that_fits(peft_folder: Path, quantised_model: Path, tmp_path: Path) -> None:
    nameless = changed(peft_folder, tmp_path / "nameless", base_model_name_or_path=None)
    assert "give it with --model" in localdpo("import", str(nameless), str(tmp_path / "a")).stderr
    other = localdpo("import", str(peft_folder), str(tmp_path / "b"), "--model", "demo:model")
    assert other.returncode == 2
    assert "the adapter does not fit the model" in other.stderr
    assert not (tmp_path / "b").exists()


def test_import_says_what_it_expects(tmp_path: Path, sft_adapter: Path, peft_folder: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert "no such file or folder" in localdpo("import", str(tmp_path / "no"), str(tmp_path / "o")).stderr
    unknown = localdpo("import", str(tmp_path / "notes.txt"), str(tmp_path / "o")).stderr
    assert "expected the folder of a PEFT adapter" in unknown
    assert "a .gguf file or a model's folder" in unknown
    bits = localdpo("import", str(peft_folder), str(tmp_path / "o"), "--bits", "8").stderr
    assert "--bits: the folder of a PEFT adapter" in bits
    own = localdpo("import", str(sft_adapter), str(tmp_path / "o"))
    assert "this is an adapter of mlx-lm already" in own.stderr


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_a_file_of_pytorch_needs_pytorch(tmp_path: Path, tiny_model: Path) -> None:
    with zipfile.ZipFile(tmp_path / "policy.pt", "w") as archive:
        archive.writestr("policy/data.pkl", b"")
    result = localdpo("import", str(tmp_path / "policy.pt"), str(tmp_path / "o"), "--model", str(tiny_model))
    assert result.returncode == 2
    assert "pip install 'localdpo[torch]'" in result.stderr


def test_a_start_adapter_of_peft_is_recognised(peft_folder: Path) -> None:
    with pytest.raises(LocalDPOError, match=f"this is a PEFT adapter; `localdpo import {peft_folder} OUT`"):
        lora.open_adapter(str(peft_folder))
