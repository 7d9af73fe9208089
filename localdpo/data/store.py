"""Tokenised data on disk: one Arrow file per (data, tokenizer, template, limits), and several as a mixture.

Rows are tokenised once and written in blocks of 1,000; a run reads them in place, so a large data set is
never held in Python objects. The file is written under a temporary name and renamed when complete. After what
Arrow wrote comes a CRC-32 over the store's key and every byte before, so that a file that is damaged, or of
another store, is not even parsed: it is rebuilt.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from localdpo.core.atomic import clean_leftovers, free_bytes, out_of_space, published_file
from localdpo.core.errors import UserError
from localdpo.core.process import give_back_freed
from localdpo.core.text import counted
from localdpo.data.encode import ENCODER_VERSION, Encoded, Encoder, Limits, plain_backend
from localdpo.data.fields import FINISH_REASON
from localdpo.data.parallel import Block, encode_blocks
from localdpo.data.rows import ReadingNotes, Skipped, describe_dropped, read_examples
from localdpo.data.sources import open_source
from localdpo.data.types import (
    EncodedRow,
    EncodeReport,
    Example,
    Kind,
    Rated,
    TemplateChoice,
    Tokenizer,
    Truncation,
)

BLOCK_ROWS = 1000
# Fewer are encoded at once: until they are written, ids are Python's integers.
ENCODED_ROWS = 250
STORE_VERSION = 5
_META = b"localdpo"
_CHECKSUM_BYTES = 4
_CHUNK_BYTES = 2**24
REASONING_LOST = "the chat template leaves the reasoning out of the answers"
CUT_REJECTED = "the rejected answer was cut, and no end of it is learnt"
_RESPONSES: dict[Kind, tuple[str, ...]] = {
    "pairs": ("r0", "r1"),
    "demonstrations": ("r0",),
    "unpaired": ("r0",),
}
_KEY, _LABEL = "prompt_key", "desirable"
_IDS: Final = pa.list_(pa.field("item", pa.int32(), nullable=False))

Progress = Callable[[int], object]
"""Called with the number of rows read so far."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Views into one record batch: row numbers, keys of the prompts, (offsets, values) of prompt and each
    response, labels."""

    rows: NDArray[np.int64]
    keys: NDArray[np.int64]
    lists: tuple[tuple[NDArray[np.int32], NDArray[np.int32]], ...]
    labels: NDArray[np.uint8] | None


class TokenStore(Sequence[EncodedRow]):
    """The encoded rows of one source, read in place from a mapped file.

    fingerprint       hash over content, tokenizer, template, truncation, limits and kind; another one where
                      answers that were cut have no end, since they once had one
    prompt_lengths    int32[N] tokens; response_lengths int32[N, K] tokens
    desirable         bool[N] labels of unpaired rows, else None
    prompt_keys       int64[N] equal for equal prompts, whatever was cut off them
    report            what was read, kept, dropped and why
    """

    def __init__(
        self, path: Path, fingerprint: str, kind: Kind, report: EncodeReport, blocks: list[_Block]
    ) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.kind = kind
        self.report = report
        self._blocks = blocks
        lengths = [np.stack([np.diff(offsets) for offsets, _ in block.lists], axis=1) for block in blocks]
        table = np.concatenate(lengths).astype(np.int32)
        self.prompt_lengths: NDArray[np.int32] = table[:, 0]
        self.response_lengths: NDArray[np.int32] = table[:, 1:]
        self.prompt_keys: NDArray[np.int64] = np.concatenate([block.keys for block in blocks])
        labels = [block.labels for block in blocks if block.labels is not None]
        self.desirable: NDArray[np.bool_] | None = np.concatenate(labels).astype(bool) if labels else None

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def __getitem__(self, index: Any) -> Any:
        """The row at `index` (a list of them for a slice). The arrays are read-only views."""
        indices = range(len(self))[index]
        return self._row(indices) if isinstance(indices, int) else [self._row(i) for i in indices]

    def prompts(self) -> Iterator[NDArray[np.int32]]:
        """The prompt of each row, as a view: in a fifth of the time that rows take."""
        for block in self._blocks:
            offsets, values = block.lists[0]
            for start, stop in itertools.pairwise(offsets.tolist()):
                yield values[start:stop]

    def _row(self, index: int) -> EncodedRow:
        number, place = divmod(index, BLOCK_ROWS)
        block = self._blocks[number]
        prompt, *responses = (values[offsets[place] : offsets[place + 1]] for offsets, values in block.lists)
        label = None if block.labels is None else bool(block.labels[place])
        return EncodedRow(int(block.rows[place]), prompt, tuple(responses), label, int(block.keys[place]))


def open_store(
    source: str,
    *,
    kind: Kind,
    tokenizer: Tokenizer,
    template: TemplateChoice,
    max_length: int,
    max_prompt_length: int | None,
    truncation: Truncation,
    end_ids: Collection[int] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    limit: int | None = None,
    format_name: str | None = None,
    cache_dir: Path,
    progress: Progress | None = None,
) -> TokenStore:
    """The token store of `source`: from the cache if this content was encoded this way before, else made now.

    `end_ids`, `template_kwargs`: see Renderer.

    Raises UserError or UserErrors for data that is missing, empty, of the wrong kind or broken, and when no
    row is left to train on.
    """
    data = open_source(source)
    limits = Limits(max_length, max_prompt_length, truncation)
    encoder = Encoder(tokenizer, template, limits, end_ids=end_ids, template_kwargs=template_kwargs)
    chat = encoder.renderer.chat
    used = {"ends": sorted(set(end_ids or ())), "template_kwargs": encoder.renderer.template_kwargs}
    options = {"chat": chat, **used, "kind": kind, "limit": limit, "format": format_name, **asdict(limits)}
    key = _fingerprint(data.digest, tokenizer, options)
    path = cache_dir / "tokens" / f"{key}.arrow"
    store = _read_store(path, key, kind)
    if store is None:
        notes = ReadingNotes()
        rows = read_examples(data, kind, limit, format_name, notes)
        _build(path, key, rows, notes, data.label, kind, encoder, progress)
        store = _read_store(path, key, kind)
    if store is None:
        raise UserError(f"{path}: the token cache cannot be read back; check the disk, or set LOCALDPO_CACHE")
    return store


def _fingerprint(content: str, tokenizer: Tokenizer, options: dict[str, Any]) -> str:
    backend = plain_backend(tokenizer)
    vocabulary = f"{type(tokenizer).__name__} {json.dumps(tokenizer.get_vocab(), sort_keys=True)}"
    digest = hashlib.sha256()
    for part in (
        f"{STORE_VERSION} {ENCODER_VERSION}",
        content,
        vocabulary if backend is None else str(backend.to_str()),
        json.dumps(tokenizer.chat_template, sort_keys=True),
        json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
        json.dumps(options, sort_keys=True),
    ):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:40]


def _of_cut(key: str) -> str:
    """The fingerprint of a store with answers that were cut: other ids, so other reference scores too."""
    return hashlib.sha256(f"{key} {FINISH_REASON}".encode()).hexdigest()[:40]


# --- writing -------------------------------------------------------------------------------------------


def _build(
    path: Path,
    key: str,
    rows: Iterator[tuple[int, Example | Skipped]],
    notes: ReadingNotes,
    label: str,
    kind: Kind,
    encoder: Encoder,
    progress: Progress | None,
) -> None:
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clean_leftovers(path.parent, shared=True)
        # Reading a tokenizer of 250,000 tokens leaves 100 MB and more.
        give_back_freed()
        with published_file(path) as file:
            writer = _Writer(file, kind)
            blocks = writer.usable(rows)
            with contextlib.closing(encode_blocks(encoder, blocks)) as results:
                for encoded in results:
                    writer.add(encoded)
                    written = file.tell()
                    if progress is not None:
                        progress(writer.read)
            if not writer.kept:
                reasons = describe_dropped(writer.dropped)
                raise UserError(f"{label}: no row is left to train on: {reasons}")
            if writer.reasoning_lost == writer.kept:
                share = f"({writer.lost / max(1, writer.whole):.0%} of their text)"
                raise UserError(
                    f"{label}: {REASONING_LOST} in all {counted(writer.kept, 'row')} {share}; "
                    "use a template that keeps it, or data without it"
                )
            writer.close(notes)
            file.seek(0)
            fingerprint = _of_cut(key) if writer.cut else key
            file.write(_checksum(iter(partial(file.read, _CHUNK_BYTES), b""), fingerprint))
    except OSError as error:
        raise _disk_error(path, written, error) from error


class _Writer:
    """Writes encoded rows in blocks; the report goes into the last."""

    def __init__(self, file: Any, kind: Kind) -> None:
        self.read = self.kept = self.truncated = self.merged = self.halves = self.cut = 0
        self.reasoning_lost = self.lost = self.whole = 0
        self.notes: Counter[str] = Counter()
        self.dropped: dict[str, list[int]] = {}
        self._pending: list[EncodedRow] = []
        self._kind = kind
        names = ("prompt", *_RESPONSES[kind])
        lists = [pa.field(name, _IDS, nullable=False) for name in names]
        # Bytes and not Arrow's booleans, which are packed bits and no array to be read in place.
        labels = [pa.field(_LABEL, pa.uint8(), nullable=False)] if kind == "unpaired" else []
        numbers = [pa.field(name, pa.int64(), nullable=False) for name in ("row", _KEY)]
        self._schema = pa.schema([*numbers, *lists, *labels])
        self._writer = pa.ipc.new_file(file, self._schema)

    def usable(self, rows: Iterator[tuple[int, Example | Skipped]]) -> Iterator[Block]:
        """The rows in blocks, without those that were skipped."""
        while examples := list(itertools.islice(rows, ENCODED_ROWS)):
            usable: Block = []
            for row, example in examples:
                if isinstance(example, Skipped):
                    self.dropped.setdefault(example.reason, []).append(row)
                else:
                    usable.append((row, example))
            self.read += len(examples)
            self.halves += sum(isinstance(example, Rated) and example.of_pair for _, example in examples)
            self.cut += sum(not all(example.ended) for _, example in usable)
            yield usable

    def add(self, encoded: Encoded) -> None:
        """Take what came of a block."""
        for reason, rows in encoded.dropped.items():
            self.dropped.setdefault(reason, []).extend(rows)
        self.kept += len(encoded.rows)
        self.truncated += encoded.truncated
        self.merged += len(encoded.merged_rows)
        self.notes.update({note: len(rows) for note, rows in encoded.notes.items()})
        self.reasoning_lost += len(encoded.reasoning_lost)
        self.lost += encoded.lost
        self.whole += encoded.whole
        self._pending += encoded.rows
        while len(self._pending) >= BLOCK_ROWS:
            self._write(self._pending[:BLOCK_ROWS])
            del self._pending[:BLOCK_ROWS]

    def close(self, notes: ReadingNotes) -> None:
        if self._pending:
            self._write(self._pending)
        lost = {f"{REASONING_LOST} ({self.lost / max(1, self.whole):.0%} of their text)": self.reasoning_lost}
        cut = {CUT_REJECTED: self.cut}
        report = EncodeReport(
            self.read,
            self.kept,
            self.dropped,
            self.truncated,
            self.merged,
            self.halves // 2,
            dict(notes.unread),
            {note: count for note, count in (notes.counts() | cut | self.notes | lost).items() if count},
        )
        meta = {"report": asdict(report)}
        # An empty last block can carry what is known only at the end; the schema's metadata is written first.
        empty = self._batch([])
        self._writer.write_batch(empty, custom_metadata={_META: json.dumps(meta).encode()})
        self._writer.close()

    def _write(self, rows: list[EncodedRow]) -> None:
        self._writer.write_batch(self._batch(rows))

    def _batch(self, rows: list[EncodedRow]) -> pa.RecordBatch:
        lists = [[row.prompt for row in rows]]
        lists += [[row.responses[k] for row in rows] for k in range(len(_RESPONSES[self._kind]))]
        columns = [_array([getattr(row, name) for row in rows], np.int64) for name in ("row", _KEY)]
        for ids in lists:
            offsets = _array(np.cumsum([0, *map(len, ids)]), np.int32)
            values = _array(np.concatenate([np.empty(0, np.int32), *ids]), np.int32)
            columns.append(pa.ListArray.from_arrays(offsets, values, type=_IDS))
        if self._kind == "unpaired":
            columns.append(_array([row.desirable for row in rows], np.uint8))
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


def _array(values: Sequence[Any] | NDArray[Any], dtype: DTypeLike) -> pa.Array:
    """An Arrow array over the values; `pa.array` imports pandas, which takes half a second."""
    numbers = np.asarray(values, dtype)
    kind = pa.from_numpy_dtype(numbers.dtype)
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _disk_error(path: Path, written: int, error: OSError) -> UserError:
    if out_of_space(error):
        return UserError(
            f"{path.parent}: no space left on the disk for the token cache: {written:,} bytes written and "
            f"more needed, {free_bytes(path):,} free; make room, or set LOCALDPO_CACHE to another disk"
        )
    return UserError(
        f"{path.parent}: the token cache cannot be written ({error.strerror or error}); "
        "set LOCALDPO_CACHE to a folder that can"
    )


# --- reading -------------------------------------------------------------------------------------------


def _read_store(path: Path, key: str, kind: Kind) -> TokenStore | None:
    """The store in `path`; None if it is missing, incomplete, or older than the reading of FINISH_REASON."""
    try:
        fingerprint = next((name for name in (key, _of_cut(key)) if _is_whole(path, name)), None)
        if fingerprint is None:
            return None
        mapped = pa.memory_map(str(path)).read_buffer()
    except OSError:
        return None
    reader = pa.ipc.open_file(mapped.slice(0, mapped.size - _CHECKSUM_BYTES))
    count = reader.num_record_batches - 1
    blocks = [_block(reader.get_batch(i)) for i in range(count)]
    _, custom = reader.get_batch_with_custom_metadata(count)
    report = EncodeReport(**json.loads(custom[_META])["report"])
    # Every format of pairs reads it.
    if FINISH_REASON in report.unread and (kind == "pairs" or report.split):
        return None
    return TokenStore(path, fingerprint, kind, report, blocks)


def _is_whole(path: Path, fingerprint: str) -> bool:
    """Whether a store ends with the checksum of this fingerprint."""
    # Read and not mapped: pages of a mapped file that were touched count as this process's memory.
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) - _CHECKSUM_BYTES
        file.seek(0)
        chunks = (file.read(min(_CHUNK_BYTES, size - start)) for start in range(0, size, _CHUNK_BYTES))
        return _checksum(chunks, fingerprint) == file.read()


def _checksum(chunks: Iterable[bytes], key: str) -> bytes:
    """CRC-32 over a store's key and its file; about 1 GB/s, so a gigabyte costs a second at the start."""
    checksum = zlib.crc32(key.encode())
    for chunk in chunks:
        checksum = zlib.crc32(chunk, checksum)
    return checksum.to_bytes(_CHECKSUM_BYTES)


def _view(array: pa.Array) -> NDArray[Any]:
    """A NumPy view of an Arrow array; `to_numpy` imports pandas."""
    return np.from_dlpack(array)


def _block(batch: pa.RecordBatch) -> _Block:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    rows, keys, labels = columns.pop("row"), columns.pop(_KEY), columns.pop(_LABEL, None)
    lists = tuple((_view(column.offsets), _view(column.values)) for column in columns.values())
    marks = None if labels is None else _view(labels)
    return _Block(_view(rows), _view(keys), lists, marks)


# --- several stores as one --------------------------------------------------------------------------------


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The arrays one after another; of a single one itself, since a large store's take memory."""
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


@dataclass(frozen=True, slots=True)
class MixturePart:
    """A store, what the recipe calls its data set, and how often an epoch passes over its rows."""

    store: TokenStore
    source: str
    weight: float = 1.0


class Mixture(Sequence[EncodedRow]):
    """The rows of one or more stores of one kind; a mixture of one store is as good as that store.

    parts, weights    the stores with their names, and float[P]
    bounds            int64[P + 1]: the rows of part p are bounds[p] to bounds[p + 1]
    fingerprint       hash over the stores' own and their order
    kind, prompt_lengths, response_lengths, desirable, prompt_keys   as of a TokenStore
    """

    def __init__(self, parts: Sequence[MixturePart]) -> None:
        if not parts or len({part.store.kind for part in parts}) != 1:
            raise ValueError("a mixture needs stores, all of one kind")
        stores = [part.store for part in parts]
        self.parts = tuple(parts)
        self.weights = tuple(part.weight for part in parts)
        self.bounds = np.cumsum([0, *(len(store) for store in stores)])
        self.kind: Kind = stores[0].kind
        self.fingerprint = stores[0].fingerprint
        if len(stores) > 1:
            joined = "\n".join(store.fingerprint for store in stores)
            self.fingerprint = hashlib.sha256(joined.encode()).hexdigest()[:40]
        self.prompt_lengths: NDArray[np.int32] = _joined([store.prompt_lengths for store in stores])
        self.response_lengths: NDArray[np.int32] = _joined([store.response_lengths for store in stores])
        self.prompt_keys: NDArray[np.int64] = _joined([store.prompt_keys for store in stores])
        labels = [store.desirable for store in stores if store.desirable is not None]
        self.desirable: NDArray[np.bool_] | None = _joined(labels) if labels else None

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def __getitem__(self, index: Any) -> Any:
        """The row at `index` (a list of them for a slice), as its store has it."""
        indices = range(len(self))[index]
        return self._row(indices) if isinstance(indices, int) else [self._row(i) for i in indices]

    def _row(self, index: int) -> EncodedRow:
        number = self.part_of(index)
        row: EncodedRow = self.parts[number].store[index - int(self.bounds[number])]
        return row

    def prompts(self) -> Iterator[NDArray[np.int32]]:
        """The prompt of each row, as a view."""
        return itertools.chain.from_iterable(part.store.prompts() for part in self.parts)

    def part_of(self, index: int) -> int:
        """The number of the part that the row at `index` is of."""
        return int(np.searchsorted(self.bounds, index, side="right")) - 1

    def source_of(self, index: int) -> str:
        """What the recipe calls the data set that the row at `index` is of."""
        return self.parts[self.part_of(index)].source

    @property
    def source(self) -> str:
        """What the recipe calls them all."""
        return ", ".join(part.source for part in self.parts)

    @property
    def report(self) -> EncodeReport:
        """The sum of the stores' reports. Row numbers in `dropped` are those in their own data sets."""
        reports = [part.store.report for part in self.parts]
        dropped: dict[str, list[int]] = {}
        unread: Counter[str] = Counter()
        notes: Counter[str] = Counter()
        for report in reports:
            for reason, rows in report.dropped.items():
                dropped.setdefault(reason, []).extend(rows)
            unread.update(report.unread)
            notes.update(report.notes)
        sums = {
            name: sum(getattr(report, name) for report in reports)
            for name in ("read", "kept", "truncated", "merged", "split")
        }
        return EncodeReport(dropped=dropped, unread=dict(unread), notes=dict(notes), **sums)

    def name_rows(self, indices: NDArray[np.int64]) -> str:
        """Rows in words, counted from 1 in their own data sets: `rows 3, 7 of a.jsonl and 12 of b.jsonl`."""
        numbers: dict[str, list[int]] = {}
        for index in np.unique(indices).tolist():
            numbers.setdefault(self.source_of(index), []).append(self[index].row + 1)
        named = [f"{', '.join(map(str, rows))} of {source}" for source, rows in numbers.items()]
        return f"row{'s' if len(indices) > 1 else ''} {' and '.join(named)}"


def require_different(option: str, parts: Sequence[MixturePart]) -> None:
    """Raise UserError where two parts are the same rows cut the same way: a weight says that."""
    first: dict[str, str] = {}
    for part in parts:
        earlier = first.get(part.store.fingerprint)
        if earlier is not None:
            raise UserError(
                f"{option}: {part.source} has the same rows as {earlier}; remove one, "
                "and give the other a weight of 2 to take every row twice"
            )
        first[part.store.fingerprint] = part.source
