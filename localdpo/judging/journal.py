"""The verdict journal: every verdict on the disk before it is used, so that nothing is asked twice.

A JSON line for each verdict, only ever appended to, one os.write and one flush a line:

    {"v":1,"time":1700000000.0,"key":"<sha256>","judge":"anthropic claude-...","identity":{...},
     "question":{"id":"12","prompt":"...","answers":["...","..."]},
     "verdict":{"status":"ok","choice":"first","score":null,"reason":"...","principle":null,
                "usage":{"input_tokens":812,"output_tokens":95,"cached_tokens":0,"usd":0.005},"raw":"..."}}

Verdicts that are not "ok" are written too, for people and for the sum of the cost, but never given back: a
later run asks those questions again. A torn last line, left by a kill, is ended and passed over. Each line
ends with its checksum, see `seal`; a damaged one is passed over too, and its question asked again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from localdpo.core.atomic import fsync_dir, fsync_fd, no_space_error, out_of_space
from localdpo.core.seal import seal, unseal
from localdpo.judging.base import CHOICES, STATUSES, Judge, Question, Usage, Verdict

FORMAT_VERSION: Final = 1
_UNANSWERED: Final = "unanswered"


def key_of(identity: Mapping[str, str], question: Question) -> str:
    """The sha256 (64 hexadecimal digits) of all that a verdict depends on.

    That is the judge's identity (model, rubric, schema, ...), the prompt, the answers in the order they are
    asked in, and the facts. The question's id is not part of it: the same text has the same verdict.
    """
    content = {
        "identity": dict(identity),
        "prompt": question.prompt,
        "answers": list(question.answers),
        "facts": dict(question.facts),
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Journal:
    """One journal file, made when it is missing. Its methods may be called from several threads.

    `sync=False` leaves out the flush of each line, for judges whose verdicts cost nothing.
    Raises UserError when the disk is full.
    """

    def __init__(self, path: str | Path, sync: bool = True) -> None:
        self.path = Path(path)
        self.bad_lines = 0
        self._sync = sync
        self._lock = threading.Lock()
        self._verdicts: dict[str, Verdict] = {}
        new = not self.path.exists()
        self._fd: int | None = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        if new:
            fsync_dir(self.path.parent)
        self._torn = self._ends_torn()
        self._read()

    def get(self, key: str) -> Verdict | None:
        """The verdict under `key` if there is one that says something (status "ok")."""
        return self._verdicts.get(key)

    def add(self, key: str, judge: Judge, question: Question, verdict: Verdict) -> None:
        """Write one verdict; it is on the disk when this returns. One that was never given is left out."""
        if verdict.status == _UNANSWERED:
            return
        record = {
            "v": FORMAT_VERSION,
            "time": round(time.time(), 3),
            "key": key,
            "judge": judge.name,
            "identity": dict(judge.identity),
            "question": {"id": question.id, "prompt": question.prompt, "answers": list(question.answers)},
            "verdict": asdict(verdict),
        }
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        with self._lock:
            self._append(seal(text))
            if verdict.status == "ok":
                self._verdicts[key] = verdict

    def close(self) -> None:
        """Close the file; adding afterwards is a ValueError."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ends_torn(self) -> bool:
        assert self._fd is not None
        size = os.fstat(self._fd).st_size
        return size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def _append(self, line: bytes) -> None:
        if self._fd is None:
            raise ValueError(f"{self.path}: this journal is closed")
        data = b"\n" + line if self._torn else line
        try:
            written = os.write(self._fd, data)
            if self._sync:
                fsync_fd(self._fd)
        except OSError as error:
            if out_of_space(error):
                raise no_space_error(self.path, len(data)) from error
            raise
        self._torn = written < len(data)
        if self._torn:
            raise no_space_error(self.path, len(data) - written)

    def _read(self) -> None:
        with self.path.open("rb") as file:
            for line in file:
                if not line.strip():
                    continue
                entry = decode_line(line)
                if entry is None:
                    self.bad_lines += 1
                elif entry[1].status == "ok":
                    self._verdicts[entry[0]] = entry[1]


def damaged_lines(path: Path) -> list[str]:
    """A line for a person about each damaged line of a journal; empty when there is no journal."""
    if not path.is_file():
        return []
    return [
        f"{path}:{number}: a damaged verdict was left out; its question is asked again"
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1)
        if line.strip() and decode_line(line) is None
    ]


def decode_line(line: bytes) -> tuple[str, Verdict] | None:
    """Key and verdict of one line, or None when it is torn, damaged or of another version."""
    try:
        record = json.loads(unseal(line))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("v") != FORMAT_VERSION:
        return None
    key, verdict = record.get("key"), _verdict(record.get("verdict"))
    if not isinstance(key, str) or verdict is None:
        return None
    return key, verdict


def _verdict(record: Any) -> Verdict | None:
    """The verdict of a line. Nothing in it is believed that a judge could not have said."""
    if not isinstance(record, dict) or not isinstance(record.get("usage"), dict):
        return None
    status, choice, score = record.get("status"), record.get("choice"), record.get("score")
    if status not in STATUSES or (choice is not None and choice not in CHOICES):
        return None
    if score is not None and not (_is_number(score) and 1 <= score <= 5):
        return None
    if (status == "ok") != ((choice is None) != (score is None)):
        return None
    reason, raw, principle = (record.get(name) for name in ("reason", "raw", "principle"))
    usage = _usage(record["usage"])
    if not (isinstance(reason, str) and isinstance(raw, str)) or usage is None:
        return None
    if principle is not None and not isinstance(principle, str):
        return None
    return Verdict(status, choice, score, reason, principle, usage, raw)


def _usage(record: dict[str, Any]) -> Usage | None:
    names = {"input_tokens", "output_tokens", "cached_tokens", "usd"}
    if record.keys() != names or not all(_is_number(value) and value >= 0 for value in record.values()):
        return None
    return Usage(**record)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
