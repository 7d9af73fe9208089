"""The recipe: the one declaration of every option, with its type, bounds, default and meaning.

Error messages, the options table of the documentation and the dumped recipe of a run are made from these
classes. A section is frozen and refuses unknown keys. Values are not converted: `"8"` is not a number.
Checks between two fields live in a validator of the field that is declared later, so that each problem is
reported at its own key, next to all the others.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from annotated_types import Ge, Le
from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from localdpo.recipe.base import Count, CountOrZero, Fraction, NotNegative, Positive, Section, Text, Words
from localdpo.recipe.data import DataSection, length_problem
from localdpo.recipe.loss import LossSection

# A section given as one value means this option of it: `loss: ipo`, `loss: [sigmoid, sft]`.
SHORTHANDS: Final = {"loss": "type"}
# The type of an error between two sections; its context holds the `key` of the section that it belongs to,
# or the whole `path`.
ACROSS_SECTIONS: Final = "across_sections"
DECAYING_OPTIMIZERS: Final = ("adamw", "sgd", "lion")


class TrainSection(Section):
    """Steps, batches, optimizer and lengths."""

    epochs: Count = Field(1, description="passes over the training data")
    max_steps: Count | None = Field(
        None, description="stop after this many steps, if the epochs do not end first"
    )
    batch_size: Count = Field(8, description="pairs in one step")
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="trace a step as one function; auto: not on a CPU, where it is no faster",
    )
    micro_batch_size: Literal["auto"] | Count = Field(
        "auto",
        description="pairs in memory at once, with gradients accumulated over the batch; "
        "auto: as many as fit with the least padding, fewer on a CPU",
    )
    # Zephyr's QLoRA recipe for DPO uses 5e-6; full fine-tuning takes 5e-7 to 1e-6.
    learning_rate: Positive = Field(5e-6, description="peak learning rate of the schedule")
    # Linear decay after 10% warm-up is Tulu 3's schedule for DPO; TRL decays linearly without warm-up.
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="after warm-up: constant, or linear or cosine decay to 0"
    )
    warmup: CountOrZero | Fraction = Field(
        0.1, description="linear warm-up: a share of all steps (0.1) or a number of steps (10)"
    )
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "lion"] = Field(
        "adamw", description="update rule; Adam and AdamW are bias-corrected"
    )
    weight_decay: NotNegative = Field(0.0, description="decoupled weight decay (adamw, sgd, lion)")
    max_grad_norm: Positive = Field(1.0, description="gradients are clipped to this norm")
    max_length: Annotated[int, Ge(2)] = Field(1024, description="tokens of prompt and response together")
    max_prompt_length: Count | None = Field(
        None, description="tokens of the prompt; null: no limit of its own"
    )
    truncation: Literal["keep_start", "keep_end"] = Field(
        "keep_start", description="which end of a prompt that is too long is kept"
    )
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = Field(
        0, description="seed of the data's order, LoRA weights and dropout"
    )
    gradient_checkpointing: Literal["auto"] | bool = Field(
        "auto",
        description="recompute activations: less memory, more time; "
        "auto: only if a pair does not fit otherwise",
    )
    log_every: Count = Field(1, description="log every N steps")

    @field_validator("micro_batch_size", mode="before")
    @classmethod
    def _null_is_auto(cls, value: Any) -> Any:
        """Recipes of before there was `auto` say null."""
        return "auto" if value is None else value

    @field_validator("micro_batch_size")
    @classmethod
    def _fits_batch(cls, value: Literal["auto"] | int, info: ValidationInfo) -> Literal["auto"] | int:
        batch = info.data.get("batch_size")
        if value != "auto" and batch is not None and value > batch:
            raise ValueError(f"expected at most train.batch_size ({batch}), got {value}")
        return value

    @field_validator("weight_decay")
    @classmethod
    def _decays(cls, value: float, info: ValidationInfo) -> float:
        optimizer = info.data.get("optimizer")
        if value > 0 and optimizer is not None and optimizer not in DECAYING_OPTIMIZERS:
            others = " or ".join(DECAYING_OPTIMIZERS)
            raise ValueError(f"{optimizer} does not use it; remove it or choose {others}")
        return value

    @field_validator("max_prompt_length")
    @classmethod
    def _leaves_room(cls, value: int | None, info: ValidationInfo) -> int | None:
        whole = info.data.get("max_length")
        if value is not None and whole is not None and value >= whole:
            raise ValueError(f"expected less than train.max_length ({whole}), got {value}")
        return value


class LoraSection(Section):
    """The adapter that is trained."""

    # null follows the start adapter, whose shape cannot be changed; without one it is the value in brackets.
    rank: Count | None = Field(
        None, description="inner size of the adapter; null: the start adapter's (else 8)"
    )
    scale: Positive | None = Field(
        None, description="multiplier as in mlx-lm (not alpha); null: the start adapter's (else 20)"
    )
    dropout: Fraction = Field(0.0, description="dropout on the adapter's input while training")
    # No 0: mlx-lm takes the last `layers` blocks with a slice, and [-0:] is all of them.
    layers: Literal[-1] | Count | None = Field(
        None, description="adapt this many of the last blocks, -1 all; null: the start adapter's (else all)"
    )
    keys: Words | None = Field(
        None, description="linear layers to adapt: [self_attn.q_proj]; null: the start adapter's (else all)"
    )
    type: Literal["lora", "dora"] | None = Field(
        None, description="lora, or dora (weight-decomposed); null: the start adapter's (else lora)"
    )


class EvalSection(Section):
    """Evaluation while training; it also runs before the first step and after the last."""

    every: Count = Field(50, description="steps between two evaluations")
    pairs: Count = Field(64, description="held-out pairs in an evaluation, at most")
    samples: CountOrZero = Field(2, description="prompts that policy and reference answer at each evaluation")
    prompts: Text | None = Field(
        None, description="file or demo: name of those prompts; null: held-out pairs"
    )
    max_tokens: Count = Field(128, description="longest sampled answer in tokens")
    temperature: NotNegative = Field(0.0, description="sampling temperature; 0 takes the likeliest token")
    kl_every: Count = Field(10, description="steps between two exact KL measurements")
    kl_pairs: CountOrZero = Field(2, description="pairs in a measurement of KL and entropy; 0: none")
    kl_samples: CountOrZero = Field(
        8, description="held-out prompts that the policy answers for kl_sampled at each evaluation; 0: none"
    )
    worst_pairs: CountOrZero = Field(
        8, description="pairs of lowest margin saved token by token at each evaluation; 0: none"
    )


class SaveSection(Section):
    """Checkpoints; the last step is always saved."""

    every: Count = Field(100, description="steps between two checkpoints")
    keep: Count = Field(2, description="number of checkpoints kept, the newest")


class Recipe(Section):
    """Everything that decides a run. Paths are relative to the current directory, as in mlx-lm."""

    model: Text = Field(description="folder, hub id or demo: name of the model")
    adapter: Text | None = Field(
        None, description="adapter to start from, often from SFT; it is part of the reference too"
    )
    trust_remote_code: bool = Field(False, description="let the model's folder run its own Python code")
    data: DataSection = Field(description="the data")
    loss: LossSection = Field(LossSection(), description="the objective")
    # The defaults are checked too: the limits of a data set may not fit them.
    train: TrainSection = Field(
        TrainSection(), validate_default=True, description="steps, batches and optimizer"
    )
    lora: LoraSection = Field(LoraSection(), description="the adapter")
    eval: EvalSection = Field(EvalSection(), description="evaluation while training")
    save: SaveSection = Field(SaveSection(), description="checkpoints")

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, value: Any) -> Any:
        return expand_shorthands(value) if isinstance(value, dict) else value

    @field_validator("train")
    @classmethod
    def _batch_may_be_cut(cls, value: TrainSection, info: ValidationInfo) -> TrainSection:
        loss, micro = info.data.get("loss"), value.micro_batch_size
        if loss is None or loss.spec.separable or micro == "auto" or micro == value.batch_size:
            return value
        whole = next(term.name for term in loss.spec.terms if not term.separable)
        raise PydanticCustomError(
            ACROSS_SECTIONS,
            "the {loss} loss compares all pairs of a batch with each other, so it needs them in memory at "
            "once; remove it, set train.batch_size={micro}, or choose another loss.type",
            {"key": "micro_batch_size", "loss": whole, "micro": micro},
        )

    @field_validator("train")
    @classmethod
    def _completions_can_be_exchanged(cls, value: TrainSection, info: ValidationInfo) -> TrainSection:
        loss = info.data.get("loss")
        if loss is None or not loss.spec.needs_baseline or value.batch_size >= 2:
            return value
        raise PydanticCustomError(
            ACROSS_SECTIONS,
            "the {loss} loss compares with completions of other rows of the batch, so it needs 2 or more; "
            "raise it, or choose another loss.type",
            {"key": "batch_size", "loss": loss.spec.name},
        )

    @field_validator("train")
    @classmethod
    def _sources_fit(cls, value: TrainSection, info: ValidationInfo) -> TrainSection:
        data = info.data.get("data")
        if data is None:
            return value
        for option in ("train", "valid"):
            for place, entry in enumerate(getattr(data, f"{option}_sources")):
                if problem := length_problem(entry, value.max_length, value.max_prompt_length):
                    path = ("data", option, place, problem[0])
                    raise PydanticCustomError(
                        ACROSS_SECTIONS, "{problem}", {"path": path, "problem": problem[1]}
                    )
        return value

    def explicit(self, section: str, field: str) -> bool:
        """Whether `section.field` was written down (in the file or as an override), default or not."""
        return field in getattr(self, section).model_fields_set


def expand_shorthands(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with `loss: ipo` turned into `loss: {type: ipo}`, and a list of losses likewise."""
    short = [key for key in SHORTHANDS if isinstance(values.get(key), str | list)]
    return {**values, **{key: {SHORTHANDS[key]: values[key]} for key in short}}
