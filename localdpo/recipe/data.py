"""The recipe's section `data`: one data set, or a mixture of several with a weight each."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from annotated_types import Ge, Gt, Le
from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from localdpo.core.names import is_demo
from localdpo.recipe.base import Count, Section, Text

# pydantic puts the tag of the branch that it took into the place of an error, behind the option.
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

    source: Text = Field(description="file, hub data set or demo: name, as in data.train")
    format: Text | None = Field(None, description="format of its rows; null: data.format")
    limit: Count | None = Field(None, description="use only its first N rows; null: data.limit")
    max_length: Annotated[int, Ge(2)] | None = Field(
        None, description="tokens of prompt and response together, at most train.max_length; null: that"
    )
    max_prompt_length: Count | None = Field(
        None, description="tokens of the prompt; null: train.max_prompt_length"
    )
    truncation: Literal["keep_start", "keep_end"] | None = Field(
        None, description="which end of a prompt that is too long is kept; null: train.truncation"
    )

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class WeightedSource(DataSource):
    """One data set of a mixture to train on."""

    weight: Annotated[float, Gt(0), Le(100)] = Field(
        1.0,
        description="how often an epoch passes over its rows: 2 takes each row twice, 0.5 half of them, "
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

    train: Mixed = Field(
        description="file (JSONL, JSON, parquet), hub data set or demo: name to train on, or a list of them "
        "with the options below"
    )
    valid: Several | None = Field(
        None, description="the same to evaluate on (a list has no weights); null: a part of data.train"
    )
    valid_fraction: Annotated[float, Gt(0), Le(0.5)] = Field(
        0.05, description="share of data.train held out when data.valid is null"
    )
    format: Text | None = Field(
        None, description="format of the rows, by its name in docs/data.md; null: auto-detected"
    )
    template: Literal["auto", "chat", "raw"] = Field(
        "auto",
        description="chat: the chat template; raw: plain text and EOS; auto: chat if there is a template",
    )
    chat_template_kwargs: dict[Text, Any] = Field(
        default_factory=dict,
        description="options of the chat template for every row, such as {enable_thinking: false}; "
        "a row's own override them",
    )
    limit: Count | None = Field(
        None, description="use only the first N rows of data.train (of each data set of a list)"
    )

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
        return all(is_demo(each.source) for each in self.train_sources)


def length_problem(
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
