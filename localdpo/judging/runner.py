"""Asks a judge many questions: several at a time, none twice, within a budget, and never loses an answer.

A verdict goes into the journal in the thread that got it, before anything else happens. Whatever ends the
run (a kill, Ctrl-C, a wrong key, the budget), the next run asks only what the journal lacks. Verdicts come
back in the order of the questions, so a table does not depend on how many were asked at a time.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from localdpo.judging.asking import Asker
from localdpo.judging.base import BatchJudge, Judge, KeyedJudge, Question, Verdict
from localdpo.judging.budget import Budget
from localdpo.judging.journal import Journal, key_of
from localdpo.judging.pairwise import Pair, PairVerdict, collect, questions_of
from localdpo.judging.panel import assemble, leaves
from localdpo.judging.retry import Interrupted, OnWait, Patience, Retry

OnVerdict = Callable[[Question, Verdict], None]
# After Ctrl-C, for verdicts that are about to arrive: they are paid for.
GRACE_SECONDS: Final = 1.0


class Preview(NamedTuple):
    """What a run would do: questions to ask, answers the journal has, the most it can cost.

    `worst_usd` is infinity when a price is not known. A question to a jury counts once for each member.
    """

    asked: int
    cached: int
    worst_usd: float


@dataclass
class _Task:
    """One question to one judge, and the questions of the caller that wait for it."""

    key: str
    judge: Judge
    question: Question
    waiting: list[int] = field(default_factory=list)


def preview(judge: Judge, questions: Sequence[Question], journal: Journal | None = None) -> Preview:
    """Look at what `run_questions` would ask, without asking anything."""
    tasks = _plan(judge, questions)[0].values()
    missing = [task for task in tasks if journal is None or journal.get(task.key) is None]
    worst = sum(task.judge.worst_case_usd(task.question) for task in missing)
    return Preview(len(missing), len(tasks) - len(missing), worst)


def find_keys(*judges: Judge | None) -> None:
    """Raise JudgeStopped if a key is missing that one of `judges`, or of their members, cannot do without.

    For commands that do long work before the first question. None is nobody.
    """
    for judge in judges:
        for leaf in leaves(judge, Question("", "", ())) if judge is not None else ():
            if isinstance(leaf, KeyedJudge):
                leaf.find_key()


def run_questions(
    judge: Judge,
    questions: Sequence[Question],
    journal: Journal | None = None,
    *,
    concurrency: int | None = None,
    budget: Budget | None = None,
    retry: Retry | None = None,
    on_verdict: OnVerdict | None = None,
    on_wait: OnWait | None = None,
) -> list[Verdict]:
    """One verdict for each question, in their order; from the journal where it has one.

    Args:
        concurrency: questions at a time, at most `judge.concurrency`, which is also the default. A judge
            that is asked one at a time is asked in the calling thread.
        budget: one for a whole command; without it there is no limit.
        retry: how long to insist when a server is busy.
        on_verdict: called in the calling thread as each question's verdict is known.
        on_wait: called with seconds and reason before each wait, from any thread.

    Raises JudgeStopped (what was answered is kept; calling again goes on), and KeyboardInterrupt at once, or
    after GRACE_SECONDS where questions are in flight in threads.
    """
    patience = Patience(retry or Retry(), threading.Event(), on_wait)
    run = _Run(judge, questions, Asker(journal, budget or Budget(), patience), on_verdict)
    run.take_from_journal()
    run.ask_missing(concurrency)
    return [run.results[index] for index in range(len(questions))]


@dataclass(frozen=True)
class Asking:
    """How questions are put: the arguments of `run_questions`, for all questions of a command."""

    journal: Journal | None = None
    budget: Budget | None = None
    retry: Retry | None = None
    concurrency: int | None = None
    on_verdict: OnVerdict | None = None
    on_wait: OnWait | None = None

    def pairs(self, judge: Judge, pairs: Sequence[Pair]) -> list[PairVerdict]:
        """Every pair in both orders."""
        return collect(pairs, self.ask(judge, questions_of(pairs)))

    def ask(self, judge: Judge, questions: Sequence[Question]) -> list[Verdict]:
        """The verdicts, in the order of the questions."""
        return run_questions(
            judge,
            questions,
            self.journal,
            concurrency=self.concurrency,
            budget=self.budget,
            retry=self.retry,
            on_verdict=self.on_verdict,
            on_wait=self.on_wait,
        )


def _plan(judge: Judge, questions: Sequence[Question]) -> tuple[dict[str, _Task], list[list[str]]]:
    """The different things to ask by key, and for each question the keys of its verdicts in order."""
    tasks: dict[str, _Task] = {}
    keys: list[list[str]] = []
    for index, question in enumerate(questions):
        keys.append([])
        for leaf in leaves(judge, question):
            key = key_of(leaf.identity, question)
            tasks.setdefault(key, _Task(key, leaf, question)).waiting.append(index)
            keys[index].append(key)
    return tasks, keys


class _Run:
    """One call of `run_questions`. Its methods run in the calling thread, but for `work`."""

    def __init__(
        self, judge: Judge, questions: Sequence[Question], asker: Asker, on_verdict: OnVerdict | None
    ) -> None:
        self.judge = judge
        self.questions = questions
        self.asker = asker
        self.on_verdict = on_verdict
        self.tasks, self.keys = _plan(judge, questions)
        self.known: dict[str, Verdict] = {}
        self.missing = [len(set(keys)) for keys in self.keys]
        self.results: dict[int, Verdict] = {}
        # What the threads bring: a task with its verdict, what went wrong, or None from one that ended.
        self.arrived: queue.SimpleQueue[tuple[_Task, Verdict] | BaseException | None] = queue.SimpleQueue()

    def take_from_journal(self) -> None:
        journal = self.asker.journal
        for task in self.tasks.values():
            verdict = journal.get(task.key) if journal is not None else None
            if verdict is not None:
                self.accept(task, verdict)

    def accept(self, task: _Task, verdict: Verdict) -> None:
        """Take one verdict, and finish the questions that have all theirs now."""
        self.known[task.key] = verdict
        for index in dict.fromkeys(task.waiting):
            self.missing[index] -= 1
            if self.missing[index]:
                continue
            question = self.questions[index]
            parts = iter([self.known[key] for key in self.keys[index]])
            self.results[index] = assemble(self.judge, question, parts)
            if self.on_verdict is not None:
                self.on_verdict(question, self.results[index])

    def ask_missing(self, concurrency: int | None) -> None:
        """Ask the judges that take several questions at a time first, then the others in this thread."""
        groups: dict[int, list[_Task]] = {}
        for task in self.tasks.values():
            if task.key not in self.known:
                groups.setdefault(id(task.judge), []).append(task)
        threads: list[threading.Thread] = []
        here: list[list[_Task]] = []
        for tasks in groups.values():
            most = tasks[0].judge.concurrency
            workers = min(concurrency or most, most, len(tasks))
            if workers > 1 and not isinstance(tasks[0].judge, BatchJudge):
                threads += self.threads(tasks, workers)
            else:
                here.append(tasks)
        self.collect(threads)
        for tasks in here:
            self.ask_here(tasks)

    def threads(self, tasks: list[_Task], workers: int) -> list[threading.Thread]:
        waiting = deque(tasks)
        # Daemons: after Ctrl-C nothing waits for a request that hangs.
        return [threading.Thread(target=self.work, args=(waiting,), daemon=True) for _ in range(workers)]

    def work(self, waiting: deque[_Task]) -> None:
        """A thread: takes questions until there are none, or until the run is being stopped."""
        try:
            while not self.asker.patience.stop.is_set():
                try:
                    task = waiting.popleft()
                except IndexError:
                    break
                self.arrived.put((task, self.asker.answer(task.key, task.judge, task.question)))
        except Interrupted:
            pass
        except BaseException as error:
            # Whatever it is, it is raised again in the calling thread.
            self.asker.patience.stop.set()
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
            self.asker.patience.stop.set()
            until = time.monotonic() + GRACE_SECONDS
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, until - time.monotonic()))
            raise
        if failure is not None:
            raise failure

    def ask_here(self, tasks: list[_Task]) -> None:
        judge = tasks[0].judge
        if isinstance(judge, BatchJudge):
            self.ask_batch(judge, {task.key: task for task in tasks})
            return
        for task in tasks:
            self.accept(task, self.asker.answer(task.key, task.judge, task.question))

    def ask_batch(self, judge: BatchJudge, tasks: dict[str, _Task]) -> None:
        """Ask everything at once. The worst case of all of it has to fit the budget."""
        journal, budget, patience = self.asker.journal, self.asker.budget, self.asker.patience
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
        budget.reserve(worst, patience.stop)
        try:
            judge.ask_all(questions, journal.path.parent, answered, patience)
        finally:
            budget.settle(worst, cost)
