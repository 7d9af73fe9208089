"""Models and adapters written as GGUF, read back by this package, by MLX and by the `gguf` package."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from gguf_files import as_llama_cpp, random_weights
from mlx.utils import tree_flatten
from tiny_folders import make_tokenizer

from localdpo.core.errors import UserError, UserErrors
from localdpo.gguf.convert import convert
from localdpo.gguf.export import lora_adapter, read_lora, whole_model
from localdpo.gguf.file import F16, F32, NAMES, Q4_1, Q8_0, GGUFFile
from localdpo.gguf.tokenizer import PRE
from localdpo.model import lora
from localdpo.model.load import load_base, load_tokenizer

IDS = mx.array([[5, 6, 7, 8, 9, 200, 3]])
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 32},
    "phi3": {"rope_scaling": None},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


def named(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def written_and_read(
    folder: Path, model: nn.Module, config: dict[str, Any], tokenizer: Path, **options: Any
) -> tuple[GGUFFile, Path]:
    """The file of a model, and the folder that it becomes again."""
    whole = whole_model(config, named(model), tokenizer, name="tiny", **options)
    whole.write(folder / "m.gguf")
    file = GGUFFile(folder / "m.gguf")
    assert whole.size == sum(tensor.size for tensor in file.tensors.values())
    convert(folder / "m.gguf", folder / "out")
    return file, folder / "out"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_comes_back(tmp_path: Path, tokenizer: Path, family: str) -> None:
    model, config = random_weights(family, **FAMILIES[family])
    model.set_dtype(mx.bfloat16)
    file, out = written_and_read(tmp_path, model, config, tokenizer)
    assert file.metadata["general.architecture"] == family
    base = load_base(str(out))
    before = named(model)
    for name, array in named(base.model).items():
        np.testing.assert_array_equal(np.array(array), np.array(before[name].astype(mx.float32)), name)
    for key in ("rms_norm_eps", "rope_theta", "head_dim", "num_key_value_heads", "max_position_embeddings"):
        assert base.config[key] == config[key]


def test_rows_are_those_of_llama_cpp_and_mlx_reads_them(tmp_path: Path, tokenizer: Path) -> None:
    model, config = random_weights("llama")
    file, out = written_and_read(tmp_path, model, config, tokenizer)
    assert {tensor.kind for tensor in file.tensors.values()} == {F16, F32}
    ids = mx.array([[5, 9, 4, 7, 11, 6]])
    before, after = (nn.log_softmax(each(ids)) for each in (model, load_base(str(out)).model))
    likely = before.argmax(-1, keepdims=True)
    assert mx.abs(mx.take_along_axis(after - before, likely, -1)).max().item() < 1e-2
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    by_mlx = mx.load(str(file.path))
    for name, array in named(model).items():
        expected = as_llama_cpp(name, np.array(array), config)
        got = by_mlx[names.get_name(name, (".weight", ".bias"))]
        np.testing.assert_allclose(np.array(got.astype(mx.float32)), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (8, 32), (6, 64)])
def test_quantised_layers_are_kept_where_gguf_can_hold_them(
    tmp_path: Path, tokenizer: Path, bits: int, group: int
) -> None:
    model, config = random_weights("llama", intermediate_size=128)
    model.set_dtype(mx.float16)
    nn.quantize(model, group_size=group, bits=bits)
    whole = whole_model(config, named(model), tokenizer, name="tiny")
    file, out = written_and_read(tmp_path, model, config, tokenizer)
    before, after = load_quantised(model), load_base(str(out)).model
    types = Counter(NAMES[entry.kind] for entry in whole.entries)
    if bits == 4:
        assert (types, whole.notes) == ({"F32": 5, "Q4_1": 16}, ())
        assert file.metadata["general.file_type"] == 3
    else:
        assert types == {"F32": 5, "F16": 16}
        assert re.match("16 quantised matrices are written in 16 bits, since no type of GGUF", whole.notes[0])
    for name, array in before.items():
        ours = np.array(named(after)[name])
        if bits == 4:
            np.testing.assert_array_equal(ours, array, name)
        else:
            np.testing.assert_allclose(ours, array, rtol=1e-3, atol=1e-6)


def test_ends_of_answers_that_have_no_place_are_said(tmp_path: Path, tokenizer: Path) -> None:
    model, config = random_weights("llama", eos_token_id=[2, 100, 101])
    assert whole_model(config, named(model), tokenizer, name="tiny").notes == ()
    config["eos_token_id"] += [102, 103]
    (note,) = whole_model(config, named(model), tokenizer, name="tiny").notes
    assert note.startswith("2 tokens of eos_token_id in config.json found no place")
    assert note.endswith("(the first is 102)")


def load_quantised(model: nn.Module) -> dict[str, np.ndarray]:
    """The numbers of a quantised model in float32."""
    from localdpo.model.load import to_float32

    to_float32(model)
    return {name: np.array(array) for name, array in named(model).items()}


@pytest.mark.parametrize(("kind", "bits", "error"), [(Q8_0, 8, 0.005), (Q4_1, 4, 0.15)])
def test_layers_that_are_named_are_quantised(
    tmp_path: Path, tokenizer: Path, kind: int, bits: int, error: float
) -> None:
    model, config = random_weights("llama")
    layer = "model.layers.1.self_attn.q_proj"
    _, out = written_and_read(tmp_path, model, config, tokenizer, quantise={layer: kind})
    quantization = json.loads((out / "config.json").read_text())["quantization"]
    assert quantization == {"group_size": 32, "bits": bits, "mode": "affine"}
    after, before = (named(loaded)[f"{layer}.weight"] for loaded in (load_base(str(out)).model, model))
    difference = float(mx.abs(after - before).max())
    assert 0 < difference <= error * float(mx.abs(before).max())


def test_scaled_rotary_embeddings_come_back(tmp_path: Path, tokenizer: Path) -> None:
    llama3 = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    long = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.5, 4.0]}
    yarn = {"rope_type": "yarn", "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    phi3 = {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 128, "rope_scaling": long}
    for number, (family, changed) in enumerate(
        [
            ("llama", {"rope_scaling": llama3, "rope_theta": 500000.0}),
            ("phi3", phi3),
            ("qwen2", {"rope_scaling": yarn}),
        ]
    ):
        model, config = random_weights(family, **changed)
        (tmp_path / str(number)).mkdir()
        _, out = written_and_read(tmp_path / str(number), model, config, tokenizer)
        after = json.loads((out / "config.json").read_text())
        assert {key: after[key] for key in changed} == changed


def test_yarn_is_written_as_mlx_lm_computes_it(tmp_path: Path, tokenizer: Path) -> None:
    yarn = {"rope_type": "yarn", "type": "yarn", "factor": 4.0}
    model, config = random_weights("qwen2", rope_scaling=yarn)
    _, out = written_and_read(tmp_path, model, config, tokenizer)
    rope, same = (each.model.layers[0].self_attn.rope._freqs for each in (model, load_base(str(out)).model))
    assert mx.allclose(rope, same)
    model, config = random_weights(
        "qwen2", rope_scaling={**yarn, "beta_fast": 8, "beta_slow": 1, "mscale": 2}
    )
    with pytest.raises(UserError, match="yarn: beta_fast, mscale: has no place in a GGUF file"):
        written_and_read(tmp_path, model, config, tokenizer)


def test_a_tokenizer_comes_back(tmp_path: Path, tokenizer: Path) -> None:
    model, config = random_weights("llama", vocab_size=310)
    file, out = written_and_read(tmp_path, model, {**config, "eos_token_id": [2, 1]}, tokenizer)
    before, after = load_tokenizer_of(tokenizer), load_tokenizer(str(out))
    assert after.eos_token_ids == {2, 1}
    for text in ("The answer is 42.", "  two\n\nlines ☃", "a<|im_end|> b"):
        assert after.encode(text) == before.encode(text)
    assert after.chat_template == before.chat_template
    assert file.metadata["tokenizer.ggml.tokens"][-1] == "[PAD309]"
    assert file.metadata["tokenizer.ggml.token_type"].tolist()[-1] == 5


def load_tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", PRE)
def test_every_way_to_split_words_is_recognised(tmp_path: Path, name: str) -> None:
    from tokenizers import Regex, pre_tokenizers

    tokenizer = make_tokenizer()
    pre = PRE[name]
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_only])
    if name == "smollm":  # as SmolLM2's own tokenizer.json has it
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.backend_tokenizer.model.ignore_merges = pre.ignore_merges
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model, config = random_weights("llama")
    whole = whole_model(config, named(model), tmp_path / "tokenizer", name="tiny")
    assert whole.metadata["tokenizer.ggml.pre"] == name


def test_sentencepieces_scores_are_the_order_of_merges(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", *byte_tokens, *"▁abc", "bc", "▁a", "abc", "▁abc"]
    merges = [("b", "c"), ("a", "bc"), ("▁", "a"), ("▁", "abc")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    before = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>")
    before.save_pretrained(tmp_path / "tokenizer")
    net, config = random_weights("llama")
    file, out = written_and_read(tmp_path, net, config, tmp_path / "tokenizer")
    values = file.metadata
    assert (values["tokenizer.ggml.model"], values["tokenizer.ggml.add_space_prefix"]) == ("llama", True)
    assert values["tokenizer.ggml.add_bos_token"] is False
    kinds = values["tokenizer.ggml.token_type"].tolist()
    assert (kinds[0], kinds[1], kinds[2], kinds[260]) == (2, 3, 6, 1)
    after = load_tokenizer(str(out))
    for text in ("abc abc", "bca ☃ a", "", "  cab"):
        assert after.encode(text) == before.encode(text)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_an_adapter_does_in_ggufs_order_what_it_does_here(tmp_path: Path, family: str) -> None:
    model, config = random_weights(family)
    before = {name: np.array(array) for name, array in named(model).items()}
    model.freeze()
    lora.attach(model, lora.LoraConfig("lora", -1, 4, 8.0), seed=1)
    rng = np.random.default_rng(0)
    weights = {
        name: mx.array(rng.normal(size=array.shape).astype(np.float32))
        for name, array in tree_flatten(model.trainable_parameters())
    }
    lora_adapter(config, weights, scale=8.0, name="tiny").write(tmp_path / "a.gguf")
    file = GGUFFile(tmp_path / "a.gguf")
    values = file.metadata
    assert (values["general.type"], values["adapter.type"]) == ("adapter", "lora")
    assert (values["general.architecture"], values["adapter.lora.alpha"]) == (family, 32.0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], 2)
    by_gguf = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file.path).tensors}
    again, scale = read_lora(file.path, config)
    assert scale == 8.0
    assert again.keys() == weights.keys()
    assert all(mx.array_equal(again[name], array) for name, array in weights.items())
    layers = {name.rpartition(".")[0] for name in weights}
    assert len(by_gguf) == 2 * len(layers) > 8
    for layer in layers:
        name = names.get_name(f"{layer}.weight", (".weight",))
        delta = by_gguf[f"{name}.lora_b"] @ by_gguf[f"{name}.lora_a"] * (32.0 / 4)
        ours = np.array((weights[f"{layer}.lora_a"] @ weights[f"{layer}.lora_b"]).T) * 8.0
        expected = as_llama_cpp(f"{layer}.weight", before[f"{layer}.weight"] + ours, config)
        base = as_llama_cpp(f"{layer}.weight", before[f"{layer}.weight"], config)
        np.testing.assert_allclose(base + delta, expected, atol=1e-4)


def test_what_has_no_place_in_gguf_is_said(tmp_path: Path, tokenizer: Path, monkeypatch: Any) -> None:
    model, config = random_weights("llama")
    weights = named(model)
    with pytest.raises(UserError, match="model_type mamba: cannot be written as GGUF; expected one of"):
        whole_model({**config, "model_type": "mamba"}, weights, tokenizer, name="x")
    partial = {name: array for name, array in weights.items() if name != "model.norm.weight"}
    with pytest.raises(UserErrors) as lines:
        whole_model(config, {**partial, "odd": mx.zeros(3)}, tokenizer, name="x")
    assert lines.value.lines == ("odd has no place in a GGUF file", "model.norm.weight is missing")
    with pytest.raises(UserError, match="rope_scaling dynamic: has no place in a GGUF file of llama"):
        whole_model(
            {**config, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, named(model), tokenizer, name="x"
        )
    other, _ = random_weights("llama")
    nn.quantize(other, group_size=32, bits=4, mode="mxfp4")
    with pytest.raises(UserError, match="its kind of quantisation has no place in GGUF; give --deq"):
        whole_model(config, named(other), tokenizer, name="x")
    adapter = {
        "model.layers.0.self_attn.q_proj.lora_a": mx.zeros((64, 4)),
        "model.layers.0.self_attn.q_proj.lora_b": mx.zeros((4, 64)),
        "model.layers.0.self_attn.q_proj.m": mx.zeros(64),
        "model.embed_tokens.lora_a": mx.zeros((298, 4)),
    }
    with pytest.raises(UserErrors) as caught:
        lora_adapter(config, adapter, scale=1.0, name="x")
    assert [line.split(":")[0] for line in caught.value.lines] == [
        "model.embed_tokens.lora_a",
        "model.layers.0.self_attn.q_proj.m",
    ]
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="the package gguf, which is not installed"):
        whole_model(config, named(model), tokenizer, name="x")


def test_a_way_to_split_words_without_a_name_is_said(tmp_path: Path) -> None:
    from localdpo.core.names import BUNDLE

    model, config = random_weights("llama", vocab_size=768)
    with pytest.raises(UserError, match=r"llama\.cpp has no name for how tokenizer.json splits words"):
        whole_model(config, named(model), BUNDLE / "model", name="x")
