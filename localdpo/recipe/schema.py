"""The recipe: the one declaration of every option, with its type, bounds, default and meaning.

Error messages, the options table of the documentation and the dumped recipe of a run are made from these
classes. A section is frozen and refuses unknown keys. Values are not converted: `"8"` is not a number.
Checks between two fields live in a validator of the field that is declared later, so that each problem is
reported at its own key, next to all the others.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from annotated_types import Ge, Gt, Le
from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from localdpo.core.names import is_demo
from localdpo.recipe.base import (
    Count,
    CountOrZero,
    Fraction,
    NotNegative,
    Positive,
    Section,
    Text,
    Words,
    option,
)
from localdpo.recipe.loss import LossSection
from localdpo.trackers.registry import TrackerName

# A section given as one value means this option of it: `loss: ipo`, `loss: [sigmoid, sft]`.
SHORTHANDS: Final = {"loss": "type"}
# The type of an error between two sections; its context holds the `key` of the section that it belongs to,
# or the whole `path`.
ACROSS_SECTIONS: Final = "across_sections"
# As reference_adapter: the model without an adapter.
BASE: Final = "base"
DECAYING_OPTIMIZERS: Final = ("adamw", "sgd", "lion")


# pydantic puts the tag of the branch that it took into the location of an error, after the option.
AS_TEXT, AS_LIST = "text", "list"
# What rendering passes to a template or a tokenizer by itself: no option, in a recipe as in a row.
RESERVED_TEMPLATE_OPTIONS: Final = frozenset(
    (
        *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "tokenizer_kwargs", "sanitize_control_tokens"),
        *("padding", "truncation", "max_length", "return_tensors", "return_dict"),
        "return_assistant_tokens_mask",
    )
)


class DataSource(Section):
    """One data set of a list. null means the recipe's own option: data.format, train.max_length, ..."""

    source: Text = option(..., "file, hub data set or demo: name, as in data.train")
    format: Text | None = option(None, "format of its rows; null: data.format")
    limit: Count | None = option(None, "use only its first N rows; null: data.limit")
    max_length: Annotated[int, Ge(2)] | None = option(
        None, "tokens of prompt and response together, at most train.max_length; null: that"
    )
    max_prompt_length: Count | None = option(None, "tokens of the prompt; null: train.max_prompt_length")
    truncation: Literal["keep_start", "keep_end"] | None = option(
        None, "which end of a prompt that is too long is kept; null: train.truncation"
    )

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class WeightedSource(DataSource):
    """One data set of a mixture to train on."""

    weight: Annotated[float, Gt(0), Le(100)] = option(
        1.0,
        "how often an epoch passes over its rows: 2 takes each row twice, 0.5 half of them, "
        "drawn by the seed, and the other half in the next epoch",
    )


def _tag(value: Any) -> str:
    return AS_LIST if isinstance(value, list | tuple) else AS_TEXT


# Told by the type of the value, so that a mistake in a list is reported in the list and nowhere else.
_BY_TYPE: Final = Discriminator(_tag)
_Name = Annotated[Text, Tag(AS_TEXT)]
Mixed = Annotated[
    _Name | Annotated[tuple[WeightedSource, ...], Field(strict=False, min_length=1), Tag(AS_LIST)],
    _BY_TYPE,
]
Several = Annotated[
    _Name | Annotated[tuple[DataSource, ...], Field(strict=False, min_length=1), Tag(AS_LIST)],
    _BY_TYPE,
]


class DataSection(Section):
    """Where the pairs (or demonstrations) come from and how they become text."""

    train: Mixed = option(
        ...,
        "file (JSONL, JSON, parquet), hub data set or demo: name to train on, or a list of them "
        "with the options below",
    )
    valid: Several | None = option(
        None, "the same to evaluate on (a list has no weights); null: a part of data.train"
    )
    valid_fraction: Annotated[float, Gt(0), Le(0.5)] = option(
        0.05, "share of data.train held out when data.valid is null"
    )
    format: Text | None = option(None, "format of the rows, by its name in docs/data.md; null: auto-detected")
    template: Literal["auto", "chat", "raw"] = option(
        "auto", "chat: the chat template; raw: plain text and EOS; auto: chat if there is a template"
    )
    chat_template_kwargs: dict[Text, Any] = option(
        dict,
        "options of the chat template for every row, such as {enable_thinking: false}; "
        "a row's own override them",
    )
    limit: Count | None = option(None, "use only the first N rows of data.train (of each data set of a list)")

    @field_validator("valid_fraction", mode="before")
    @classmethod
    def _held_out_only(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.get("valid") is not None:
            raise ValueError("nothing is held out when data.valid is given; remove one of the two")
        return value

    @field_validator("chat_template_kwargs")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(RESERVED_TEMPLATE_OPTIONS & value.keys()):
            raise ValueError(f"{taken[0]} is no option of a template")
        return value

    @property
    def train_sources(self) -> tuple[WeightedSource, ...]:
        """What data.train lists; one entry where it is text."""
        if isinstance(self.train, str):
            return (WeightedSource(source=self.train),)
        return self.train

    @property
    def valid_sources(self) -> tuple[DataSource, ...]:
        """What data.valid lists: one entry where it is text, none where it is null."""
        if self.valid is None:
            return ()
        return (DataSource(source=self.valid),) if isinstance(self.valid, str) else self.valid

    @property
    def is_demo(self) -> bool:
        """Whether all that is trained on is the demo's own."""
        return all(is_demo(entry.source) for entry in self.train_sources)


class TrainSection(Section):
    """Steps, batches, optimizer and lengths."""

    epochs: Count | None = option(None, "passes over the training data; 1 where max_steps is not set either")
    max_steps: Count | None = option(
        None, "steps in all, over the data again and again; with epochs, what ends first counts"
    )
    batch_size: Count = option(8, "pairs in one step")
    compile: Literal["auto"] | bool = option(
        "auto",
        "trace a step as one function; auto: not on a CPU, where it is no faster, "
        "nor for a loss over the whole batch",
    )
    micro_batch_size: Literal["auto"] | Count = option(
        "auto",
        "pairs in memory at once, with gradients accumulated over the batch; where steps are traced, more "
        "short ones in the room of so many long ones; auto: as many as fit with the least padding, fewer on "
        "a CPU",
    )
    # Zephyr's QLoRA recipe for DPO uses 5e-6; full fine-tuning takes 5e-7 to 1e-6.
    learning_rate: Positive = option(5e-6, "peak learning rate of the schedule")
    # Linear decay after 10% warm-up is Tulu 3's schedule for DPO; TRL decays linearly without warm-up.
    schedule: Literal["constant", "linear", "cosine"] = option(
        "linear", "after warm-up: constant, or linear or cosine decay to 0"
    )
    warmup: CountOrZero | Fraction = option(
        0.1,
        "linear warm-up: a share of all steps (0.1) or a number of steps (10)",
    )
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "lion"] = option(
        "adamw", "update rule; Adam and AdamW are bias-corrected"
    )
    weight_decay: NotNegative = option(0.0, "decoupled weight decay (adamw, sgd, lion)")
    max_grad_norm: Positive = option(1.0, "gradients are clipped to this norm")
    max_length: Annotated[int, Ge(2)] = option(1024, "tokens of prompt and response together")
    max_prompt_length: Count | None = option(None, "tokens of the prompt; null: no limit of its own")
    truncation: Literal["keep_start", "keep_end"] = option(
        "keep_start", "which end of a prompt that is too long is kept"
    )
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = option(
        0, "seed of the data's order, LoRA weights and dropout"
    )
    gradient_checkpointing: Literal["auto"] | bool = option(
        "auto",
        "recompute activations: less memory, more time; auto: only if a pair does not fit otherwise",
    )
    reference: Literal["as_needed", "ahead"] = option(
        "as_needed",
        "score rows under the frozen reference before the step that takes them, or all before the first step",
    )
    log_every: Count = option(1, "log every N steps")

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
    rank: Count | None = option(None, "inner size of the adapter; null: the start adapter's (else 8)")
    scale: Positive | None = option(
        None,
        "multiplier as in mlx-lm (not alpha); null: the start adapter's (else 20)",
    )
    dropout: Fraction = option(0.0, "dropout on the adapter's input while training")
    # No 0: mlx-lm takes the last `layers` blocks with a slice, and [-0:] is all of them.
    layers: Literal[-1] | Count | None = option(
        None,
        "adapt this many of the last blocks, -1 all; null: the start adapter's (else all)",
    )
    keys: Words | None = option(
        None,
        "linear layers to adapt: [self_attn.q_proj]; null: the start adapter's (else all)",
    )
    type: Literal["lora", "dora"] | None = option(
        None,
        "lora, or dora (weight-decomposed); null: the start adapter's (else lora)",
    )


class EvalSection(Section):
    """Evaluation while training; it also runs before the first step and after the last."""

    every: Count = option(50, "steps between two evaluations")
    pairs: Count = option(64, "held-out pairs in an evaluation, at most")
    samples: CountOrZero = option(2, "prompts that policy and reference answer at each evaluation")
    prompts: Text | None = option(None, "file or demo: name of those prompts; null: held-out pairs")
    max_tokens: Count = option(128, "longest sampled answer in tokens")
    temperature: NotNegative = option(0.0, "sampling temperature; 0 takes the likeliest token")
    kl_every: Count = option(10, "steps between two exact KL measurements")
    kl_pairs: CountOrZero = option(2, "pairs in a measurement of KL and entropy; 0: none")
    kl_samples: CountOrZero = option(
        8, "held-out prompts that the policy answers for kl_sampled at each evaluation; 0: none"
    )
    worst_pairs: CountOrZero = option(
        8, "pairs of lowest margin saved token by token at each evaluation; 0: none"
    )


class SaveSection(Section):
    """Checkpoints; the last step is always saved."""

    every: Count = option(100, "steps between two checkpoints")
    keep: Count = option(2, "number of checkpoints kept, the newest")


class RoundsSection(Section):
    """Rounds of training on the policy's own answers (`localdpo rounds`)."""

    prompts: Text | None = option(
        None,
        "file, data set or demo: name of the prompts that every round answers; needed for rounds",
    )
    limit: Count | None = option(None, "use only the first N of them")
    n: Annotated[int, Ge(2)] = option(2, "answers to each prompt: two are compared, more are scored")
    temperature: Positive = option(1.0, "sampling temperature of these answers; evaluations sample at 1")
    max_tokens: Count = option(256, "longest answer in tokens, in evaluations too")
    min_words: Count = option(1, "answers with fewer words make no pair")
    missing_eos_penalty: Positive | None = option(
        None,
        "judge answers cut at max_tokens too, take this from their score and never choose them; null: they "
        "make no pair",
    )
    judge: Text | None = option(
        None, "who judges, as --judge of `localdpo prefs build`; null: rules for the demo's prompts"
    )
    rubrics: Words | None = option(None, "rubrics of the judge, by name or file; null: the shipped ones")
    constitution: Text | None = option(None, "principles instead of rubrics, by name or file")
    scores: bool | None = option(
        None,
        "whether the judge scores both answers of a pair too; "
        "null: with rules, constraints or a rubric for it",
    )
    checks: Text | None = option(None, "YAML file with more heuristics for the evaluations")
    held_out: Count = option(200, "held-out prompts in an evaluation, at most")
    reference: Literal["last", "first"] = option(
        "last", "reference of a round: the policy that it starts from, or that of the first round"
    )
    learning_rate_decay: Annotated[float, Gt(0), Le(1)] = option(
        1.0, "the learning rate of a round, as a multiple of that of the round before"
    )
    patience: Count = option(
        1, "stop after so many rounds in a row that are not clearly better than the one before"
    )
    max_kl: Positive | None = option(
        None, "stop once KL(policy || start of the first round) is above this, in nats a response"
    )

    @field_validator("min_words")
    @classmethod
    def _can_be_reached(cls, value: int, info: ValidationInfo) -> int:
        most = info.data.get("max_tokens")
        if most is not None and value > most:
            raise ValueError(f"no answer of max_tokens {most} has so many words; give at most {most}")
        return value


class Recipe(Section):
    """Everything that decides a run. Paths are relative to the current directory, as in mlx-lm."""

    model: Text = option(..., "folder, .gguf file, hub id or demo: name of the model")
    adapter: Text | None = option(
        None, "adapter to start from, often from SFT; it is part of the reference too"
    )
    trust_remote_code: bool = option(False, "let the model's folder run its own Python code")
    data: DataSection = option(..., "the data")
    loss: LossSection = option(LossSection(), "the objective")
    reference_adapter: Text | None = option(
        None, "adapter of the reference, in the shape of adapter; base: the model alone; null: adapter"
    )
    # The defaults are checked too: the limits of a data set may not fit them.
    train: TrainSection = option(TrainSection(), "steps, batches and optimizer", validate_default=True)
    lora: LoraSection = option(LoraSection(), "the adapter")
    eval: EvalSection = option(EvalSection(), "evaluation while training")
    save: SaveSection = option(SaveSection(), "checkpoints")
    rounds: RoundsSection = option(RoundsSection(), "rounds of training on the policy's own answers")
    report_to: Annotated[tuple[TrackerName, ...], Field(strict=False)] = option(
        (), "trackers that are shown the run, one or a list; docs/trackers.md says what they need"
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _as_elsewhere(cls, value: Any) -> Any:
        """Hugging Face's trainers take a single name too, and `none`."""
        names = [value] if isinstance(value, str) else value
        return [] if names == ["none"] else names

    @field_validator("report_to")
    @classmethod
    def _once(cls, value: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        return tuple(dict.fromkeys(value))

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, value: Any) -> Any:
        return expand_shorthands(value) if isinstance(value, dict) else value

    @field_validator("reference_adapter")
    @classmethod
    def _has_a_reference(cls, value: str | None, info: ValidationInfo) -> str | None:
        loss = info.data.get("loss")
        if value is not None and loss is not None and not loss.spec.needs_reference:
            raise ValueError(f"the {loss.spec.name} loss has no reference; remove it")
        return value

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
        for key in ("train", "valid"):
            for place, entry in enumerate(getattr(data, f"{key}_sources")):
                if problem := _length_problem(entry, value.max_length, value.max_prompt_length):
                    path = ("data", key, place, problem[0])
                    raise PydanticCustomError(
                        ACROSS_SECTIONS, "{problem}", {"path": path, "problem": problem[1]}
                    )
        return value

    @property
    def reference(self) -> str | None:
        """The adapter of the reference, None for the model without one. Where it moves, what it starts as."""
        if self.reference_adapter == BASE:
            return None
        return self.reference_adapter or self.adapter

    def explicit(self, section: str, field: str) -> bool:
        """Whether `section.field` was written down (in the file or as an override), default or not."""
        return field in getattr(self, section).model_fields_set


def expand_shorthands(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with `loss: ipo` turned into `loss: {type: ipo}`, and a list of losses likewise."""
    short = [key for key in SHORTHANDS if isinstance(values.get(key), str | list)]
    return {**values, **{key: {SHORTHANDS[key]: values[key]} for key in short}}


def _length_problem(
    entry: DataSource, max_length: int, max_prompt_length: int | None
) -> tuple[str, str] | None:
    """(option, message) where the limits of `entry` do not go with the recipe's own; None where they do."""
    if entry.max_length is not None and entry.max_length > max_length:
        return "max_length", f"expected at most train.max_length ({max_length}), got {entry.max_length}"
    whole = max_length if entry.max_length is None else entry.max_length
    prompt = max_prompt_length if entry.max_prompt_length is None else entry.max_prompt_length
    if prompt is None or prompt < whole:
        return None
    if entry.max_prompt_length is not None:
        return "max_prompt_length", f"expected less than its max_length ({whole}), got {prompt}"
    return "max_length", f"expected more than train.max_prompt_length ({prompt}), got {whole}"
