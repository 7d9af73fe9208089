"""Rows that several processes encode: the same rows, errors that come through, a process that dies."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
from tiny_tokenizers import chat_tokenizer

from localdpo.core.errors import UserError
from localdpo.data import parallel
from localdpo.data.encode import Encoder, Limits
from localdpo.data.parallel import Block, encode_blocks
from localdpo.data.types import EncodedRow, Pair

pytestmark = pytest.mark.slow

ENDLESS = "{% for m in messages %}{% for n in range(99999) %}{{ m.content * 9 }}{% endfor %}{% endfor %}"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "ALONE", 0)
    monkeypatch.setattr(parallel, "_cores", lambda: 2)


def blocks(count: int = 6) -> Iterator[Block]:
    for start in range(0, 5 * count, 5):
        yield [(i, Pair(f"question {i}", "yes " * (i % 7 + 1), "no")) for i in range(start, start + 5)]


def ids(rows: list[EncodedRow]) -> list[tuple[int, list[int], list[list[int]]]]:
    return [(row.row, row.prompt.tolist(), [side.tolist() for side in row.responses]) for row in rows]


def test_all_rows_come_in_their_order_as_one_process_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(chat_tokenizer("chatml"), "auto", Limits(64))
    given = []
    encode = parallel._Helpers.encode
    monkeypatch.setattr(
        parallel._Helpers, "encode", lambda self, block: given.append(block) or encode(self, block)
    )
    results = list(encode_blocks(encoder, blocks()))
    assert len(given) >= 2
    assert [ids(result.rows) for result in results] == [ids(encoder.encode(block).rows) for block in blocks()]


@pytest.mark.long
def test_a_template_without_end_is_given_up_whichever_process_finds_it() -> None:
    tokenizer = copy.deepcopy(chat_tokenizer("chatml"))
    tokenizer.chat_template = ENDLESS
    with pytest.raises(UserError, match=r"the chat template .*; give the tokenizer one that ends"):
        list(encode_blocks(Encoder(tokenizer, "auto", Limits(64)), blocks()))


@pytest.mark.long
def test_a_process_that_dies_ends_the_work_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    start = parallel._Helpers._start

    def killed(self: parallel._Helpers) -> object:
        process = start(self)
        process.kill()
        return process

    monkeypatch.setattr(parallel._Helpers, "_start", killed)
    encoder = Encoder(chat_tokenizer("chatml"), "auto", Limits(64))
    with pytest.raises(UserError, match="a process that tokenised rows ended with status -9"):
        list(encode_blocks(encoder, blocks()))
