"""Reading one field of a row: text, messages, tools. What is wrong is said with the field's name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from localdpo.data.types import Message, Side

# Half of a surrogate pair is legal in JSON and in no text: no tokenizer takes it.
_SURROGATE = re.compile("[\ud800-\udfff]")
# Beyond this an integer is no float any more; infinity and NaN are not below it either.
_LARGEST = 1e300
_RESERVED = frozenset(
    (
        *("conversation", "messages", "documents", "tools", "chat_template", "tokenize", "tokenizer_kwargs"),
        *(
            "add_generation_prompt",
            "continue_final_message",
            "sanitize_control_tokens",
            "padding",
            "truncation",
        ),
        *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    )
)


class RowProblem(Exception):
    """A field is missing or wrong. The caller adds the file and the row."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")


class RowSkip(Exception):
    """The row is well-formed, but cannot be trained on; `reason` is counted in the report."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_text(record: Mapping[str, Any], name: str) -> str:
    """The field as text. Raises RowProblem."""
    return _text(_field(record, name), name)


def read_side(record: Mapping[str, Any], name: str) -> Side:
    """The field as text or as messages. Raises RowProblem."""
    value = _field(record, name)
    if isinstance(value, str):
        return _text(value, name)
    if isinstance(value, list | dict):
        return _messages(value, name)
    raise RowProblem(name, f"expected text or a list of messages, got {describe(value)}")


def read_answer(record: Mapping[str, Any], name: str) -> Side:
    """The field as text or as one assistant message. Raises RowProblem."""
    side = read_side(record, name)
    if isinstance(side, list) and (len(side) != 1 or side[0]["role"] != "assistant"):
        raise RowProblem(name, f"expected text or one assistant message, got {len(side)} message(s)")
    return side


def read_messages(record: Mapping[str, Any], name: str) -> list[Message]:
    """The field as messages, at least one. Raises RowProblem."""
    return _messages(_field(record, name), name)


def read_number(record: Mapping[str, Any], name: str) -> float:
    """The field as a finite number. Raises RowProblem."""
    return number(_field(record, name), name)


def read_list(record: Mapping[str, Any], name: str) -> list[Any]:
    """The field as a list, of any length. Raises RowProblem."""
    value = _field(record, name)
    if not isinstance(value, list):
        raise RowProblem(name, f"expected a list, got {describe(value)}")
    return value


def number(value: Any, name: str) -> float:
    """A value as a finite number; `name` is what to call it. Raises RowProblem."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise RowProblem(name, f"expected a number, got {describe(value)}")
    return float(value)


def text(value: Any, name: str) -> str:
    """A value as text; `name` is what to call it. Raises RowProblem."""
    return _text(value, name)


def read_flag(record: Mapping[str, Any], name: str) -> bool:
    """The field as true or false. Raises RowProblem."""
    value = _field(record, name)
    if not isinstance(value, bool):
        raise RowProblem(name, f"expected true or false, got {describe(value)}")
    return value


def read_options(record: Mapping[str, Any]) -> dict[str, Any]:
    """`tools` and `template_kwargs` of a row, from the optional columns. Raises RowProblem."""
    tools = _from_json(record.get("tools"), "tools")
    if tools is not None and not isinstance(tools, list):
        raise RowProblem("tools", f"expected a list, got {describe(tools)}")
    kwargs = _from_json(record.get("chat_template_kwargs"), "chat_template_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise RowProblem("chat_template_kwargs", f"expected an object, got {describe(kwargs)}")
    kept = {key: value for key, value in (kwargs or {}).items() if value is not None}
    if taken := sorted(_RESERVED & kept.keys()):
        raise RowProblem(f"chat_template_kwargs.{taken[0]}", "data may not set this one")
    return {"tools": tools or None, "template_kwargs": kept}


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


def _field(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        present = ", ".join(list(record)[:20]) or "no fields"
        raise RowProblem(name, f"missing; the row has {present}")
    return record[name]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowProblem(name, f"expected text, got {describe(value)}")
    if broken := _SURROGATE.search(value):
        raise RowProblem(name, f"character {broken.start() + 1} is half of a surrogate pair")
    return value


def _messages(value: Any, name: str) -> list[Message]:
    if isinstance(value, dict):
        value = _transposed(value, name)
    if not isinstance(value, list):
        raise RowProblem(name, f"expected a list of messages, got {describe(value)}")
    if not value:
        raise RowProblem(name, "expected messages, got an empty list")
    return [_message(message, f"{name}[{i}]") for i, message in enumerate(value)]


def _transposed(value: dict[str, Any], name: str) -> list[Any]:
    """Data sets of older writers store a list of messages as one object of lists: turn it round."""
    columns = [column for column in value.values() if column is not None]
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns}
    if len(lengths) != 1 or -1 in lengths or "role" not in value:
        raise RowProblem(name, "expected text or a list of messages, got an object")
    names = [key for key, column in value.items() if column is not None]
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise RowProblem(name, f"expected a message (role and content), got {describe(value)}")
    message = {key: item for key, item in value.items() if item is not None}
    if not _text(_field(message, "role") if "role" in message else None, f"{name}.role"):
        raise RowProblem(f"{name}.role", "expected a role such as user or assistant, got empty text")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return message
    message["content"] = _content(content, f"{name}.content")
    return message


def _content(value: Any, name: str) -> str:
    """A message's content; a list of text parts becomes one text, since most templates want that."""
    if not isinstance(value, list):
        return _text(value, name)
    parts = []
    for i, part in enumerate(value):
        if isinstance(part, dict) and part.get("type") not in (None, "text"):
            raise RowProblem(f"{name}[{i}]", f"only text can be trained on, got type {part.get('type')!r}")
        parts.append(_text(part.get("text") if isinstance(part, dict) else part, f"{name}[{i}]"))
    return "".join(parts)


def _from_json(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowProblem(name, f"not valid JSON: {error}") from error
