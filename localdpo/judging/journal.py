"""The verdict journal: every verdict is on the disk before it is used, so that nothing is asked twice.

Verdicts that are not "ok" are written too, for people and for the sum of the cost, but never given back: a
later run asks those questions again. For the file see records/verdicts.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from localdpo.judging.base import Judge, Question
from localdpo.records.log import LogWriter
from localdpo.records.verdicts import Verdict, VerdictRecord, VerdictTail, encode_verdict


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


class Journal(LogWriter):
    """One journal file, made when it is missing. Its methods may be called from several threads.

    `sync=False` leaves out the flush of each line, for judges whose verdicts cost nothing.
    Raises UserError when the disk is full.
    """

    def __init__(self, path: str | Path, sync: bool = True) -> None:
        super().__init__(path, durable=sync)
        self._verdicts = {
            record.key: record.verdict for record in VerdictTail(path).poll() if record.verdict.status == "ok"
        }

    def get(self, key: str) -> Verdict | None:
        """The verdict under `key` if there is one that says something (status "ok")."""
        return self._verdicts.get(key)

    def add(self, key: str, judge: Judge, question: Question, verdict: Verdict) -> None:
        """Write one verdict; it is on the disk when this returns. One that was never given is not written."""
        if verdict.status == "unanswered":
            return
        self.append(
            encode_verdict(
                VerdictRecord(
                    key,
                    verdict,
                    judge.name,
                    judge.identity,
                    question.id,
                    question.prompt,
                    question.answers,
                )
            )
        )
        if verdict.status == "ok":
            self._verdicts[key] = verdict
