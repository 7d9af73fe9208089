"""What public chat templates do, a small one of each kind: nothing of a row is lost without a word."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import CORPUS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from localdpo.data.encode import NO_CONTENT, Encoded, Encoder, Limits, encode_prompt
from localdpo.data.render import ENDS_EARLY
from localdpo.data.types import Pair, Side

TEMPLATES = Path(__file__).parent / "templates"
CONTROL = [
    "<s>",
    "<|end|>",
    "<|end_of_text|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|tool|>",
    "<|turn|>",
]
CONTROL += ["<think>", "</think>", "[INST]", "[/INST]", "<|response|>", "<|end_response|>", "<|call|>"]
SYSTEM = [{"role": "system", "content": "One word."}, {"role": "user", "content": "Name a sea."}]


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<|end|>",
        chat_template=(TEMPLATES / f"{name}.jinja").read_text().removesuffix("\n"),
        clean_up_tokenization_spaces=False,
    )


def encode(name: str, *pairs: Pair, ends: tuple[str, ...] = ("<|end|>",), **limits: Any) -> Encoded:
    made = tokenizer(name)
    ids = made.convert_tokens_to_ids(list(ends))
    encoder = Encoder(made, "chat", Limits(**{"max_length": 4096, **limits}), end_ids=ids)
    return encoder.encode(list(enumerate(pairs)))


def texts(name: str, pair: Pair, **options: Any) -> tuple[str, ...]:
    """(prompt, chosen, rejected) as text; the prompt is also what is asked when the row is answered."""
    encoded = encode(name, pair, **options)
    assert not encoded.dropped
    row = encoded.rows[0]
    asked = encode_prompt(
        tokenizer(name),
        pair.prompt,
        "chat",
        tools=pair.tools,
        template_kwargs=pair.template_kwargs,
        responses=pair.responses,
    )
    assert asked.tolist() == row.prompt.tolist()
    return tuple(tokenizer(name).decode(ids.tolist()) for ids in (row.prompt, *row.responses))


def call(arguments: Any, **more: Any) -> Side:
    function = {"name": "get_time", "arguments": arguments}
    return [{"role": "assistant", "tool_calls": [{"type": "function", "function": function}], **more}]


def test_system_text_that_stands_with_the_last_user_message_alone_is_in_the_prompt() -> None:
    assert texts("last_turn_system", Pair(SYSTEM, "Baltic.", "Alps.")) == (
        "<s>[INST]One word.\n\nName a sea.[/INST]",
        "Baltic.<|end|>",
        "Alps.<|end|>",
    )


def test_an_opening_that_depends_on_the_answer_cuts_no_token_in_two() -> None:
    pair = Pair("2+2?", "<think>add</think>4", "5")
    prompt, chosen, rejected = texts("thought_opened", pair)
    assert prompt == "<|user|>2+2?<|end|><|assistant|>"
    assert (chosen, rejected) == ("<think>add</think>4<|end|>", "</think>5<|end|>")


def test_a_prompt_that_is_not_the_generation_prompt_is_told_with_what_makes_it_so() -> None:
    encoded = encode("thought_opened", Pair("q", "yes", "no"))
    (note,) = encoded.notes
    assert note.startswith(
        "the prompt that is trained ends in '</think>', a generation prompt in '<think>'; "
    )
    assert note.endswith("data.chat_template_kwargs: {thinking: false} makes them the same")
    assert not encode("thought_opened", Pair("q", "yes", "no", template_kwargs={"thinking": False})).notes


def test_reasoning_that_is_left_out_is_counted_with_its_share_of_the_answers() -> None:
    pairs = [Pair("q", "<think>abcdef</think>42", "<think>ghijkl</think>43"), Pair("q", "yes", "no")]
    encoded = encode("thought_dropped", *pairs)
    assert encoded.reasoning_lost == [0]
    assert (encoded.lost, encoded.whole) == (12, 16)
    same = encode("thought_dropped", Pair("q", "<think>a</think>4", "<think>b</think>4"))
    assert list(same.dropped) == [
        "both responses are the same once the chat template left out the reasoning of the answer"
    ]
    kept = [{"role": "assistant", "content": "4", "reasoning": "add"}]
    assert texts("thought_field", Pair("q", kept, "5"))[1] == "<think>add</think>4<|end|>"


def test_the_answer_ends_at_the_first_of_the_models_own_ends() -> None:
    prompt, chosen, _ = texts("response_marks", Pair("q", "yes", "no"))
    assert prompt == "<s><|turn|><|user|>q<|end|><|turn|><|assistant|>"
    assert chosen == "<|response|>yes<|end_response|><|end|>"
    both = ("<|end|>", "<|end_of_text|>")
    assert texts("two_ends", Pair("q", "yes", "no"), ends=both)[1:] == ("yes<|end|>", "no<|end|>")


@pytest.mark.parametrize("answer", ["yes<|end|>", "yes<|end|>\n", "yes<|end|>\n<|end|>\n"])
def test_an_end_that_the_answer_brings_is_not_doubled(answer: str) -> None:
    for name in ("two_ends", "response_marks", "no_system"):
        assert texts(name, Pair("q", answer, "no"))[1].count("<|end|>") == 1


def test_an_answer_with_an_end_in_its_middle_is_dropped_and_told() -> None:
    for answer in ("yes<|end|>sir", "yes<|end|><think>"):
        assert encode("two_ends", Pair("q", answer, "no")).dropped == {ENDS_EARLY: [0]}


@pytest.mark.parametrize("ends", [("<|end|>",), ("<|end|>", "<|call|>")])
def test_a_tool_call_with_an_end_of_its_own_gets_no_second_one(ends: tuple[str, ...]) -> None:
    written = texts("call_end", Pair("q", call({"city": "Oslo"}), "no"), ends=ends)
    assert written[1:] == ('to=get_time {"city": "Oslo"}<|call|>', "no<|end|>")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("call_end", 'to=get_time {"city": "Oslo"}<|call|>'),
        ("calls_as_text", 'get_time|{"city": "Oslo"}<|end|>'),
        ("calls_where_null", 'get_time|{"city": "Oslo"}<|end|>'),
        ("calls_printed", 'get_time({"city": "Oslo"})<|end|>'),
        ("calls_with_content", '{"name": "get_time", "arguments": {"city": "Oslo"}}<|end|>'),
    ],
)
def test_a_tool_call_is_given_in_the_form_that_the_template_wants(name: str, written: str) -> None:
    for arguments in ({"city": "Oslo"}, '{"city": "Oslo"}'):
        assert texts(name, Pair("q", call(arguments), "no"))[1] == written


def test_content_is_given_as_parts_where_a_template_reads_parts() -> None:
    assert texts("parts", Pair(SYSTEM, "Baltic.", "Alps.")) == (
        "<|system|>One word.<|end|><|user|>Name a sea.<|end|><|assistant|>",
        "Baltic.<|end|>",
        "Alps.<|end|>",
    )


def test_what_a_template_leaves_out_is_counted() -> None:
    tools = [{"type": "function", "function": {"name": "get_time", "parameters": {}}}]
    encoded = encode("no_system", Pair(SYSTEM, "yes", "no", tools=tools), Pair("q", "yes", "no"))
    assert dict(encoded.notes) == {
        "the chat template leaves out system text": [0],
        "the chat template leaves out tools": [0],
    }


def test_a_row_whose_answer_lost_its_tool_call_is_dropped() -> None:
    encoded = encode("no_system", Pair("q", call({"city": "Oslo"}), "no"))
    assert list(encoded.dropped) == ["the chat template leaves out the answer's tool call"]
    thought = [{"role": "assistant", "content": "", "reasoning_content": "hm"}]
    assert list(encode("no_system", Pair("q", thought, "no")).dropped) == [
        "the chat template leaves out the whole text of an answer"
    ]


TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one one one one"},
    {"role": "assistant", "content": "two two two two"},
    {"role": "user", "content": "three three three three"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "five six seven eight"},
]


@pytest.mark.parametrize(("side", "kept"), [("keep_end", "three"), ("keep_start", "one")])
def test_whole_turns_are_cut_first_and_the_last_user_message_stays(side: str, kept: str) -> None:
    whole = len(encode("two_ends", Pair(TURNS, "a", "b")).rows[0].prompt)
    cut = encode("two_ends", Pair(TURNS, "a", "b"), max_prompt_length=whole - 1, truncation=side)
    prompt = tokenizer("two_ends").decode(cut.rows[0].prompt.tolist())
    assert cut.truncated == 1
    assert prompt.startswith(f"<|system|>be brief<|end|>\n<|user|>{kept}")
    assert prompt.endswith("<|user|>five six seven eight<|end|>\n<|assistant|>")
    assert prompt.count("<|user|>") == 2


@pytest.mark.parametrize("side", ["keep_end", "keep_start"])
def test_the_header_of_the_answer_is_never_cut(side: str) -> None:
    pair = Pair("word " * 50 + "end", "a", "b")
    for length in range(1, 20):
        cut = encode("two_ends", pair, max_prompt_length=length, truncation=side)
        if not cut.rows:
            assert list(cut.dropped) == [NO_CONTENT]
            continue
        prompt = tokenizer("two_ends").decode(cut.rows[0].prompt.tolist())
        assert len(cut.rows[0].prompt) == length
        assert prompt.startswith("<|user|>")
        assert prompt.endswith("<|end|>\n<|assistant|>")
        inner = prompt.removeprefix("<|user|>").removesuffix("<|end|>\n<|assistant|>")
        assert str(pair.prompt).endswith(inner) if side == "keep_end" else str(pair.prompt).startswith(inner)
    assert cut.rows


@pytest.mark.parametrize("side", ["keep_start", "keep_end"])
@pytest.mark.parametrize("most", [None, 40])
def test_a_long_text_is_cut_as_if_all_of_it_were_tokenised(
    side: str, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = " ".join(f"word{i}" for i in range(400))
    turns = [{"role": role, "content": words} for role in ("user", "assistant")]
    pairs = [
        Pair([*SYSTEM[:1], *turns, *turns[:1]], words, words + " more"),
        Pair([*SYSTEM[:1], *turns, *SYSTEM[1:]], f"no {words}", words),
        Pair("q", words, f"no {words}"),
        Pair(words, "yes", "no"),
    ]
    found = []
    for long in (10**9, 100):
        monkeypatch.setattr("localdpo.data.encode._LONG", long)
        options = {"max_length": 60, "max_prompt_length": most, "truncation": side}
        encoded = [
            encode(name, *pairs, **options) for name in ("last_turn_system", "thought_opened", "two_ends")
        ]
        rows = [
            [row.prompt.tolist(), [r.tolist() for r in row.responses]] for one in encoded for row in one.rows
        ]
        found.append((rows, [(one.dropped, one.truncated, one.notes) for one in encoded]))
    assert found[0] == found[1]
    assert len(found[0][0]) == (3 if most is None else 9)
