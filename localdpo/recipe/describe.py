"""The schema in words: what a value has to be, the table of options, what an unknown key may have meant; and
as JSON schema, for editors and other programs.
"""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from localdpo.objective.registry import LOSSES
from localdpo.recipe.elsewhere import PROGRAMS, Name
from localdpo.recipe.schema import SHORTHANDS, DataSource, Recipe, WeightedSource

SIMPLE_TYPES: Final = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
# The options of an entry, for each option that may be a list of them.
ENTRIES: Final[dict[str, type[DataSource]]] = {"data.train": WeightedSource, "data.valid": DataSource}


class Option(NamedTuple):
    """One row of the options table."""

    key: str
    type: str
    default: str
    description: str


def section_of(name: str) -> type[BaseModel] | None:
    """The model of a section such as `train`, or None if `name` is not a section."""
    field = Recipe.model_fields.get(name)
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def fields_of(section: str) -> dict[str, FieldInfo]:
    """The fields of a section by key; those of the top level for an empty name."""
    model = section_of(section) if section else Recipe
    return dict(model.model_fields) if model else {}


def all_keys() -> list[str]:
    """Every key that holds a value, with dots, in the order of the schema."""
    keys: list[str] = []
    for name in Recipe.model_fields:
        keys += [f"{name}.{key}" for key in fields_of(name)] if section_of(name) else [name]
    return keys


def field_at(key: str) -> FieldInfo | None:
    """The field of a dotted key, or None if there is none; sections count as fields."""
    section, dot, name = key.rpartition(".")
    return fields_of(section).get(name) if not dot or section_of(section) else None


def expected(field: FieldInfo) -> str:
    """What a value of `field` has to be: `a number > 0`, `text or null`."""
    return type_text(field.annotation, field.metadata)


def options_table() -> list[Option]:
    """Every option with its type, default and meaning, for the documentation.

    Those of the entries of data.train come behind it, as `data.train[].weight`; data.valid's are the same.
    """
    rows = []
    for key in all_keys():
        field = field_at(key)
        assert field is not None
        entries = entry_fields(key).items() if key == "data.train" else ()
        for name, option in [(key, field), *((f"{key}[].{inner}", entry) for inner, entry in entries)]:
            rows.append(Option(name, expected(option), _default_text(option), option.description or ""))
    return rows


def entry_fields(key: str) -> dict[str, FieldInfo]:
    """The options of an entry of the list at `key`, the needed one first; none where none is due."""
    fields = dict(ENTRIES[key].model_fields) if key in ENTRIES else {}
    first = [name for name in ("source", "weight") if name in fields]
    return {name: fields[name] for name in [*first, *(name for name in fields if name not in first)]}


def type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a value of this type has to be, with the bounds in its metadata: `a number > 0`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(args[0], list(args[1:]))
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(arg, metadata) for arg in args)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}" if len(args) > 1 else str(args[0])
    if origin is tuple:
        if args[0] in ENTRIES.values():
            return "a list of one or more data sets"
        if get_origin(args[0]) is Literal:
            return f"a list of {', '.join(get_args(args[0]))}"
        item = type_text(args[0]).removeprefix("a ")
        kind, _, bounds = item.partition(" ")
        return f"a list of one or more {kind}s{' ' if bounds else ''}{bounds}"
    if annotation is type(None):
        return "null"
    return f"{SIMPLE_TYPES.get(annotation, 'a section of options')}{_bounds_text(metadata)}"


def _bounds_text(metadata: Sequence[Any]) -> str:
    """The bounds of a number, such as ` > 0 and <= 1`; empty without any."""
    bounds = []
    for item in metadata:
        for bound in item.metadata if isinstance(item, FieldInfo) else [item]:
            match bound:
                case Gt(gt=low):
                    bounds.append(f"> {low:.10g}")
                case Ge(ge=low):
                    bounds.append(f">= {low:.10g}")
                case Lt(lt=high):
                    bounds.append(f"< {high:.10g}")
                case Le(le=high):
                    bounds.append(f"<= {high:.10g}")
    return f" {' and '.join(bounds)}" if bounds else ""


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    return json.dumps(list(default) if isinstance(default, tuple) else default)


# --- unknown keys ----------------------------------------------------------------------------------------


def unknown_key(section: str, name: str, dotted: bool) -> str:
    """One line about the unknown key `name` of `section` (empty: the top level).

    `dotted` says whether keys are written with dots where the person wrote it (overrides) or in sections.
    """
    if "[" in section:
        key = section.partition("[")[0]
        if dotted:
            return f"set the complete list: {key}=[...]"
        options = list(entry_fields(key))
        if near := difflib.get_close_matches(name.lower(), options, n=1):
            return f"unknown key; did you mean {near[0]}?"
        return f"unknown key; an entry of {key} has {', '.join(options)}"
    if not dotted and "." in name and field_at(name):
        above, _, below = name.rpartition(".")
        return f"unknown key; write `{above}:` on one line and `{below}:` indented below it"
    if elsewhere := names_elsewhere().get(name):
        entry = elsewhere[0]
        if entry.key is None:
            return f"unknown key, without a counterpart: {entry.words}"
        return f"unknown key; did you mean {entry.key}{f' ({entry.words})' if entry.note else ''}?"
    siblings = list(fields_of(section)) if not section or section_of(section) else []
    if near := difflib.get_close_matches(name.lower(), siblings, n=1):
        return f"unknown key; did you mean {f'{section}.{near[0]}' if dotted and section else near[0]}?"
    others = {key.rpartition(".")[2]: key for key in reversed(all_keys())}
    if near := [name] if name in others else difflib.get_close_matches(name.lower(), others, 1, cutoff=0.8):
        return f"unknown key; did you mean {others[near[0]]}?"
    if siblings:
        return f"unknown key; {section or 'a recipe'} has {', '.join(siblings)}"
    return f"unknown key; the sections are {', '.join(name for name in fields_of('') if section_of(name))}"


def names_elsewhere() -> dict[str, tuple[Name, tuple[str, ...]]]:
    """What other programs call an option: the entry of each name, and the programs that have it.

    Names that some option of a recipe has too are not among them.
    """
    own = {part for key in all_keys() for part in (key, key.rpartition(".")[2], key.partition(".")[0])}
    entries: dict[str, Name] = {}
    programs: dict[str, tuple[str, ...]] = {}
    for program in PROGRAMS.values():
        for name in program.names:
            if name.theirs not in own and (name.key or name.note):
                entries.setdefault(name.theirs, name)
                programs[name.theirs] = tuple(dict.fromkeys((*programs.get(name.theirs, ()), program.title)))
    return {name: (entry, programs[name]) for name, entry in entries.items()}


# --- JSON schema -----------------------------------------------------------------------------------------

FILE_NAME: Final = "recipe.schema.json"
TITLE: Final = "A recipe of localdpo"
# What yaml-language-server (VS Code, Neovim, Helix) reads in a comment at a file's beginning.
MODELINE: Final = f"# yaml-language-server: $schema={FILE_NAME}"


def schema_text() -> str:
    """The schema as JSON, with the short ways of writing that the reader takes."""
    schema = Recipe.model_json_schema()
    sections = schema["$defs"]
    # A section of which every option may be left out may be left empty too.
    for name, value in schema["properties"].items():
        if name not in schema["required"] and "$ref" in value:
            schema["properties"][name] = {"anyOf": [value, {"type": "null"}], **_described(value)}
    loss = {"enum": [*LOSSES]}
    sections["LossSection"]["properties"]["type"]["anyOf"] = [
        loss,
        {"type": "array", "items": loss, "minItems": 1},
    ]
    for name, option in SHORTHANDS.items():
        chosen = sections[f"{name.capitalize()}Section"]["properties"][option]
        schema["properties"][name]["anyOf"] += chosen["anyOf"]
    # One tracker, or none, in a word.
    trackers = schema["properties"]["report_to"]
    schema["properties"]["report_to"] = {
        "anyOf": [trackers, trackers["items"], {"const": "none"}],
        **_described(trackers),
    }
    for entry in {kind.__name__ for kind in ENTRIES.values()}:
        text = sections[entry]["properties"]["source"]
        sections[entry] = {"anyOf": [sections[entry], text], **_described(sections[entry])}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": TITLE,
    }
    return json.dumps(schema, indent=1) + "\n"


def _described(value: dict[str, Any]) -> dict[str, Any]:
    return {"description": value["description"]} if "description" in value else {}
