"""Loading a base: from where, as what, and the hash that stands for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load as mlx_lm_load
from mlx_lm.utils import quantize_model, save_model
from model_families import tiny

from localdpo.core import atomic
from localdpo.core.errors import UserError
from localdpo.model import load
from localdpo.model.arrays import float_types
from localdpo.model.load import (
    build_model,
    fingerprint,
    load_base,
    load_tokenizer,
    looks_local,
    model_path,
    to_float32,
    tokenizer_fingerprint,
)

IDS = mx.array([[5, 6, 7, 8, 9]])


def test_a_base_is_frozen_float32_and_the_model_that_mlx_lm_loads(quantised_model: Path) -> None:
    base = load_base(str(quantised_model))
    assert base.path == quantised_model
    assert base.config["model_type"] == "llama"
    assert not base.model.training
    assert tree_flatten(base.model.trainable_parameters()) == []
    assert {w.dtype for _, w in tree_flatten(base.model.parameters())} == {mx.float32}
    theirs = np.array(mlx_lm_load(str(quantised_model))[0](IDS).astype(mx.float32))
    np.testing.assert_allclose(np.array(base.model(IDS)), theirs, atol=2e-4)
    assert base.tokenizer.eos_token_ids == {base.config["eos_token_id"]}


@pytest.mark.parametrize(("bits", "group", "mode"), [(4, 32, "affine"), (8, 32, "affine"), (4, 32, "mxfp4")])
def test_float32_layers_equal_the_dequantised_ones(bits: int, group: int, mode: str) -> None:
    model = tiny("qwen2", tie_word_embeddings=False)
    model.set_dtype(mx.bfloat16)
    model.model.layers[0].self_attn.q_proj.bias = mx.ones((64,), dtype=mx.bfloat16) * 0.5
    nn.quantize(model, group_size=group, bits=bits, mode=mode)
    layers = {"q": model.model.layers[0].self_attn.q_proj, "e": model.model.embed_tokens, "h": model.lm_head}
    if mode == "affine":  # dequantised in float32, whatever type the scales have
        parts = {
            name: (q.scales.astype(mx.float32), q.biases.astype(mx.float32)) for name, q in layers.items()
        }
    else:
        parts = {name: (q.scales, None) for name, q in layers.items()}
    expected = {
        name: mx.dequantize(q.weight, *parts[name], group_size=group, bits=bits, mode=mode).astype(mx.float32)
        for name, q in layers.items()
    }
    to_float32(model)
    dense = {"q": model.model.layers[0].self_attn.q_proj, "e": model.model.embed_tokens, "h": model.lm_head}
    for name, layer in dense.items():
        np.testing.assert_array_equal(np.array(layer.weight), np.array(expected[name]))
        assert layer.weight.dtype == mx.float32
    np.testing.assert_array_equal(np.array(dense["q"].bias), np.full(64, 0.5, dtype=np.float32))
    x = mx.random.normal((3, 64))
    np.testing.assert_allclose(
        np.array(dense["q"](x)), np.array(x) @ np.array(expected["q"]).T + 0.5, atol=1e-4
    )
    assert not any("scales" in name for name, _ in tree_flatten(model.parameters()))


def test_quantised_experts_become_dense() -> None:
    model = tiny("qwen3_moe")
    before = np.array(model(IDS))
    nn.quantize(model, group_size=32, bits=8)
    quantised = np.array(model(IDS))
    to_float32(model)
    np.testing.assert_allclose(np.array(model(IDS)), quantised, atol=2e-3)
    assert np.abs(quantised - before).max() < 0.5


def test_where_a_model_is(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_path(str(tiny_model)) == tiny_model
    monkeypatch.chdir(tiny_model.parent)
    assert model_path(tiny_model.name) == Path(tiny_model.name)
    monkeypatch.setenv("HOME", str(tiny_model.parent))
    assert model_path(f"~/{tiny_model.name}") == tiny_model
    with pytest.raises(UserError, match=r"no config\.json in this folder"):
        model_path(str(tmp_path))
    for name in ("missing", "./missing/model", "/missing", "a/b/c", "~/missing"):
        with pytest.raises(UserError, match=r"no such folder; expected a model folder, a \.gguf file, "):
            model_path(name)
    with pytest.raises(UserError, match="did you mean demo:model"):
        model_path("demo:modell")


def test_hub_ids_have_one_slash() -> None:
    assert not looks_local("org/name")
    assert all(looks_local(name) for name in ("name", "./name", "../org/name", "/a/b", "~/name", "a/b/c"))


def test_what_the_hub_says_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    answers = {
        LocalEntryNotFoundError("a\nb"): "org/name: no such folder, and the hub cannot be reached",
        HFValidationError("bad id\nand more"): "org/name: no such folder, and the hub says: bad id",
        OSError("no route"): "org/name: no such folder, and the hub says: no route",
    }
    for error, message in answers.items():

        def refuse(*args: object, error: Exception = error, **kwargs: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
        with pytest.raises(UserError) as caught:
            model_path("org/name")
        assert message in str(caught.value)
        assert "and more" not in str(caught.value)


def test_a_tokenizer_alone_does_not_need_the_weights(tmp_path: Path, tiny_model: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.decode(tokenizer.encode("The answer")) == "The answer"
    with pytest.raises(UserError, match="mlx-lm cannot load it"):
        load_base(str(folder))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="its tokenizer cannot be read"):
        load_tokenizer(str(folder))


def test_a_path_that_mlx_lm_takes_for_a_pattern_is_named(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "qwen3[1]").symlink_to(tiny_model)
    with pytest.raises(UserError, match=r"qwen3\[1\]: mlx-lm takes .* for a pattern; rename the folder$"):
        build_model(str(tmp_path / "qwen3[1]"))
    (tmp_path / "qwen3[").symlink_to(tiny_model)
    assert build_model(str(tmp_path / "qwen3["))


def test_code_in_the_folder_runs_only_when_trusted(tmp_path: Path, tiny_model: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_file": "own.py"}))
    (folder / "own.py").write_text("from mlx_lm.models.qwen3 import Model, ModelArgs\nOWN = True\n")
    with pytest.raises(UserError, match="trust_remote_code"):
        load_base(str(folder))
    assert load_base(str(folder), trust_remote_code=True).model.layers


@pytest.mark.parametrize("whole", [True, False])
def test_the_fingerprint_changes_with_a_byte(
    whole: bool, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`whole`: the file is hashed in full; else samples, size and time stand for it, as for large files."""
    if not whole:
        monkeypatch.setattr(atomic, "WHOLE_FILE", 1000)
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    first = fingerprint(folder)
    assert fingerprint(Path(shutil.copytree(folder, tmp_path / "copy"))) == first
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert fingerprint(folder) != first
    (tmp_path / "copy" / "README.md").write_text("words")
    assert fingerprint(tmp_path / "copy") == first
    config = tmp_path / "copy" / "config.json"
    config.write_text(config.read_text() + " ")
    second = fingerprint(tmp_path / "copy")
    assert second != first
    (tmp_path / "copy" / "modeling_own.py").write_text("blocks = 2")
    assert fingerprint(tmp_path / "copy") != second


@pytest.mark.parametrize(
    "file",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "generation_config.json",
        "tokenizer.model",
        "merges.txt",
    ],
)
def test_the_tokenizer_fingerprint_changes_with_every_file_that_makes_tokens(
    file: str, tmp_path: Path, tiny_model: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    first = tokenizer_fingerprint(folder)
    assert tokenizer_fingerprint(tiny_model) == first
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")
    assert tokenizer_fingerprint(folder) != first


def test_the_tokenizer_fingerprint_does_not_read_the_weights(tmp_path: Path, tiny_model: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    first = tokenizer_fingerprint(folder)
    (folder / "model.safetensors").unlink()
    (folder / "README.md").write_text("words")
    assert tokenizer_fingerprint(folder) == first


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights stay in the type they are stored in."""
    monkeypatch.setattr(load, "device_name", lambda: "metal")


@pytest.mark.parametrize("bits", [None, 4])
def test_a_float16_base_is_loaded_as_bfloat16_with_a_note(
    bits: int | None, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "half")
    model, config = mlx_lm_load(str(tiny_model), return_config=True)[::2]
    model.set_dtype(mx.float16)
    if bits is not None:
        model, config = quantize_model(model, config, 32, bits)
    save_model(tmp_path / "half", model)
    (tmp_path / "half" / "config.json").write_text(json.dumps(config))
    on_a_gpu(monkeypatch)
    base = load_base(str(tmp_path / "half"))
    assert float_types(base.model) == {mx.bfloat16}
    assert base.notes == (load.FLOAT16_NOTE,)
    assert base.model(IDS).dtype == mx.bfloat16


def test_a_hybrid_is_loaded_with_a_note_on_what_to_expect() -> None:
    assert load.recurrent_layers(tiny("qwen3_next")) == 2
    assert load.recurrent_layers(tiny("qwen3")) == load.recurrent_layers(tiny("gemma3_text")) == 0
    note = load.RECURRENT_NOTE.format(count=2, blocks=4)
    assert note.startswith("2 of 4 layers are recurrent: MLX trains them in a loop over tokens")


def test_a_float32_base_switches_tf32_off_unless_told_otherwise(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch)
    monkeypatch.delenv("MLX_ENABLE_TF32")
    base = load_base(str(tiny_model))
    assert (float_types(base.model), base.notes) == ({mx.float32}, ())
    assert os.environ["MLX_ENABLE_TF32"] == "0"
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    load_base(str(tiny_model))
    assert os.environ["MLX_ENABLE_TF32"] == "1"
