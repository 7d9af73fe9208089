"""The forms in which a chat template may want messages, and what of them it left out.

Templates do not agree on what a message looks like: arguments of a tool call are an object for some and JSON
text for others, some break where a message with tool calls has no content, some want content as parts. And
a template may leave anything out without a word, which is found by looking for it in what was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from localdpo.data.types import Message

SYSTEM = "system text"
EARLIER_TEXT = "the text of an earlier turn"
EARLIER_REASONING = "the reasoning of an earlier turn"
EARLIER_CALL = "a tool call of an earlier turn"
TOOLS = "tools"
TEXT = "text of the answer"
REASONING = "the reasoning of the answer"
CALL = "the answer's tool call"
# What another form of the messages may bring back.
FORMED: Final = frozenset((SYSTEM, EARLIER_TEXT, EARLIER_CALL, TEXT, CALL))

Lacking: TypeAlias = Literal["absent", "empty", "null"]

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
_PARTS = re.compile(r"""['"]text['"]|\.text\b""")


@dataclass(frozen=True, slots=True)
class Form:
    """`arguments_text`: tool-call arguments as JSON text, else as an object. `lacking`: what a message
    without content gets: no such member, "" or null. `parts`: content as a list of one text part."""

    arguments_text: bool = False
    lacking: Lacking = "absent"
    parts: bool = False

    def of(self, messages: Sequence[Message]) -> list[Message]:
        """The messages in this form."""
        return [self._message(message) for message in messages]

    def _message(self, message: Message) -> Message:
        formed = dict(message)
        if formed.get("content") is None:
            formed.pop("content", None)
            if self.lacking != "absent":
                formed["content"] = "" if self.lacking == "empty" else None
        if self.parts and isinstance(formed.get("content"), str):
            formed["content"] = [{"type": "text", "text": formed["content"]}]
        if formed.get("tool_calls"):
            formed["tool_calls"] = [self._call(call) for call in formed["tool_calls"]]
        return formed

    def _call(self, call: Any) -> Any:
        if not isinstance(call, dict):
            return call
        if isinstance(call.get("function"), dict):
            return call | {"function": self._call(call["function"])}
        if "arguments" not in call:
            return call
        arguments = as_object(call["arguments"])
        return call | {"arguments": _json(arguments) if self.arguments_text else arguments}


def forms_of(messages: Sequence[Message], source: str) -> Iterator[Form]:
    """The forms that make a difference for these messages and the template's source, the usual one first."""
    has_calls = any(message.get("tool_calls") for message in messages)
    lacks_content = any(message.get("content") is None for message in messages)
    takes_parts = _PARTS.search(source) is not None
    for parts in (False, True)[: 1 + takes_parts]:
        for lacking in get_args(Lacking)[: 3 if lacks_content else 1]:
            for arguments_text in (False, True)[: 1 + has_calls]:
                yield Form(arguments_text, lacking, parts)


def as_object(arguments: Any) -> Any:
    """The arguments of a tool call; JSON text of an object is read."""
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        return read if isinstance(read, dict) else arguments
    return arguments


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
    found = _THOUGHT.match(text)
    return (reasoning or found[1], found[2]) if found else (reasoning, text)


def garbled(messages: Sequence[Message], text: str) -> bool:
    """Whether a value stands in the text as Python writes it: arguments as a dict, no content as None."""
    written = [repr(args) for message in messages for _, args in functions(message) if args]
    if any(one in text and one != _json(one) for one in written if one.startswith(("{", "["))):
        return True
    lacks = any(message.get("content") is None for message in messages)
    return lacks and "None" in text and not any("None" in str(message) for message in _filled(messages))


def _filled(messages: Sequence[Message]) -> list[Message]:
    return [{name: value for name, value in one.items() if value is not None} for one in messages]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a template left out of a row. `lost` of `whole` characters of the answers."""

    parts: frozenset[str]
    lost: int = 0
    whole: int = 0


def left_out(
    prompt: Sequence[Message],
    answers: Sequence[Message],
    tools: Sequence[Any],
    written: str,
    responses: Sequence[str],
) -> LeftOut:
    """What does not stand in the written prompt and responses, white space apart."""
    missing: set[str] = set()
    holds = _finder(written)
    for message in prompt:
        is_system = message.get("role") in ("system", "developer")
        reasoning, text = split_thought(message)
        if not holds(text):
            missing.add(SYSTEM if is_system else EARLIER_TEXT)
        if not holds(reasoning):
            missing.add(EARLIER_REASONING)
        if not _holds_calls(message, holds):
            missing.add(EARLIER_CALL)
    if not all(holds(name) for name in _tool_names(tools)):
        missing.add(TOOLS)
    lost = whole = 0
    for answer, response in zip(answers, responses, strict=True):
        holds = _finder(response)
        reasoning, text = split_thought(answer)
        whole += len(reasoning) + len(text)
        for part, name in ((reasoning, REASONING), (text, TEXT)):
            # The opening of a thought may be the prompt's last words.
            if not holds(part):
                missing.add(name)
                lost += len(part)
        if not _holds_calls(answer, holds):
            missing.add(CALL)
    return LeftOut(frozenset(missing), lost, whole)


def _finder(written: str) -> Callable[[str], bool]:
    """A test for whether a text stands in `written`, as it is, as JSON, or with other white space."""
    squeezed: list[str] = []

    def holds(text: str) -> bool:
        wanted = text.strip()
        if wanted in written:
            return True
        if not squeezed:
            squeezed.append("".join(written.split()))
        forms = (wanted, json.dumps(wanted, ensure_ascii=False)[1:-1], json.dumps(wanted)[1:-1])
        return any("".join(form.split()) in squeezed[0] for form in forms)

    return holds


def _holds_calls(message: Message, holds: Callable[[str], bool]) -> bool:
    return all(
        holds(name) and all(any(holds(form) for form in forms) for forms in _leaves(arguments))
        for name, arguments in functions(message)
    )


def _leaves(value: Any) -> Iterator[tuple[str, ...]]:
    """Each key and value of arguments, in the ways in which it may be written."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield (str(key),)
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None:
        yield (str(value), _json(value))


def _tool_names(tools: Sequence[Any]) -> Iterator[str]:
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str):
            yield name


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
