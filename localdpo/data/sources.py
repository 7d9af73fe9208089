"""Opening the data of a name: a `demo:` name, a JSONL, JSON or parquet file, a folder, the hub.

A hub name is `org/name`, with an optional configuration and split: `org/name[config]:split`; the split is
`train` if none is given, and may be a slice in datasets' own words (`org/name:train[:1000]`). A folder is one
that `datasets` saved, and takes a split the same way (`folder:split`). Rows are read lazily;
no code of a data set runs.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localdpo.core.atomic import entries, sha256_of
from localdpo.core.errors import UserError
from localdpo.core.names import is_demo, resolve

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import RecordBatch, Table

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
# A name with one of these is meant as a file, so it is never looked up on the hub.
_FILE_LIKE = (*SUFFIXES, ".csv", ".tsv", ".txt", ".gz", ".zip", ".zst", ".arrow", ".yaml", ".pkl")
_NAME = re.compile(r"(?P<id>[^:\[\]]+?)(\[(?P<config>[^\[\]]+)\])?(:(?P<split>.+))?")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_READ_ROWS = 1000
_BOM = b"\xef\xbb\xbf"
# What pyarrow raises for a value without a form in Python: text that is no UTF-8, a date of the year 10,000.
_NO_FORM = (ValueError, OverflowError)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row: its number (from 0; for JSONL the line less one) and its fields, or what is wrong with it."""

    number: int
    record: Mapping[str, Any] | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RowSource:
    """Rows to be read any number of times. `digest` changes with the content, `label` names it to people."""

    label: str
    digest: str
    rows: Callable[[], Iterator[SourceRow]]


def open_source(name: str) -> RowSource:
    """Find the data of `name`. Raises UserError when there is none or it cannot be read."""
    try:
        return _find(name)
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from error


def _find(name: str) -> RowSource:
    path = resolve(name) if is_demo(name) else Path(name).expanduser()
    if path.is_file():
        return _open_file(path, name)
    if path.is_dir():
        return _open_folder(path, None, name)
    if match := _NAME.fullmatch(name):
        folder = Path(match["id"]).expanduser()
        if match["split"] and not match["config"] and folder.is_dir():
            return _open_folder(folder, match["split"], name)
        if _is_hub_id(match["id"]):
            return _open_hub(match["id"], match["config"], match["split"] or "train", name)
    raise UserError(f"{name}: no such file{_near(path)}")


def hub_id(name: str) -> str | None:
    """The id of the hub's data set that `name` stands for; None for a file, a folder or a `demo:` name."""
    if is_demo(name) or Path(name).expanduser().exists():
        return None
    match = _NAME.fullmatch(name)
    return match["id"] if match and _is_hub_id(match["id"]) else None


def _is_hub_id(text: str) -> bool:
    if not _HUB_ID.fullmatch(text) or text.startswith(".") or text.lower().endswith(_FILE_LIKE):
        return False
    return not Path(text).parent.is_dir()


def _near(path: Path) -> str:
    """A hint with the nearest names in the folder of `path`."""
    folder = path.parent
    if not folder.is_dir():
        return f"; the folder {folder} does not exist either"
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in SUFFIXES or entry.is_dir())
    except OSError as error:
        return f"; the folder {folder} cannot be read ({error.strerror})"
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(str(folder / name) for name in near)}?" if near else ""


def _convert(path: Path) -> str:
    """How a table of text becomes a file that is read; nothing for other files."""
    options = {".csv": "", ".tsv": ", sep='\\t'"}.get(path.suffix.lower())
    if options is None:
        return ""
    new = str(path.with_suffix(".jsonl"))
    return f"; in Python, datasets.Dataset.from_csv({str(path)!r}{options}).to_json({new!r}) makes one"


def _open_file(path: Path, name: str) -> RowSource:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"{name}: cannot read a {suffix or 'nameless'} file; expected {', '.join(SUFFIXES)}"
            + _convert(path)
        )
    if path.stat().st_size == 0:
        raise UserError(f"{name}: the file is empty")
    digest = sha256_of(path)
    read = {".parquet": _parquet_rows, ".json": _json_rows}.get(suffix, _json_line_rows)
    return RowSource(name, f"file:{digest}", lambda: _guarded(read(path, name), name))


def _guarded(rows: Iterator[SourceRow], name: str) -> Iterator[SourceRow]:
    try:
        yield from rows
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from error


def _json_rows(path: Path, name: str) -> Iterator[SourceRow]:
    """A .json file is one array of rows; many are JSON lines under that name."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(_BOM).lstrip()[:1]
    return _json_array_rows(path, name) if start == b"[" else _json_line_rows(path, name)


def _json_line_rows(path: Path, name: str) -> Iterator[SourceRow]:
    """One row per line; blank lines are skipped and keep their number. Memory: one line."""
    with path.open("rb") as file:
        for number, line in enumerate(file):
            content = line.removeprefix(_BOM) if number == 0 else line
            if content.strip():
                yield _parse_line(number, content)


def _json_array_rows(path: Path, name: str) -> Iterator[SourceRow]:
    """One row per element of the file's array. Memory: the file's text and one row.

    Raises UserError where the text stops being JSON: nothing after it can be parsed.
    """
    try:
        text = path.read_bytes().removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    decoder = json.JSONDecoder()
    place, number = _skip_space(text, text.index("[") + 1), 0
    while text[place : place + 1] != "]":
        try:
            value, place = decoder.raw_decode(text, place)
            place = _skip_space(text, place)
            if text[place : place + 1] == ",":
                place = _skip_space(text, place + 1)
            elif text[place : place + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}:{number + 1}: not valid JSON: {error}") from error
        yield _checked(number, value)
        number += 1


def _parse_line(number: int, content: bytes) -> SourceRow:
    try:
        return _checked(number, json.loads(content.decode("utf-8")))
    except UnicodeDecodeError as error:
        return SourceRow(number, None, f"byte {error.start + 1} is not UTF-8; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return SourceRow(number, None, f"not valid JSON at column {error.colno}: {error.msg}")
    except ValueError as error:
        return SourceRow(number, None, f"not valid JSON: {error}")
    except RecursionError:
        return SourceRow(number, None, "not usable JSON: nested too deep")


def _checked(number: int, value: Any) -> SourceRow:
    if not isinstance(value, dict):
        return SourceRow(number, None, "expected an object with named fields")
    return SourceRow(number, value)


def _skip_space(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\n", "\r", "\t"):
        place += 1
    return place


def _parquet_rows(path: Path, name: str) -> Iterator[SourceRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from _arrow_rows(file.iter_batches(batch_size=_READ_ROWS))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{name}: not a readable parquet file: {_brief(error)}") from error


def _open_folder(path: Path, split: str | None, name: str) -> RowSource:
    saved = any((path / mark).is_file() for mark in ("dataset_info.json", "dataset_dict.json", "state.json"))
    if not saved:
        files = sorted(entry.name for entry in entries(path) if entry.suffix in SUFFIXES)
        hint = f"name one of its files ({', '.join(files[:8])})" if files else "it holds no data file"
        raise UserError(f"{name}: a folder that `datasets` did not save; {hint}")
    from datasets import DatasetDict, load_from_disk
    from datasets.exceptions import DatasetsError

    try:
        loaded = load_from_disk(str(path))
    except (DatasetsError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{name}: `datasets` cannot load this folder: {error}") from error
    if isinstance(loaded, DatasetDict):
        wanted = split or "train"
        if wanted not in loaded:
            raise UserError(f"{name}: no split {wanted!r}; it has {', '.join(loaded)}")
        loaded = loaded[wanted]
    elif split is not None:
        raise UserError(f"{name}: this folder has no splits; remove :{split}")
    digest = hashlib.sha256()
    for file in (entry for entry in entries(path, "**/*") if entry.is_file()):
        digest.update(f"{file.relative_to(path)}\0{sha256_of(file)}\n".encode())
    return RowSource(name, f"folder:{digest.hexdigest()}:{split}", lambda: _dataset_rows(loaded))


def _open_hub(repository: str, config: str | None, split: str, name: str) -> RowSource:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        dataset = load_dataset(repository, config, split=split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        switches = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
        switch = next((each for each in switches if os.environ.get(each, "0") not in ("", "0")), None)
        hint = "check the name and the network, or give a local file"
        if switch is not None:
            hint = f"{switch} is set, so only data sets in the cache are there; unset it to download"
        raise UserError(f"{name}: cannot load this from the hub ({_brief(error)}); {hint}") from error
    return RowSource(name, f"hub:{dataset._fingerprint}", lambda: _dataset_rows(dataset))


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _dataset_rows(dataset: Dataset) -> Iterator[SourceRow]:
    return _arrow_rows(dataset.with_format("arrow").iter(batch_size=_READ_ROWS))


def _arrow_rows(tables: Iterable[RecordBatch | Table]) -> Iterator[SourceRow]:
    """The rows of Arrow tables; one with a value that Python cannot hold says so."""
    start = 0
    for table in tables:
        try:
            records = table.to_pylist()
        except _NO_FORM:
            yield from (_arrow_row(table, index, start) for index in range(table.num_rows))
        else:
            yield from (SourceRow(start + index, record) for index, record in enumerate(records))
        start += table.num_rows


def _arrow_row(table: RecordBatch | Table, index: int, start: int) -> SourceRow:
    try:
        return SourceRow(start + index, table.slice(index, 1).to_pylist()[0])
    except UnicodeDecodeError as error:
        return SourceRow(start + index, None, f"byte {error.start + 1} of a text is not UTF-8")
    except _NO_FORM as error:
        return SourceRow(start + index, None, f"a value cannot be read: {_brief(error)}")
