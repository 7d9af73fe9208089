"""`localdpo import`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from command import localdpo
from gguf_files import TYPES, random_weights, write_gguf

from localdpo.core.errors import UserError
from localdpo.interop.importing import ImportRequest, import_path
from localdpo.model.arrays import load_arrays
from localdpo.model.load import load_base


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return write_gguf(path, *random_weights("llama"), kind=TYPES.Q5_0)


def test_a_file_is_imported_and_tried(tmp_path: Path, small_file: Path) -> None:
    done = localdpo("import", str(small_file), str(tmp_path / "out"), "--bits", "8")
    assert (done.returncode, done.stderr) == (0, "")
    first, second, answer, perplexity, doubt = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/out: llama, 21 tensors (5 F32, 16 Q5_0), ")
    assert second == "16 tensors of types that MLX lacks became 8 bits"
    assert answer.startswith("What is the capital of France? ->")
    assert perplexity.startswith("perplexity ")
    assert perplexity.endswith("tokens of a built-in paragraph")
    # Of random weights.
    assert doubt.startswith("5 to 30 is usual: the weights and the words of this model may not belong")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": 8, "mode": "affine"}


def test_a_whole_model_is_written_as_it_is_or_quantised(tmp_path: Path, tiny_model: Path) -> None:
    own = load_arrays(tiny_model / "model.safetensors")
    same = import_path(ImportRequest(tiny_model, tmp_path / "same", check=False))
    assert same.lines[0].startswith(f"{tmp_path}/same: qwen3, {len(own)} tensors, ")
    written = load_arrays(tmp_path / "same" / "model.safetensors")
    assert written.keys() == own.keys()
    assert all(mx.array_equal(written[name], own[name]).item() for name in own)
    assert import_path(ImportRequest(tiny_model, tmp_path / "eight", bits=8)).lines[1].startswith("What is")
    config = json.loads((tmp_path / "eight" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": 8}
    load_base(str(tmp_path / "eight"))
    with pytest.raises(UserError, match="is quantised already"):
        import_path(ImportRequest(tmp_path / "eight", tmp_path / "again", bits=4))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("tokenizer", "its tokenizer cannot be read: it has no token for the letter a"),
        ("int8", "weight: expected floating-point numbers, got mlx.core.int8"),
        ("nan", "this model computes NaN"),
    ],
)
def test_nothing_stays_of_a_model_that_does_not_work(
    tmp_path: Path, tiny_model: Path, damage: str, message: str
) -> None:
    source, weights = shutil.copytree(tiny_model, tmp_path / "source"), tiny_model / "model.safetensors"
    if damage == "tokenizer":
        for path in source.glob("tokenizer*"):
            path.unlink()
    else:
        wrong = {
            name: array.astype(mx.int8) if damage == "int8" else array * float("nan")
            for name, array in load_arrays(weights).items()
        }
        mx.save_safetensors(str(source / weights.name), wrong)
    done = localdpo("import", str(source), str(tmp_path / "out"))
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_json(tmp_path: Path, small_file: Path) -> None:
    done = localdpo("import", str(small_file), str(tmp_path / "out"), "--no-check", "--json")
    record = json.loads(done.stdout)
    assert record["types"] == {"F32": 5, "Q5_0": 16}
    assert record["folder"] == str(tmp_path / "out")
    assert "check" not in record


def test_every_mistake_is_said_at_once(tmp_path: Path, small_file: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"no model")
    done = localdpo("import", str(tmp_path / "model.bin"), str(tmp_path), "--bits", "3")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {tmp_path}/model.bin: expected the folder of a PEFT adapter (adapter_config.json and "
        "adapter_model.safetensors), a file of PyTorch with weights under 'state' (policy.pt), "
        "a .gguf file or a model's folder (config.json and model.safetensors)",
        "error: --bits 3: expected 4 or 8",
        f"error: {tmp_path}: exists already; give another folder",
    ]
    done = localdpo("import", str(small_file), str(tmp_path / "model.bin" / "out"))
    assert done.stderr.startswith(
        f"error: {tmp_path}/model.bin: is a file, so nothing can be written below it"
    )


def test_a_file_that_is_none_but_is_called_so_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<!doctype html>")
    done = localdpo("import", str(tmp_path / "page.gguf"), str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path}/page.gguf: not a complete GGUF file: it does not begin with GGUF\n"
    )


def test_a_damaged_file_is_one_line(tmp_path: Path, small_file: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(small_file.read_bytes()[:-100])
    done = localdpo("import", str(tmp_path / "cut.gguf"), str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/cut.gguf: not a complete GGUF file: tensor ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
