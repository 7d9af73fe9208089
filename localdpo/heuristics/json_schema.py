"""Format conformance: 1 when the whole answer is JSON that a JSON schema accepts, else 0."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from localdpo.heuristics.base import Heuristic, Kind, OptionProblem, Options


def build(name: str, options: Options) -> Heuristic:
    """Options: `schema` (a mapping) or `file` (a JSON file that holds it)."""
    inline, file = options.mapping("schema"), options.optional("file")
    if (inline is None) == (file is None):
        raise OptionProblem((), "expected `schema` (the schema itself) or `file` (a JSON file with it)")
    place = "schema" if file is None else "file"
    schema = inline if file is None else _read(file)
    # A schema of another address would be fetched while answers are scored.
    if far := next((ref for ref in _references(schema) if not ref.startswith("#")), None):
        raise OptionProblem((place,), f"refers to {far}; only references within the schema (#...) are read")
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise OptionProblem((place,), f"not a JSON schema: {error.message}") from error
    validator = kind(schema)

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            return 0.0
        return float(validator.is_valid(value))

    return Heuristic(name, options.better("higher"), score)


def _read(file: str) -> Mapping[str, Any]:
    try:
        schema = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OptionProblem(("file",), f"cannot read {file}: {error}") from error
    if not isinstance(schema, dict):
        raise OptionProblem(("file",), f"{file} holds no JSON object")
    return schema


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("$ref", "$dynamicRef") and isinstance(item, str):
                yield item
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


KIND: Final = Kind("schema", build)
