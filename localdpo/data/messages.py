"""Chat messages: read from a row's fields, from transcripts, and as one list whatever form a row has.

Arrow fills objects of one column up with nulls until all have the same members, and many writers store
objects as JSON text instead. Both are undone here, once and at any depth of messages and tools: members that
are null go, and JSON text becomes what it says. A null within JSON text was meant and stays:
Arrow does not reach into a text. The words of a message are never decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from localdpo.core.text import json_or_none
from localdpo.data.fields import (
    MEDIA,
    RowProblem,
    describe,
    from_json,
    has_content,
    read_field,
    text,
)
from localdpo.data.types import Message, Side
from localdpo.recipe.schema import RESERVED_TEMPLATE_OPTIONS

# What data sets call the members of a message, and who speaks; other roles stay as they are.
_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value", "text")
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "bot", "chatgpt", "ai", "model"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response", "tool_response", "tool"), "tool"),
    "system": "system",
}
_USUAL = frozenset(_ROLES.values())
# ShareGPT's turn that holds the JSON text of a call. `function` is one too where its text says so.
_CALLS = ("function_call", "tool_call")
HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
MARK = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)


# --- fields of a row ------------------------------------------------------------------------------------


def read_side(record: Mapping[str, Any], name: str) -> Side:
    """The field as text or as messages; JSON text of messages is read as messages. Raises RowProblem."""
    value = read_field(record, name)
    if isinstance(value, str):
        messages = _message_text(value)
        return text(value, name) if messages is None else _messages(messages, name)
    if isinstance(value, list | dict):
        return _messages(value, name)
    raise RowProblem(name, f"expected text or a list of messages, got {describe(value)}")


def read_answer(record: Mapping[str, Any], name: str) -> Side:
    """The field as text or as one assistant message. Raises RowProblem."""
    side = read_side(record, name)
    if isinstance(side, list) and (len(side) != 1 or side[0]["role"] != "assistant"):
        roles = ", ".join(message["role"] for message in side)
        got = f"messages of {roles}" if side else "none"
        raise RowProblem(name, f"expected text or one assistant message, got {got}")
    return side


def read_messages(record: Mapping[str, Any], name: str) -> list[Message]:
    """The field as messages, at least one. Raises RowProblem."""
    side = read_side(record, name)
    if isinstance(side, str):
        raise RowProblem(name, "expected a list of messages, got text")
    return side


def read_options(record: Mapping[str, Any]) -> dict[str, Any]:
    """`tools` and `template_kwargs` of a row, from the optional columns. Raises RowProblem."""
    tools = from_json(_unpadded(record.get("tools")), "tools")
    if tools is not None and not isinstance(tools, list):
        raise RowProblem("tools", f"expected a list, got {describe(tools)}")
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools or [])]
    kwargs = from_json(_unpadded(record.get("chat_template_kwargs")), "chat_template_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise RowProblem("chat_template_kwargs", f"expected an object, got {describe(kwargs)}")
    kept = {key: value for key, value in (kwargs or {}).items() if value is not None}
    if taken := sorted(RESERVED_TEMPLATE_OPTIONS & kept.keys()):
        raise RowProblem(f"chat_template_kwargs.{taken[0]}", "data may not set this one")
    _check_texts(kept, "chat_template_kwargs")
    return {"tools": tools or None, "template_kwargs": kept}


def _messages(value: Any, name: str) -> list[Message]:
    if isinstance(value, dict):
        value = (
            [value] if any(isinstance(value.get(key), str) for key in _ROLE_KEYS) else _turned(value, name)
        )
    if not value:
        raise RowProblem(name, "expected messages, got an empty list")
    return [_message(message, f"{name}[{i}]") for i, message in enumerate(value)]


def _message_text(value: str) -> Any:
    """The messages that a text is the JSON of; None for any other text."""
    if not value.lstrip().startswith(("[", "{")) or not any(f'"{key}"' in value for key in _ROLE_KEYS):
        return None
    decoded = json_or_none(value)
    messages = decoded if isinstance(decoded, list) else [decoded]
    are_messages = all(
        isinstance(message, dict)
        and any(isinstance(message.get(key), str) for key in _ROLE_KEYS)
        and any(key in message for key in (*_CONTENT_KEYS, "tool_calls"))
        for message in messages
    )
    return decoded if messages and are_messages else None


def _turned(value: dict[str, Any], name: str) -> list[Any]:
    """Data sets of older writers store a list of messages as one object of lists: transpose it."""
    columns = [column for column in value.values() if column is not None]
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns}
    if len(lengths) != 1 or -1 in lengths or not any(key in value for key in _ROLE_KEYS):
        raise RowProblem(name, "expected text or a list of messages, got an object")
    names = [key for key, column in value.items() if column is not None]
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _message(value: Any, name: str) -> Message:
    if isinstance(value, str):
        value = _message_text(value) or value
    if not isinstance(value, dict):
        raise RowProblem(name, f"expected a message (role and content), got {describe(value)}")
    message = {key: _unpadded(item) for key, item in value.items() if item is not None}
    for key in MEDIA.keys() & message.keys():
        if has_content(message[key]):
            raise RowProblem(
                f"{name}.{key}", f"{MEDIA[key]} cannot be trained on; take them out of the message"
            )
    _rename(message, _ROLE_KEYS)
    _rename(message, _CONTENT_KEYS)
    if not text(message.get("role"), f"{name}.role"):
        raise RowProblem(f"{name}.role", "expected a role such as user or assistant, got empty text")
    _speak(message, name)
    calls = _listed(message.pop("tool_calls", None), f"{name}.tool_calls", _call)
    if "content" in message or not calls:
        message["content"] = _content(message.get("content"), f"{name}.content")
    if calls:
        message["tool_calls"] = calls
    if len(message) > 2:
        _check_texts({key: message[key] for key in message.keys() - {"role", "content"}}, name)
    return message


def _rename(message: Message, names: tuple[str, ...]) -> None:
    """Call a member by the first of its names."""
    if names[0] not in message:
        for other in names[1:]:
            if other in message:
                message[names[0]] = message.pop(other)
                return


def _speak(message: Message, name: str) -> None:
    """Give the role its usual name; turn a call that is a turn of its own into an assistant's tool call."""
    if message["role"] in _USUAL and "function_call" not in message:
        return
    role = message["role"].strip().lower().replace("-", "_")
    call = json_or_none(message.get("content")) if role == "function" else None
    if role in _CALLS or (isinstance(call, dict) and {"name", "arguments"} <= call.keys()):
        message["role"] = "assistant"
        message["tool_calls"] = from_json(message.pop("content", None), f"{name}.content")
        return
    message["role"] = _ROLES.get(role, message["role"])
    if isinstance(message.get("function_call"), str | dict):
        # OpenAI's call before a message could hold several.
        message["tool_calls"] = [{"type": "function", "function": message.pop("function_call")}]


def _content(value: Any, name: str) -> str:
    """A message's content; a list of text parts becomes one text, since most templates want that."""
    if not isinstance(value, list):
        return text(value, name)
    parts = []
    for i, part in enumerate(value):
        if isinstance(part, dict) and part.get("type") not in (None, "text"):
            raise RowProblem(f"{name}[{i}]", f"only text can be trained on, got type {part.get('type')!r}")
        parts.append(text(part.get("text") if isinstance(part, dict) else part, f"{name}[{i}]"))
    return "".join(parts)


def _listed(value: Any, name: str, read: Callable[[Any, str], Any]) -> list[Any]:
    """The list that a field holds or is the JSON text of, each entry read; one object is a list of one."""
    entries = from_json(value, name)
    if entries is None:
        return []
    if isinstance(entries, dict) and entries:
        entries = [entries]
    if not isinstance(entries, list | dict):
        raise RowProblem(name, f"expected a list, got {describe(entries)}")
    return [read(entry, f"{name}[{i}]") for i, entry in enumerate(entries)]


def _call(value: Any, name: str) -> dict[str, Any]:
    """A tool call, its arguments as an object. `{name, arguments}` alone is put where templates look."""
    call = _object(value, name)
    if "function" not in call and isinstance(call.get("name"), str):
        call = {"type": "function", "function": call}
    inner = call.get("function")
    if inner is not None:
        call["function"] = inner = _object(inner, f"{name}.function")
        if "arguments" in inner:
            inner["arguments"] = as_object(inner["arguments"])
    return call


def _tool(value: Any, name: str) -> Any:
    """A tool's schema, with what is JSON text in it as what it says."""
    tool = from_json(value, name)
    if isinstance(tool, dict):
        tool = dict(tool)
        if isinstance(tool.get("function"), str | dict):
            tool["function"] = _tool(tool["function"], f"{name}.function")
        if isinstance(tool.get("parameters"), str):
            tool["parameters"] = from_json(tool["parameters"], f"{name}.parameters")
    _check_texts(tool, name)
    return tool


def _object(value: Any, name: str) -> dict[str, Any]:
    decoded = from_json(value, name)
    if not isinstance(decoded, dict):
        raise RowProblem(name, f"expected an object, got {describe(decoded)}")
    return dict(decoded)


def _unpadded(value: Any) -> Any:
    """The value without the members that are null, at any depth. Entries of lists stay: Arrow adds none."""
    if isinstance(value, dict):
        return {key: _unpadded(inner) for key, inner in value.items() if inner is not None}
    return [_unpadded(inner) for inner in value] if isinstance(value, list) else value


def _check_texts(value: Any, name: str) -> None:
    """Raise RowProblem for a text at any depth that no tokenizer takes."""
    if isinstance(value, str):
        text(value, name)
    elif isinstance(value, dict):
        for key, inner in value.items():
            text(key, name)
            _check_texts(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check_texts(inner, name)


# --- transcripts ----------------------------------------------------------------------------------------


def transcript_messages(text: str) -> list[Message] | None:
    """The turns of a transcript that ends with an open Assistant mark, as messages; None for other text."""
    if not (text.startswith(HUMAN) and text.rstrip().endswith(ASSISTANT)):
        return None
    _, *parts = MARK.split(text)
    turns = zip(parts[0::2], parts[1::2], strict=True)
    return [{"role": _SPEAKERS[name], "content": words.strip()} for name, words in turns][:-1]


# --- messages of an example -----------------------------------------------------------------------------


def prompt_messages(prompt: Side) -> list[Message]:
    """A prompt as messages; plain text becomes one of the user's, a Human/Assistant transcript several."""
    if not isinstance(prompt, str):
        return list(prompt)
    return transcript_messages(prompt) or [{"role": "user", "content": prompt}]


def as_conversation(prompt: Side, responses: Sequence[Side]) -> tuple[list[Message], list[Message]]:
    """The prompt's messages and one assistant message per response; plain text is wrapped."""
    is_transcript = isinstance(prompt, str) and transcript_messages(prompt) is not None
    answers: list[Message] = []
    for response in responses:
        if isinstance(response, str):
            text = response.removeprefix(" ") if is_transcript else response
            answers.append({"role": "assistant", "content": text})
        else:
            answers.extend(response)
    return prompt_messages(prompt), answers


def as_object(arguments: Any) -> Any:
    """The arguments of a tool call as an object. Text that is not the JSON of an object stays as it is."""
    decoded = arguments
    while isinstance(decoded, str):
        decoded = json_or_none(decoded) if decoded.strip() else {}
    return decoded if isinstance(decoded, dict) else arguments


def functions(message: Message) -> Iterator[tuple[str, Any]]:
    """(name, arguments) of each tool call of a message."""
    for call in message.get("tool_calls") or ():
        function = call.get("function", call) if isinstance(call, dict) else {}
        if isinstance(function, dict):
            yield str(function.get("name", "")), as_object(function.get("arguments"))


def split_thought(message: Message) -> tuple[str, str]:
    """(reasoning, text) of a message: from its own field, or from <think> at the start of its content."""
    content = message.get("content")
    text = content if isinstance(content, str) else ""
    fields = (message.get(name) for name in ("reasoning_content", "thinking", "reasoning"))
    reasoning = next((value for value in fields if isinstance(value, str) and value.strip()), "")
    thought = _THOUGHT.match(text)
    return (reasoning or thought[1], thought[2]) if thought else (reasoning, text)
