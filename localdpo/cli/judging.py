"""What the commands that ask a judge share: its options, and how they are carried out with progress."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from localdpo.cli import options as opt
from localdpo.cli.plain import bars_on, print_plain
from localdpo.core.text import format_seconds
from localdpo.out import note

if TYPE_CHECKING:
    from localdpo.evals.evaluate import EvaluationPlan
    from localdpo.judging.cost import Budget
    from localdpo.judging.registry import Hooks, JudgeRequest
    from localdpo.out.console import Console
    from localdpo.prefs.build_plan import BuildPlan

# Between two lines of progress where there is no terminal for a bar.
LINE_SECONDS: Final = 5.0


# The options of a judge by the fields of a JudgeRequest, and what they are where they are not given.
_RUBRIC: Final = {
    "rubrics": (opt.RubricOption, None),
    "constitution": (opt.ConstitutionOption, None),
    "principles": (opt.PrinciplesOption, None),
}
_LIMITS: Final = {
    "batch": (opt.BatchOption, False),
    "max_usd": (opt.MaxUsdOption, None),
    "concurrency": (opt.ConcurrencyOption, None),
    "judge_tokens": (opt.JudgeTokensOption, None),
    "effort": (opt.EffortOption, None),
    "price": (opt.PriceOption, None),
    "prices": (opt.PricesOption, None),
}
# Which of them a parameter of a command stands for: what is asked and how, or how alone.
_GROUPS: Final[Mapping[str, Mapping[str, tuple[Any, Any]]]] = {
    "judging": {**_RUBRIC, **_LIMITS},
    "limits": _LIMITS,
}


def with_judge_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of _GROUPS in place of its parameter `judging` or `limits`, which gets the
    fields of a JudgeRequest that were given. Its parameters are keyword-only.
    """
    own = inspect.signature(command, eval_str=True)
    place = next(name for name in own.parameters if name in _GROUPS)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option)
        for name, (option, default) in _GROUPS[place].items()
    ]
    parameters = [
        each
        for own_one in own.parameters.values()
        for each in (options if own_one.name == place else [own_one])
    ]

    @wraps(command)
    def called(**values: Any) -> None:
        given = {option.name: values.pop(option.name) for option in options}
        fields = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in given.items()
            if value is not None and value is not False and value != []
        }
        command(**values, **{place: fields})

    called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


Options = TypeVar("Options", bound="JudgeRequest")
Plan = TypeVar("Plan", bound="EvaluationPlan | BuildPlan")


def carry_out(
    options: Options,
    make_plan: Callable[[Options], Plan],
    run: Callable[..., dict[str, Any]],
    budget: Budget | None = None,
) -> dict[str, Any]:
    """Plan and run with progress and costs on stderr; what `run` returns. `budget`: what several share."""
    from localdpo.judging.cost import Budget
    from localdpo.model.backend import prepare
    from localdpo.out.console import Console

    console = Console(stderr=True)
    prepare(note)
    plan = make_plan(options)
    for line in plan.notes:
        note(line)
    budget = budget or Budget(options.max_usd)
    answers = len(plan.header.prompts) * len(plan.header.contestants)
    display = ProgressDisplay(console, {"answers": answers, "verdicts": plan.most_verdicts}, budget)
    try:
        with display.bars:
            return run(plan, budget=budget, hooks=display.hooks())
    finally:
        if budget.spent:
            note(f"spent on the judge: {budget.words()}")


class ProgressDisplay:
    """How far answers and verdicts are: bars on a terminal, elsewhere a line now and then."""

    def __init__(self, console: Console, totals: Mapping[str, int], budget: Budget) -> None:
        from rich.progress import MofNCompleteColumn, TimeRemainingColumn

        self.console = console
        self.budget = budget
        self.last_line = time.monotonic()
        # Until when each reason to wait needs no further line; waits are told from any thread.
        self.said_until: dict[str, float] = {}
        self.lock = threading.Lock()
        columns = (MofNCompleteColumn(), TimeRemainingColumn(), "{task.fields[spent]}")
        self.bars = bars_on(console, *columns)
        self.tasks = {
            name: self.bars.add_task(name, total=total, spent="", visible=total > 0)
            for name, total in totals.items()
        }

    def advance(self, name: str) -> None:
        """Count one more."""
        spent = f"${self.budget.spent:.4f}" if name == "verdicts" and self.budget.spent else ""
        self.bars.update(self.tasks[name], advance=1, spent=spent)
        task = self.bars.tasks[self.tasks[name]]
        is_due = task.completed == task.total or time.monotonic() - self.last_line >= LINE_SECONDS
        if is_due and not self.console.is_terminal:
            self.last_line = time.monotonic()
            print_plain(self.console, f"{name} {task.completed:,.0f} of {task.total or 0:,.0f}")

    def hooks(self) -> Hooks:
        """What keeps the display up to date."""
        from localdpo.judging.registry import Hooks

        return Hooks(
            on_answer=lambda record: self.advance("answers"),
            on_questions=lambda most: self.bars.update(self.tasks["verdicts"], total=most),
            on_verdict=lambda question, verdict: self.advance("verdicts"),
            on_wait=self.wait,
        )

    def wait(self, seconds: float, why: str) -> None:
        """Say for how long nothing is asked, and why: once for all the threads that wait for that reason."""
        now = time.monotonic()
        with self.lock:
            if now < self.said_until.get(why, 0.0):
                return
            self.said_until[why] = now + seconds
        print_plain(self.console, f"waiting {format_seconds(seconds)}: {why}")
