"""What is prompt, what is scored, and that both read back as the rendered text, whatever the template."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import SHAPES, chat_tokenizer, plain_tokenizer, spaced_tokenizer

from localdpo.core.errors import UserError
from localdpo.data import encode as encode_module
from localdpo.data.encode import (
    IDENTICAL,
    IDENTICAL_WHEN_CUT,
    NO_CONTEXT,
    NO_SCORED_TOKEN,
    Encoded,
    Encoder,
    Limits,
    encode_prompt,
)
from localdpo.data.render import ENDS_EARLY, NOTHING_CUT
from localdpo.data.types import Demonstration, EncodedRow, Example, Pair, Rated

# No control token can be spelled without these.
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<[|"), max_size=40)
ALL = sorted(SHAPES)


def encode(tokenizer: Any, *examples: Example, template: Any = "auto", **limits: Any) -> Encoded:
    # As Gemma's generation_config.json has it, the end of a turn ends an answer beside the text's own end.
    ends = tokenizer.convert_tokens_to_ids(
        ["<end_of_turn>"] if "<end_of_turn>" in tokenizer.get_vocab() else []
    )
    encoder = Encoder(tokenizer, template, Limits(**{"max_length": 4096, **limits}), end_ids=ends)
    return encoder.encode(list(enumerate(examples)))


def only(encoded: Encoded) -> EncodedRow:
    assert not encoded.dropped
    return encoded.rows[0]


def read_back(tokenizer: Any, row: EncodedRow) -> list[str]:
    return [tokenizer.decode([*row.prompt.tolist(), *ids.tolist()]) for ids in row.responses]


def rendered(tokenizer: Any, shape: str, prompt: str, answer: str, **kwargs: Any) -> str:
    """The template's text up to its first end of turn after the answer; EOS where it has no end."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    if shape == "always-open":
        text = text.removesuffix("<|im_start|>assistant\n")
    if shape == "stripped":
        return text.removesuffix("\n") + "</s>"
    end = SHAPES[shape][3]
    return text[: text.rindex(end) + len(end)]


@pytest.mark.parametrize("shape", ALL)
@given(prompt=WORDS, chosen=WORDS, rejected=WORDS)
def test_text_reads_back_and_ends_once(shape: str, prompt: str, chosen: str, rejected: str) -> None:
    tokenizer = chat_tokenizer(shape)
    expected = [rendered(tokenizer, shape, prompt, answer) for answer in (chosen, rejected)]
    encoded = encode(tokenizer, Pair(prompt, chosen, rejected))
    if expected[0] == expected[1]:
        assert encoded.dropped == {IDENTICAL: [0]}
        return
    row = only(encoded)
    assert read_back(tokenizer, row) == expected
    end = tokenizer.convert_tokens_to_ids(SHAPES[shape][3])
    bos = tokenizer.bos_token_id
    for ids in row.responses:
        assert ids[-1] == end
        assert (ids == end).sum() == 1
        assert bos is None or bos not in ids
    assert bos is None or (row.prompt[0] == bos and (row.prompt == bos).sum() == 1)


@pytest.mark.parametrize("shape", sorted(set(ALL) - {"open-thought"}))
def test_the_prompt_is_what_a_chat_program_sends(shape: str) -> None:
    tokenizer = chat_tokenizer(shape)
    row = only(encode(tokenizer, Pair("what is it?", "the answer", "no idea")))
    sent = tokenizer.apply_chat_template(
        [{"role": "user", "content": "what is it?"}], add_generation_prompt=True, return_dict=False
    )
    assert row.prompt.tolist() == sent
    assert encode_prompt(tokenizer, "what is it?", "auto").tolist() == sent


def test_a_prompt_to_answer_takes_the_row_s_template_options() -> None:
    tokenizer = chat_tokenizer("qwen3")
    options = {"enable_thinking": False}
    row = only(encode(tokenizer, Pair("q", "yes", "no", template_kwargs=options)))
    assert encode_prompt(tokenizer, "q", "auto", template_kwargs=options).tolist() == row.prompt.tolist()


@pytest.mark.parametrize("shape", ALL)
def test_the_answer_s_first_token_is_scored_and_no_prompt_text_is(shape: str) -> None:
    tokenizer = chat_tokenizer(shape)
    row = only(encode(tokenizer, Pair("question", "yes indeed", "no never")))
    first, second = (tokenizer.decode(ids.tolist()) for ids in row.responses)
    assert "yes indeed" in first
    assert "no never" in second
    assert "question" not in first + second
    assert "User" not in first
    assert "<|im_start|>" not in first


def test_a_thinking_block_that_only_the_generation_prompt_has_is_left_out_of_the_prompt() -> None:
    tokenizer = chat_tokenizer("open-thought")
    row = only(encode(tokenizer, Pair("q", "yes", "no")))
    assert tokenizer.decode(row.prompt.tolist()) == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert [tokenizer.decode(ids.tolist()) for ids in row.responses] == ["yes<|im_end|>", "no<|im_end|>"]


def test_qwen3_keeps_its_empty_thinking_block_in_the_prompt_when_thinking_is_off() -> None:
    tokenizer = chat_tokenizer("qwen3")
    row = only(encode(tokenizer, Pair("q", "yes", "no", template_kwargs={"enable_thinking": False})))
    assert tokenizer.decode(row.prompt.tolist()).endswith("assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(row.responses[0].tolist()) == "yes<|im_end|>"


def test_an_opening_that_depends_on_the_answer_is_cut_to_what_both_branches_share() -> None:
    tokenizer = chat_tokenizer("qwen3")
    pair = Pair("q", "<think>\nhm\n</think>\n\nyes", "no", template_kwargs={"enable_thinking": False})
    row = only(encode(tokenizer, pair))
    # One newline is in both, but the token behind <think> is not the same.
    assert tokenizer.decode(row.prompt.tolist()).endswith("<|im_start|>assistant\n<think>")
    assert read_back(tokenizer, row) == [
        rendered(tokenizer, "qwen3", "q", "<think>\nhm\n</think>\n\nyes"),
        rendered(tokenizer, "qwen3", "q", "no"),
    ]


def test_a_token_that_would_span_the_boundary_is_split_and_counted() -> None:
    tokenizer = chat_tokenizer("stripped")
    encoded = encode(tokenizer, Pair("q", "the answer", "answer"))
    row = only(encoded)
    assert encoded.merged_rows == [0]
    assert row.prompt.tolist() == tokenizer.encode("User: q\nAssistant: ", add_special_tokens=False)
    assert read_back(tokenizer, row) == [
        "User: q\nAssistant: the answer</s>",
        "User: q\nAssistant: answer</s>",
    ]
    assert encode(chat_tokenizer("chatml"), Pair("q", "yes", "no")).merged_rows == []


def test_messages_and_many_turns() -> None:
    tokenizer = chat_tokenizer("llama3")
    prompt = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    answers = [[{"role": "assistant", "content": text}] for text in ("four", "five")]
    row = only(encode(tokenizer, Pair(prompt, *answers)))
    whole = tokenizer.apply_chat_template([*prompt, *answers[0]], tokenize=False)
    assert read_back(tokenizer, row)[0] == whole
    assert tokenizer.decode(row.responses[0].tolist()) == "four<|eot_id|>"


def test_a_human_assistant_transcript_becomes_turns_in_a_chat_and_stays_text_in_raw() -> None:
    text = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"
    tokenizer = chat_tokenizer("chatml")
    row = only(encode(tokenizer, Pair(text, " four", " five")))
    assert tokenizer.decode(row.prompt.tolist()).count("<|im_start|>") == 4
    assert tokenizer.decode(row.responses[0].tolist()) == "four<|im_end|>"
    raw = only(encode(tokenizer, Pair(text, " four", " five"), template="raw"))
    assert read_back(tokenizer, raw) == [text + " four<|im_end|>", text + " five<|im_end|>"]


def test_an_answer_without_a_prompt_gets_the_template_s_opening_as_its_context() -> None:
    tokenizer = chat_tokenizer("gemma")
    row = only(encode(tokenizer, Demonstration([], [{"role": "assistant", "content": "hello"}])))
    assert tokenizer.decode(row.prompt.tolist()) == "<bos><start_of_turn>model\n"
    assert tokenizer.decode(row.responses[0].tolist()) == "hello<end_of_turn>"


def test_a_row_that_the_template_refuses_is_dropped_with_the_template_s_words() -> None:
    tokenizer = chat_tokenizer("gemma")
    encoded = encode(tokenizer, Pair([{"role": "system", "content": "s"}], "a", "b"), Pair("q", "a", "b"))
    assert list(encoded.dropped) == ["the chat template refuses the row: System role not supported"]
    assert [row.row for row in encoded.rows] == [1]
    with pytest.raises(UserError, match="System role not supported"):
        encode_prompt(tokenizer, [{"role": "system", "content": "s"}], "chat")


def test_an_end_of_turn_that_the_data_brings_is_not_doubled() -> None:
    tokenizer = chat_tokenizer("chatml")
    row = only(encode(tokenizer, Pair("q", "yes<|im_end|>", "no")))
    assert tokenizer.decode(row.responses[0].tolist()) == "yes<|im_end|>"
    raw = only(encode(plain_tokenizer(), Pair("q", " yes</s>", " no")))
    assert [plain_tokenizer().decode(ids.tolist()) for ids in raw.responses] == [" yes</s>", " no</s>"]


@given(prompt=WORDS.filter(bool), chosen=WORDS, rejected=WORDS, bos=st.booleans())
def test_raw_text_is_kept_and_closed(prompt: str, chosen: str, rejected: str, bos: bool) -> None:
    tokenizer = RAW[bos]
    encoded = encode(tokenizer, Pair(prompt, chosen, rejected))
    if chosen == rejected:
        assert encoded.dropped == {IDENTICAL: [0]}
        return
    row = only(encoded)
    start = "<s>" if bos else ""
    assert read_back(tokenizer, row) == [start + prompt + chosen + "</s>", start + prompt + rejected + "</s>"]
    assert row.prompt.tolist() == tokenizer(prompt)["input_ids"]


RAW = {bos: plain_tokenizer(bos) for bos in (False, True)}


def test_a_bos_that_the_text_brings_is_not_doubled() -> None:
    row = only(encode(RAW[True], Pair("<s>q", " a", " b")))
    assert (row.prompt == RAW[True].bos_token_id).sum() == 1
    assert encode_prompt(RAW[True], "<s>q", "raw").tolist() == row.prompt.tolist()


def test_a_tokenizer_that_opens_every_text_with_a_space_adds_none_to_responses() -> None:
    tokenizer = spaced_tokenizer()
    row = only(encode(tokenizer, Pair("the ", "answer", "question")))
    assert read_back(tokenizer, row) == ["the answer</s>", "the question</s>"]
    tight = only(encode(tokenizer, Pair("the", "answer", "user")))
    assert read_back(tokenizer, tight) == ["theanswer</s>", "theuser</s>"]


def test_an_empty_prompt_starts_with_bos_or_with_a_shared_first_token() -> None:
    text = Demonstration("", "the answer", as_is=True)
    with_bos = only(encode(RAW[True], text))
    assert with_bos.prompt.tolist() == [RAW[True].bos_token_id]
    without = only(encode(RAW[False], text))
    assert read_back(RAW[False], without) == ["the answer</s>"]
    assert len(without.prompt) == 1
    assert encode(RAW[False], Pair("", "yes", "no")).dropped == {NO_CONTEXT: [0]}
    with pytest.raises(UserError, match="empty prompt"):
        encode_prompt(RAW[False], "", "raw")
    with pytest.raises(UserError, match=r"prompt: .udcff is no valid Unicode; give the text as UTF-8"):
        encode_prompt(RAW[False], "a\udcffb", "raw")


# --- answers that were cut -----------------------------------------------------------------------------


def test_the_ids_of_an_answer_that_was_cut_follow_the_prompt_and_nothing_follows_them() -> None:
    tokenizer = chat_tokenizer("chatml")
    row = only(encode(tokenizer, Pair("q", "yes", "the answer is the", rejected_ended=False)))
    end = tokenizer.eos_token_id
    assert row.prompt.tolist() == tokenizer.encode("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n")
    assert row.responses[0].tolist() == [*tokenizer.encode("yes"), end]
    assert row.responses[1].tolist() == tokenizer.encode("the answer is the")
    raw = only(encode(RAW[True], Pair("q", " yes", " the answer", rejected_ended=False)))
    assert raw.responses[0].tolist() == [*ids_of(" yes"), RAW[True].eos_token_id]
    assert raw.responses[1].tolist() == ids_of(" the answer")
    half = only(encode(tokenizer, Rated("q", "the answer", False, response_ended=False)))
    assert half.responses[0].tolist() == tokenizer.encode("the answer")


@pytest.mark.parametrize("shape", [*ALL, "raw"])
@given(prompt=WORDS.filter(bool), chosen=WORDS, rejected=WORDS.map(str.rstrip).filter(bool))
def test_a_cut_answer_is_a_strict_prefix_of_the_ended_one(
    shape: str, prompt: str, chosen: str, rejected: str
) -> None:
    tokenizer = RAW[True] if shape == "raw" else chat_tokenizer(shape)
    if chosen.strip() == rejected.strip():
        return
    ended = only(encode(tokenizer, Pair(prompt, chosen, rejected)))
    cut = only(encode(tokenizer, Pair(prompt, chosen, rejected, rejected_ended=False)))
    assert cut.prompt.tolist() == ended.prompt.tolist()
    assert cut.responses[0].tolist() == ended.responses[0].tolist()
    whole = ended.responses[1].tolist()
    assert cut.responses[1].tolist() == whole[:-1]


@pytest.mark.parametrize("shape", ["chatml", "llama3", "stripped"])
def test_white_space_at_the_end_of_a_cut_answer_stays(shape: str) -> None:
    tokenizer = chat_tokenizer(shape)
    row = only(encode(tokenizer, Pair("q", "yes\n\n", "answers\n\n\n\n", rejected_ended=False)))
    assert tokenizer.decode(row.responses[1].tolist()) == "answers\n\n\n\n"


@pytest.mark.parametrize("shape", ["chatml", "gemma", "raw"])
def test_a_cut_answer_that_ends_or_says_nothing_is_dropped(shape: str) -> None:
    tokenizer = RAW[False] if shape == "raw" else chat_tokenizer(shape)
    end = "</s>" if shape == "raw" else SHAPES[shape][3]
    pairs = [Pair("q", "yes", text, rejected_ended=False) for text in (f"no{end}", f"no{end} no", "", "no")]
    encoded = encode(tokenizer, *pairs)
    assert dict(encoded.dropped) == {ENDS_EARLY: [0, 1], NOTHING_CUT: [2]}
    assert [row.row for row in encoded.rows] == [3]


def test_a_tool_call_that_was_cut_loses_the_end_of_its_turn() -> None:
    tokenizer = chat_tokenizer(
        "chatml", SHAPES["chatml"][0].replace("m['content']", "(m['content'] or m['tool_calls']|tojson)")
    )
    call = [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    ]
    ended, cut = (
        only(encode(tokenizer, Pair("q", "yes", call, rejected_ended=each))) for each in (True, False)
    )
    assert cut.responses[1].tolist() == ended.responses[1].tolist()[:-1]


def test_text_demonstrations_never_go_into_a_template() -> None:
    tokenizer = chat_tokenizer("llama3")
    row = only(encode(tokenizer, Demonstration("", "the answer", as_is=True)))
    assert read_back(tokenizer, row) == ["<|begin|>the answer<|eot_id|>"]


# --- limits --------------------------------------------------------------------------------------------


def ids_of(text: str) -> list[int]:
    return list(RAW[False](text)["input_ids"])


@given(
    prompt=WORDS.filter(bool),
    chosen=WORDS,
    rejected=WORDS,
    max_length=st.integers(2, 40),
    share=st.none() | st.integers(1, 39),
    side=st.sampled_from(["keep_start", "keep_end"]),
)
def test_limits_hold_and_both_branches_keep_one_prompt(
    prompt: str, chosen: str, rejected: str, max_length: int, share: int | None, side: str
) -> None:
    pair = Pair(prompt, chosen, rejected)
    whole = encode(RAW[True], pair)
    cut = encode(RAW[True], pair, max_length=max_length, max_prompt_length=share, truncation=side)
    assert len(cut.rows) + sum(map(len, cut.dropped.values())) == 1
    if not cut.rows:
        return
    row, full = cut.rows[0], whole.rows[0]
    assert len(row.prompt) + max(map(len, row.responses)) <= max_length
    assert share is None or len(row.prompt) <= share
    assert all(len(ids) >= 1 for ids in row.responses)
    assert row.responses[0].tolist() != row.responses[1].tolist()
    for ids, whole_ids in zip(row.responses, full.responses, strict=True):
        assert ids.tolist() == whole_ids[: len(ids)].tolist()
    before = [len(full.prompt), *map(len, full.responses)]
    assert cut.truncated == (before != [len(row.prompt), *map(len, row.responses)])


def test_keep_start_and_keep_end_of_a_prompt() -> None:
    prompt = "the quick brown fox jumps"
    pair, ids = Pair(prompt, " yes", " no"), ids_of(prompt)
    start = only(encode(RAW[False], pair, max_prompt_length=3, truncation="keep_start"))
    end = only(encode(RAW[False], pair, max_prompt_length=3, truncation="keep_end"))
    assert start.prompt.tolist() == ids[:3]
    assert end.prompt.tolist() == ids[-3:]
    with_bos = only(encode(RAW[True], pair, max_prompt_length=3, truncation="keep_end"))
    assert with_bos.prompt.tolist() == [RAW[True].bos_token_id, *ids[-2:]]


def test_responses_are_cut_at_the_end_and_lose_their_eos_then() -> None:
    row = only(encode(RAW[False], Pair("q", " the answer is yes", " no"), max_length=3))
    assert row.responses[0].tolist() == ids_of(" the answer is yes")[:2]
    assert row.responses[1].tolist() == [*ids_of(" no"), RAW[False].eos_token_id][:2]


def test_rows_that_teach_nothing_are_dropped_and_named() -> None:
    tokenizer = RAW[False]
    long = "the quick brown fox"
    encoded = encode(
        tokenizer,
        Pair("q", " a", " a"),
        Pair(long, " a", " b"),
        Pair("q", " the answer is yes", " the answer is no"),
        Pair("q", " a", " b"),
        max_length=4,
    )
    assert dict(encoded.dropped) == {IDENTICAL: [0], NO_SCORED_TOKEN: [1], IDENTICAL_WHEN_CUT: [2]}
    assert [row.row for row in encoded.rows] == [3]


def test_what_cannot_be_encoded_at_all_is_said_once() -> None:
    messages = [{"role": "user", "content": "q"}]
    with pytest.raises(UserError, match="no chat template; use raw"):
        Encoder(RAW[False], "chat", Limits(16))
    with pytest.raises(UserError, match="no chat template"):
        encode(RAW[False], Pair(messages, "a", "b"))
    with pytest.raises(UserError, match="raw keeps text"):
        encode(chat_tokenizer("chatml"), Pair(messages, "a", "b"), template="raw")
    with pytest.raises(UserError, match="end-of-sequence"):
        encode(plain_tokenizer(eos=False), Pair("q", "a", "b"))
    with pytest.raises(ValueError, match="max_length"):
        Limits(1)


def test_long_rows_are_tokenised_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [Pair("q" * i, f" {i}", " no") for i in range(1, 9)]
    whole = encode(RAW[True], *pairs)
    monkeypatch.setattr(encode_module, "_PORTION_CHARACTERS", 7)
    for row, wanted in zip(encode(RAW[True], *pairs).rows, whole.rows, strict=True):
        assert row.prompt.tolist() == wanted.prompt.tolist()
        assert [ids.tolist() for ids in row.responses] == [ids.tolist() for ids in wanted.responses]


def test_truncation_and_padding_that_the_tokenizer_file_switches_on_are_ignored() -> None:
    tokenizer = plain_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    row = only(encode(tokenizer, Pair("the quick brown fox", " yes", " no")))
    assert row.prompt.tolist() == ids_of("the quick brown fox")
