"""Ask a judge many questions: in order, several at a time, from the journal where it knows, within a budget.

A verdict is in the journal, on the disk, before anything else happens. Whatever ends the run (a kill, Ctrl-C,
a wrong key, the budget), the next run asks only what the journal lacks. Verdicts come back in the order of
the questions, so a table does not depend on how many were asked at a time.
"""

from __future__ import annotations

import hashlib
import json
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar, runtime_checkable

from localdpo.core.text import format_seconds
from localdpo.judging.base import (
    Interrupted,
    Judge,
    JudgeBusy,
    JudgeStopped,
    PairVerdict,
    Question,
    both_orders,
    collect,
)
from localdpo.judging.cost import Budget
from localdpo.records.log import LogWriter
from localdpo.records.verdicts import Verdict, VerdictRecord, VerdictTail, encode_verdict

T = TypeVar("T")
OnVerdict = Callable[[Question, Verdict], None]
OnWait = Callable[[float, str], None]
# After Ctrl-C, for verdicts that are about to arrive: they are paid for.
GRACE_SECONDS: Final = 1.0
# Questions in a row that got no answer after all their tries: the server is down, not the question odd.
UNANSWERED_IN_A_ROW: Final = 3


@dataclass(frozen=True, slots=True)
class Retry:
    """How often one question is asked and how long is waited in between.

    Attributes:
        tries: how often a question is asked at most.
        first: seconds before the second try; doubled for each further one.
        most: seconds that a wait of our own choosing lasts at most.
        cap: seconds that a server may make us wait; beyond that the run stops and can be resumed later.
    """

    tries: int = 8
    first: float = 1.0
    most: float = 60.0
    cap: float = 300.0


class Patience:
    """The retry loop, and waits that end when `stop` is set and are reported to `on_wait` (seconds,
    why)."""

    def __init__(self, retry: Retry, stop: threading.Event, on_wait: OnWait | None = None) -> None:
        self.retry = retry
        self.stop = stop
        self.on_wait = on_wait

    def sleep(self, seconds: float, why: str) -> None:
        """Wait; raises Interrupted when the run is being stopped meanwhile."""
        if self.on_wait is not None and seconds > 0:
            self.on_wait(seconds, why)
        if self.stop.wait(seconds):
            raise Interrupted(why)

    def insist(self, call: Callable[[], T]) -> T:
        """What `call` returns; after JudgeBusy it is called again, `tries` times at most.

        Raises JudgeBusy when that was not enough, and JudgeStopped when the server asks for too long a wait.
        """
        why = ""
        for attempt in range(self.retry.tries):
            try:
                return call()
            except JudgeBusy as busy:
                why, wait = str(busy), self.delay(busy, attempt)
            if attempt + 1 < self.retry.tries:
                self.sleep(wait, why)
        raise JudgeBusy(f"{why}, {self.retry.tries} tries")

    def delay(self, busy: JudgeBusy, attempt: int) -> float:
        """Seconds to wait: what the server asked for, or 1, 2, 4 ... times `first`, spread at random.

        The spread keeps sixteen threads from coming back in the same instant. Raises JudgeStopped when the
        server asks for more than `cap`.
        """
        if busy.after is None:
            return min(self.retry.most, self.retry.first * 2.0**attempt) * random.uniform(0.5, 1.0)
        if busy.after > self.retry.cap:
            raise JudgeStopped(
                f"{busy}: the server asks to wait {format_seconds(busy.after)}, longer than "
                f"{format_seconds(self.retry.cap)}; what was answered is kept, run the command again then"
            )
        return busy.after * random.uniform(1.0, 1.05)


@runtime_checkable
class BatchJudge(Protocol):
    """A judge that is asked everything at once and answers later, in any order."""

    def ask_all(
        self,
        questions: Mapping[str, Question],
        folder: Path,
        answered: Callable[[str, Verdict], None],
        patience: Patience,
    ) -> None:
        """Ask `questions` (by key) and call `answered` with the key of each as its verdict comes.

        What has to be known to resume after a kill is kept in `folder`. Raises JudgeStopped and JudgeBusy.
        """
        ...


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

    `sync=False` leaves out the flush of each line, for judges whose verdicts cost nothing. `exclusive`: see
    LogWriter; two processes that ask the same questions would pay twice.
    Raises UserError when the disk is full.
    """

    def __init__(self, path: str | Path, sync: bool = True, exclusive: bool = False) -> None:
        super().__init__(path, durable=sync, exclusive=exclusive)
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
        asked = question.id, question.prompt, question.answers
        self.append(encode_verdict(VerdictRecord(key, verdict, judge.name, judge.identity, *asked)))
        if verdict.status == "ok":
            self._verdicts[key] = verdict


class Preview(NamedTuple):
    """What a run would do: questions to ask, answers the journal has, the most it can cost.

    `worst_usd` is infinity when a price is not known. A question to a jury counts once for each member.
    """

    questions: int
    cached: int
    worst_usd: float


def preview(judge: Judge, questions: Sequence[Question], journal: Journal | None = None) -> Preview:
    """Look at what a JudgeSession would ask, without asking anything."""
    tasks = _plan(judge, questions)[0].values()
    missing = [task for task in tasks if journal is None or journal.get(task.key) is None]
    worst = sum(task.judge.worst_case_usd(task.question) for task in missing)
    return Preview(len(missing), len(tasks) - len(missing), worst)


@dataclass(frozen=True)
class JudgeSession:
    """How all questions of a command are asked.

    Attributes:
        journal: where verdicts are kept; without one nothing is.
        budget: one for the whole command; without it there is no limit.
        retry: how long to insist when a server is busy.
        concurrency: questions at a time, at most `judge.concurrency`, which is also the default. A judge that
            is asked one at a time is asked in the calling thread.
        on_verdict: called in the calling thread as each question's verdict is known.
        on_wait: called with seconds and reason before each wait, from any thread.
    """

    journal: Journal | None = None
    budget: Budget | None = None
    retry: Retry | None = None
    concurrency: int | None = None
    on_verdict: OnVerdict | None = None
    on_wait: OnWait | None = None

    def ask(self, judge: Judge, questions: Sequence[Question]) -> list[Verdict]:
        """One verdict for each question, in their order; from the journal where it has one.

        Raises JudgeStopped (what was answered is kept; ask again to resume), and KeyboardInterrupt at once,
        or after GRACE_SECONDS where questions are in flight in threads.
        """
        run = _Run(self, judge, questions)
        for task in run.tasks.values():
            known = None if self.journal is None else self.journal.get(task.key)
            if known is not None:
                run.accept(task, known)
        run.ask_missing()
        return [run.results[index] for index in range(len(questions))]

    def ask_pairs(self, judge: Judge, pairs: Sequence[Question]) -> list[PairVerdict]:
        """The verdict on every pair, asked in both orders."""
        return collect(pairs, self.ask(judge, both_orders(pairs)))


@dataclass
class _Task:
    """One question to one judge, and the questions of the caller that wait for it."""

    key: str
    judge: Judge
    question: Question
    waiting: list[int] = field(default_factory=list)


def _plan(judge: Judge, questions: Sequence[Question]) -> tuple[dict[str, _Task], list[list[str]]]:
    """The different things to ask by key, and for each question the keys of its verdicts in order."""
    tasks: dict[str, _Task] = {}
    keys: list[list[str]] = []
    for index, question in enumerate(questions):
        keys.append([])
        for leaf in judge.leaves(question):
            key = key_of(leaf.identity, question)
            tasks.setdefault(key, _Task(key, leaf, question)).waiting.append(index)
            keys[index].append(key)
    return tasks, keys


class _Run:
    """One call of `JudgeSession.ask`. Its methods run in the calling thread, but for `work` and `answer`."""

    def __init__(self, session: JudgeSession, judge: Judge, questions: Sequence[Question]) -> None:
        self.session = session
        self.judge = judge
        self.questions = questions
        self.budget = session.budget or Budget()
        self.patience = Patience(session.retry or Retry(), threading.Event(), session.on_wait)
        self.tasks, self.keys = _plan(judge, questions)
        self.known: dict[str, Verdict] = {}
        self.missing = [len(set(keys)) for keys in self.keys]
        self.results: dict[int, Verdict] = {}
        # What the threads bring: a task with its verdict, what went wrong, or None from one that ended.
        self.arrived: queue.SimpleQueue[tuple[_Task, Verdict] | BaseException | None] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.unanswered_in_a_row = 0
        # By judge: the time (monotonic) before which its server wants no question from any thread.
        self.gates: dict[int, float] = {}

    def accept(self, task: _Task, verdict: Verdict) -> None:
        """Take one verdict, and finish the questions that have all theirs now."""
        self.known[task.key] = verdict
        for index in dict.fromkeys(task.waiting):
            self.missing[index] -= 1
            if self.missing[index]:
                continue
            question = self.questions[index]
            parts = iter([self.known[key] for key in self.keys[index]])
            self.results[index] = self.judge.assemble(question, parts)
            if self.session.on_verdict is not None:
                self.session.on_verdict(question, self.results[index])

    def ask_missing(self) -> None:
        """Ask the judges that take several questions at a time first, then the others in this thread."""
        groups: dict[int, list[_Task]] = {}
        for task in self.tasks.values():
            if task.key not in self.known:
                groups.setdefault(id(task.judge), []).append(task)
        threads: list[threading.Thread] = []
        here: list[list[_Task]] = []
        for tasks in groups.values():
            judge = tasks[0].judge
            workers = min(self.session.concurrency or judge.concurrency, judge.concurrency, len(tasks))
            if workers > 1 and not isinstance(judge, BatchJudge):
                waiting = deque(tasks)
                # Daemons: after Ctrl-C nothing waits for a request that hangs.
                threads += [
                    threading.Thread(target=self.work, args=(waiting,), daemon=True) for _ in range(workers)
                ]
            else:
                here.append(tasks)
        self.collect(threads)
        # All questions to one local model before the next is loaded: two may not fit in memory together.
        models = dict.fromkeys(tasks[0].judge.local_model for tasks in here)
        loads = sum(model is not None for model in models)
        for model in models:
            judges = [tasks for tasks in here if tasks[0].judge.local_model == model]
            for tasks in judges:
                self.ask_here(tasks)
            if loads > 1:
                judges[0][0].judge.rest()

    def ask_here(self, tasks: Sequence[_Task]) -> None:
        """Ask one judge in this thread."""
        judge = tasks[0].judge
        if isinstance(judge, BatchJudge):
            self.ask_batch(judge, {task.key: task for task in tasks})
        else:
            for task in tasks:
                self.accept(task, self.answer(task))

    def work(self, waiting: deque[_Task]) -> None:
        """A thread: takes questions until there are none, or until the run is being stopped."""
        try:
            while not self.patience.stop.is_set():
                try:
                    task = waiting.popleft()
                except IndexError:
                    break
                self.arrived.put((task, self.answer(task)))
        except Interrupted:
            pass
        except BaseException as error:
            # Whatever it is, it is raised again in the calling thread.
            self.patience.stop.set()
            self.arrived.put(error)
        finally:
            self.arrived.put(None)

    def collect(self, threads: list[threading.Thread]) -> None:
        """Run the threads and take what they bring. After an error those in flight still finish."""
        failure: BaseException | None = None
        try:
            for thread in threads:
                thread.start()
            running = len(threads)
            while running:
                item = self.arrived.get()
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    failure = failure or item
                else:
                    self.accept(*item)
        except BaseException:
            # Ctrl-C, or on_verdict raised. What arrives in a moment still reaches the journal.
            self.patience.stop.set()
            until = time.monotonic() + GRACE_SECONDS
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, until - time.monotonic()))
            raise
        if failure is not None:
            raise failure

    def answer(self, task: _Task) -> Verdict:
        """The verdict on one question, however many tries it takes; in the journal before it is returned.

        Raises JudgeStopped, also when too many in a row were never answered, and Interrupted.
        """
        judge = task.judge
        try:
            verdict = self.patience.insist(lambda: self.ask_once(judge, task.question))
        except JudgeBusy as busy:
            verdict = Verdict("unanswered", reason=str(busy))
        if self.session.journal is not None:
            self.session.journal.add(task.key, judge, task.question, verdict)
        with self.lock:
            self.unanswered_in_a_row = self.unanswered_in_a_row + 1 if verdict.status == "unanswered" else 0
            down = self.unanswered_in_a_row >= UNANSWERED_IN_A_ROW
        if down:
            raise JudgeStopped(
                f"{judge.name}: {UNANSWERED_IN_A_ROW} questions in a row got no answer ({verdict.reason}); "
                "what was answered is kept, run the same command again when that is mended"
            )
        return verdict

    def ask_once(self, judge: Judge, question: Question) -> Verdict:
        """One try; what it may cost is set aside before, and what it did cost is booked after."""
        with self.lock:
            wait = self.gates.get(id(judge), 0.0) - time.monotonic()
        # Also without a gate: this is where a thread sees that the run is being stopped.
        self.patience.sleep(max(0.0, wait), f"{judge.name} asked to wait")
        worst = judge.worst_case_usd(question)
        self.budget.reserve(worst, self.patience.stop)
        cost, lost = 0.0, False
        try:
            verdict = judge.ask(question)
            cost = verdict.usage.usd
        except JudgeBusy as busy:
            lost = busy.billed
            cost = worst if lost else 0.0
            if busy.after is not None:
                with self.lock:
                    until = time.monotonic() + busy.after
                    self.gates[id(judge)] = max(until, self.gates.get(id(judge), 0.0))
            raise
        finally:
            self.budget.settle(worst, cost, lost)
        return verdict

    def ask_batch(self, judge: BatchJudge, tasks: dict[str, _Task]) -> None:
        """Ask everything at once. The worst case of all of it has to fit the budget."""
        journal = self.session.journal
        if journal is None:
            raise ValueError("asking in batches needs a journal, to find the batch again after a kill")
        cost = 0.0

        def answered(key: str, verdict: Verdict) -> None:
            nonlocal cost
            task = tasks[key]
            journal.add(key, task.judge, task.question, verdict)
            cost += verdict.usage.usd
            self.accept(task, verdict)

        questions = {key: task.question for key, task in tasks.items()}
        worst = sum(task.judge.worst_case_usd(task.question) for task in tasks.values())
        self.budget.reserve(worst, self.patience.stop)
        try:
            judge.ask_all(questions, journal.path.parent, answered, self.patience)
        except JudgeBusy as busy:
            raise JudgeStopped(f"{busy}; what was answered is kept, run the same command again") from None
        finally:
            self.budget.settle(worst, cost)
