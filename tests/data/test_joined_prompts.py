"""The prompt column and the messages that both answers open with make one prompt, by what they say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_rows import assistant, user

from localdpo.data.fields import RowSkip
from localdpo.data.formats import detect, named_format
from localdpo.data.formats.pairs import DISAGREE, PARTED, join

SYSTEM = {"role": "system", "content": "One word."}
SEA = user("Name a sea.")
TURNS = [user("q"), assistant("a"), user("r")]


@pytest.mark.parametrize(
    ("prompt", "shared", "joined"),
    [
        ([SYSTEM, SEA], [SEA], [SYSTEM, SEA]),
        ([SEA], [SYSTEM, SEA], [SYSTEM, SEA]),
        ([SEA], [user("Name a sea.\n")], [user("Name a sea.\n")]),
        ([user("Name  a\r\nsea. ")], [SEA], [SEA]),
        ([SYSTEM], [SEA], [SYSTEM, SEA]),
        ([SEA], [], [SEA]),
        (TURNS, TURNS, TURNS),
        (TURNS, [user("r")], TURNS),
        ([user("r")], TURNS, TURNS),
        ([user("q")], TURNS, TURNS),
        (TURNS[:2], [user("r")], TURNS),
        ([SYSTEM, *TURNS], TURNS[1:], [SYSTEM, *TURNS]),
        ("Name a sea.", [SEA], [SEA]),
        ("Name a sea.\n", [SYSTEM, SEA], [SYSTEM, SEA]),
        ("Name a sea.", [], [SEA]),
        ("Name a sea.", [SYSTEM], [SYSTEM, SEA]),
        ("", [SEA], [SEA]),
        ("q", TURNS, TURNS),
        ("r", TURNS, TURNS),
        # The text says more than the one turn: all of it is asked.
        ("Be brief.\n\nName a sea.", [SEA], [user("Be brief.\n\nName a sea.")]),
        ("Be brief. Name a sea.", [SYSTEM, SEA], [SYSTEM, user("Be brief. Name a sea.")]),
        # A conversation written out as text has marks besides, and they are no words.
        ("Human: Name a sea.\nAssistant:", [SEA], [SEA]),
        (
            "<|im_start|>system\nOne word.<|im_end|>\n<|im_start|>user\nName a sea.",
            [SYSTEM, SEA],
            [SYSTEM, SEA],
        ),
        ("User: q\nAssistant: a\nUser: r", TURNS, TURNS),
        ("\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:", TURNS, TURNS),
        ("\n\nHuman: q\n\nAssistant:", [], [user("q")]),
    ],
)
def test_what_is_said_twice_stands_once(prompt: Any, shared: Any, joined: Any) -> None:
    assert join(prompt, shared) == joined


@pytest.mark.parametrize(
    ("prompt", "shared"),
    [
        ("Name a fish.", [SEA]),
        ([user("Name a fish.")], [SEA]),
        ([SYSTEM, SEA], [{"role": "system", "content": "Two words."}, SEA]),
        ([*TURNS, user("s")], [user("q")]),
        ([user("q"), assistant("a")], [user("q")]),
        ("And another thing. User: q\nAssistant: a\nUser: r", TURNS),
    ],
)
def test_what_contradicts_is_not_chosen_between(prompt: Any, shared: Any) -> None:
    with pytest.raises(RowSkip) as skip:
        join(prompt, shared)
    assert skip.value.reason == DISAGREE


WORD = st.sampled_from(["sea", "fish", "a tree", ""])
MESSAGES = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), WORD).map(
        lambda one: {"role": one[0], "content": one[1]}
    ),
    max_size=4,
)


@given(prompt=WORD | MESSAGES.filter(bool), shared=MESSAGES)
def test_no_word_of_either_is_lost(prompt: Any, shared: Any) -> None:
    try:
        joined = join(prompt, shared)
    except RowSkip:
        return
    words = " ".join(message["content"] for message in joined)
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    assert all(text in words for text in (*texts, *(message["content"] for message in shared)))


def test_sides_that_differ_in_white_space_share_their_turns() -> None:
    read = named_format("preference-implicit", "pairs").read
    pair = read({"chosen": [SEA, assistant("a")], "rejected": [user("Name a sea. "), assistant("b")]})
    assert pair.prompt == [SEA]  # type: ignore[union-attr]
    with pytest.raises(RowSkip) as skip:
        read({"chosen": [SEA, assistant("a")], "rejected": [user("Name a lake."), assistant("b")]})
    assert skip.value.reason == PARTED


@pytest.mark.parametrize("whole", [[SEA, assistant("a")], [SEA, assistant("b\n")]])
@pytest.mark.parametrize("given", ["messages", "conversation", "prompt"])
def test_a_conversation_that_ends_with_an_answer_is_asked_without_it(whole: Any, given: str) -> None:
    read = detect((given, "chosen", "rejected"), "pairs", "rows").read
    for chosen, rejected in (("a", "b"), ([SEA, assistant("a")], [SEA, assistant("b")])):
        pair = read({given: whole, "chosen": chosen, "rejected": rejected})
        assert pair.prompt == [SEA]  # type: ignore[union-attr]


@pytest.mark.parametrize("empty", [None, "", [], [None]])
def test_an_empty_prompt_beside_shared_messages_is_those(empty: Any) -> None:
    read = named_format("preference", "pairs").read
    pair = read({"prompt": empty, "chosen": [SEA, assistant("a")], "rejected": [SEA, assistant("b")]})
    assert pair.prompt == [SEA]  # type: ignore[union-attr]


def test_answers_that_repeat_a_transcript_are_cut_after_it() -> None:
    prompt = "\n\nHuman: q\n\nAssistant:"
    read = named_format("preference", "pairs").read
    pair = read({"prompt": prompt, "chosen": f"{prompt} a", "rejected": f"{prompt} b"})
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, " a", " b")  # type: ignore[union-attr]
