"""The arguments of public functions, checked by their annotations before anything is done.

Text where a list of texts is due is a list of characters to Python and to type checkers alike, and a number
that is not whole may end in a file. So both are refused here, as the command line refuses them.
"""

from __future__ import annotations

import inspect
import os
import reprlib
import types
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    Union,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from localdpo.core.errors import UserError, UserErrors
from localdpo.recipe.describe import SIMPLE_TYPES, type_text

P = ParamSpec("P")
R = TypeVar("R")

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_CONFIG: Final = ConfigDict(arbitrary_types_allowed=True)


class _Parameter(NamedTuple):
    """What a value is checked by, and the words for what it has to be."""

    adapter: TypeAdapter[Any]
    expected: str


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which raises UserErrors for arguments that are not what its annotations say."""

    @wraps(function)
    def called(*arguments: P.args, **options: P.kwargs) -> R:
        signature, parameters, variable = _declared(function)
        given = dict(signature.bind(*arguments, **options).arguments)
        given |= given.pop(variable, {})
        if unknown := [name for name in given if name not in signature.parameters and name not in parameters]:
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument {unknown[0]!r}")
        problems = []
        for name, value in given.items():
            if name in parameters:
                try:
                    parameters[name].adapter.validate_python(value, strict=True)
                except ValidationError:
                    expected, got = parameters[name].expected, reprlib.repr(value)
                    problems.append(UserError(f"{name}: expected {expected}, got {got}"))
        if problems:
            raise UserErrors(problems)
        return function(*arguments, **options)

    return called


@cache
def _declared(function: Callable[..., Any]) -> tuple[inspect.Signature, Mapping[str, _Parameter], str]:
    """Its signature, its annotated parameters with those of `**options`, and the name of the latter."""
    # Without what it returns, which may be known to type checkers alone.
    bare = types.FunctionType(function.__code__, function.__globals__)
    bare.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    hints = get_type_hints(bare, include_extras=True)
    variable = next((name for name, hint in hints.items() if get_origin(hint) is Unpack), "")
    if variable:
        hints |= get_type_hints(get_args(hints.pop(variable))[0], include_extras=True)
    signature = inspect.signature(function)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL and name in hints:
            hints[name] = tuple[hints[name], ...]  # type: ignore[valid-type]
    parameters = {
        name: _Parameter(TypeAdapter(hint, config=_CONFIG), _words(hint)) for name, hint in hints.items()
    }
    return signature, parameters, variable


def _words(hint: Any) -> str:
    """What a value of this type has to be, for people."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, inner)))
    if hint is type(None):
        return "None"
    if hint is os.PathLike or origin is os.PathLike:
        return "a path"
    kind = origin or hint
    if kind in (Annotated, Literal) or kind in SIMPLE_TYPES:
        return type_text(hint)
    if not isinstance(kind, type):
        return str(hint)
    if kind.__name__ == "Callable":
        return "a function"
    if issubclass(kind, Mapping):
        return "a mapping"
    if inner:
        return "a list" if inner[0] is object else f"a list, each {_words(inner[0])}"
    return f"a {kind.__name__}"
