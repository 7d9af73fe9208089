"""Mistakes that a person can mend: exit code 2, one line each, and run.failed in the log."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from tiny_folders import make_adapter, pair, recipe_text, write_pairs, write_rows
from training_runs import session_of, write_recipe

from localdpo.model.lora import CONFIG_FILE, WEIGHTS_FILE
from localdpo.records.checkpoints import newest_checkpoint
from localdpo.records.events import read_events
from localdpo.records.rundir import RunDir
from localdpo.train import worker
from localdpo.train.control import StopRequest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", 6)


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[str], list[str]]:
    """Run the worker on a recipe that it must refuse; the lines that it said."""
    monkeypatch.setattr(StopRequest, "install", lambda self: None)

    def run(text: str) -> list[str]:
        folder = RunDir(tmp_path / "run")
        write_recipe(folder.path, text)
        capfd.readouterr()
        assert worker.main([str(folder.path)]) == 2
        said = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("[transformers]")]
        assert said
        assert all(line.startswith("error: ") for line in said), said
        lines = [line.removeprefix("error: ") for line in said]
        failed = read_events(folder.events)[-1]
        assert failed.type == "run.failed"
        assert failed.data["lines"] == lines
        assert newest_checkpoint(folder) is None
        return lines

    return run


Refused = Callable[[str], list[str]]


def test_a_device_that_there_is_not(
    refused: Refused, tiny_model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALDPO_DEVICE", "tpu")
    found = refused(recipe_text(tiny_model, pairs))
    assert found == ["LOCALDPO_DEVICE: expected cpu, gpu or auto, got 'tpu'"]


def changed(folder: Path, original: Path, **config: Any) -> Path:
    """A copy of an adapter with another configuration."""
    copy = Path(shutil.copytree(original, folder))
    content = json.loads((copy / CONFIG_FILE).read_text())
    (copy / CONFIG_FILE).write_text(json.dumps({**content, **config}))
    return copy


def test_a_device_that_gives_up_is_no_mistake_of_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StopRequest, "install", lambda self: None)

    def fail() -> None:
        raise RuntimeError("[metal::malloc] Resource limit (499000) exceeded.")

    monkeypatch.setattr(worker, "prepare", fail)
    run = RunDir(tmp_path / "run")
    write_recipe(run.path, "model: demo:model\n")
    assert worker.main([str(run.path)]) == 4
    said = capfd.readouterr().err
    assert said.startswith("Traceback")
    assert said.rstrip().endswith("RuntimeError: [metal::malloc] Resource limit (499000) exceeded.")
    failed = read_events(run.events)[-1]
    assert failed.data["error"] == "RuntimeError: [metal::malloc] Resource limit (499000) exceeded."
    assert "lines" not in failed.data


def test_a_run_folder_that_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StopRequest, "install", lambda self: None)
    assert worker.main([]) == 2
    assert "usage" in capfd.readouterr().err
    assert worker.main([str(tmp_path / "nowhere")]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert "nowhere" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{tmp}/missing", "no such folder; expected a model folder"),
        ("{tmp}", "no config.json in this folder"),
        ("demo:modle", "no such demo name; did you mean demo:model?"),
    ],
)
def test_a_missing_model(model: str, message: str, tmp_path: Path, pairs: Path, refused: Refused) -> None:
    name = model.format(tmp=tmp_path)
    (line,) = refused(recipe_text(Path(name), pairs))
    assert message in line
    assert name in line


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "unheard_of"}'),
        ("config.json", b"[]"),
        ("model.safetensors", b"nothing"),
        ("model.safetensors", None),
        ("tokenizer.json", b"{"),
        ("tokenizer_config.json", b"{"),
    ],
)
def test_a_broken_model(
    file: str, content: bytes | None, tmp_path: Path, pairs: Path, tiny_model: Path, refused: Refused
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / file).unlink()
    if content is not None:
        (model / file).write_bytes(content)
    (line,) = refused(recipe_text(model, pairs))
    assert str(model) in line


@pytest.mark.parametrize("kept", [100, -7])
def test_weights_that_are_cut(
    kept: int, tmp_path: Path, pairs: Path, tiny_model: Path, refused: Refused
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    (line,) = refused(recipe_text(model, pairs))
    assert str(model) in line


def test_code_in_a_model_folder_is_not_run(
    tmp_path: Path, pairs: Path, tiny_model: Path, refused: Refused
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_file": "evil.py"}))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (line,) = refused(recipe_text(model, pairs))
    assert "trust_remote_code" in line
    assert not (tmp_path / "ran").exists()


def test_a_missing_adapter(tmp_path: Path, pairs: Path, tiny_model: Path, refused: Refused) -> None:
    (line,) = refused(recipe_text(tiny_model, pairs, adapter=str(tmp_path / "none")))
    assert "none: no such folder; expected adapter_config.json and adapters.safetensors in it" in line
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / CONFIG_FILE).write_text("{}")
    (line,) = refused(recipe_text(tiny_model, pairs, adapter=str(tmp_path / "half")))
    assert "adapters.safetensors missing in this folder" in line


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_layers": 1}, "is not in the model"),
        ({"lora_parameters": {"rank": 8, "scale": 8.0, "dropout": 0.0}}, "the model (64, 8)"),
        ({"num_layers": 3}, "num_layers: the model has 2 blocks, got 3"),
        ({"fine_tune_type": "dora"}, "is missing"),
        ({"fine_tune_type": "full"}, 'expected lora or dora, got "full"'),
        ({"lora_parameters": {"rank": 4}}, "scale: expected a number, got nothing"),
        ({"lora_parameters": None}, "not an adapter configuration"),
        ({"lora_parameters": {"rank": 0, "scale": 8.0}}, "rank: expected a whole number, 1 or more, got 0"),
        ({"lora_parameters": {"rank": "four", "scale": 8.0}}, '1 or more, got "four"'),
        ({"lora_parameters": {"rank": 4, "scale": 8.0, "keys": ["no.such"]}}, "no.such"),
    ],
)
def test_an_adapter_that_does_not_fit(
    config: dict[str, Any],
    message: str,
    tmp_path: Path,
    pairs: Path,
    tiny_model: Path,
    sft_adapter: Path,
    refused: Refused,
) -> None:
    adapter = changed(tmp_path / "adapter", sft_adapter, **config)
    (line,) = refused(recipe_text(tiny_model, pairs, adapter=str(adapter)))
    assert message in line


def test_an_adapter_of_another_model(
    tmp_path: Path, pairs: Path, tiny_model: Path, refused: Refused, sft_adapter: Path
) -> None:
    copy = changed(tmp_path / "adapter", sft_adapter)
    weights = mx.load(str(copy / WEIGHTS_FILE))
    wide = {name: mx.zeros((96, 4)) if name.endswith("q_proj.lora_a") else w for name, w in weights.items()}
    mx.save_safetensors(str(copy / WEIGHTS_FILE), wide)
    (line,) = refused(recipe_text(tiny_model, pairs, adapter=str(copy)))
    assert "q_proj.lora_a has shape (96, 4), the model (64, 4)" in line
    (copy / WEIGHTS_FILE).write_bytes(b"nothing")
    (line,) = refused(recipe_text(tiny_model, pairs, adapter=str(copy)))
    assert "cannot be read" in line


@pytest.mark.parametrize(
    ("option", "asked"),
    [("rank", 8), ("scale", 3.0), ("layers", 1), ("type", "dora"), ("keys", ["self_attn.q_proj"])],
)
def test_a_shape_that_differs_from_the_adapters(
    option: str, asked: Any, pairs: Path, tiny_model: Path, sft_adapter: Path, refused: Refused
) -> None:
    (line,) = refused(recipe_text(tiny_model, pairs, adapter=str(sft_adapter), lora={option: asked}))
    assert line.startswith(f"lora.{option}: ")
    assert str(sft_adapter) in line


def test_the_adapters_own_shape_may_be_written_down(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    adapter = tmp_path / "adapter"
    make_adapter(adapter, tiny_model, keys=("self_attn.q_proj", "mlp.up_proj"))
    shape = {"rank": 4, "scale": 8, "layers": -1, "type": "lora", "keys": ["mlp.up_proj", "self_attn.q_proj"]}
    session = session_of(
        tmp_path / "run", recipe_text(tiny_model, pairs, adapter=str(adapter), lora={**shape, "dropout": 0.1})
    )
    assert session.config.dropout == 0.1
    assert session.config.rank == 4


@pytest.mark.parametrize(("of_adapter", "asked"), [(2, -1), (-1, 2)])
def test_all_blocks_may_be_counted_or_not(
    of_adapter: int, asked: int, tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    adapter = tmp_path / "adapter"
    make_adapter(adapter, tiny_model)
    config = json.loads((adapter / CONFIG_FILE).read_text())
    (adapter / CONFIG_FILE).write_text(json.dumps({**config, "num_layers": of_adapter}))
    text = recipe_text(tiny_model, pairs, adapter=str(adapter), lora={"layers": asked})
    assert session_of(tmp_path / "run", text).config.layers == of_adapter


@pytest.mark.parametrize("asked", [1, 3, 4, 5])
def test_another_number_of_blocks_than_the_adapters_is_refused(
    asked: int, pairs: Path, tiny_model: Path, sft_adapter: Path, refused: Refused
) -> None:
    (line,) = refused(recipe_text(tiny_model, pairs, adapter=str(sft_adapter), lora={"layers": asked}))
    assert line.startswith(f"lora.layers: {asked} asked for")


def test_layers_and_keys_that_the_model_does_not_have(
    pairs: Path, tiny_model: Path, refused: Refused
) -> None:
    (line,) = refused(recipe_text(tiny_model, pairs, lora={"layers": 3}))
    assert line == "lora.layers: the model has 2 blocks, got 3"
    (line,) = refused(recipe_text(tiny_model, pairs, lora={"keys": ["self_attn.qproj"]}))
    assert line.startswith('lora.keys: "self_attn.qproj" is no linear layer of the model')
    (line,) = refused(recipe_text(tiny_model, pairs, lora={"keys": ["input_layernorm"]}))
    assert line.startswith("lora")


def test_data_that_is_missing_empty_or_lacks_a_field(
    tmp_path: Path, pairs: Path, tiny_model: Path, refused: Refused
) -> None:
    (line,) = refused(recipe_text(tiny_model, tmp_path / "pears.jsonl"))
    assert "pears.jsonl: no such file; did you mean" in line
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    (line,) = refused(recipe_text(tiny_model, empty))
    assert line == f"{empty}: the file is empty"
    (line,) = refused(recipe_text(tiny_model, pairs, empty))
    assert line == f"{empty}: the file is empty"
    rows = [pair(n) for n in range(4)]
    del rows[1]["rejected"], rows[3]["chosen"]
    lines = refused(recipe_text(tiny_model, write_rows(tmp_path / "rows.jsonl", rows)))
    assert [line.split(" ")[0] for line in lines] == [f"{tmp_path / 'rows.jsonl'}:{n}" for n in (2, 4)]
    assert "rejected" in lines[0]
    assert "chosen" in lines[1]


def test_prompts_that_cannot_be_read(tmp_path: Path, pairs: Path, tiny_model: Path, refused: Refused) -> None:
    rows = write_rows(tmp_path / "p.jsonl", [{"text": "no prompt here"}])
    (line,) = refused(recipe_text(tiny_model, pairs, eval={"samples": 1, "prompts": str(rows)}))
    assert line.startswith(f"{rows}: found no prompts")


def test_a_recipe_with_mistakes_reports_all_of_them(refused: Refused) -> None:
    lines = refused("model: m\ndata: {train: x.jsonl}\nloss: {beta: -1}\ntrain: {bach_size: 3}\n")
    assert len(lines) == 2


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(
    tmp_path: Path,
    pairs: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(StopRequest, "install", lambda self: None)
    options = {"optimizer": "sgd", "learning_rate": 1e30, "batch_size": 2, "epochs": 3}
    run = RunDir(tmp_path / "run")
    write_recipe(run.path, recipe_text(tiny_model, pairs, train=options, save={"every": 1}))
    assert worker.main([str(run.path)]) == 2
    (line,) = [x for x in capfd.readouterr().err.splitlines() if not x.startswith("[transformers]")]
    assert "is not finite (rows " in line
    events = read_events(run.events)
    assert events[-1].type == "run.failed"
    failed = int(line.split("step ")[1].split(":")[0])
    assert all(event.step < failed for event in events if event.type == "checkpoint" and event.step)


def test_a_crash_is_in_the_log_and_goes_on_up(
    tmp_path: Path, pairs: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(StopRequest, "install", lambda self: None)
    monkeypatch.setattr("localdpo.train.loop.Loop.take_step", broken)
    run = RunDir(tmp_path / "run")
    write_recipe(run.path, recipe_text(tiny_model, pairs))
    with pytest.raises(ZeroDivisionError):
        worker.main([str(run.path)])
    assert read_events(run.events)[-1].data["error"] == "ZeroDivisionError: a bug"
    assert run.status() == "failed"
