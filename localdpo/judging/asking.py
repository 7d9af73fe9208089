"""Gets the answer to one question, however often it takes, and writes it down. Used by several threads."""

from __future__ import annotations

import threading
import time
from typing import Final

from localdpo.judging.base import Judge, JudgeBusy, JudgeStopped, Question, Verdict
from localdpo.judging.budget import Budget
from localdpo.judging.journal import Journal
from localdpo.judging.retry import Patience

# Questions in a row that got no answer after all their tries: the server is down, not the question odd.
UNANSWERED_IN_A_ROW: Final = 3


class Asker:
    """Asks within a budget and with patience; one for all threads of a run."""

    def __init__(self, journal: Journal | None, budget: Budget, patience: Patience) -> None:
        self.journal = journal
        self.budget = budget
        self.patience = patience
        self._lock = threading.Lock()
        self._silent = 0
        # By judge: the time (monotonic) before which its server wants no question from any thread.
        self._gates: dict[int, float] = {}

    def answer(self, key: str, judge: Judge, question: Question) -> Verdict:
        """The verdict, in the journal before it is returned.

        Raises JudgeStopped, or Interrupted when the run is being stopped.
        """
        verdict = self._insist(judge, question)
        self.keep(key, judge, question, verdict)
        return verdict

    def keep(self, key: str, judge: Judge, question: Question, verdict: Verdict) -> None:
        """Write a verdict down. Raises JudgeStopped when too many in a row were never answered."""
        if self.journal is not None:
            self.journal.add(key, judge, question, verdict)
        with self._lock:
            self._silent = self._silent + 1 if verdict.status == "unanswered" else 0
            down = self._silent >= UNANSWERED_IN_A_ROW
        if down:
            raise JudgeStopped(
                f"{judge.name}: {UNANSWERED_IN_A_ROW} questions in a row got no answer ({verdict.reason}); "
                "what was answered is kept, run the same command again when that is mended"
            )

    def _insist(self, judge: Judge, question: Question) -> Verdict:
        tries = self.patience.retry.tries
        why = ""
        for attempt in range(tries):
            self._wait_at_gate(judge)
            try:
                return self._ask_once(judge, question)
            except JudgeBusy as busy:
                why = str(busy)
                wait = self.patience.delay(busy, attempt)
                if busy.after is not None:
                    self._close_gate(judge, wait)
            if attempt + 1 < tries:
                self.patience.sleep(wait, why)
        return Verdict("unanswered", reason=f"{why}, {tries} tries")

    def _ask_once(self, judge: Judge, question: Question) -> Verdict:
        """One try; what it may cost is set aside before and what it did cost is booked after."""
        worst = judge.worst_case_usd(question)
        self.budget.reserve(worst, self.patience.stop)
        cost = 0.0
        try:
            verdict = judge.ask(question)
            cost = verdict.usage.usd
        except JudgeBusy as busy:
            cost = worst if busy.billed else 0.0
            raise
        finally:
            self.budget.settle(worst, cost)
        return verdict

    def _close_gate(self, judge: Judge, seconds: float) -> None:
        with self._lock:
            until = time.monotonic() + seconds
            self._gates[id(judge)] = max(until, self._gates.get(id(judge), 0.0))

    def _wait_at_gate(self, judge: Judge) -> None:
        with self._lock:
            seconds = self._gates.get(id(judge), 0.0) - time.monotonic()
        # Also without a gate: this is where a thread sees that the run is being stopped.
        self.patience.sleep(max(0.0, seconds), f"{judge.name} asked to wait")
