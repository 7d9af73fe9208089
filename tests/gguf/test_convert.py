"""GGUF files become folders that compute what the model computed that they were written from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf_files import CONFIG, TYPES, random_weights, write_gguf
from mlx.utils import tree_flatten
from mlx_lm import load as mlx_lm_load
from tiny_folders import make_tokenizer

from localdpo.core.errors import UserError, UserErrors
from localdpo.gguf import convert, families
from localdpo.gguf.file import GGUFFile
from localdpo.model.load import build_model, load_base, load_tokenizer, model_path

IDS = mx.array([[5, 6, 7, 8, 9, 200, 3]])
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 32},
    "phi3": {"rope_scaling": None},
}


def llama(tmp_path: Path, **options: Any) -> Path:
    return write_gguf(tmp_path / "llama.gguf", *random_weights("llama"), **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_computes_the_same_numbers(tmp_path: Path, family: str) -> None:
    model, config = random_weights(family, **FAMILIES[family])
    file = write_gguf(tmp_path / "model.gguf", model, config)
    convert.convert(file, tmp_path / "out")
    base = load_base(str(tmp_path / "out"))
    before = dict(tree_flatten(model.parameters()))
    after = dict(tree_flatten(base.model.parameters()))
    assert before.keys() == after.keys()
    for name, array in before.items():
        # 1 + w - 1 rounds once for gemma.
        np.testing.assert_allclose(np.array(after[name]), np.array(array), atol=2e-7, err_msg=name)
    np.testing.assert_allclose(np.array(base.model(IDS)), np.array(model(IDS)), atol=1e-3)
    assert {base.config[key] for key in ("rms_norm_eps",)} == {config["rms_norm_eps"]}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "phi3"])
def test_names_are_those_of_llama_cpp(family: str) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], 2)
    config = {**CONFIG, "vocab_size": 320, "attention_bias": family == "llama"}
    for item in families.items(families.FAMILIES[family], config):
        assert names.get_name(item.mlx, (".weight", ".bias")) == item.gguf


@pytest.mark.parametrize(("kind", "bits"), [(TYPES.Q4_0, 4), (TYPES.Q4_1, 4), (TYPES.Q8_0, 8)])
def test_quantised_layers_stay_so(tmp_path: Path, kind: Any, bits: int) -> None:
    file = llama(tmp_path, kind=kind)
    written = convert.convert(file, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": bits, "mode": "affine"}
    assert (written.kept, written.dequantised) == (16, 0)
    model, _ = build_model(str(tmp_path / "out"))
    assert "scales" in model.model.layers[0].self_attn.q_proj
    # Exactly the numbers that llama.cpp computes, its order of rows put back.
    base = load_base(str(tmp_path / "out"))
    source = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for name, ours in (("ffn_up", "mlp.up_proj"), ("attn_q", "self_attn.q_proj")):
        tensor = source[f"blk.0.{name}.weight"]
        theirs = gguf.dequantize(tensor.data, tensor.tensor_type)
        if name == "attn_q":
            theirs = theirs.reshape(4, 8, 2, 64).swapaxes(1, 2).reshape(64, 64)
        layer = base.model.model.layers[0]
        for part in ours.split("."):
            layer = layer[part]
        np.testing.assert_allclose(np.array(layer.weight), theirs, rtol=1e-6, atol=1e-6)


def test_layers_may_have_bits_of_their_own(tmp_path: Path) -> None:
    model, config = random_weights("llama")
    file = write_gguf(tmp_path / "q4.gguf", model, config, TYPES.Q4_0)
    mixed = rewritten(file, {"token_embd.weight": TYPES.Q8_0, "output.weight": TYPES.Q5_0})
    written = convert.convert(mixed, tmp_path / "out")
    assert written.types == {"F32": 5, "Q4_0": 14, "Q8_0": 1, "Q5_0": 1}
    assert (written.kept, written.dequantised) == (15, 1)
    quantization = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert quantization["bits"] == 4
    assert quantization["model.embed_tokens"] == {"group_size": 32, "bits": 8}
    loaded, _ = mlx_lm_load(str(tmp_path / "out"))
    assert loaded.model.embed_tokens.bits == 8
    assert loaded.lm_head.weight.dtype == mx.float16
    assert {a.dtype for _, a in tree_flatten(loaded.parameters())} == {mx.uint32, mx.float16, mx.float32}
    convert.convert(mixed, tmp_path / "again", bits=8)
    loaded, _ = mlx_lm_load(str(tmp_path / "again"))
    assert loaded.lm_head.bits == 8


def rewritten(file: Path, kinds: dict[str, Any]) -> Path:
    """A file with some tensors quantised otherwise."""
    reader, path = gguf.GGUFReader(file), file.with_name("mixed.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        kind, data = tensor.tensor_type, tensor.data
        if tensor.name in kinds:
            kind = kinds[tensor.name]
            data = gguf.quantize(gguf.dequantize(tensor.data, tensor.tensor_type), kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("kind", "dtype"), [(TYPES.F16, mx.float16), (TYPES.BF16, mx.bfloat16)])
def test_a_16_bit_model_has_one_type_where_nothing_changes(tmp_path: Path, kind: Any, dtype: Any) -> None:
    model, config = random_weights("llama")
    # Norms as a converter writes them: 16-bit numbers in float32; one of them is not.
    for name, array in tree_flatten(model.parameters()):
        if array.ndim == 1 and "post_attention" not in name:
            array[...] = array.astype(mx.bfloat16).astype(mx.float32)
    convert.convert(write_gguf(tmp_path / "m.gguf", model, config, kind), tmp_path / "out")
    loaded, _ = build_model(str(tmp_path / "out"))
    block = loaded.model.layers[0]
    assert block.self_attn.q_proj.weight.dtype == block.input_layernorm.weight.dtype == dtype
    assert block.post_attention_layernorm.weight.dtype == mx.float32


def test_a_large_model_is_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "SHARD_BYTES", 100_000)
    convert.convert(llama(tmp_path), tmp_path / "out")
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(shards) > 1
    assert {path.name for path in shards} == set(index["weight_map"].values())
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    load_base(str(tmp_path / "out"))


def test_a_file_is_a_model_and_is_converted_once(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = llama(tmp_path)
    folder = model_path(str(file))
    assert folder.parent == own_cache / "models"
    assert f"llama.gguf: converting once into {folder}" in capsys.readouterr().err
    assert load_tokenizer(str(file)).encode("answer 7") == make_tokenizer().encode("answer 7")
    assert capsys.readouterr().err == ""
    moved = file.rename(tmp_path / "moved.GGUF")
    assert model_path(str(moved)) == folder
    with pytest.raises(UserError, match=r"model .*llama\.gguf: cannot be read \(No such file or directory\)"):
        model_path(str(file))


def test_llama_3_frequencies_become_the_four_numbers(tmp_path: Path) -> None:
    scaling = {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    model, config = random_weights("llama", rope_theta=500000.0, rope_scaling=scaling)
    # MLX's own factors: its frequencies are wavelengths, divided by those without scaling.
    plain = 500000.0 ** (np.arange(0, 16, 2) / 16)
    factors = np.array(model.model.layers[0].self_attn.rope._freqs) / plain
    file = write_gguf(tmp_path / "m.gguf", model, config, tensors={"rope_freqs.weight": factors})
    convert.convert(file, tmp_path / "out")
    base = load_base(str(tmp_path / "out"))
    assert base.config["rope_scaling"] == scaling
    np.testing.assert_allclose(np.array(base.model(IDS)), np.array(model(IDS)), atol=1e-3)
    other = write_gguf(tmp_path / "o.gguf", model, config, tensors={"rope_freqs.weight": factors**0.9})
    with pytest.raises(UserError, match=r"rope_freqs\.weight: these are not the factors of Llama 3\.1"):
        convert.convert(other, tmp_path / "out2")


def test_phi3_long_factors_and_partial_rotary_embeddings(tmp_path: Path) -> None:
    long = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.5, 4.0]}
    changed = {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 128, "rope_scaling": long}
    model, config = random_weights("phi3", **changed)
    file = write_gguf(
        tmp_path / "m.gguf",
        model,
        config,
        changed={
            "phi3.rope.dimension_count": np.uint32(8),
            "phi3.rope.scaling.original_context_length": np.uint32(128),
        },
        tensors={
            "rope_factors_long.weight": np.array(long["long_factor"]),
            "rope_factors_short.weight": np.array(long["short_factor"]),
        },
    )
    convert.convert(file, tmp_path / "out")
    base = load_base(str(tmp_path / "out"))
    assert {key: base.config[key] for key in changed} == changed
    np.testing.assert_allclose(np.array(base.model(IDS)), np.array(model(IDS)), atol=1e-3)


def test_a_part_of_a_head_is_as_large_in_mlx_lm_as_in_the_file(tmp_path: Path) -> None:
    """It rounds down; 30 / 44 of 44 are 29.999."""
    model, config = random_weights("phi3", hidden_size=176, head_dim=44, partial_rotary_factor=31 / 44)
    for turned, message in ((30, None), (29, "expected 44, the size of a head, got 29")):
        keys = {"phi3.rope.dimension_count": np.uint32(turned)}
        file = GGUFFile(write_gguf(tmp_path / f"{turned}.gguf", model, config, changed=keys))
        if message is None:
            found = families.config_of(file, families.family_of(file))["partial_rotary_factor"]
            assert int(44 * found) == turned
        else:
            with pytest.raises(UserErrors, match=message):
                families.config_of(file, families.family_of(file))


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("linear", {"type": "linear", "factor": 4.0}),
        ("yarn", {"type": "yarn", "factor": 4.0}),
        # What llama.cpp makes of a factor alone, and the key's older name.
        ("linear", {"factor": 4.0}),
        ("linear", {"scale_linear": 4.0}),
    ],
)
def test_other_scaling_of_rotary_embeddings(tmp_path: Path, kind: str, keys: dict[str, Any]) -> None:
    scaling = {"rope_type": kind, "type": kind, "factor": 4.0}
    keys = {
        f"qwen2.rope.{'' if name == 'scale_linear' else 'scaling.'}{name}": (
            value if isinstance(value, str) else np.float32(value)
        )
        for name, value in keys.items()
    }
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = 128
        keys["qwen2.rope.scaling.original_context_length"] = np.uint32(128)
    model, config = random_weights("qwen2", rope_scaling=scaling)
    convert.convert(write_gguf(tmp_path / "m.gguf", model, config, changed=keys), tmp_path / "out")
    base = load_base(str(tmp_path / "out"))
    assert base.config["rope_scaling"] == scaling
    np.testing.assert_allclose(np.array(base.model(IDS)), np.array(model(IDS)), atol=1e-3)


@pytest.mark.parametrize(
    ("changed", "tensors", "message"),
    [
        ({"general.architecture": "mamba"}, {}, "general.architecture: mamba is not supported; expected one"),
        ({"llama.block_count": None}, {}, "llama.block_count: expected a whole number, got nothing"),
        ({"llama.block_count": "2"}, {}, "llama.block_count: expected a whole number, got str"),
        ({"llama.block_count": np.uint32(2**31)}, {}, "block_count: expected 1 to 21, got 2,147,483,648"),
        ({"llama.attention.head_count_kv": np.uint32(3)}, {}, "attention.head_count is no multiple of"),
        (
            {"llama.attention.key_length": np.uint32(15)},
            {},
            "llama.attention.key_length: 15 is not supported",
        ),
        ({"llama.rope.dimension_count": np.uint32(8)}, {}, "expected 16, the size of a head, got 8"),
        ({"llama.rope.freq_base": np.float32("nan")}, {}, "freq_base: expected a number above 0, got nan"),
        (
            {"llama.attention.layer_norm_rms_epsilon": np.float32(0)},
            {},
            "layer_norm_rms_epsilon: expected a number above 0, got 0",
        ),
        ({"llama.rope.scaling.type": "su"}, {}, "rope.scaling.type: su is not supported in llama"),
        (
            {"llama.rope.scaling.attn_factor": np.float32(1.2)},
            {},
            "llama.rope.scaling.attn_factor: mlx-lm has 1 in this model, got 1.2",
        ),
        (
            {"llama.rope.scaling.factor": np.float32(2)},
            {"rope_freqs.weight": np.ones(8)},
            "llama.rope.scaling.factor: expected 1 beside the tensor rope_freqs.weight, got 2",
        ),
        ({}, {"rope_freqs.weight": np.ones(4)}, "rope_freqs.weight: expected 8 numbers of type F32"),
        ({}, {"rope_freqs.weight": np.full(8, np.nan)}, "rope_freqs.weight: expected numbers above 0"),
        ({}, {"rope_factors_long.weight": np.ones(8)}, "rope_factors_long.weight is not supported in llama"),
        # What would make it another model, without a tensor that says so.
        (
            {"llama.attention.scale": np.float32(0.1)},
            {},
            "llama.attention.scale: what this changes in a model of llama is not known here",
        ),
        ({"llama.expert_count": np.uint32(8)}, {}, "llama.expert_count: 8 is not supported in llama"),
        ({"llama.attention.causal": False}, {}, "llama.attention.causal: False is not supported in llama"),
        ({"general.type": "adapter"}, {}, "general.type: expected model, got adapter"),
        (
            {"split.count": np.uint32(3), "split.no": np.uint32(1)},
            {},
            "split.count: this is part 2 of 3; put them together with `llama-gguf-split --merge",
        ),
        ({"llama.embedding_length": np.uint32(128)}, {}, "token_embd.weight: expected shape ("),
        ({}, {"token_embd.weight": None}, "tensor token_embd.weight is missing"),
        ({}, {"blk.1.ffn_up.weight": None}, "tensor blk.1.ffn_up.weight is missing"),
        ({}, {"blk.0.ffn_gate_exps.weight": np.zeros((2, 32))}, "blk.0.ffn_gate_exps.weight has no place in"),
        ({}, {"output_norm.weight": np.full(64, np.nan)}, "output_norm.weight: it holds NaN or infinity"),
        ({"tokenizer.ggml.model": "bert"}, {}, "tokenizer.ggml.model: bert is not supported; expected gpt2"),
        ({"tokenizer.ggml.pre": "viking"}, {}, "tokenizer.ggml.pre: how viking splits words is not known"),
        ({"tokenizer.ggml.tokens": None}, {}, "tokenizer.ggml.tokens: expected a list of texts, got nothing"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, {}, "tokenizer.ggml.tokens: tokens 0 and 1 are the same"),
        ({"tokenizer.ggml.tokens": ["a" * 3000]}, {}, "tokenizer.ggml.tokens: token 0 has 3,000 characters"),
        ({"tokenizer.ggml.tokens": list(map(str, range(999)))}, {}, "expected 1 to 298, the rows of the"),
        ({"tokenizer.ggml.token_type": [1]}, {}, "tokenizer.ggml.token_type: expected 298, got 1"),
        ({"tokenizer.ggml.merges": ["a"]}, {}, "tokenizer.ggml.merges: entry 0 is not two tokens"),
        ({"tokenizer.ggml.merges": ["a ☃"]}, {}, "its tokenizer cannot be built: "),
        ({"tokenizer.ggml.eos_token_id": np.uint32(5000)}, {}, "eos_token_id: expected below 298, got 5,000"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line_and_leaves_nothing(
    tmp_path: Path, changed: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    file = llama(tmp_path, changed=changed, tensors=tensors)
    with pytest.raises((UserError, UserErrors)) as caught:
        convert.convert(file, tmp_path / "out")
    assert any(message in line for line in caught.value.lines), caught.value.lines
    assert all(line.startswith(f"{file}: ") for line in caught.value.lines)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_keys_that_change_nothing_are_no_problem(tmp_path: Path) -> None:
    keys = {
        "general.type": "model",
        "llama.vocab_size": np.uint32(298),
        "llama.expert_count": np.uint32(0),
        "llama.attention.causal": True,
        "llama.rope.scaling.type": "none",
        "general.sampling.temp": np.float32(0.6),
        "quantize.imatrix.file": "imatrix.dat",
    }
    convert.convert(llama(tmp_path, changed=keys), tmp_path / "out")


def test_scaling_that_mlx_lm_does_not_have_in_an_architecture_is_refused(tmp_path: Path) -> None:
    """Its gemma would go on without it."""
    model, config = random_weights("gemma")
    for number, (keys, tensors) in enumerate(
        [({}, {"rope_freqs.weight": np.ones(8)}), ({"gemma.rope.scale_linear": np.float32(2)}, {})]
    ):
        file = write_gguf(tmp_path / f"{number}.gguf", model, config, changed=keys, tensors=tensors)
        with pytest.raises(UserError, match="is not supported in gemma"):
            convert.convert(file, tmp_path / "out")


def test_numbers_that_float16_does_not_hold_are_said(tmp_path: Path) -> None:
    model, config = random_weights("llama")
    big = np.full((64, 64), 1e6)
    file = write_gguf(
        tmp_path / "m.gguf", model, config, TYPES.Q5_0, tensors={"blk.0.attn_q.weight": big[:, :64]}
    )
    with pytest.raises(UserError, match=r"tensor blk\.0\.attn_q\.weight: it holds NaN or infinity"):
        convert.convert(file, tmp_path / "out")


def test_only_the_first_of_many_problems_are_listed(tmp_path: Path) -> None:
    file = llama(tmp_path)
    opened = GGUFFile(file)
    family = families.family_of(opened)
    opened.tensors.clear()
    config = {**CONFIG, "vocab_size": 298}
    with pytest.raises(UserErrors) as caught:
        families.located(opened, family, config)
    assert len(caught.value.lines) == 11
    assert caught.value.lines[-1].endswith("and 11 more tensors")


def test_rare_types_need_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = llama(tmp_path)
    rare = write_gguf(tmp_path / "rare.gguf", *random_weights("llama"), kind=TYPES.Q5_0)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    convert.convert(plain, tmp_path / "out")
    with pytest.raises(
        UserError, match=r"the package gguf, which is not installed: pip install 'localdpo\[gguf\]'"
    ):
        convert.convert(rare, tmp_path / "out2")
