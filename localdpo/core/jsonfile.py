"""A JSON file that holds one object, as a person or another program wrote it: checked, never trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from localdpo.core.errors import UserError

# A model's tokenizer.json has some 30 MB; nothing that is read here is larger.
MOST_BYTES: Final = 64 * 2**20


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, by its keys. NaN and Infinity are read, as Python writes them.

    Raises UserError with the file and what is wrong: not there, a folder, not UTF-8, not JSON, nested too
    deep, something else than an object.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > MOST_BYTES:
        raise UserError(f"{path}: larger than {MOST_BYTES // 2**20} MB; expected a JSON object")
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not usable JSON: nested too deep") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object {{...}}, got {type(value).__name__}")
    return value
