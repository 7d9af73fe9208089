"""The recipe's JSON schema, for editors and other programs."""

from __future__ import annotations

import json
from typing import Any, Final

from localdpo.objective.registry import LOSSES
from localdpo.recipe.describe import ENTRIES
from localdpo.recipe.schema import SHORTHANDS, Recipe

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
