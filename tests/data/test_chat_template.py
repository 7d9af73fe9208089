"""A chat template is a program of others: it writes what transformers would, within a time and a size."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tiny_tokenizers import SHAPES, chat_tokenizer

from localdpo.core.errors import UserError
from localdpo.data import chat_template
from localdpo.data.chat_template import TemplateLimit, run_template
from localdpo.data.encode import Encoder, Limits
from localdpo.data.types import Pair

MESSAGES = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two", "reasoning_content": "hm", "tool_calls": None},
    {"role": "user", "content": "three"},
]
GROWING = (
    "{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
)
HOSTILE = {
    "nested loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "loops over what was made once": "{% set r = range(9999) %}{% for a in r %}{% for b in r %}"
    "{% for c in r if false %}{% endfor %}{% endfor %}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "text in loops": "{% for a in range(9999) %}{% for b in range(9999) %}"
    + "y" * 999
    + "{% endfor %}{% endfor %}",
    "text in a block": "{% set x %}{% for a in range(9999) %}{% for b in range(9999) %}"
    + "y" * 999
    + "{% endfor %}{% endfor %}{% endset %}{{ x }}",
    "a text times a number": "{{ 'x' * 10 ** 10 }}",
    "a list times a number": "{{ [0] * 10 ** 10 }}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "squares": GROWING.format(start="3", step="ns.x * ns.x"),
    "text joined to itself": GROWING.format(start="'aaaa'", step="ns.x ~ ns.x"),
    "text added to itself": GROWING.format(start="'aaaa'", step="ns.x + ns.x"),
    "replaced letters": GROWING.format(start="'aaaa'", step="ns.x.replace('a', 'aa')"),
    "a filter's replaced letters": GROWING.format(start="'aaaa'", step="ns.x | replace('a', ns.x)"),
    "a list of itself": GROWING.format(start="[1]", step="[ns.x, ns.x]") + "{{ ns.x }}",
    "an object of itself": GROWING.format(start="{}", step="dict(a=ns.x, b=ns.x)") + "{{ ns.x | tojson }}",
    "joined texts": "{{ (['x' * 99999] * 99999) | join }}",
    "joined lazily": "{{ (['x' * 99999] * 99999) | select | join }}",
    "joined by a method": "{{ ''.join(['x' * 99999] * 99999) }}",
    "a width": "{{ 'x'.ljust(10 ** 10) }}",
    "a filter's width": "{{ 'x' | center(10000000000) }}",
    "a width in a format": "{{ '%1000000000d' % 3 }}",
    "a width beside a format": "{{ '%*d' % (1000000000, 3) }}",
    "a width for format": "{{ '{:1000000000}'.format(3) }}",
    "a width in a width": "{{ '{:{}}'.format('x', 1000000000) }}",
    "an indent": "{{ messages | tojson(indent=1000000000) }}",
    "a batch": "{{ [1] | batch(1000000000, 0) | list }}",
    "bytes of a number": "{{ (5).to_bytes(1000000000, 'big') }}",
}


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("opening", [True, False])
def test_it_writes_what_transformers_writes(shape: str, opening: bool) -> None:
    tokenizer = chat_tokenizer(shape)
    values: dict[str, Any] = {**tokenizer.special_tokens_map, "enable_thinking": False}
    written = tokenizer.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=opening, enable_thinking=False
    )
    assert run_template(tokenizer.chat_template, MESSAGES, None, values, opening=opening) == written


def test_filters_and_functions_of_transformers_are_there() -> None:
    source = (
        "{% set ns = namespace(n=0) %}{% generation %}{% for m in messages %}{% if loop.index == 3 %}"
        "{% break %}{% endif %}{% set ns.n = ns.n + 1 %}{{ m | tojson }}{{ loop.length }}"
        "{% endfor %}{% endgeneration %}"
        "{{ strftime_now('%Y') | length }}{{ tools[0].name }}"
        "{{ messages[1:] | map(attribute='role') | join(',') }}"
        "{{ m is defined }}{{ '%s-%05d' % ('a', 3) }}{{ '{}'.format('é') }}{{ ns.n }}"
    )
    tokenizer = chat_tokenizer("chatml")
    tools = [{"name": "add", "parameters": {}}]
    # Some releases rename other fields on the way.
    messages = [{name: message[name] for name in ("role", "content")} for message in MESSAGES]
    written = tokenizer.apply_chat_template(messages, tools=tools, chat_template=source, tokenize=False)
    assert run_template(source, messages, tools, {}, opening=False) == written


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_template_that_takes_or_writes_too_much_is_ended(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.2)
    monkeypatch.setattr(chat_template, "LEAST_SIZE", 2_000_000)
    began = time.thread_time()
    with pytest.raises(TemplateLimit):
        run_template(HOSTILE[name], MESSAGES, None, {}, opening=True)
    assert time.thread_time() - began < 3


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ 2.0 ** 100000 }}", "OverflowError"),
        ("{{ messages[9].content }}", "has no element 9"),
        ("{{ {}['a']['b'] }}", "no attribute 'a'"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for %}", "Expected"),
        ("{{ [1, 2] | first | nothing }}", "No filter named 'nothing'"),
        ("{{ messages | sum }}", "TypeError"),
    ],
)
def test_whatever_it_raises_is_the_reason_that_the_row_is_dropped(source: str, words: str) -> None:
    tokenizer = chat_tokenizer("chatml", source)
    encoded = Encoder(tokenizer, "auto", Limits(64)).encode([(0, Pair("q", "a", "b"))])
    (reason,) = encoded.dropped
    assert reason.startswith("the chat template refuses the row: ")
    assert words in reason
    assert "\n" not in reason


def test_a_template_that_never_ends_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.1)
    tokenizer = chat_tokenizer("chatml", HOSTILE["nested loops"])
    with pytest.raises(UserError, match=r"the chat template takes longer than 0\.1 s"):
        Encoder(tokenizer, "auto", Limits(64)).encode([(i, Pair("q", "a", "b")) for i in range(99)])
