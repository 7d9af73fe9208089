"""Claude asked in Message Batches: half the price, answers within a day instead of seconds.

Batches that were sent are noted in `batches.json` beside the journal, before and after sending, so that a
killed client picks its batch up again and pays once. A batch whose id was not noted (killed in between) is
looked for among the server's latest ones. Results come in any order; each finds its question by `custom_id`,
which is the journal's key.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel

from localdpo.core import atomic
from localdpo.core.errors import UserError
from localdpo.core.text import json_or_none
from localdpo.judging.anthropic import AnthropicJudge
from localdpo.judging.base import JudgeBusy, JudgeStopped, Question
from localdpo.judging.remote import server_text
from localdpo.judging.run import Patience
from localdpo.records.log import seal, unseal
from localdpo.records.verdicts import Verdict

LEDGER: Final = "batches.json"
# The service takes 100,000 requests and 256 MB a batch; smaller ones lose less when one expires.
_MOST_REQUESTS: Final = 10_000
_MOST_BYTES: Final = 100_000_000
_CLOCKS_DIFFER: Final = 120.0  # seconds
_FIRST_POLL: Final = 10.0
_LONGEST_POLL: Final = 300.0


class SentBatch(BaseModel):
    """A batch in the ledger. `id` is None between "about to send" and "sent"."""

    time: float
    keys: list[str]
    id: str | None = None


class _LedgerFile(BaseModel):
    v: Literal[1]
    batches: list[SentBatch]


class BatchLedger:
    """The batches whose results were not all taken yet, in a file that is replaced at every change.

    Raises UserError for a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = _LedgerFile.model_validate_json(unseal(path.read_bytes()))
        except FileNotFoundError:
            self._file = _LedgerFile(v=1, batches=[])
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: damaged, so batches in progress are not known; put back a copy, or delete it: "
                "what was asked in them is then asked and paid again"
            ) from error
        self.batches = self._file.batches

    def save(self) -> None:
        """Write it; on the disk when this returns."""
        atomic.write_bytes(self.path, seal(self._file.model_dump_json(indent=1)))

    def add(self, batch: SentBatch) -> None:
        """Note a batch that is about to be sent."""
        self.batches.append(batch)
        self.save()

    def remove(self, batch: SentBatch) -> None:
        """Forget a batch: its results were taken, or it was never sent."""
        self.batches.remove(batch)
        self.save()


class AnthropicBatchJudge(AnthropicJudge):
    """AnthropicJudge, asked everything at once. `poll`: seconds before the second look at a batch."""

    batch = True
    poll = _FIRST_POLL

    def ask(self, question: Question) -> Verdict:
        """Not this way: raises ValueError."""
        raise ValueError(f"{self.name} is asked in batches, with ask_all")

    def ask_all(
        self,
        questions: Mapping[str, Question],
        folder: Path,
        answered: Callable[[str, Verdict], None],
        patience: Patience,
    ) -> None:
        """See BatchJudge. A question whose request failed or expired is answered "unanswered".

        Raises JudgeStopped also when all requests of a batch failed.
        """
        ledger = BatchLedger(folder / LEDGER)
        rest = dict(questions)
        for batch in [sent for sent in ledger.batches if rest.keys() & set(sent.keys)]:
            if batch.id is None:  # an earlier run was about to send it
                batch.id = patience.insist(partial(self._look_for, batch, ledger))
                ledger.save()
            if batch.id is not None:
                self._take(batch, ledger, rest, answered, patience)
            ledger.remove(batch)
        for batch in [self._send(keys, rest, ledger, patience) for keys in self._chunks(rest)]:
            failed = self._take(batch, ledger, rest, answered, patience)
            ledger.remove(batch)
            if len(failed) == len(batch.keys):
                raise JudgeStopped(f"{self.name}: the whole batch failed: {failed[batch.keys[0]].reason}")
            for key, verdict in failed.items():
                answered(key, verdict)

    # --- sending -------------------------------------------------------------------------------------

    def _send(
        self, keys: list[str], questions: Mapping[str, Question], ledger: BatchLedger, patience: Patience
    ) -> SentBatch:
        batch = SentBatch(time=time.time(), keys=keys)
        # The package types requests as TypedDicts; these are plain dictionaries of the same form.
        requests: Any = [{"custom_id": key, "params": self.payload(questions[key])} for key in keys]
        ledger.add(batch)
        unsure = False

        def create() -> str:
            nonlocal unsure
            sent = self._look_for(batch, ledger) if unsure else None
            if sent is not None:
                return sent
            try:
                record = self._record(
                    lambda client: client.messages.batches.with_raw_response.create(requests=requests)
                )
            except JudgeBusy as busy:
                unsure = unsure or busy.billed
                raise
            return str(record["id"])

        batch.id = patience.insist(create)
        ledger.save()
        return batch

    def _look_for(self, batch: SentBatch, ledger: BatchLedger) -> str | None:
        """The id of a batch on the server that could be this one: as many requests, and not older.

        If it is another client's, its results have none of our keys, and every question is sent again.
        """
        record = self._record(lambda client: client.messages.batches.with_raw_response.list(limit=100))
        noted = {other.id for other in ledger.batches}
        for entry in record.get("data") or ():
            counts, created = entry.get("request_counts") or {}, _unix_time(entry.get("created_at"))
            same_size = sum(count for count in counts.values() if isinstance(count, int)) == len(batch.keys)
            if entry.get("id") not in noted and same_size and created >= batch.time - _CLOCKS_DIFFER:
                return str(entry["id"])
        return None

    def _chunks(self, questions: Mapping[str, Question]) -> Iterator[list[str]]:
        chunk: list[str] = []
        size = 0
        for key, question in questions.items():
            length = len(json.dumps(self.payload(question)))
            if chunk and (len(chunk) >= _MOST_REQUESTS or size + length > _MOST_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append(key)
            size += length
        if chunk:
            yield chunk

    # --- receiving -----------------------------------------------------------------------------------

    def _take(
        self,
        batch: SentBatch,
        ledger: BatchLedger,
        rest: dict[str, Question],
        answered: Callable[[str, Verdict], None],
        patience: Patience,
    ) -> dict[str, Verdict]:
        """Wait for one batch and hand its answers on; what is answered leaves `rest`.

        Returns the others of its questions, each with a verdict "unanswered" that says why.
        """
        url = self._wait_for(batch, ledger, patience)
        results = patience.insist(lambda: self._results(url)) if url is not None else {}
        failed = {}
        for key in batch.keys:
            verdict = results.get(key, Verdict("unanswered", reason=f"no result in batch {batch.id}"))
            if verdict.status == "unanswered":
                failed[key] = verdict
            elif rest.pop(key, None) is not None:
                answered(key, verdict)
        return failed

    def _wait_for(self, batch: SentBatch, ledger: BatchLedger, patience: Patience) -> str | None:
        """The address of the results once the batch has ended; None when the server keeps none any more."""
        name = str(batch.id)
        hints = {404: f"if batch {name} is gone for good, delete {ledger.path}"}
        pause = self.poll
        while True:
            record = patience.insist(
                lambda: self._record(
                    lambda client: client.messages.batches.with_raw_response.retrieve(name), hints
                )
            )
            if record.get("processing_status") == "ended":
                url = record.get("results_url")
                return self._same_origin(url) if url is not None else None
            left = (record.get("request_counts") or {}).get("processing", "?")
            patience.sleep(pause, f"batch {name}: {left} of {len(batch.keys)} in work")
            pause = min(pause * 1.5, _LONGEST_POLL)

    def _same_origin(self, url: object) -> str:
        """`url` if it is on the server that the batch was sent to; another one would be sent the key."""
        base = str(self.client().base_url)
        try:
            same = isinstance(url, str) and _origin(url) == _origin(base)
        except ValueError:
            same = False
        if not same:
            shown = server_text(str(url), 100)
            raise JudgeStopped(f"{self.name}: the results are said to be at {shown}, not on {base}; refused")
        return str(url)

    def _results(self, url: str) -> dict[str, Verdict]:
        """The verdicts of a batch by custom_id. Raises JudgeBusy when the download was cut."""
        # The package's results() would ask for the address once more, and trust it.
        options: Any = {"headers": {"Accept": "application/binary", "X-Stainless-Raw-Response": "raw"}}
        body = self.call(lambda client: client.get(url, cast_to=object, options=options))
        if isinstance(body, Verdict):
            raise JudgeStopped(body.reason)
        try:
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            raise JudgeBusy(f"{self.name}: the results of the batch came incomplete") from None
        records = [line for line in lines if isinstance(line, dict)]
        return {str(record.get("custom_id")): self._result(record.get("result")) for record in records}

    def _result(self, result: Any) -> Verdict:
        kind = result.get("type") if isinstance(result, dict) else None
        if kind == "succeeded":
            verdict = self.verdict_of(result.get("message"))
            return verdict or Verdict("unparseable", raw=json.dumps(result)[:1000])
        error = result.get("error") if kind == "errored" else None
        words = server_text(json.dumps(error)) if error is not None else ""
        return Verdict("unanswered", reason=f"the request was {kind} {words}".strip())

    def _record(self, send: Callable[[Any], Any], hints: Mapping[int, str] | None = None) -> dict[str, Any]:
        """The JSON object that the server answers. Raises JudgeStopped and JudgeBusy."""
        body = self.call(send, hints)
        if isinstance(body, Verdict):
            raise JudgeStopped(body.reason)
        record = json_or_none(body)
        if not isinstance(record, dict) or not ("id" in record or isinstance(record.get("data"), list)):
            raise self.unreadable(body, "batch")
        return record


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address with a password")
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


def _unix_time(text: object) -> float:
    """Seconds of an RFC 3339 time; 0 for anything else."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
