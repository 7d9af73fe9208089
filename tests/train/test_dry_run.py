"""What --dry-run shows, for both kinds of data, and that it loads no weights."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models import activations, llama, qwen3
from rich.console import Console
from tiny_folders import pair, recipe_text, write_pairs, write_rows
from training_runs import write_recipe

from localdpo.core.errors import LocalDPOError, UserError
from localdpo.model.backend import prepare
from localdpo.recipe.load import load_recipe
from localdpo.trackers import registry
from localdpo.train.assemble import assemble
from localdpo.train.dry_run import dry_run, measure

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]


def shown(folder: Path, text: str) -> str:
    stream = io.StringIO()
    dry_run(load_recipe(write_recipe(folder, text)), Console(file=stream, width=200))
    return stream.getvalue()


def test_pairs(tmp_path: Path, tiny_model: Path) -> None:
    rows = [*(pair(n) for n in range(10)), {**pair(10), "rejected": pair(10)["chosen"]}]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    held_out = write_pairs(tmp_path / "valid.jsonl", 3)
    text = shown(
        tmp_path,
        recipe_text(tiny_model, data, held_out, train={"epochs": 2, "micro_batch_size": 2, "warmup": 2}),
    )
    assert "type: sigmoid" in text
    assert "beta: 0.1" in text
    assert "6 steps of 4 rows (2 in memory at once), 10 rows, 3 steps an epoch, 2 steps of warm-up" in text
    for label in ("train prompt", "train chosen", "train rejected", "train row", "valid chosen"):
        assert label in text
    assert "train: 11 rows read, 0 truncated" in text
    assert "(1 row: 11)" in text
    assert "chosen (" in text
    assert "▸good" in text or "▸ good" in text
    assert "<|im_end|>◂" in text
    assert "memory: about" in text
    assert "an estimate, on cpu" in text


def test_demonstrations(tmp_path: Path, tiny_model: Path) -> None:
    data = write_rows(tmp_path / "sft.jsonl", [{"prompt": f"Q {n}", "completion": "good"} for n in range(40)])
    text = shown(tmp_path, recipe_text(tiny_model, data, loss={"type": "sft"}))
    assert "train response" in text
    assert "valid" not in text.split("tokens")[1].split("rows read")[0]
    assert "response (" in text
    assert "10 steps of 4 rows (4 in memory at once), 38 rows" in text
    assert "<|im_end|>◂" in text


def test_the_example_is_the_first_kept_row_of_each_data_set_even_if_it_is_held_out(
    tmp_path: Path, tiny_model: Path
) -> None:
    """With few rows the first of the file may be held out; it is what a person looks for all the same."""
    equal = {**pair(0), "rejected": pair(0)["chosen"]}
    headings = []
    for seed in range(8):
        data = write_rows(tmp_path / "pairs.jsonl", [equal, pair(1), pair(2), pair(3)])
        text = shown(tmp_path, recipe_text(tiny_model, data, train={"seed": seed}))
        assert "What is question number 1?" in text
        assert f"\nrow 2 of {data}" in text
        headings.append(", held out to evaluate on" in text)
    assert set(headings) == {True, False}


def test_it_says_that_a_single_prompt_leaves_nothing_to_evaluate_on(tmp_path: Path, tiny_model: Path) -> None:
    for count, said in ((1, True), (2, False)):
        data = write_pairs(tmp_path / "pairs.jsonl", count)
        text = shown(tmp_path, recipe_text(tiny_model, data))
        assert f"train: {count} row{'' if count == 1 else 's'} read, 0 truncated" in text
        assert ("no rows are held out: nothing is evaluated" in text) is said


def test_text_in_the_data_is_shown_as_it_is(tmp_path: Path, tiny_model: Path) -> None:
    """Square brackets are markup to rich; here they are somebody's text."""
    rows = [{**pair(n), "chosen": "[bold]good[/bold] [/]"} for n in range(3)]
    text = shown(tmp_path, recipe_text(tiny_model, write_rows(tmp_path / "p.jsonl", rows)))
    assert "[bold]good[/bold]" in text.replace("▸", "")


def test_what_would_stop_the_run_stops_the_dry_run(
    tmp_path: Path, tiny_model: Path, sft_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    data = write_pairs(tmp_path / "pairs.jsonl", 4)
    for text, message in (
        (recipe_text(tmp_path / "none", data), "no such folder"),
        (recipe_text(tiny_model, tmp_path / "none.jsonl"), "no such file"),
        (recipe_text(tiny_model, data, adapter=str(tmp_path / "none")), "no such folder"),
        (recipe_text(tiny_model, data, adapter=str(sft_adapter), lora={"rank": 9}), "lora.rank: 9 asked for"),
        (recipe_text(tiny_model, data, report_to="wandb"), "wandb needs the package wandb"),
        (recipe_text(tiny_model, data, lora={"layers": 9}), "the model has 2 blocks, got 9"),
        (recipe_text(tiny_model, data, lora={"keys": ["q_proj"]}), "did you mean self_attn.q_proj?"),
    ):
        with pytest.raises(LocalDPOError, match=message):
            shown(tmp_path, text)


def test_no_weight_of_the_model_is_read(tmp_path: Path, tiny_model: Path) -> None:
    text = recipe_text(tiny_model, write_pairs(tmp_path / "pairs.jsonl", 4))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    shown(tmp_path, text)
    assert mx.get_peak_memory() - before < (tiny_model / "model.safetensors").stat().st_size / 4


def test_the_memory_is_that_of_the_run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(
        write_recipe(tmp_path, recipe_text(tiny_model, write_pairs(tmp_path / "p.jsonl", 8)))
    )
    # As in a new process, in which no model was loaded.
    for module in (qwen3, llama):
        monkeypatch.setattr(module, "swiglu", activations.swiglu)
    lines = measure(recipe, lambda line: None).layout().lines
    assert lines == assemble(recipe, prepare(), lambda line: None).layout.lines


def test_an_incomplete_model_is_found(tmp_path: Path, tiny_model: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-1])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        shown(tmp_path, recipe_text(model, write_pairs(tmp_path / "pairs.jsonl", 4)))


def test_a_start_adapter_is_tried_on_the_model(tmp_path: Path, tiny_model: Path, sft_adapter: Path) -> None:
    """Its rank in the configuration, its layers and its shapes have to be those of the weights."""
    data = write_pairs(tmp_path / "pairs.jsonl", 4)
    good = json.loads((sft_adapter / "adapter_config.json").read_text())
    for change, message in (
        ({"num_layers": 1}, "is not in the model"),
        ({"lora_parameters": {"rank": 2, "scale": 8.0}}, "has shape"),
        (
            {"lora_parameters": {"rank": 4, "scale": 8.0, "keys": ["self_attn.q_prj"]}},
            "did you mean self_attn.q_proj",
        ),
        ({"num_layers": 7}, "the model has 2 blocks, got 7"),
    ):
        adapter = Path(shutil.copytree(sft_adapter, tmp_path / "adapter", dirs_exist_ok=True))
        (adapter / "adapter_config.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(LocalDPOError, match=message):
            shown(tmp_path, recipe_text(tiny_model, data, adapter=str(adapter)))


def test_an_unusual_configuration_gets_no_estimate(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise KeyError("hidden_size")

    monkeypatch.setattr("localdpo.train.fit.model_shape", unknown)
    text = shown(tmp_path, recipe_text(tiny_model, write_pairs(tmp_path / "pairs.jsonl", 4)))
    assert "memory: no estimate, since the model's config.json has no 'hidden_size'" in text


def test_a_second_dry_run_shows_the_same(tmp_path: Path, tiny_model: Path) -> None:
    text = recipe_text(tiny_model, write_pairs(tmp_path / "pairs.jsonl", 4))
    assert shown(tmp_path, text) == shown(tmp_path, text)
