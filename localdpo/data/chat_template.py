"""A chat template: the forms in which it may want messages, what it leaves out, and running it under limits.

Templates do not agree on what a message looks like: arguments of a tool call are an object for some and JSON
text for others, some break where a message with tool calls has no content, some want content as parts. And
a template may drop text silently, so its output is searched for every part of the messages.

A template comes with a model from anywhere: it may loop, or write for ever. The environment that runs it is
transformers' own, so a template writes here what it writes there. Every turn of a loop, every call and every
value that can grow is counted: before it is built where it can be far larger than what it is built of. What
goes over a limit ends the template, and nothing else.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, Final, Literal, TypeAlias, get_args

from jinja2 import Environment, Template, nodes, pass_context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from localdpo.data.messages import as_object, functions, split_thought
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
_PARTS = re.compile(r"""['"]text['"]|\.text\b""")

# Processor time of one rendering. A long conversation takes some milliseconds.
SECONDS: Final = 3.0
# Characters that a rendering may handle: so many, and so many times what it is given.
LEAST_SIZE, SIZE_FACTOR = 20_000_000, 20
# No width, count or indent of a real template is larger; and digits of an integer.
LARGEST_NUMBER, LARGEST_BITS = 100_000, 100_000
# What a value in a list or object counts, in characters.
_PART = 50
# The time is looked at after so many steps, and after a step on a value of so many characters.
_TICKS, _LARGE = 64, 10_000
_WIDTH, _GIVEN_WIDTH = re.compile(r"\d{6,}"), re.compile(r"\*|\{[^}]*\{")
_COUNT, _SIZED = "count a turn", "count a value"
# Filters that write out, or join, all that they are given.
_WRITING: Final = frozenset(("join", "tojson", "string", "pprint", "replace", "format", "sum", "indent", "e"))
_REASONING: Final = ("reasoning_content", "thinking", "reasoning")


# --- the forms of messages ------------------------------------------------------------------------------


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
    for parts in (False, True)[: 1 + _takes_parts(source)]:
        for lacking in get_args(Lacking)[: 3 if lacks_content else 1]:
            for arguments_text in (False, True)[: 1 + has_calls]:
                yield Form(arguments_text, lacking, parts)


@lru_cache(maxsize=16)
def _takes_parts(source: str) -> bool:
    return _PARTS.search(source) is not None


def garbled(messages: Sequence[Message], text: str) -> bool:
    """Whether the text holds a value as Python writes it: arguments as a dict, no content as None."""
    written = [repr(args) for message in messages for _, args in functions(message) if args]
    if any(args in text and args != _json(args) for args in written if args.startswith(("{", "["))):
        return True
    lacks = any(message.get("content") is None for message in messages)
    values = [value for message in messages for value in message.values() if value is not None]
    return lacks and "None" in text and not any("None" in str(value) for value in values)


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
    """What is missing in the written prompt and responses, white space apart."""
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
    """A test for whether `written` holds a text: as it is, as JSON, or with other white space."""
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


# --- running it -----------------------------------------------------------------------------------------


class TemplateLimit(Exception):
    """A template takes too long or writes too much; the text says which."""


def run_template(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
    values: Mapping[str, Any],
    *,
    opening: bool,
) -> str:
    """What the template writes for the messages; `opening` adds the generation prompt.

    `values` are the template's other variables. Raises TemplateLimit, and whatever the template raises.
    """
    if any(not isinstance(tool, dict) for tool in tools or ()):
        raise ValueError("expected each tool as an object (a JSON schema)")
    given = [_with_reasoning(message) for message in messages]
    size = text_size([given, tools or [], dict(values)])
    environment, template = _compiled(source)
    with environment.within(LEAST_SIZE + SIZE_FACTOR * size):
        return template.render(
            {
                **values,
                "messages": given,
                "tools": list(tools) if tools else None,
                "documents": None,
                "add_generation_prompt": opening,
            }
        )


def text_size(value: Any, most: int = 2**62, *, texts: bool = True) -> int:
    """About how many characters a value is as text, every copy of a shared part counted; at most `most`.

    Without `texts` the parts count that a value is made of, and not their words.
    """
    if isinstance(value, str):
        return len(value)
    total, waiting = 0, [value]
    while waiting and total < most:
        part = waiting.pop()
        if isinstance(part, str | bytes):
            total += len(part) if texts else 0
        elif isinstance(part, list | tuple | set | frozenset):
            waiting += part
        elif isinstance(part, dict | Mapping):
            waiting += part.keys()
            waiting += part.values()
        total += _PART
    return total


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message without nulls, content apart; reasoning under each of the names that templates read."""
    kept = {name: value for name, value in message.items() if value is not None or name == "content"}
    reasoning = next((kept[name] for name in _REASONING if name in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}


class _Limited(ImmutableSandboxedEnvironment):
    """A sandbox that counts; see `within`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, model: Environment) -> None:
        super().__init__(
            trim_blocks=model.trim_blocks,
            lstrip_blocks=model.lstrip_blocks,
            keep_trailing_newline=model.keep_trailing_newline,
            extensions=[type(extension) for extension in model.extensions.values()],
            finalize=self._written,
        )
        self._lock = threading.Lock()
        self._left: int | None = None
        self._deadline = 0.0
        self._ticks = 0
        self.globals.update(model.globals)
        # Writes as much random text as it is asked for.
        self.globals.pop("lipsum", None)
        self.filters = {name: self._guarded(name, run) for name, run in model.filters.items()}
        # A filter that takes the context is never worked out when the template is compiled.
        self.filters[_COUNT] = pass_context(lambda _, size: self.turn(size))
        self.filters[_SIZED] = pass_context(lambda _, value: self.made(value))

    @contextmanager
    def within(self, size: int) -> Iterator[None]:
        """One rendering that may handle `size` characters; renderings of other threads wait."""
        with self._lock:
            self._left, self._ticks, self._deadline = size, 0, time.thread_time() + SECONDS
            try:
                yield
            finally:
                self._left = None

    def charge(self, size: int = 0) -> None:
        """Count one step and so many characters; nothing while a template is compiled."""
        if self._left is None:
            return
        self._ticks += 1
        self._left -= size
        if self._left < 0:
            raise TemplateLimit("writes more than a template may")
        # A single step on a large value may take long by itself.
        if (size > _LARGE or self._ticks % _TICKS == 0) and time.thread_time() > self._deadline:
            raise TemplateLimit(f"takes longer than {SECONDS:g} s")

    def turn(self, size: int) -> bool:
        """Count a turn of a loop that writes so many characters itself; true."""
        self.charge(size)
        return True

    def require(self, size: int) -> None:
        """That so many characters may still be made."""
        if size > (LEAST_SIZE if self._left is None else self._left):
            raise TemplateLimit("writes more than a template may")

    def numbers(self, values: Iterable[Any]) -> None:
        """That no width, count or indent is out of all proportion."""
        if any(isinstance(value, int) and value > LARGEST_NUMBER for value in values):
            raise TemplateLimit("uses a width or count larger than a template may")

    def made(self, value: Any) -> Any:
        """A new value: its characters, or its parts where it holds others, are counted."""
        if isinstance(value, str):
            self.charge(len(value))
        elif isinstance(value, list | tuple | dict | set):
            self.charge(text_size(value, LEAST_SIZE, texts=False))
        else:
            self.charge()
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """As the sandbox, with the result's size seen before it is made."""
        if operator == "+" and type(left) is str and type(right) is str:
            # What templates do most.
            self.charge(len(left) + len(right))
            return left + right
        if operator == "%" and isinstance(left, str):
            self._format(left, right)
        elif isinstance(left, int) and isinstance(right, int):
            bits = (
                left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            )
            if bits > LARGEST_BITS and operator != "%":
                raise TemplateLimit("makes a number larger than a template may")
        elif operator == "*":
            for repeated, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(repeated, str | list | tuple):
                    self.require(len(repeated) * times)
        return self.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """As the sandbox: a call is a step, and methods that can make much of little are looked at before."""
        __self.charge()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | int | list | tuple | dict):
            __self._method(owner, getattr(__obj, "__name__", ""), [*args, *kwargs.values()])
        return __self.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """As the sandbox, with the widths and sizes of what is formatted seen before."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def run(*args: Any, **kwargs: Any) -> str:
            self._format(value.__self__, [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return run

    def _method(self, owner: Any, name: str, args: list[Any]) -> None:
        self.numbers(args)
        if name == "join" and args:
            self.require(text_size(args[0], LEAST_SIZE) * (1 + len(owner)))
        elif name == "replace" and len(args) > 1 and all(isinstance(arg, str) for arg in (owner, *args[:2])):
            self.require(len(owner) + owner.count(args[0]) * len(args[1]))
        elif name == "translate":
            self.require(len(owner) * text_size(args, LEAST_SIZE))

    def _format(self, form: str, values: Any) -> None:
        if _WIDTH.search(form):
            raise TemplateLimit("uses a width or count larger than a template may")
        given = list(values) if isinstance(values, list | tuple) else [values]
        if _GIVEN_WIDTH.search(form):
            self.numbers(given)
        self.require(len(form) + (form.count("%") + form.count("{")) * text_size(given, LEAST_SIZE))

    def _guarded(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        skipped = int(hasattr(run, "jinja_pass_arg"))

        @wraps(run)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.charge()
            context, rest = args[:skipped], list(args[skipped:])
            self.numbers([*rest[1:], *kwargs.values()])
            if rest and isinstance(rest[0], Iterator):
                rest[0] = list(rest[0])
            if rest and name in _WRITING:
                between = sum(len(arg) for arg in (*rest[1:], *kwargs.values()) if isinstance(arg, str))
                self.require(text_size(rest[0], LEAST_SIZE) * (1 + between))
            return self.made(run(*context, *rest, **kwargs))

        return guarded

    def _written(self, value: Any) -> Any:
        self.charge(text_size(value, LEAST_SIZE))
        return value


@lru_cache(maxsize=16)
def _compiled(source: str) -> tuple[_Limited, Template]:
    # Private, and the one place where the filters and functions that templates rely on are defined. An empty
    # template is compiled, since compiling works out constants without a limit.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _Limited(_compile_jinja_template("").environment)
    tree = environment.parse(source)
    _count_in(tree, environment)
    return environment, environment.from_string(tree)


def _count_in(tree: nodes.Template, environment: Environment) -> None:
    """Put a count into every loop, macro and block, and at every value that is made of others."""

    def counted(value: nodes.Expr, name: str) -> nodes.Filter:
        return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno, environment=environment)

    def turn(node: nodes.Node, size: int) -> nodes.Filter:
        return counted(nodes.Const(size, lineno=node.lineno, environment=environment), _COUNT)

    kinds = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.FilterBlock)
    bodies: list[Any] = [node for kind in kinds for node in tree.find_all(kind)]
    for node in bodies:
        size = sum(len(data.data) for part in node.body for data in _all(part, nodes.TemplateData))
        size += sum(len(str(const.value)) for part in node.body for const in _all(part, nodes.Const))
        node.body.insert(0, nodes.ExprStmt(turn(node, size), lineno=node.lineno, environment=environment))
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.And(turn(node, 0), node.test, lineno=node.lineno, environment=environment)
    _count_values(tree, counted)


def _all(node: nodes.Node, kind: type[Any]) -> Iterator[Any]:
    if isinstance(node, kind):
        yield node
    yield from node.find_all(kind)


def _count_values(node: nodes.Node, counted: Callable[[nodes.Expr, str], nodes.Filter]) -> None:
    """Wrap list, tuple and dict expressions, and what `~` joins."""
    for name, value in list(node.iter_fields()):
        if isinstance(value, list):
            setattr(node, name, [_wrapped(node, item, counted) for item in value])
        elif isinstance(value, nodes.Node):
            setattr(node, name, _wrapped(node, value, counted))


def _wrapped(parent: nodes.Node, node: Any, counted: Callable[[nodes.Expr, str], nodes.Filter]) -> Any:
    if not isinstance(node, nodes.Node):
        return node
    _count_values(node, counted)
    is_value = isinstance(node, nodes.List | nodes.Dict) or (
        isinstance(node, nodes.Tuple) and node.ctx == "load"
    )
    if is_value or (isinstance(parent, nodes.Concat) and not isinstance(node, nodes.Const)):
        assert isinstance(node, nodes.Expr)
        return counted(node, _SIZED)
    return node
