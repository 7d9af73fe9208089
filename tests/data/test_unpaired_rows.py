"""Single responses with a label: read, split from pairs, kept in the cache, batched and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tokenizers import chat_tokenizer

from localdpo.core.errors import UserError, UserErrors
from localdpo.data import store as store_module
from localdpo.data.batches import collate
from localdpo.data.encode import IDENTICAL
from localdpo.data.formats import detect
from localdpo.data.formats.pairs import NO_SHARED_PROMPT
from localdpo.data.inspect import render_marked
from localdpo.data.rows import Skipped, read_examples
from localdpo.data.sources import open_source
from localdpo.data.store import TokenStore, open_store
from localdpo.data.types import Demonstration, EncodedRow, Example, Kind, Rated

ROWS = [
    {"prompt": f"question {n}", "completion": "yes " * (n % 5 + 1), "label": n % 3 == 0} for n in range(11)
]
PAIRS = [{"prompt": f"question {n}", "chosen": "yes " * (n % 4 + 1), "rejected": "no"} for n in range(6)]
GOOD = ROWS[0]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def examples_of(
    folder: Path, *rows: dict[str, Any], kind: Kind = "unpaired"
) -> list[tuple[int, Example | Skipped]]:
    return list(read_examples(open_source(str(write(folder / "rows.jsonl", list(rows)))), kind))


def open_rows(path: Path, cache: Path, kind: Kind = "unpaired") -> TokenStore:
    return open_store(
        str(path),
        kind=kind,
        tokenizer=chat_tokenizer("chatml"),  # type: ignore[arg-type]
        template="auto",
        max_length=64,
        max_prompt_length=None,
        truncation="keep_start",
        cache_dir=cache,
    )


def test_the_rejected_half_of_a_pair_stays_cut(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "rejected_finish_reason": "length"}
    assert examples_of(tmp_path, pair) == [
        (0, Rated("q", "a", True, of_pair=True)),
        (0, Rated("q", "b", False, of_pair=True, response_ended=False)),
    ]
    assert examples_of(tmp_path, pair, kind="demonstrations") == [(0, Demonstration("q", "a"))]


@pytest.mark.parametrize(
    ("record", "rated"),
    [
        ({"prompt": "q", "completion": "a", "label": True}, Rated("q", "a", True)),
        (
            {"prompt": [user("q")], "completion": [assistant("a")], "label": False},
            Rated([user("q")], [assistant("a")], False),
        ),
        (
            {
                "prompt": "q",
                "completion": "a",
                "label": False,
                "tools": "[1]",
                "chat_template_kwargs": {"k": 1},
            },
            Rated("q", "a", False, tools=[1], template_kwargs={"k": 1}),
        ),
    ],
)
def test_rows_with_a_label(record: dict[str, Any], rated: Rated) -> None:
    assert detect(record, "unpaired", "data").read(record) == rated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "label: expected true or false, got null"),
        ({"label": 2}, "label: expected true or false, got the number 2"),
        ({"label": "yes"}, "label: expected true or false, got text"),
        ({"label": [True]}, "label: expected true or false, got a list"),
        ({"completion": 3}, "completion: expected text or a list of messages, got the number 3"),
        (
            {"completion": [user("q"), assistant("a")]},
            "completion: expected text or one assistant message, got messages of user, assistant",
        ),
        ({"prompt": []}, "prompt: expected messages, got an empty list"),
        ({"prompt": "\ud83d"}, "prompt: character 1 is half of a surrogate pair"),
    ],
)
def test_what_is_wrong_is_named_with_row_and_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserErrors) as errors:
        examples_of(tmp_path, GOOD, {**GOOD, **change}, GOOD)
    (line,) = errors.value.lines
    assert line.startswith(f"{tmp_path / 'rows.jsonl'}:2 {message}")


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    for field in GOOD:
        with pytest.raises(UserErrors, match=f":2 {field}: missing; the row has "):
            examples_of(tmp_path, GOOD, {name: value for name, value in GOOD.items() if name != field})


def test_a_pair_becomes_a_desirable_and_an_undesirable_row(tmp_path: Path) -> None:
    option = {"chat_template_kwargs": {"k": 1}}
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", **option},
        {"chosen": "x yes", "rejected": "x no"},
    ]
    first, second = examples_of(tmp_path, rows[0]), examples_of(tmp_path, rows[1])
    assert first == [
        (0, Rated("q", "a", True, template_kwargs={"k": 1}, of_pair=True)),
        (0, Rated("q", "b", False, template_kwargs={"k": 1}, of_pair=True)),
    ]
    assert second == [
        (0, Rated("x", " yes", True, of_pair=True)),
        (0, Rated("x", " no", False, of_pair=True)),
    ]


def test_a_pair_that_says_nothing_or_cannot_be_read_is_skipped_once(tmp_path: Path) -> None:
    same = {"prompt": "q", "chosen": "a", "rejected": "a"}
    assert examples_of(tmp_path, same) == [(0, Skipped(IDENTICAL))]
    assert examples_of(tmp_path, {"chosen": "yes", "rejected": "no"}) == [(0, Skipped(NO_SHARED_PROMPT))]


def test_the_wrong_kind_of_data_says_what_was_found() -> None:
    with pytest.raises(UserError, match="holds labelled completions, but this loss needs preference pairs"):
        detect(GOOD, "pairs", "f.jsonl")
    with pytest.raises(
        UserError,
        match=r"holds demonstrations, but this loss needs labelled completions .* expected the columns "
        "completion, label, prompt; or chosen, prompt, rejected; or chosen, rejected",
    ):
        detect(["prompt", "completion"], "unpaired", "f.jsonl")


@pytest.mark.parametrize("block", [4, 1000])
def test_labels_stay_with_their_rows_in_the_cache(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BLOCK_ROWS", block)
    path = write(tmp_path / "rows.jsonl", ROWS)
    for _ in range(2):  # made, then read again
        store = open_rows(path, tmp_path)
        labels = [row["label"] for row in ROWS]
        assert store.kind == "unpaired"
        assert store.desirable is not None
        assert store.desirable.tolist() == [row.desirable for row in store] == labels
        assert [row.row for row in store] == list(range(11))
        assert store.response_lengths.shape == (11, 1)
        assert (store.report.read, store.report.kept, store.report.split) == (11, 11, 0)
    as_demonstrations = open_rows(path, tmp_path, kind="demonstrations")
    assert as_demonstrations.desirable is None
    assert as_demonstrations.fingerprint != store.fingerprint


@pytest.mark.parametrize("block", [3, 1000])  # 3: the halves of a pair lie in two blocks
def test_split_pairs_are_counted_and_lie_side_by_side(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BLOCK_ROWS", block)
    rows = [*PAIRS, {**PAIRS[0], "rejected": PAIRS[0]["chosen"]}]
    store = open_rows(write(tmp_path / "pairs.jsonl", rows), tmp_path)
    paired = open_rows(write(tmp_path / "only.jsonl", PAIRS), tmp_path, kind="pairs")
    assert store.desirable is not None
    assert store.desirable.tolist() == [True, False] * 6
    assert [row.row for row in store] == [n for n in range(6) for _ in range(2)]
    for one, row in enumerate(store):
        whole = paired[one // 2]
        assert row.prompt.tolist() == whole.prompt.tolist()
        assert row.responses[0].tolist() == whole.responses[one % 2].tolist()
    assert store.report.split == 6
    assert store.report.dropped == {IDENTICAL: [6]}
    assert paired.report.split == 0


def test_a_flipped_label_in_the_file_makes_the_cache_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    store = open_rows(path, tmp_path)
    assert store.desirable is not None
    before, labels = store.path.read_bytes(), store.desirable.astype(np.uint8).tobytes()
    place = before.rindex(labels)
    store.path.write_bytes(before[:place] + bytes([1 - labels[0]]) + before[place + 1 :])
    again = open_rows(path, tmp_path)
    assert again.desirable is not None
    assert again.desirable.tolist() == store.desirable.tolist()
    assert again.path.read_bytes() == before


def test_batches_carry_the_labels(tmp_path: Path) -> None:
    store = open_rows(write(tmp_path / "rows.jsonl", ROWS), tmp_path)
    batch = collate([store[0], store[1], store[3]], 0, [0, 1, 3])
    assert batch.desirable is not None
    assert batch.desirable.tolist() == [True, False, True]
    ids = np.array([5], dtype=np.int32)
    unlabelled = EncodedRow(0, ids, (ids,))
    assert collate([unlabelled], 0, [0]).desirable is None
    with pytest.raises(ValueError, match="all of them with a label, or none"):
        collate([store[0], unlabelled], 0, [0, 1])


def test_rows_are_shown_with_their_label_and_counted(tmp_path: Path) -> None:
    store = open_rows(write(tmp_path / "rows.jsonl", ROWS), tmp_path)
    shown = [render_marked(store[n], chat_tokenizer("chatml")) for n in (0, 1)]  # type: ignore[arg-type]
    assert "\ndesirable response (" in shown[0]
    assert "\nundesirable response (" in shown[1]
    assert store.desirable is not None
    assert store.desirable.sum() == 4
    assert open_rows(tmp_path / "rows.jsonl", tmp_path, kind="demonstrations").desirable is None


def test_sft_learns_the_chosen_answers_of_pairs(tmp_path: Path) -> None:
    pairs = [*PAIRS[:2], {**PAIRS[1], "rejected": "another"}, PAIRS[2]]
    found = [example for _, example in examples_of(tmp_path, *pairs, kind="demonstrations")]
    assert found == [
        Demonstration("question 0", "yes "),
        Demonstration("question 1", "yes yes "),
        Skipped("the chosen answer is that of the pair before"),
        Demonstration("question 2", "yes yes yes "),
    ]
    store = open_rows(write(tmp_path / "rows.jsonl", PAIRS), tmp_path / "cache", "demonstrations")
    assert dict(store.report.notes) == {"pairs, of which only the chosen answers are learnt": 6}
