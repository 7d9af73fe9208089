"""What a person may have meant by a key that does not exist."""

from __future__ import annotations

import difflib
from typing import Final

from localdpo.recipe.describe import all_keys, entry_fields, field_at, fields_of, section_of

# What TRL, mlx-lm and PEFT call an option whose name here is too far off to be found by spelling.
ELSEWHERE: Final = {
    "alpha": "lora.scale (alpha / rank)",
    "data_dir": "data.train",
    "dataset": "data.train",
    "dataset_name": "data.train",
    "eval_steps": "eval.every",
    "f_alpha_divergence_coef": "loss.f_alpha",
    "f_divergence_type": "loss.f_divergence",
    "fine_tune_type": "lora.type",
    "grad_checkpoint": "train.gradient_checkpointing",
    "gradient_accumulation_steps": "train.micro_batch_size (batch_size / steps)",
    "iters": "train.max_steps",
    "logging_steps": "train.log_every",
    "lora_alpha": "lora.scale (alpha / rank)",
    "lora_dropout": "lora.dropout",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "loss_type": "loss.type",
    "loss_weights": "loss.weights",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "max_seq_length": "train.max_length",
    "model_name_or_path": "model",
    "num_layers": "lora.layers",
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "r": "lora.rank",
    "ref_model_mixup_alpha": "loss.sync_alpha",
    "ref_model_sync_steps": "loss.sync_every",
    "save_steps": "save.every",
    "save_total_limit": "save.keep",
    "steps_per_eval": "eval.every",
    "sync_ref_model": "loss.sync_every",
    "target_modules": "lora.keys",
    "truncation_mode": "train.truncation",
    "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup",
}


def unknown_key(section: str, name: str, dotted: bool) -> str:
    """One line about the unknown key `name` of `section` (empty: the top level).

    `dotted` says whether keys are written with dots where the person wrote it (overrides) or in sections.
    """
    if "[" in section:
        return _unknown_in_entry(section.partition("[")[0], name, dotted)
    if not dotted and "." in name and field_at(name):
        above, _, below = name.rpartition(".")
        return f"unknown key; write `{above}:` on one line and `{below}:` indented below it"
    if name in ELSEWHERE:
        return f"unknown key; did you mean {ELSEWHERE[name]}?"
    siblings = list(fields_of(section)) if not section or section_of(section) else []
    if near := difflib.get_close_matches(name.lower(), siblings, n=1):
        return f"unknown key; did you mean {f'{section}.{near[0]}' if dotted and section else near[0]}?"
    if meant := _in_other_sections(name):
        return f"unknown key; did you mean {meant}?"
    if siblings:
        return f"unknown key; {section or 'a recipe'} has {', '.join(siblings)}"
    return f"unknown key; the sections are {', '.join(name for name in fields_of('') if section_of(name))}"


def _unknown_in_entry(key: str, name: str, dotted: bool) -> str:
    """About the unknown key `name` of an entry of the list at `key`."""
    if dotted:
        return f"a list is given as a whole: {key}=[...]"
    options = list(entry_fields(key))
    if near := difflib.get_close_matches(name.lower(), options, n=1):
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; an entry of {key} has {', '.join(options)}"


def _in_other_sections(name: str) -> str | None:
    keys = all_keys()
    for key in keys:
        if key.rpartition(".")[2] == name:
            return key
    names = {key.rpartition(".")[2]: key for key in reversed(keys)}
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.8)
    return names[near[0]] if near else None
