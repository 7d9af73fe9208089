"""What the recipe's sections share: the base class and the types of their values."""

from __future__ import annotations

from typing import Annotated, Any, Final

from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Lt(1)]
# One line without control characters: a NUL or a line break in a path is a mistake, and breaks messages.
ONE_LINE: Final = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=ONE_LINE)]
# A list of losses, and their weights.
Losses = Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]
Weights = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
Words = Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]


class Section(BaseModel):
    """Base of the recipe and of its sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def option(default: Any, description: str, **settings: Any) -> Any:
    """The one declaration of an option: its default and its meaning. Its names elsewhere are in `elsewhere`.

    Args:
        default: a value, a function that returns one (of the options before it), or `...`: required.
        settings: other arguments of pydantic's Field.
    """
    given = {"default_factory": default} if callable(default) else {"default": default}
    return Field(description=description, **given, **settings)
