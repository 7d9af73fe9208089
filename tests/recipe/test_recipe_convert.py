"""`init --from`: the recipe of another program's file, and what has no counterpart."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recipe_files import problems

from localdpo.core.errors import UserError, UserErrors
from localdpo.core.names import PROGRAM_SWITCH
from localdpo.recipe.convert import Converted, convert
from localdpo.recipe.describe import field_at
from localdpo.recipe.elsewhere import PROGRAMS
from localdpo.recipe.load import load_recipe, problems_of
from localdpo.recipe.schema import Recipe

DATA = {"trl": {"model_name_or_path": "m", "dataset_name": "d"}, "mlx-lm": {"model": "m", "data": "d"},
        "axolotl": {"base_model": "m", "datasets": [{"path": "d", "type": "chatml.intel"}]}}  # fmt: skip


def of(folder: Path, program: str, values: dict[str, Any]) -> tuple[Converted, Recipe]:
    """What a file with these values comes to, as the recipe's reader takes it."""
    source = folder / "theirs.yaml"
    source.write_text(yaml.safe_dump(values))
    converted = convert(source, PROGRAMS[program])
    path = folder / "recipe.yaml"
    path.write_text(converted.text())
    return converted, load_recipe(path)


def test_a_config_of_trl(tmp_path: Path) -> None:
    converted, recipe = of(
        tmp_path,
        "trl",
        {
            **DATA["trl"],
            **{"dataset_config": "c", "eval_strategy": "steps", "dataset_train_split": "train_prefs"},
            **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "bf16": True},
            **{"learning_rate": 5e-7, "num_train_epochs": 2.0, "max_steps": -1, "warmup_ratio": 0.1},
            **{"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "label_smoothing": 0.1},
            **{"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_target_modules": ["q_proj"]},
            **{"use_rslora": True, "fp16": False, "max_prompt_length": None, "hub_strategy": "end"},
            **{"lr_scheduler_type": "polynomial", "sync_ref_model": True, "optim": "adamw_torch_fused"},
        },
    )
    assert (recipe.data.train, recipe.data.valid) == ("d[c]:train_prefs", "d[c]:test")
    assert (recipe.train.batch_size, recipe.train.epochs, recipe.train.max_steps) == (16, 2, None)
    assert (recipe.train.learning_rate, recipe.train.warmup, recipe.train.seed) == (5e-7, 0.1, 42)
    assert (recipe.loss.type, recipe.loss.weights) == (("sigmoid", "sft"), (1.0, 0.2))
    assert (recipe.loss.label_smoothing, recipe.loss.sync_every) == (0.1, 512)
    assert (recipe.lora.rank, recipe.lora.scale, recipe.lora.keys) == (16, 8.0, ("self_attn.q_proj",))
    assert [line.partition(":")[0] for line in converted.left] == [
        "bf16",
        "hub_strategy",
        "lr_scheduler_type",
    ]
    assert converted.left[2].endswith("(here it is one of constant, linear, cosine)")
    assert converted.off == ["fp16", "max_prompt_length"][:1]


@pytest.mark.parametrize("program", DATA)
def test_a_number_with_an_exponent_may_be_text(tmp_path: Path, program: str) -> None:
    converted, recipe = of(tmp_path, program, {**DATA[program], "learning_rate": "5e-7"})
    assert recipe.train.learning_rate == 5e-7
    assert not [line for line in converted.left if line.startswith("learning_rate")]


def test_training_all_weights_is_named(tmp_path: Path) -> None:
    for program, values in (
        ("trl", {"use_peft": False}),
        ("axolotl", {}),
        ("mlx-lm", {"fine_tune_type": "full"}),
    ):
        converted, _ = of(tmp_path, program, DATA[program] | values)
        assert len(converted.left) == 1
        assert converted.left[0].startswith(
            ("use_peft: false (all weights", 'adapter: "" (all', "fine_tune_type: ")
        )


def test_a_file_without_model_and_data_says_what_to_fill_in(tmp_path: Path) -> None:
    path = tmp_path / "args.json"
    path.write_text(
        json.dumps({"loss_type": ["ipo"], "label_smoothing": 0.1, "max_grad_norm": 0.0}, indent=2)
    )
    converted = convert(path, PROGRAMS["trl"])
    assert converted.missing == ["model", "data.train"]
    assert list(converted.notes())[-1] == "to fill in: model, data.train"
    assert converted.left[0].startswith(
        "label_smoothing: 0.1 (loss.label_smoothing: the ipo loss does not use"
    )
    assert converted.left[1].startswith("max_grad_norm: 0.0 (train.max_grad_norm: expected a number > 0")
    path.write_text(converted.text())
    with pytest.raises(UserErrors, match=r"args\.json:1 model: expected text, got null"):
        load_recipe(path)


def test_iterations_of_mlx_lm_are_micro_batches(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train", "valid"):
        (tmp_path / f"data/{name}.jsonl").touch()
    converted, recipe = of(
        tmp_path,
        "mlx-lm",
        {
            **{"model": "m", "data": str(tmp_path / "data"), "iters": 600, "batch_size": 2, "val_batches": 8},
            **{
                "grad_accumulation_steps": 4,
                "steps_per_eval": 100,
                "resume_adapter_file": "a/adapters.safetensors",
            },
            **{"lora_parameters": {"rank": 4, "keys": ["self_attn.v_proj"]}, "optimizer": "adamw"},
            "optimizer_config": {"adamw": {"weight_decay": 0.01, "eps": 1e-6}, "sgd": {"weight_decay": 1.0}},
            "lr_schedule": {"name": "cosine_decay", "warmup": 10, "arguments": [1e-4, 600, 1e-7]},
            "mask_prompt": True,
        },
    )
    assert (recipe.loss.type, recipe.adapter, recipe.eval.pairs) == ("sft", "a", 16)
    assert recipe.data.train == str(tmp_path / "data/train.jsonl")
    assert recipe.data.valid == str(tmp_path / "data/valid.jsonl")
    train = recipe.train
    assert (train.batch_size, train.max_steps, recipe.eval.every, recipe.save.every) == (8, 150, 25, 25)
    assert (train.schedule, train.warmup, train.learning_rate) == ("cosine", 10, 1e-4)
    assert (train.weight_decay, recipe.lora.rank, recipe.lora.scale) == (0.01, 4, 20.0)
    assert converted.left == ["optimizer_config.adamw.eps: 1e-06"]


def test_data_sets_of_mlx_lm_keep_their_splits(tmp_path: Path) -> None:
    def data_of(hf_dataset: Any) -> tuple[Any, Any]:
        data = of(tmp_path, "mlx-lm", {"model": "m", "hf_dataset": hf_dataset})[1].data
        return data.train, data.valid

    assert data_of({"path": "d"}) == ("d:train[:80%]", "d:train[-10%:]")
    whole = {"path": "d", "config": {"name": "c"}, "train_split": "train", "valid_split": "test"}
    assert data_of({**whole, "prompt_feature": "prompt"}) == ("d[c]", "d[c]:test")
    train, valid = data_of([whole, {"path": "e"}])
    assert [entry.source for entry in train + valid] == [
        "d[c]",
        "e:train[:80%]",
        "d[c]:test",
        "e:train[-10%:]",
    ]
    odd = {"model": "m", "data": "d", "hf_dataset": {"path": "d", "prompt_feature": "text"}}
    assert "prompt_feature: text: rename that column" in of(tmp_path, "mlx-lm", odd)[0].left[0]


def test_recipes_of_the_alignment_handbook(tmp_path: Path) -> None:
    mixer = {"dataset_mixer": {"o/d": 0.5}, "dataset_splits": ["train_prefs", "test_prefs"]}
    converted, recipe = of(tmp_path, "trl", {"model_name_or_path": "m", **mixer, "max_seq_length": 300})
    assert [(entry.source, entry.weight) for entry in recipe.data.train] == [("o/d:train_prefs", 0.5)]
    assert [entry.source for entry in recipe.data.valid] == ["o/d:test_prefs"]
    assert recipe.train.max_length == 300
    assert list(converted.notes())[-1].startswith("loss.type: the file does not say which trainer it is for")
    sets = [{"id": "o/d", "config": "c", "split": "s", "columns": ["chosen"], "weight": 0.5}, {"id": "o/e"}]
    mixture = {"dataset_mixture": {"datasets": sets, "seed": 0}, "loss_type": "ipo"}
    converted, recipe = of(tmp_path, "trl", {"model_name_or_path": "m", **mixture})
    assert [(entry.source, entry.weight) for entry in recipe.data.train] == [("o/d[c]:s", 0.5), ("o/e", 1.0)]
    assert not converted.unsaid


def test_what_has_no_counterpart_is_not_said_to_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROGRAM_SWITCH, "bin/localdpo")
    values = {"lr_scheduler": "rex", "output_dir": "out", "micro_batch_size": 2}
    converted, _ = of(tmp_path, "axolotl", DATA["axolotl"] | values)
    assert not [line for line in converted.changed if line.startswith("lr_scheduler")]
    assert any(line.startswith('lr_scheduler: "rex" (here it is one of') for line in converted.left)
    assert any("bin/localdpo train --run NAME" in line for line in converted.left)


def test_a_config_of_axolotl(tmp_path: Path) -> None:
    converted, recipe = of(
        tmp_path,
        "axolotl",
        {
            **DATA["axolotl"],
            **{"rl": "simpo", "rl_beta": 2.0, "simpo_gamma": 0.5, "adapter": "qlora", "load_in_4bit": True},
            **{"micro_batch_size": 2, "gradient_accumulation_steps": 4, "num_epochs": 0.5},
            **{"lora_r": 32, "lora_alpha": 16, "lora_target_linear": True, "val_set_size": 0.05},
            **{"learning_rate": 2e-4, "flash_attention": True, "wandb_project": None},
        },
    )
    assert (recipe.data.train, recipe.loss.type, recipe.loss.simpo_gamma) == ("d", "simpo", 0.5)
    assert (recipe.train.batch_size, recipe.train.warmup, recipe.train.max_length) == (8, 0.03, 512)
    assert (recipe.lora.scale, recipe.data.valid_fraction) == (0.5, 0.05)
    assert [line.partition(":")[0] for line in converted.left] == ["load_in_4bit", "num_epochs"]
    assert converted.off == []


def test_a_recipe_that_is_another_programs_config_is_told_so(tmp_path: Path) -> None:
    text = "model: m\ntrain: true\ndata: d\niters: 10\nnum_layers: 4\nlora_parameters:\n  rank: 8\n"
    (line,) = problems(tmp_path, text)
    assert line == (
        f"{tmp_path}/r.yaml: looks like a config of mlx-lm, not like a recipe; "
        f"`localdpo init NAME --from mlx-lm {shlex.quote(str(tmp_path / 'r.yaml'))}` makes one of it"
    ).removeprefix(f"{tmp_path}/")


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_tables_name_options_that_exist(program: str) -> None:
    names = [name.theirs for name in PROGRAMS[program].names]
    assert all(name.key is None or field_at(name.key) for name in PROGRAMS[program].names)
    assert [name for name in names if names.count(name) > 1] in ([], ["warmup_ratio"] * 2)


VALUES = st.sampled_from(
    [None, True, False, 0, 1, 3, -1, 0.5, 1e-5, "", "x", "linear", "constant", "adamw", "dpo", "all-linear",
     [], ["sigmoid"], ["sigmoid", "ipo"], [1.0], {"a": 1}, [{"path": "d"}], [{"path": "d", "odd": 1}]]
)  # fmt: skip


@given(st.data(), st.sampled_from(sorted(PROGRAMS)))
def test_nothing_is_dropped_without_a_word(
    tmp_path_factory: pytest.TempPathFactory, data: Any, program: str
) -> None:
    table = PROGRAMS[program]
    names = st.sampled_from([*(name.theirs for name in table.names if "." not in name.theirs), "odd"])
    values = DATA[program] | data.draw(st.dictionaries(names, VALUES, max_size=8))
    path = tmp_path_factory.getbasetemp() / "theirs.json"
    path.write_text(json.dumps(values))
    try:
        converted = convert(path, table)
    except (UserError, UserErrors):
        return
    told = {line.partition(":")[0] for line in converted.left} | {*converted.off, *converted.source.values()}
    for name, value in values.items():
        entry = table.find(name)
        # Options of the recipe that another name decides, or that say what the recipe does anyway.
        if entry is None or (entry.key is None and value not in entry.moot):
            assert name in told
        elif entry.key is not None and value is not None and entry.convert.__name__ == "same":
            assert name in told or converted.source.get(entry.key)
    assert not problems_of(yaml.safe_load(converted.text().replace("null", "x")))


@pytest.mark.parametrize(
    ("program", "values", "left"),
    [
        ("trl", {"lora_r": False}, "lora_alpha: 32 (not a value that this option has)"),
        ("axolotl", {"adapter": True}, "adapter: true (here a LoRA adapter is trained)"),
    ],
)
def test_odd_values_are_named(tmp_path: Path, program: str, values: dict[str, Any], left: str) -> None:
    converted, _ = of(tmp_path, program, {**DATA[program], **values})
    assert left in converted.left


@pytest.mark.parametrize(
    ("program", "values", "line"),
    [
        ("axolotl", {"rl": "grpo"}, r'rl: "grpo" \(expected one of dpo, ipo, kto, simpo, orpo, or none'),
        ("axolotl", {"rl": ["dpo"]}, r'rl: \["dpo"\] \(not a value that'),
        ("axolotl", {"reward_model": True}, r"reward_model: true \(preference losses and supervised"),
        ("axolotl", {"rl": "dpo", "dpo_loss_type": ["new"]}, r'dpo_loss_type: \["new"\] \(loss.type: '),
        ("trl", {"loss_type": "new"}, r'loss_type: "new" \(loss.type: '),
    ],
)
def test_a_training_that_is_not_here_makes_no_recipe(
    tmp_path: Path, program: str, values: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError, match=rf"{line}.*; no recipe is made of this file"):
        of(tmp_path, program, {**DATA[program], **values})


def test_no_reinforcement_learning_is_supervised_fine_tuning(tmp_path: Path) -> None:
    for values in ({}, {"rl": False}, {"rl": None}, {"reward_model": False}):
        assert of(tmp_path, "axolotl", DATA["axolotl"] | values)[1].loss.type == "sft"
