"""The columns of a row: their roles, and reading one of them. Errors name the column."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final


def _names(words: str) -> list[str]:
    return words.split()


OPTIONS: Final = ("tools", "chat_template_kwargs")
SYSTEM: Final = ("system", "system_prompt")
MEDIA: Final = {
    **dict.fromkeys(_names("image images img image_url image_urls image_path image_paths"), "pictures"),
    **dict.fromkeys(_names("video videos video_url"), "videos"),
    **dict.fromkeys(_names("audio audios audio_url"), "sound"),
}
COMMON: Final = frozenset((*OPTIONS, *SYSTEM, *MEDIA))
"""Columns that every format with a prompt reads besides its own."""
FINISH_REASON: Final = "rejected_finish_reason"
"""A column of pairs: why the rejected answer ends where it does, in the words of OpenAI's API and of vLLM."""
CUT: Final = "length"
STOP: Final = "stop"
"""Its values for an answer that was cut at a limit of tokens, and for one that ended, as without a value."""
PROMPTS: Final = frozenset(
    _names("prompt instruction question query input user history context messages conversation conversations")
)
"""Columns that look like a prompt; two of them must not say different things."""

_RECORDS: Final = frozenset(
    _names("""
    id qid idx index row uuid guid hash key prompt_id rank turns
    source sources dataset data_source origin subset split config url license
    category categories topic topics tag tags domain task type difficulty
    lang language date time timestamp created created_at updated_at created_utc
    author annotator annotators worker model models generator judge
    score scores rating ratings margin label labels votes agreement strength
    helpfulness correctness coherence complexity verbosity honesty truthfulness
    instruction_following preference preference_strength overall_preference
    facts provenance meta metadata extra_info tokens
    """)
)
_RECORD_LIKE: Final = re.compile(
    r"_.*|(score|rating|num|n|is|has)[_-].*"
    r"|.*[_-](ids?|hash|scores?|ratings?|models?|policy|tokens|length|source|url|date|index|count|rank|at)"
)
# Half of a surrogate pair is legal in JSON and in no text: no tokenizer takes it.
SURROGATE: Final = re.compile("[\ud800-\udfff]")
# Beyond this an integer is no float any more; infinity and NaN are not below it either.
_LARGEST: Final = 1e300
_LABELS: Final = {"true": True, "1": True, "false": False, "0": False}


class RowProblem(Exception):
    """A field is missing or wrong. The caller adds the file and the row."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")


class RowSkip(Exception):
    """The row is well-formed, but cannot be trained on; `reason` is counted in the report."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def keeps_records(name: str) -> bool:
    """Whether a column is a record of where a row comes from or how it was judged: an id, a score, a date."""
    return name in _RECORDS or bool(_RECORD_LIKE.fullmatch(name))


def read_field(record: Mapping[str, Any], name: str) -> Any:
    """The field as it is. Raises RowProblem where the row has none of this name."""
    if name not in record:
        present = ", ".join(list(record)[:20]) or "no fields"
        raise RowProblem(name, f"missing; the row has {present}")
    return record[name]


def read_text(record: Mapping[str, Any], name: str) -> str:
    """The field as text. Raises RowProblem."""
    return text(read_field(record, name), name)


def read_number(record: Mapping[str, Any], name: str) -> float:
    """The field as a finite number. Raises RowProblem."""
    return number(read_field(record, name), name)


def read_list(record: Mapping[str, Any], name: str) -> list[Any]:
    """The field as a list, of any length. Raises RowProblem."""
    value = read_field(record, name)
    if not isinstance(value, list):
        raise RowProblem(name, f"expected a list, got {describe(value)}")
    return value


def read_label(record: Mapping[str, Any], name: str) -> bool:
    """The field as true or false, also where it is written 1 or 0, or as text. Raises RowProblem."""
    value = read_field(record, name)
    if isinstance(value, bool):
        return value
    # As text, so that 1, 1.0, "1" and "true" are one case.
    label = f"{value:g}" if isinstance(value, int | float) and abs(value) <= 1 else value
    meaning = _LABELS.get(label.strip().lower()) if isinstance(label, str) else None
    if meaning is None:
        raise RowProblem(name, f"expected true or false, got {describe(value)}")
    return meaning


def number(value: Any, name: str) -> float:
    """A value as a finite number; `name` is what to call it. Raises RowProblem."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise RowProblem(name, f"expected a number, got {describe(value)}")
    return float(value)


def text(value: Any, name: str) -> str:
    """A value as text; `name` is what to call it. Raises RowProblem."""
    if not isinstance(value, str):
        raise RowProblem(name, f"expected text, got {describe(value)}")
    if broken := SURROGATE.search(value):
        raise RowProblem(name, f"character {broken.start() + 1} is half of a surrogate pair")
    return value


def from_json(value: Any, name: str) -> Any:
    """A value, or what it is the JSON text of; blank text is None. Raises RowProblem."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowProblem(name, f"not valid JSON: {error}") from error


def has_content(value: Any) -> bool:
    """Whether a value says anything: no null, no blank text, nothing that holds only such."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list | dict):
            waiting += part.values() if isinstance(part, dict) else part
        elif part is not None and not (isinstance(part, str) and not part.strip()):
            return True
    return False


def describe(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}" if len(repr(value)) < 30 else "a number"
    names: dict[type, str] = {str: "text", list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)
