"""From values of JSON to dataclasses, by the types that their fields declare."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from localdpo.core.text import is_number

T = TypeVar("T")


def as_record(kind: type[T], entry: Mapping[str, Any], **others: Any) -> T:
    """The dataclass `kind` of an object of JSON, at any depth.

    Fields may be of str, int, float, bool, Path, Any, Literal, other dataclasses, and tuples, lists and
    mappings of these, or None. Where a float was not finite null is written, which is read as NaN. A member
    without a field is ignored, and a field with a default need not be there. `others`: fields that are taken
    from here. ValueError names the member that is missing or of another type.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"expected an object, got {entry!r:.40}")
    values, hints = dict(others), _hints(kind)
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in others:
            continue
        if field.name in entry:
            values[field.name] = _value(hints[field.name], entry[field.name], field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{field.name} is missing")
    return kind(**values)


_hints: Callable[[Any], dict[str, Any]] = lru_cache(get_type_hints)


def _value(kind: Any, value: Any, name: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if NoneType in args:
        return None if value is None else _value(args[0], value, name)
    if kind is Any or (origin is Literal and value in args) or type(value) is kind:
        return value
    if kind is float and (value is None or is_number(value)):
        return math.nan if value is None else float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, dict):
        if isinstance(kind, type) and is_dataclass(kind):
            return as_record(kind, value)
        if origin in (dict, Mapping):
            return {key: _value(args[1], item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list) and origin in (tuple, list):
        kinds = args[:1] * len(value) if origin is list or args[-1] is ... else args
        if len(value) == len(kinds):
            return origin(_value(of, item, name) for of, item in zip(kinds, value, strict=True))
    raise ValueError(f"{name}: expected {getattr(kind, '__name__', kind)}, got {value!r:.40}")
