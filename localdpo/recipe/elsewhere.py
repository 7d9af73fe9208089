"""What other programs call an option, and how their value becomes ours: one table for each program.

The tables answer unknown keys (`describe.unknown_key`), convert a program's file (`convert`), and are printed
in docs/options.md. Names are those of TRL 1.16 (with transformers and PEFT), mlx-lm 0.32 and Axolotl 0.19,
and of earlier releases that are still in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from localdpo.core.names import program

Config = Mapping[str, Any]
"""The values of a program's file by name, nested ones with dots; the program's defaults where it has none. No
null is among them."""


class Several(dict[str, Any]):
    """Values for several options, by key."""


OMIT: Final = Several()
"""Nothing to set: the recipe's default says the same, or another name decides."""
Convert = Callable[[Any, Config], Any]
"""Their value in ours, or Several. Raises ValueError, which says why it has no counterpart."""


def same(value: Any, config: Config) -> Any:
    """The value as it is."""
    return value


@dataclass(frozen=True)
class Name:
    """What a program calls an option.

    Attributes:
        theirs: a name in their file, nested ones with dots.
        key: our option, None where there is none.
        note: how the value follows, or why there is no such option and what to do instead; {program} stands
            for this program, as it was called.
        convert: the value.
        default: what the program takes where its file has no value, if that decides the training; else None.
        moot: values that change nothing here, and are not worth a word.
    """

    theirs: str
    key: str | None = None
    note: str = ""
    convert: Convert = same
    default: Any = None
    moot: tuple[Any, ...] = ()

    @property
    def words(self) -> str:
        """The note, ready to be read."""
        return self.note.replace("{program}", program())


@dataclass(frozen=True)
class Program:
    """A program whose files `init --from` reads.

    Attributes:
        base: options of every recipe that is made from its files.
        unsaid: what a person has to know of an option of ours about which a file says nothing.
    """

    title: str
    names: tuple[Name, ...]
    base: Mapping[str, Any] = field(default_factory=dict)
    unsaid: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> Name | None:
        return next((entry for entry in self.names if entry.theirs == name), None)


# --- values ----------------------------------------------------------------------------------------------


def _times(first: str, second: str) -> Convert:
    return lambda value, config: config[first] * (config.get(second) or 1)


def _omit(value: Any, config: Config) -> Any:
    """Read by another name's conversion."""
    return OMIT


def _whole(value: float, config: Config) -> Any:
    """Epochs; max_steps overrides them."""
    if (config.get("max_steps") or 0) > 0:
        return OMIT
    if value != int(value):
        raise ValueError("epochs are whole here; train.max_steps gives an exact number of steps")
    return int(value)


def _choice(choices: Mapping[str, Any]) -> Convert:
    """By the longest beginning that is in the table."""

    def convert(value: Any, config: Config) -> Any:
        for start in sorted(choices, key=len, reverse=True):
            if str(value).startswith(start):
                return choices[start]
        raise ValueError(f"here it is one of {', '.join(dict.fromkeys(map(str, choices.values())))}")

    return convert


OPTIMIZERS: Final = _choice({"adamw": "adamw", "adam": "adam", "paged_adamw": "adamw", "sgd": "sgd",
                             "rmsprop": "rmsprop", "lion": "lion", "paged_lion": "lion"})  # fmt: skip
_SCHEDULES: Final = _choice({"linear": "linear", "cosine": "cosine", "constant": "constant"})


def _schedule(value: str, config: Config) -> Any:
    if value not in ("linear", "cosine", "constant", "constant_with_warmup"):
        raise ValueError("here it is one of constant, linear, cosine")
    schedule = _SCHEDULES(value, config)
    # Hugging Face's `constant` has no warm-up, whatever the other options say.
    return Several({"train.schedule": schedule, "train.warmup": 0}) if value == "constant" else schedule


def _warmup(value: Any, config: Config) -> Any:
    """Steps count; without them the ratio does."""
    steps, ratio = config.get("warmup_steps"), config.get("warmup_ratio")
    if config.get("lr_scheduler_type", config.get("lr_scheduler")) == "constant":
        return OMIT
    chosen = steps or ratio or 0
    return int(chosen) if chosen >= 1 or chosen == 0 else chosen


def _adapter(value: Any, config: Config) -> NoReturn:
    """Whether, or what kind of, adapter is trained."""
    if not value:
        raise ValueError(
            "all weights are trained there, here an adapter: the learning rate may need to be higher"
        )
    raise ValueError("here a LoRA adapter is trained")


def _scale(value: float, config: Config) -> float:
    """LoRA's multiplier: alpha / rank, with rslora alpha / sqrt(rank)."""
    rank = config.get("r") or config["lora_r"]
    rslora = config.get("use_rslora") or config.get("peft_use_rslora")
    return float(value / (math.sqrt(rank) if rslora else rank))


# PEFT adapts layers by the end of their name, mlx-lm by their name within a block.
_BLOCKS: Final = {
    **{name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj")},
    **{name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj", "gate_up_proj")},
}


def _keys(value: Any, config: Config) -> Any:
    if value == "all-linear" or config.get("lora_target_linear"):
        return OMIT
    names = [value] if isinstance(value, str) else list(value)
    if unknown := [name for name in names if name not in _BLOCKS and "." not in str(name)]:
        raise ValueError(f"{unknown[0]}: give lora.keys the name within a block, such as self_attn.q_proj")
    return [_BLOCKS.get(name, name) for name in names]


def _losses(value: Any, config: Config) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _loss_weights(value: Any, config: Config) -> Any:
    return value if len(value) > 1 else OMIT


def _dora(switch: Any, config: Config) -> Any:
    return "dora" if switch else OMIT


def _synced(value: Any, config: Config) -> Any:
    return value if config.get("sync_ref_model") else OMIT


def _hub_name(path: Any, config: Any, split: Any) -> str:
    name = f"{path}[{config}]" if config else str(path)
    return f"{name}:{split}" if split and split != "train" else name


def _trl_data(value: Any, config: Config) -> Any:
    return _hub_name(value, config.get("dataset_config"), config.get("dataset_train_split"))


def _trl_valid(value: Any, config: Config) -> Any:
    name, strategy = config.get("dataset_name"), config.get("evaluation_strategy", "no")
    if name is None or config.get("eval_strategy", strategy) == "no":
        return OMIT
    return _hub_name(name, config.get("dataset_config"), value)


def _trackers(value: Any, config: Config) -> list[str]:
    """A list of names, or names in one text."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _data_sets(own: tuple[str, ...], layout: tuple[str, ...] = ()) -> Convert:
    """A list of data sets with `own` keys, and keys that begin as in `layout`, about how rows are read."""

    def convert(value: Any, config: Config) -> Any:
        entries = []
        for item in value:
            asked = [name for name in item if item[name] is not None and not name.startswith(layout)]
            extra = [name for name in asked if name not in own]
            if extra:
                raise ValueError(f"{', '.join(extra)}: list the data set in data.train yourself")
            files = item.get("data_files")
            if files is not None and not isinstance(files, str):
                raise ValueError("several files: list each in data.train yourself")
            source = files or _hub_name(item["path"], item.get("name"), item.get("split"))
            weight = {} if item.get("fraction") is None else {"weight": item["fraction"]}
            entries.append({"source": source, **weight})
        return entries[0]["source"] if len(entries) == 1 and len(entries[0]) == 1 else entries

    return convert


def _mixer(value: Mapping[str, float], config: Config) -> Any:
    """Shares by data set, of the splits in dataset_splits: for training those whose name begins so."""
    train, others = list[Any](), list[Any]()
    for split in config.get("dataset_splits") or ["train"]:
        for name, share in value.items():
            source = {"source": _hub_name(name, None, split)}
            if split.startswith("train"):
                train.append(source | {"weight": share})
            else:
                others.append(source)
    return Several({"data.train": train, **({"data.valid": others} if others else {})})


def _mixture(value: Any, config: Config) -> Any:
    """{datasets: [{id, config, split, weight, columns}], ...} as in open recipes of Hugging Face."""
    return [
        {
            "source": _hub_name(item.get("id") or item["path"], item.get("config"), item.get("split")),
            "weight": item.get("weight", 1.0),
        }
        for item in value["datasets"]
    ]


def _mlx_data(value: str, config: Config) -> Any:
    """A folder with train.jsonl and valid.jsonl, or a data set of the hub."""
    folder = Path(value).expanduser()
    if not folder.is_dir():
        return value
    names = {"data.train": folder / "train.jsonl", "data.valid": folder / "valid.jsonl"}
    return Several({key: str(path) for key, path in names.items() if path.exists() or key == "data.train"})


def _mlx_hub_data(value: Any, config: Config) -> Any:
    """One data set of the hub, or a list of them, with the splits that mlx-lm takes where none are named."""
    sets: dict[str, list[str]] = {"data.train": [], "data.valid": []}
    for item in value if isinstance(value, list) else [value]:
        for name, split in {"train_split": "train[:80%]", "valid_split": "train[-10%:]"}.items():
            path = item.get("path") or item["name"]
            source = _hub_name(path, (item.get("config") or {}).get("name"), item.get(name, split))
            sets[f"data.{name.removesuffix('_split')}"].append(source)
        usual = {"prompt_feature": ("prompt",), "completion_feature": ("completion",)}
        for name in [name for name in item if name.endswith("_feature")]:
            if item[name] not in usual.get(name, ("messages", "text", "chosen", "rejected")):
                raise ValueError(f"{name}: {item[name]}: rename that column, or write data.train yourself")
    if len(sets["data.train"]) == 1:
        return Several({key: sources[0] for key, sources in sets.items()})
    return Several({key: [{"source": source} for source in sources] for key, sources in sets.items()})


def _mlx_schedule(value: Mapping[str, Any], config: Config) -> Any:
    """{name: cosine_decay, warmup: 100, arguments: [1e-5, 1000, 0]}; 2% of the peak at an end count as 0."""
    names = {"cosine_decay": "cosine", "linear_schedule": "linear"}
    start, *rest = [float(argument) for argument in value.get("arguments") or [config["learning_rate"]]]
    ends = {"cosine_decay": rest[1:2], "linear_schedule": rest[:1]}.get(value.get("name", ""), [])
    least = [*ends, value.get("warmup_init") or 0]
    if value.get("name") not in names or max(map(float, least)) > 0.02 * start:
        raise ValueError("here a schedule is linear or cosine decay to 0, with linear warm-up from 0")
    return Several({"train.schedule": names[value["name"]], "train.warmup": int(value.get("warmup") or 0)})


def _of_optimizer(name: str) -> Convert:
    return lambda value, config: value if config["optimizer"] == name else OMIT


def _mlx_steps(value: int, config: Config) -> int:
    """Iterations as steps: mlx-lm counts each of the micro-batches that it accumulates."""
    return max(1, round(value / (config.get("grad_accumulation_steps") or 1)))


def _mlx_pairs(value: int, config: Config) -> Any:
    if value < 0:
        raise ValueError("here an evaluation takes eval.pairs rows at most; give a large number for all")
    return value * config["batch_size"]


def _axolotl_loss(value: str, config: Config) -> Any:
    losses = {"dpo": "sigmoid", "ipo": "ipo", "kto": "kto", "simpo": "simpo", "orpo": "orpo"}
    if value not in losses:
        raise ValueError(f"expected one of {', '.join(losses)}, or none for supervised fine-tuning")
    return OMIT if config.get("dpo_loss_type") else losses[value]


def _other_training(value: Any, config: Config) -> NoReturn:
    raise ValueError("preference losses and supervised fine-tuning are all that is trained here")


def _axolotl_valid(value: float, config: Config) -> Any:
    if not value:
        return OMIT
    if value >= 1:
        raise ValueError("here a share of data.train is held out (data.valid_fraction), not a number of rows")
    return value


# --- notes that several programs need --------------------------------------------------------------------

_TYPES = "weights keep the type of the model's folder on a GPU and are float32 on a CPU; adapters are float32"
_EFFECTIVE = (
    "the effective batch: per-device size x accumulation steps x devices; "
    "train.micro_batch_size is how many are in memory at once"
)
_QUANTISED = "take a model that is quantised already, such as mlx-community/Qwen3-8B-4bit"
_MODULES = "only adapters are trained"
_RUN_NAME = "a run is a folder of its own: {program} train --run NAME --runs-dir DIR"
_COLUMNS = "rows are recognised by their columns, or by data.format"
_RESUME = "{program} train --resume --run NAME"
_PACKED = "a pair's prompt is shared and micro-batches are laid in one line by themselves"
_PROMPTS = "prompts are never trained on"
_STRATEGY = "localdpo counts in steps: eval.every, save.every, train.log_every"

# --- TRL -------------------------------------------------------------------------------------------------

_PEFT: Final = (
    Name("use_peft", None, "adapters are always what is trained", _adapter, moot=(True,)),
    Name("lora_r", "lora.rank", default=16),
    Name("r", "lora.rank"),
    Name("lora_rank", "lora.rank"),
    Name("lora_alpha", "lora.scale", "alpha / rank", _scale, 32),
    Name("alpha", "lora.scale", "alpha / rank", _scale),
    Name("lora_dropout", "lora.dropout", default=0.05),
    Name("lora_target_modules", "lora.keys", "names within a block: self_attn.q_proj", _keys),
    Name("target_modules", "lora.keys", "names within a block: self_attn.q_proj", _keys),
    Name("use_dora", "lora.type", "dora", _dora),
    Name("use_rslora", "lora.scale", "alpha / sqrt(rank)", _omit),
    Name("lora_modules_to_save", None, _MODULES),
    Name("lora_task_type", None, "", moot=("CAUSAL_LM",)),
)
_HF_SCHEDULE: Final = (
    Name("warmup_ratio", "train.warmup", "", _omit),
    Name("warmup_steps", "train.warmup", "", _warmup, 0),
    Name("weight_decay", "train.weight_decay"),
    Name("max_grad_norm", "train.max_grad_norm"),
    Name("adam_beta1", None, "0.9 always", moot=(0.9,)),
    Name("adam_beta2", None, "0.999 always", moot=(0.999,)),
    Name("adam_epsilon", None, "1e-8 always", moot=(1e-8,)),
    Name("bf16", None, _TYPES),
    Name("fp16", None, _TYPES),
    Name("tf32", None, "MLX_ENABLE_TF32=1 in the environment"),
    Name("load_in_4bit", None, _QUANTISED),
    Name("load_in_8bit", None, _QUANTISED),
    Name("gradient_checkpointing_kwargs", None, ""),
    Name("logging_steps", "train.log_every", default=10),
    Name("eval_steps", "eval.every"),
    Name("save_steps", "save.every"),
    Name("save_total_limit", "save.keep"),
    Name("eval_strategy", None, _STRATEGY, moot=("no", "steps")),
    Name("evaluation_strategy", None, _STRATEGY, moot=("no", "steps")),
    Name("save_strategy", None, _STRATEGY, moot=("no", "steps")),
    Name("logging_strategy", None, _STRATEGY, moot=("steps",)),
    Name("output_dir", None, _RUN_NAME),
    Name("hub_model_id", None, "{program} export RUN --to hf --push REPO"),
    Name("push_to_hub", None, "{program} export RUN --to hf --push REPO"),
    Name("resume_from_checkpoint", None, _RESUME),
    Name("report_to", "report_to", "", _trackers, moot=("none", [], ["none"])),
    Name("sync_ref_model", "loss.sync_every", "", _omit),
    Name("ref_model_sync_steps", "loss.sync_every", "", _synced, 512),
    Name("ref_model_mixup_alpha", "loss.sync_alpha", "", _synced),
    Name("simpo_gamma", "loss.simpo_gamma"),
    Name("seed", "train.seed", default=42),
    Name("max_steps", "train.max_steps", "", lambda value, config: value if value > 0 else OMIT),
    Name("trust_remote_code", "trust_remote_code"),
    Name("attn_implementation", None, "MLX has one"),
    Name("neftune_noise_alpha", None, "no noise is added to embeddings"),
)
TRL: Final = Program(
    "TRL",
    (
        Name("model_name_or_path", "model"),
        Name("model_revision", None, "give a folder with that revision", moot=("main",)),
        Name("dataset_name", "data.train", "org/name[config]:split", _trl_data),
        Name("dataset_config", "data.train", "org/name[config]:split", _omit),
        Name("dataset_train_split", "data.train", "org/name:split", _omit),
        Name("dataset_test_split", "data.valid", "org/name:split", _trl_valid, "test"),
        Name("datasets", "data.train", "", _data_sets(("path", "name", "split", "fraction", "data_files"))),
        Name("dataset_mixer", "data.train", "", _mixer),
        Name("dataset_splits", "data.train", "org/name:split", _omit),
        Name("dataset_mixture", "data.train", "without columns and test_split_size", _mixture),
        Name("learning_rate", "train.learning_rate", default=1e-6),
        Name("num_train_epochs", "train.epochs", "", _whole, 3.0),
        Name("per_device_train_batch_size", "train.batch_size", _EFFECTIVE,
             _times("per_device_train_batch_size", "gradient_accumulation_steps"), 8),
        Name("gradient_accumulation_steps", "train.batch_size", _EFFECTIVE, _omit),
        Name("per_device_eval_batch_size", None, "as many as fit are evaluated at once"),
        Name("optim", "train.optimizer", "", OPTIMIZERS),
        Name("lr_scheduler_type", "train.schedule", "", _schedule, "linear"),
        Name("max_length", "train.max_length"),
        Name("max_seq_length", "train.max_length"),
        Name("max_prompt_length", "train.max_prompt_length"),
        Name("max_completion_length", None, "train.max_length and train.max_prompt_length limit rows"),
        Name("truncation_mode", "train.truncation"),
        Name("gradient_checkpointing", "train.gradient_checkpointing"),
        Name("loss_type", "loss.type", "", _losses),
        Name("loss_weights", "loss.weights", "", _loss_weights),
        Name("beta", "loss.beta"),
        Name("label_smoothing", "loss.label_smoothing"),
        Name("reference_free", "loss.reference_free"),
        Name("f_divergence_type", "loss.f_divergence", "",
             _choice({"reverse_kl": "reverse_kl", "forward_kl": "forward_kl", "js": "js", "alpha": "alpha"})),
        Name("f_alpha_divergence_coef", "loss.f_alpha"),
        Name("ld_alpha", "loss.ld_alpha"),
        Name("use_weighting", "loss.use_weighting"),
        Name("discopop_tau", "loss.discopop_tau"),
        Name("desirable_weight", "loss.desirable_weight"),
        Name("undesirable_weight", "loss.undesirable_weight"),
        Name("rpo_alpha", None, "loss.type: [sigmoid, sft] with loss.weights: [1.0, rpo_alpha]"),
        Name("precompute_ref_log_probs", "train.reference", "scores are cached either way",
             _choice({"True": "ahead", "False": "as_needed"})),
        Name("padding_free", None, _PACKED),
        Name("packing", None, _PACKED),
        Name("disable_dropout", None, "the model's own dropout is always off", moot=(True,)),
        Name("dtype", None, _TYPES),
        Name("torch_dtype", None, _TYPES, moot=("auto",)),
        Name("run_name", None, _RUN_NAME),
        Name("logging_first_step", None, "the first step is always logged"),
        Name("remove_unused_columns", None, "", moot=(True, False)),
        *_PEFT,
        *_HF_SCHEDULE,
        # Other names that people write in a recipe.
        Name("dataset", "data.train"),
        Name("lr", "train.learning_rate"),
    ),
    unsaid={"loss.type": "the file does not say which trainer it is for: this is DPO's sigmoid loss; "
                         "for SFT, KTO, ORPO and others set it"},
)  # fmt: skip

# --- mlx-lm ----------------------------------------------------------------------------------------------

MLX_LM: Final = Program(
    "mlx-lm",
    (
        Name("model", "model"),
        Name("train", None, "", moot=(True, False)),
        Name("data", "data.train", "DATA/train.jsonl, and data.valid: DATA/valid.jsonl", _mlx_data),
        Name("data_dir", "data.train"),
        Name("hf_dataset", "data.train", "", _mlx_hub_data),
        Name("fine_tune_type", "lora.type", "", _choice({"lora": "lora", "dora": "dora"}), "lora"),
        Name("optimizer", "train.optimizer", "", OPTIMIZERS, "adam"),
        Name("seed", "train.seed", default=0),
        Name("num_layers", "lora.layers", default=16),
        Name("iters", "train.max_steps", "iters / grad_accumulation_steps", _mlx_steps, 1000),
        Name("batch_size", "train.batch_size", "batch_size x grad_accumulation_steps",
             _times("batch_size", "grad_accumulation_steps"), 4),
        Name("grad_accumulation_steps", "train.batch_size", _EFFECTIVE, _omit),
        # The peak: a schedule's first argument, where there is one.
        Name("learning_rate", "train.learning_rate", "",
             lambda value, config: float((config.get("lr_schedule", {}).get("arguments") or [value])[0]),
             1e-5),
        Name("lr_schedule", "train.schedule", "decay ends with the last step", _mlx_schedule),
        Name("steps_per_report", "train.log_every", "", _mlx_steps, 10),
        Name("steps_per_eval", "eval.every", "", _mlx_steps, 200),
        Name("save_every", "save.every", "", _mlx_steps, 100),
        Name("val_batches", "eval.pairs", "val_batches x batch_size", _mlx_pairs),
        Name("resume_adapter_file", "adapter", "the folder of the file",
             lambda value, config: str(Path(value).parent) if value.endswith(".safetensors") else value),
        Name("adapter_path", None, _RUN_NAME),
        Name("max_seq_length", "train.max_length", default=2048),
        Name("grad_checkpoint", "train.gradient_checkpointing"),
        Name("mask_prompt", None, _PROMPTS, moot=(True,)),
        Name("lora_parameters.rank", "lora.rank", default=8),
        Name("lora_parameters.scale", "lora.scale", default=20.0),
        Name("lora_parameters.dropout", "lora.dropout"),
        Name("lora_parameters.keys", "lora.keys"),
        *(Name(f"optimizer_config.{name}.weight_decay", "train.weight_decay", "", _of_optimizer(name))
          for name in ("adamw", "sgd", "lion")),
        Name("report_to", "report_to", "", _trackers),
        Name("test", None, "{program} eval RUN"),
        Name("trust_remote_code", "trust_remote_code"),
    ),
    {"loss.type": "sft", "train.schedule": "constant", "train.warmup": 0},
)  # fmt: skip

# --- Axolotl ---------------------------------------------------------------------------------------------

_AXOLOTL_DATA: Final = _data_sets(
    ("path", "name", "split", "data_files"),
    ("type", "ds_type", "field_", "message_", "roles", "train_on_", "chat_template"),
)
AXOLOTL: Final = Program(
    "Axolotl",
    (
        Name("base_model", "model"),
        Name("adapter", None, "", _adapter, "", moot=("lora", "qlora")),
        Name("lora_model_dir", "adapter"),
        Name("lora_r", "lora.rank", default=8),
        Name("lora_alpha", "lora.scale", "alpha / rank", _scale, 8),
        Name("lora_dropout", "lora.dropout"),
        Name("lora_target_modules", "lora.keys", "names within a block: self_attn.q_proj", _keys),
        Name("lora_target_linear", "lora.keys", "all by default", _omit),
        Name("peft_use_dora", "lora.type", "dora", _dora),
        Name("peft_use_rslora", "lora.scale", "alpha / sqrt(rank)", _omit),
        Name("lora_modules_to_save", None, _MODULES),
        Name("rl", "loss.type", "dpo is sigmoid", _axolotl_loss, moot=(False, "", "none")),
        *(Name(name, "loss.type", "no such training here", _other_training, moot=(False,))
          for name in ("reward_model", "process_reward_model", "kd_trainer")),
        Name("rl_beta", "loss.beta"),
        Name("orpo_alpha", "loss.beta"),
        Name("dpo_label_smoothing", "loss.label_smoothing"),
        Name("dpo_use_weighting", "loss.use_weighting"),
        Name("dpo_loss_type", "loss.type", "", _losses),
        Name("dpo_loss_weights", "loss.weights", "", _loss_weights),
        Name("kto_desirable_weight", "loss.desirable_weight"),
        Name("kto_undesirable_weight", "loss.undesirable_weight"),
        Name("cpo_alpha", None, "loss.type: [simpo, sft] with loss.weights: [1.0, cpo_alpha]"),
        Name("datasets", "data.train", _COLUMNS, _AXOLOTL_DATA),
        Name("test_datasets", "data.valid", _COLUMNS, _AXOLOTL_DATA),
        Name("val_set_size", "data.valid_fraction", "", _axolotl_valid),
        Name("chat_template", None, "the model's own template is used", moot=("tokenizer_default",)),
        Name("chat_template_kwargs", "data.chat_template_kwargs"),
        Name("sequence_len", "train.max_length", default=512),
        Name("max_prompt_len", "train.max_prompt_length"),
        Name("sample_packing", None, _PACKED),
        Name("pad_to_sequence_len", None, _PACKED),
        Name("micro_batch_size", "train.batch_size", _EFFECTIVE,
             _times("micro_batch_size", "gradient_accumulation_steps"), 1),
        Name("gradient_accumulation_steps", "train.batch_size", _EFFECTIVE, _omit),
        Name("num_epochs", "train.epochs", "", _whole, 1.0),
        Name("optimizer", "train.optimizer", "", OPTIMIZERS, "adamw"),
        Name("lr_scheduler", "train.schedule", "", _schedule, "cosine"),
        Name("learning_rate", "train.learning_rate"),
        Name("gradient_checkpointing", "train.gradient_checkpointing", "",
             lambda value, config: bool(value)),
        Name("train_on_inputs", None, _PROMPTS),
        Name("flash_attention", None, "MLX has one attention", moot=(True, False)),
        Name("sdp_attention", None, "MLX has one attention", moot=(True, False)),
        Name("wandb_project", "report_to", "WANDB_PROJECT names it", lambda value, config: ["wandb"]),
        Name("evals_per_epoch", None, _STRATEGY),
        Name("saves_per_epoch", None, _STRATEGY),
        Name("dataset_prepared_path", None, "tokens are cached in LOCALDPO_CACHE"),
        # 3% where neither is given.
        Name("warmup_ratio", "train.warmup", "", _omit, 0.03),
        *_HF_SCHEDULE,
    ),
    {"loss.type": "sft"},
)  # fmt: skip

PROGRAMS: Final = {"trl": TRL, "mlx-lm": MLX_LM, "axolotl": AXOLOTL}


def written_for(values: Mapping[str, Any]) -> str | None:
    """The key of the program (in PROGRAMS) that has most of these names, if it has at least three of them."""
    counts = {
        key: sum(program.find(name) is not None for name in values) for key, program in PROGRAMS.items()
    }
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] >= 3 else None
