"""Where rows come from, and what is said when they do not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from localdpo.core.errors import UserError
from localdpo.data import sources
from localdpo.data.sources import open_source

ROWS = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(5)]


def records(name: str | Path) -> list[Any]:
    return [row.record for row in open_source(str(name)).rows()]


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    import datasets

    lines = "\n".join(json.dumps(row) for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "c.json").write_text(lines)
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n\r\n").encode())
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "e.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "f"))
    splits = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "valid": datasets.Dataset.from_list(ROWS[:2])}
    )
    splits.save_to_disk(str(tmp_path / "g"))
    for name in ("a.jsonl", "b.json", "c.json", "d.jsonl", "e.parquet", "f", "g", "g:train"):
        assert records(tmp_path / name) == ROWS, name
    assert records(tmp_path / "g:valid") == ROWS[:2]


def test_rows_can_be_read_again_and_the_digest_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROWS[0]))
    first = open_source(str(path))
    assert list(first.rows()) == list(first.rows())
    assert open_source(str(path)).digest == first.digest
    path.write_text(json.dumps(ROWS[1]))
    assert open_source(str(path)).digest != first.digest


def test_jsonl_is_read_a_line_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "first"}\n\n' + b'{"text": "\xff"}\n' + b"{" * 5000 + b"\n" + b"[" * 90_000 + b"\n"
    )
    rows = open_source(str(path)).rows()
    assert next(rows).record == {"text": "first"}
    assert [(row.number, row.problem) for row in rows] == [
        (2, "byte 11 is not UTF-8; save the file as UTF-8"),
        (3, "not valid JSON at column 2: Expecting property name enclosed in double quotes"),
        (4, "not usable JSON: nested too deep"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}, {"a": ]', ":2: not valid JSON"),
        (b'[{"a": 1} {"a": 2}]', ":1: not valid JSON: Expecting ','"),
        (b'[{"a": 1}', ":1: not valid JSON"),
        (b'[{"a": "\xff"}]', "byte 9 is not UTF-8"),
        (b"[" * 90_000, ":1: not valid JSON"),
        (b"", "the file is empty"),
    ],
)
def test_broken_json_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        records(path)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"trian.jsonl: no such file; did you mean .*train.jsonl\?"):
        open_source(str(tmp_path / "trian.jsonl"))
    with pytest.raises(UserError, match="nowhere does not exist either"):
        open_source(str(tmp_path / "nowhere" / "x.jsonl"))
    with pytest.raises(UserError, match=r"data/x\.jsonl: no such file"):
        open_source("data/x.jsonl")


# Some releases of `datasets` leave the table to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("suffix", "between"), [(".csv", ","), (".TSV", "\t")])
def test_a_table_of_text_is_refused_with_the_line_that_converts_it(
    tmp_path: Path, suffix: str, between: str
) -> None:
    import datasets

    table = tmp_path / f"a{suffix}"
    table.write_text(f'prompt{between}chosen\nq{between}"a{between} b"\n')
    with pytest.raises(UserError, match="cannot read a") as refused:
        open_source(str(table))
    line = re.search(r"in Python, (.*) makes one$", str(refused.value))
    assert line is not None
    eval(line[1], {"datasets": datasets})
    assert records(tmp_path / "a.jsonl") == [{"prompt": "q", "chosen": f"a{between} b"}]


def test_files_and_folders_that_are_no_data(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "a.txt").write_text("prompt")
    with pytest.raises(UserError, match=r"cannot read a \.txt file; expected \.jsonl.*parquet$"):
        open_source(str(tmp_path / "a.txt"))
    (tmp_path / "b.parquet").write_text("no parquet at all")
    with pytest.raises(UserError, match="not a readable parquet file"):
        records(tmp_path / "b.parquet")
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(
        UserError, match=r"a folder that `datasets` did not save; name one of its files .*train\.jsonl"
    ):
        open_source(str(tmp_path))
    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(saved))
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        open_source(f"{saved}:test")
    (saved / "train" / "state.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load this folder"):
        open_source(str(saved))


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
        open_source("x" * 4000)


def test_demo_names_go_through_the_table_of_names() -> None:
    with pytest.raises(UserError, match="no such demo name"):
        open_source("demo:nothing")


# --- the hub -------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `datasets` was asked for; it answers with ROWS, and with its own error for org/missing."""
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load_dataset(repository: str, config: str | None, *, split: str) -> Any:
        asked.append((repository, config, split))
        if repository == "org/missing":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/missing' doesn't exist\non the Hub")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", ("org/name", None, "train")),
        ("org/name:test_prefs", ("org/name", None, "test_prefs")),
        ("org/name[config]:test", ("org/name", "config", "test")),
        ("org/na.me-2:train[:1000]", ("org/na.me-2", None, "train[:1000]")),
        ("org/name[config]:train[10%:20%]", ("org/name", "config", "train[10%:20%]")),
    ],
)
def test_hub_names(hub: list[tuple[Any, ...]], name: str, expected: tuple[Any, ...]) -> None:
    assert records(name) == ROWS
    assert hub == [expected]
    assert open_source(name).digest == open_source(name).digest


def test_a_hub_set_that_cannot_be_had_is_one_line_with_a_hint(
    hub: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    with pytest.raises(
        UserError, match=r"org/missing: cannot load .*on the Hub.*; check the name and the network"
    ) as error:
        open_source("org/missing")
    assert len(error.value.lines) == 1
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        open_source("org/missing")


def test_what_looks_like_a_file_is_never_looked_up_on_the_hub(
    hub: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("data/train", "org/train.jsonl", "train", "./org/name", "/org/name", "a/b/c", "org/x.csv"):
        with pytest.raises(UserError, match="no such file"):
            open_source(name)
    assert hub == []


def test_rows_of_a_data_set_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(sources, "_READ_ROWS", 2)
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "f"))
    rows = open_source(str(tmp_path / "f")).rows()
    assert [row.number for row in rows] == [0, 1, 2, 3, 4]
