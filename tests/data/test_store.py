"""The token cache: made once, mapped, keyed by all that changes its content, never read torn."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import chat_tokenizer, plain_tokenizer

from localdpo.core import atomic
from localdpo.core.errors import UserError, UserErrors
from localdpo.data import rows as rows_module
from localdpo.data import store as store_module
from localdpo.data.batches import collate
from localdpo.data.encode import IDENTICAL, Encoder, Limits
from localdpo.data.formats import pairs as pairs_module
from localdpo.data.inspect import render_marked, statistics
from localdpo.data.rows import read_examples
from localdpo.data.sources import open_source
from localdpo.data.store import TokenStore, open_store
from localdpo.data.types import EncodedRow, EncodeReport

pytestmark = pytest.mark.slow

REAL_PAIRS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "alpaca_eval_pairs.jsonl"
PAIRS = [{"prompt": f"question {i}", "chosen": "yes " * (i % 7 + 1), "rejected": "no"} for i in range(25)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def open_pairs(path: Path | str, cache: Path, **changes: Any) -> TokenStore:
    options: dict[str, Any] = {
        "kind": "pairs",
        "tokenizer": chat_tokenizer("chatml"),
        "template": "auto",
        "max_length": 64,
        "max_prompt_length": None,
        "truncation": "keep_start",
    }
    return open_store(str(path), cache_dir=cache, **{**options, **changes})


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", PAIRS)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were built, as opposed to read from the cache."""
    made: list[Path] = []
    build = store_module._build

    def counted(path: Path, *rest: Any) -> None:
        made.append(path)
        build(path, *rest)

    monkeypatch.setattr(store_module, "_build", counted)
    return made


def test_a_store_holds_what_the_encoder_gives(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BLOCK_ROWS", 4)
    monkeypatch.setattr(store_module, "ENCODED_ROWS", 4)
    seen: list[int] = []
    store = open_pairs(pairs, tmp_path, progress=seen.append)
    examples = list(read_examples(open_source(str(pairs)), "pairs"))
    expected = Encoder(chat_tokenizer("chatml"), "auto", Limits(64)).encode(examples).rows  # type: ignore[arg-type]
    assert len(store) == len(expected) == 25
    for row, wanted in zip(store, expected, strict=True):
        assert row.row == wanted.row
        assert row.prompt.tolist() == wanted.prompt.tolist()
        assert [ids.tolist() for ids in row.responses] == [ids.tolist() for ids in wanted.responses]
    assert store.prompt_lengths.tolist() == [len(row.prompt) for row in expected]
    assert store.response_lengths.tolist() == [[len(ids) for ids in row.responses] for row in expected]
    assert store.prompt_lengths.dtype == store.response_lengths.dtype == np.int32
    assert [prompt.tolist() for prompt in store.prompts()] == [row.prompt.tolist() for row in store]
    assert store[-1].row == 24
    assert [row.row for row in store[3:6]] == [3, 4, 5]
    with pytest.raises(IndexError):
        store[25]
    assert seen == [4, 8, 12, 16, 20, 24, 25]
    assert collate(store[:3], 0, [0, 1, 2]).response.shape[0] == 6


def test_rows_are_views_into_the_mapped_file(pairs: Path, tmp_path: Path) -> None:
    store = open_pairs(pairs, tmp_path)
    row = store[0]
    assert not row.prompt.flags.owndata
    assert not row.prompt.flags.writeable
    assert np.shares_memory(row.prompt, store[0].prompt)
    held = [value for value in vars(store).values() if isinstance(value, list)]
    assert [len(value) for value in held] == [1]
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert str(store.path) in mapped.read_text()


def test_a_second_opening_reads_the_cache(pairs: Path, tmp_path: Path, builds: list[Path]) -> None:
    first, second = open_pairs(pairs, tmp_path), open_pairs(pairs, tmp_path)
    assert len(builds) == 1
    assert first.fingerprint == second.fingerprint
    assert first.report == second.report == EncodeReport(read=25, kept=25)
    copy = write(tmp_path / "copy.jsonl", PAIRS)
    assert open_pairs(copy, tmp_path).fingerprint == first.fingerprint
    assert len(builds) == 1


def test_whatever_changes_the_tokens_makes_a_new_cache(
    pairs: Path, tmp_path: Path, builds: list[Path]
) -> None:
    plain, other = chat_tokenizer("chatml"), chat_tokenizer("qwen3")
    rewritten = plain_tokenizer()
    rewritten.chat_template = plain.chat_template
    changed = plain_tokenizer()
    changed.chat_template = plain.chat_template.replace("assistant", "helper")
    changed.eos_token = "</s>"
    variants: list[dict[str, Any]] = [
        {},
        {"tokenizer": other},
        {"tokenizer": rewritten},
        {"tokenizer": changed},
        {"template": "raw"},
        {"max_length": 63},
        {"max_prompt_length": 20},
        {"truncation": "keep_end"},
        {"limit": 10},
    ]
    prints = [open_pairs(pairs, tmp_path, **variant).fingerprint for variant in variants]
    prints.append(open_pairs(write(pairs, PAIRS[1:]), tmp_path).fingerprint)
    assert len(set(prints)) == len(prints) == len(builds)
    assert open_pairs(pairs, tmp_path, template="chat").fingerprint == prints[-1]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_a_damaged_cache_is_made_again(pairs: Path, tmp_path: Path, builds: list[Path], damage: str) -> None:
    store = open_pairs(pairs, tmp_path)
    expected = [row.prompt.tolist() for row in store]
    content = bytearray(store.path.read_bytes())
    place = content.index(store[3].prompt.tobytes())
    del store
    if damage == "flipped":
        content[place] ^= 1
    damaged = {"truncated": content[: len(content) // 2], "empty": b"", "other": b"ARROW1 no"}.get(
        damage, content
    )
    path = builds[0]
    path.unlink()
    path.write_bytes(damaged)
    again = open_pairs(pairs, tmp_path)
    assert [row.prompt.tolist() for row in again] == expected
    assert len(builds) == 2


def test_every_damaged_byte_is_found_before_the_file_is_parsed(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schema, row arrays, report and footer alike; cuts, additions, and the file of another store."""
    store = open_pairs(pairs, tmp_path)
    path, key = store.path, store.fingerprint
    other = open_pairs(pairs, tmp_path, max_length=60).path.read_bytes()
    content = path.read_bytes()
    del store

    def refused(damaged: bytes) -> bool:
        path.unlink()  # it is mapped by who read it before
        path.write_bytes(damaged)
        return store_module._read_store(path, key, "pairs") is None

    monkeypatch.setattr(atomic, "fsync_fd", lambda fd: None)
    assert not refused(content)
    with monkeypatch.context() as patch:
        patch.setattr(store_module.pa.ipc, "open_file", lambda *_: pytest.fail("a damaged file was parsed"))
        for place in range(0, len(content), 7):
            assert refused(
                content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :]
            )
        assert all(refused(content[:size]) for size in (*range(12), *range(12, len(content), 97)))
        assert all(refused(damaged) for damaged in (content + b"\0", b"\0" * 4, b"\0" * 64, other))
    assert not refused(content)


def test_a_build_that_dies_leaves_nothing(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            open_pairs(pairs, cache)
    assert list((cache / "tokens").iterdir()) == []
    assert len(open_pairs(pairs, cache)) == 25


def test_what_killed_builds_left_is_taken_away(pairs: Path, tmp_path: Path) -> None:
    path = open_pairs(pairs, tmp_path).path
    path.unlink()
    old, young = (path.with_name(f".{path.name}.tmp-{name}") for name in ("0" * 12, "1" * 12))
    for temp in (old, young):
        temp.write_text("half")
    os.utime(old, (0, 0))
    open_pairs(pairs, tmp_path)
    assert sorted(path.parent.iterdir()) == sorted([path, young])


CUT = {"prompt": "q", "chosen": "yes", "rejected": "the answer is the", "rejected_finish_reason": "length"}


@pytest.mark.parametrize("kind", ["pairs", "unpaired"])
def test_a_cache_from_before_cut_answers_were_known_is_not_used(
    kind: str, tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "cut.jsonl", [*PAIRS, CUT])
    with monkeypatch.context() as patch:
        # As the reader was: a column that nobody reads, and every answer ends.
        patch.setattr(pairs_module, "FINISH_REASON", "unknown")
        patch.setattr(store_module, "FINISH_REASON", "unknown")
        patch.setattr(
            rows_module, "_unread", lambda record, adapter: [*({"rejected_finish_reason"} & record.keys())]
        )
        old = open_pairs(path, tmp_path, kind=kind)
        assert old.report.unread == {"rejected_finish_reason": 1}
        assert old[-1].responses[-1][-1] == chat_tokenizer("chatml").eos_token_id
    for _ in range(2):
        new = open_pairs(path, tmp_path, kind=kind)
        assert new[-1].responses[-1].tolist() == chat_tokenizer("chatml").encode(CUT["rejected"])
        # The cached scores of the reference are of other ids.
        assert new.fingerprint != old.fingerprint
        assert new.report.notes == {store_module.CUT_REJECTED: 1}
        assert not new.report.unread
    assert builds == [old.path, old.path]


def test_caches_of_other_rows_stay(tmp_path: Path, builds: list[Path]) -> None:
    ended = [{**PAIRS[0], "rejected_finish_reason": reason} for reason in ("stop", None)]
    chosen = {"prompt": "q", "completion": "a", "label": True, "rejected_finish_reason": "length"}
    for kind, row in (
        ("pairs", ended[0]),
        ("pairs", ended[1]),
        ("unpaired", chosen),
        ("demonstrations", CUT),
    ):
        path = write(tmp_path / "rows.jsonl", [row])
        stores = [open_pairs(path, tmp_path, kind=kind) for _ in range(2)]
        assert stores[0].fingerprint == stores[0].path.stem
        assert store_module.CUT_REJECTED not in stores[0].report.notes
    assert len(builds) == 4


def test_dropped_and_skipped_rows_are_in_the_report(tmp_path: Path) -> None:
    same = {"prompt": "q", "chosen": "a", "rejected": "a"}
    rows = [same, PAIRS[0], same, PAIRS[1]]
    store = open_pairs(write(tmp_path / "pairs.jsonl", rows), tmp_path)
    assert store.report == EncodeReport(read=4, kept=2, dropped={IDENTICAL: [0, 2]})
    assert store.report.dropped_total == 2
    assert [row.row for row in store] == [1, 3]


def test_no_row_left_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    same = write(tmp_path / "same.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "a"}] * 4)
    with pytest.raises(
        UserError, match=r"no row is left .*: both responses are the same \(4 rows: 1, 2, 3, \.\.\.\)"
    ):
        open_pairs(same, tmp_path)
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="no rows; expected at least one"):
        open_pairs(tmp_path / "blank.jsonl", tmp_path)
    with pytest.raises(UserErrors, match="rejected: missing"):
        open_pairs(write(tmp_path / "bad.jsonl", [PAIRS[0], {"prompt": "q", "chosen": "a"}]), tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_demonstrations_have_one_response(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"prompt": "q", "response": "a"}, {"prompt": "r", "response": "b"}])
    store = open_pairs(path, tmp_path, kind="demonstrations")
    assert store.kind == "demonstrations"
    assert store.response_lengths.shape == (2, 1)
    assert [len(row.responses) for row in store] == [1, 1]


def test_limit_takes_the_first_rows(pairs: Path, tmp_path: Path) -> None:
    assert [row.row for row in open_pairs(pairs, tmp_path, limit=3)] == [0, 1, 2]


@given(data=st.data(), suffix=st.sampled_from([".jsonl", ".json"]))
def test_a_file_with_damaged_bytes_is_refused_or_read(data: st.DataObject, suffix: str) -> None:
    rows = json.dumps(PAIRS[:4]) if suffix == ".json" else "\n".join(map(json.dumps, PAIRS[:4]))
    content = bytearray(rows.encode())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"data{suffix}"
        path.write_bytes(content)
        with contextlib.suppress(UserError, UserErrors):
            store = open_pairs(path, Path(folder))
            assert len(store) + store.report.dropped_total == store.report.read


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_folder_that_cannot_be_written(pairs: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(UserError, match="set LOCALDPO_CACHE"):
        open_pairs(pairs, locked)


def test_a_cache_folder_that_is_a_file(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the token cache cannot be written .*set LOCALDPO_CACHE"):
        open_pairs(pairs, tmp_path / "file")


def test_a_full_disk_is_said_in_one_line(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "fsync_fd", full)
    with pytest.raises(UserError, match="no space left on the disk"):
        open_pairs(pairs, tmp_path / "cache")
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


# --- what a dry run shows ------------------------------------------------------------------------------


def test_marked_text_shows_prompt_and_every_scored_token(tmp_path: Path) -> None:
    rows = [{"prompt": "what?", "chosen": "é 漢字\nyes", "rejected": "no"}]
    tokenizer = chat_tokenizer("chatml")
    row = open_pairs(write(tmp_path / "p.jsonl", rows), tmp_path)[0]
    text = render_marked(row, tokenizer)
    assert "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n" in text
    assert f"chosen ({len(row.responses[0])} tokens, all scored):\n▸" in text
    assert "\ufffd" not in text
    marked = text.partition("all scored):\n")[2].partition("◂")[0]
    assert marked.replace("▸", "").replace("⏎\n", "\n") == "é 漢字\nyes<|im_end|>"
    assert text.rstrip().endswith("▸<|im_end|>◂")


def test_marked_text_of_a_demonstration_and_of_bytes_that_are_no_text() -> None:
    tokenizer = plain_tokenizer()
    half = tokenizer("漢")["input_ids"][:1]
    text = render_marked(EncodedRow(0, np.array([5], np.int32), (np.array(half, np.int32),)), tokenizer)
    assert "response (1 token, all scored):\n▸\ufffd◂" in text


def test_statistics(tmp_path: Path) -> None:
    same = {"prompt": "q", "chosen": "a", "rejected": "a"}
    path = write(tmp_path / "p.jsonl", [*PAIRS, same])
    cut = int(open_pairs(path, tmp_path).prompt_lengths.max()) + 4
    store = open_pairs(path, tmp_path, max_length=cut)
    figures = statistics(store)
    whole = store.prompt_lengths + store.response_lengths.max(axis=1)
    assert (store.report.read, len(store), len(store.report.dropped[IDENTICAL])) == (26, 25, 1)
    assert figures["prompt"].mean == pytest.approx(store.prompt_lengths.mean())
    assert figures["chosen"].median == np.median(store.response_lengths[:, 0])
    assert figures["row"].max == whole.max() == cut
    assert figures["row"].p95 == pytest.approx(np.percentile(whole, 95))
    assert store.report.truncated > 0


@pytest.mark.skipif(
    not REAL_PAIRS.exists(), reason="the shared file of real pairs is not beside the repository"
)
@pytest.mark.parametrize("shape", ["llama3", "stripped"])
@pytest.mark.every(2)
def test_real_pairs(tmp_path: Path, shape: str) -> None:
    tokenizer = chat_tokenizer(shape)
    limits: dict[str, Any] = {"max_length": 1024, "max_prompt_length": 512, "limit": 60}
    store = open_pairs(REAL_PAIRS, tmp_path, tokenizer=tokenizer, **limits)
    lines = REAL_PAIRS.read_text().splitlines()[:60]
    assert store.report.read == len(lines)
    assert len(store) + store.report.dropped_total == len(lines)
    longest = store.prompt_lengths + store.response_lengths.max(axis=1)
    assert longest.max() <= 1024
    assert store.response_lengths.min() >= 1
    eos = tokenizer.eos_token_id
    for row in store:
        record, cut = json.loads(lines[row.row]), len(row.prompt) + max(map(len, row.responses)) == 1024
        assert row.responses[0].tolist() != row.responses[1].tolist()
        for ids, answer in zip(row.responses, (record["chosen"], record["rejected"]), strict=True):
            assert cut or (ids[-1] == eos and (ids == eos).sum() == 1)
            assert cut or tokenizer.decode(ids.tolist()) == answer.strip() + tokenizer.eos_token
