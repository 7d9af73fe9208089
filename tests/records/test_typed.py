"""Dataclasses are read from JSON by the types of their fields, and nothing else is believed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from localdpo.records.log import as_record


@dataclass(frozen=True)
class Part:
    name: str
    value: float | None = None


@dataclass(frozen=True)
class Whole:
    path: Path
    kind: Literal["one", "two"]
    pair: tuple[int, int]
    parts: tuple[Part, ...]
    by_name: Mapping[str, Part]
    share: float
    rows: list[Any] = field(default_factory=list)
    is_last: bool = False
    made: str = ""


GOOD = {
    "path": "a/b",
    "kind": "two",
    "pair": [1, 2],
    "parts": [{"name": "x", "value": 1}, {"name": "y", "more": 3}],
    "by_name": {"z": {"name": "z", "value": None}},
    "share": None,
    "unknown": {},
}


def test_every_type_is_read():
    whole = as_record(Whole, json.loads(json.dumps(GOOD)), made="here")
    assert (whole.path, whole.kind, whole.pair, whole.made) == (Path("a/b"), "two", (1, 2), "here")
    assert whole.parts == (Part("x", 1.0), Part("y"))
    assert type(whole.parts[0].value) is float
    assert whole.by_name == {"z": Part("z")}
    assert math.isnan(whole.share)
    assert (whole.rows, whole.is_last) == ([], False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "three"}, "kind: expected"),
        ({"pair": [1]}, "pair: expected"),
        ({"pair": [1, True]}, "pair: expected int, got True"),
        ({"parts": [{"value": 1.0}]}, "name is missing"),
        ({"parts": {}}, "parts: expected"),
        ({"by_name": {"z": 3}}, "by_name.z: expected Part, got 3"),
        ({"share": "0.5"}, "share: expected float"),
        ({"share": False}, "share: expected float"),
        ({"path": 3}, "path: expected Path"),
        ({"rows": {}}, "rows: expected"),
        ({"is_last": 1}, "is_last: expected bool"),
    ],
)
def test_a_value_of_another_type_is_named(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        as_record(Whole, GOOD | change)


@pytest.mark.parametrize("entry", [None, [], "x", 3])
def test_what_is_no_object_is_refused(entry: Any):
    with pytest.raises(ValueError, match="expected an object"):
        as_record(Part, entry)
