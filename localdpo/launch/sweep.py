"""`localdpo sweep`: one run for each combination of some options' values, in one folder (records/sweeps.py).

The runs are ordinary ones, trained by workers as `train` starts them. What is finished is not repeated; a run
that fails is named, and the others go on.

Runs that take the same rows share the token cache and the scores under the reference. So that rows are
scored once, also by runs beside each other, a sweep scores them before the first step, and starts a run only
when those before it have come to theirs.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

from localdpo.answering.prompts import HeldOut, prompts_of, valid_sources
from localdpo.core.errors import LocalDPOError, UserError, UserErrors
from localdpo.core.text import counted, format_seconds
from localdpo.data.inspect import statistics
from localdpo.data.prompts import PromptRow
from localdpo.evals.evaluate import EvalOptions, plan_evaluation, run_evaluation
from localdpo.launch.begin import Note, TrainRequest, differing_keys, known_run, open_run
from localdpo.launch.processes import Worker, start_worker
from localdpo.launch.rounds import Ask, evaluation_lines, judges_of
from localdpo.recipe.load import dump_recipe, follow_links, load_recipe, parse_recipe
from localdpo.recipe.schema import SHORTHANDS, Recipe
from localdpo.records.answers import Sampling
from localdpo.records.events import Event, EventTail, read_events
from localdpo.records.metrics import metric_of
from localdpo.records.rundir import RunDir, RunLock, runs_below
from localdpo.records.series import SeriesOptions, write_options
from localdpo.records.sweeps import WIN, SweepDir, SweepPlan, SweepRun, plan_in, read_plan
from localdpo.train.dry_run import measure

_POLL_SECONDS: Final = 0.1
_NAME_LENGTH: Final = 80
_QUOTED: Final = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""")
# The first of these shows that a worker's caches are complete.
_PAST_CACHES: Final = frozenset({"step", "run.finished"})
# Fields of Judging; the others that a command gives are those of a JudgeRequest.
_OF_EVALUATION: Final = ("prompts", "limit", "max_tokens")


# --- the grid --------------------------------------------------------------------------------------------


def plan_sweep(request: TrainRequest, note: Note) -> SweepPlan:
    """The runs of a sweep from `request.overrides`, of which `KEY=V1,V2` has several values.

    Without any, those of the sweep that is resumed; without a recipe, its plan. Raises UserErrors with every
    problem of every combination, each once.
    """
    known = known_run(request)
    before = read_plan(known) if isinstance(known, SweepDir) else None
    if before is not None and request.recipe is None and not request.overrides:
        return before
    if not isinstance(request.recipe, Path):
        raise UserError("no recipe: a sweep needs a YAML file whose options it changes")
    if before is not None and not request.overrides:
        grid, fixed = before.grid, before.fixed
    else:
        grid, fixed = _grid(request.overrides)
    recipes = {} if before is None else {run.name: recipe_in(run) for run in before.runs}
    names = _names(grid)
    runs, problems = [], dict[str, None]()
    for name, values in zip(names, product(*grid.values()), strict=True):
        overrides = [*fixed, *(f"{key}={value}" for key, value in zip(grid, values, strict=True))]
        try:
            recipe = load_recipe(request.recipe, overrides)
            resolved, lines = follow_links(recipe, recipes.get(name))
        except LocalDPOError as error:
            problems |= dict.fromkeys(error.lines)
            continue
        for line in lines:
            note(f"{name}: {line}")
        train = resolved.train.model_copy(update={"reference": "ahead"})
        runs.append(SweepRun(name, values, dump_recipe(resolved.model_copy(update={"train": train}))))
    if problems:
        raise UserErrors([UserError(line) for line in problems])
    twice = [text for text, count in Counter(run.recipe for run in runs).items() if count > 1]
    if twice:
        same = ", ".join(run.name for run in runs if run.recipe == twice[0])
        raise UserError(f"{same}: the same recipe; give each value once")
    return SweepPlan(grid, tuple(runs), fixed)


def _grid(overrides: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """The options with several values, and the overrides that have one. Raises UserErrors."""
    grid, fixed, problems = dict[str, tuple[str, ...]](), list[str](), list[UserError]()
    seen = set[str]()
    for override in overrides:
        key, _, text = override.partition("=")
        key = f"{key}.{SHORTHANDS[key]}" if key in SHORTHANDS else key
        values = split_values(text)
        if key in seen:
            problems.append(UserError(f"{override}: {key} is given twice; give all its values at once"))
        elif len(values) > 1 and key.startswith("rounds."):
            problems.append(UserError(f"{override}: training reads no option of rounds; leave it out"))
        elif len(values) > 1 and key == "train.reference":
            problems.append(UserError(f"{override}: a sweep sets it to ahead; leave it out"))
        elif len(values) > 1 and "" in values:
            problems.append(UserError(f"{override}: expected a value on both sides of a comma, such as null"))
        elif len(values) > 1:
            grid[key] = values
        else:
            fixed.append(override)
        seen.add(key)
    if not grid and not problems:
        problems.append(
            UserError("no option has several values; expected KEY=V1,V2, as in loss.beta=0.05,0.1")
        )
    if problems:
        raise UserErrors(problems)
    return grid, tuple(fixed)


def split_values(text: str) -> tuple[str, ...]:
    """The values between commas; those within brackets, braces or quotes are parts of one, as in YAML."""
    values, depth, at = [""], 0, 0
    while at < len(text):
        # Where a value begins, and nowhere else, YAML takes a quote for one.
        begins = values[-1].rstrip()[-1:] in ("", *"[{,:")
        quoted = _QUOTED.match(text, at) if begins else None
        part = text[at] if quoted is None else quoted[0]
        at += len(part)
        if part == "," and depth == 0:
            values.append("")
        else:
            depth = max(0, depth + (part in ("[", "{")) - (part in ("]", "}")))
            values[-1] += part
    return tuple(value.strip() for value in values)


def _names(grid: Mapping[str, tuple[str, ...]]) -> list[str]:
    """`beta-0.05_learning_rate-1e-5` for each combination; `run-1`, ... where that is too long or twice."""
    short = {key: key.rpartition(".")[2] for key in grid}
    heads = short if len(set(short.values())) == len(short) else {key: key for key in grid}
    combinations = list(product(*grid.values()))
    names = [
        "_".join(
            f"{head}-{re.sub(r'[^A-Za-z0-9.-]+', '-', Path(value).name).strip('-')}"
            for head, value in zip(heads.values(), values, strict=True)
        )
        for values in combinations
    ]
    # A Mac's disk takes no two names that differ in case only.
    if len({name.casefold() for name in names}) == len(names) and max(map(len, names)) <= _NAME_LENGTH:
        return names
    return [f"run-{number}" for number in range(1, len(combinations) + 1)]


def open_sweep(request: TrainRequest, plan: SweepPlan, note: Note) -> SweepDir:
    """The folder of the sweep, made if it is new. Raises UserError when it belongs to another plan."""
    sweep = open_run(request, note, plan.to_text(), _differences)
    assert isinstance(sweep, SweepDir)
    return sweep


def _differences(old_text: str, new_text: str) -> str:
    """`loss.beta: 0.1,0.2 there, 0.1 here`, else the options outside the grid that differ."""
    before, after = plan_in(old_text), plan_in(new_text)
    old, new = before.grid, after.grid

    def words(grid: Mapping[str, tuple[str, ...]], key: str) -> str:
        return ",".join(grid.get(key, ("not swept",)))

    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    differing = (f"{key}: {words(old, key)} there, {words(new, key)} here" for key in keys)
    if text := "; ".join(differing):
        return text
    runs = list(zip(before.runs, after.runs, strict=True))
    if any(one.name != other.name for one, other in runs):
        return "its runs have other names"
    return next(filter(None, (differing_keys(one.recipe, other.recipe) for one, other in runs)), "")


# --- what it takes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judging:
    """How the runs are judged when they are trained: fields of EvalOptions and of its JudgeRequest."""

    request: Mapping[str, Any]
    prompts: str | None = None
    limit: int = 200
    max_tokens: int = 256


def judging_in(options: SeriesOptions) -> Judging | None:
    """How the runs are judged; None where no judge is named. Raises UserError for what would need one."""
    given = options.judging
    if "judge" in given:
        own = {key: value for key, value in given.items() if key in _OF_EVALUATION}
        return Judging({key: value for key, value in given.items() if key not in own}, **own)
    if given:
        name = {"rubrics": "rubric"}.get(first := next(iter(given)), first).replace("_", "-")
        raise UserError(f"--{name}: there is no judge to use it; name one with --judge")
    if options.best_by == WIN:
        raise UserError(f"--best-by {WIN}: needs a judge; name one with --judge")
    return None


def preview_lines(plan: SweepPlan, folder: Path, jobs: int, judging: Judging | None, note: Note) -> list[str]:
    """The runs, their steps and memory, and what they take as far as an earlier run of the model tells.

    Loads no weights, asks nobody. Raises UserError for what would stop a run.
    """
    recipes = [recipe_in(run) for run in plan.runs]
    lines = [f"sweep: {counted(len(plan.runs), 'run')}, {jobs} at once"]
    tokens, memory = 0.0, list[str]()
    for run, recipe in zip(plan.runs, recipes, strict=True):
        looked = measure(recipe, note)
        steps = looked.schedule.total
        tokens += steps * recipe.train.batch_size * statistics(looked.train.store)["row"].mean
        lines.append(f"  {run.name}: {counted(steps, 'step')} of {counted(recipe.train.batch_size, 'row')}")
        memory = memory or [f"each: {line}" for line in looked.layout().lines[:1]]
    lines += memory
    speed = _speed(folder.parent, recipes[0].model)
    lines.append(
        f"tokens to train on: {tokens:,.0f}; "
        + (
            "time: not known, as no run of this model is here"
            if speed is None
            else f"about {format_seconds(tokens / speed)} one after another, at {speed:,.0f} tokens/s of the "
            "latest run of this model, and evaluations"
        )
    )
    if judging is not None:
        lines += _judging_lines(recipes, folder, judging)
    return lines


def _speed(runs_dir: Path, model: str) -> float | None:
    """Tokens a second of the last step of the latest run of a model."""
    for run in runs_below(runs_dir):
        events = read_events(run.events)
        start = next((event for event in events if event.type == "run.started"), None)
        if start is not None and start.text("model") == model:
            steps = (event for event in reversed(events) if event.type == "step")
            if (speed := metric_of(next(steps, None), "tokens_per_second")) is not None:
                return speed
    return None


def _judging_lines(recipes: Sequence[Recipe], folder: Path, judging: Judging) -> list[str]:
    rows = _asked(recipes[0], judging)
    times = f"then, {counted(len(recipes), 'time')}:"
    if not rows:
        # Which rows these are is known once a run has split its data.
        return [
            f"{times} evaluation on prompts that data.valid_fraction holds out; its cost is not known yet"
        ]
    models = 2 if recipes[0].adapter is None else 3
    each = evaluation_lines(judging.request, rows, models, judging.max_tokens, folder)
    return [times, *each]


def require_judge(plan: SweepPlan, folder: Path, judging: Judging) -> None:
    """Raise UserError for what would stop the evaluations, before anything is trained: a judge, a rubric or
    prompts that are not there, or a judge without its key.
    """
    rows = _asked(recipe_in(plan.runs[0]), judging)
    votes = RunDir(folder / plan.runs[0].name).votes
    judges_of({**judging.request, "votes": votes}, rows).find_keys()


def _asked(recipe: Recipe, judging: Judging) -> list[PromptRow]:
    """The prompts of the evaluations."""
    sources = [HeldOut(name) for name in (judging.prompts or recipe.eval.prompts,) if name is not None]
    return prompts_of(sources or valid_sources(recipe), judging.limit, set())


def recipe_in(run: SweepRun) -> Recipe:
    """The resolved recipe of a run. Raises UserErrors for one that this version cannot read."""
    return parse_recipe(run.recipe, run.name)


# --- making it -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepHands:
    """How a command shows the runs of a sweep.

    Attributes:
        begun: a run's worker has started; None for a run that is being trained already.
        event: an event of a run, as it comes.
        ended: its worker has ended.
        refused: why a run cannot be started.
        goes_on: called about ten times a second; False: no more runs are started.
    """

    begun: Callable[[RunDir, Worker | None], None]
    refused: Callable[[RunDir, UserError], None]
    event: Callable[[RunDir, Event], None] = lambda run, event: None
    ended: Callable[[RunDir, Worker | None], None] = lambda run, worker: None
    goes_on: Callable[[], bool] = lambda: True


class _Training:
    """A run that is being trained, by a worker of this process or by one of an earlier one."""

    def __init__(self, run: RunDir, worker: Worker | None) -> None:
        self.run, self.worker = run, worker
        self._tail = EventTail(run.events) if worker is None else worker.events
        self.has_caches = False

    def poll(self) -> tuple[list[Event], bool]:
        """The events since the last call, and whether the worker has ended."""
        # Looked at before the log is read, so that nothing written before the end is missed.
        ended = not self.run.is_running() if self.worker is None else self.worker.returncode is not None
        events = self._tail.poll()
        self.has_caches = self.has_caches or any(event.type in _PAST_CACHES for event in events)
        return events, ended


def train_sweep(
    sweep: SweepDir,
    plan: SweepPlan,
    options: SeriesOptions,
    hands: SweepHands,
    start: Callable[[RunDir], Worker] = start_worker,
) -> None:
    """Train the runs that are not finished, `options.jobs` at once, each at most once.

    Raises UserError when another process makes the sweep.
    """
    jobs = options.jobs or 1
    with RunLock(sweep):
        sweep.clean()
        write_options(sweep, options)
        # Not as `create` gives them: a run that fails at once is kept, with what it says.
        runs = [RunDir(RunDir.create(sweep.path, run.name, run.recipe).path) for run in plan.runs]
        waiting = [run for run in runs if run.status() != "finished"]
        training = list[_Training]()
        while waiting or training:
            while waiting and len(training) < jobs and all(item.has_caches for item in training):
                run = waiting.pop(0)
                try:
                    worker = None if run.is_running() else start(run)
                except UserError as error:
                    hands.refused(run, error)
                    continue
                training.append(_Training(run, worker))
                hands.begun(run, worker)
            for item in [*training]:
                events, ended = item.poll()
                for event in events:
                    hands.event(item.run, event)
                if ended:
                    training.remove(item)
                    hands.ended(item.run, item.worker)
            if not hands.goes_on():
                waiting.clear()
            if training:
                time.sleep(_POLL_SECONDS)


def evaluate_sweep(sweep: SweepDir, plan: SweepPlan, judging: Judging, ask: Ask) -> None:
    """Evaluate the runs that are finished; what their folders hold is neither generated nor asked again."""
    with RunLock(sweep):
        for run in (RunDir(sweep.path / planned.name) for planned in plan.runs):
            if run.status() == "finished":
                options = EvalOptions(
                    run=run,
                    prompts=judging.prompts,
                    limit=judging.limit,
                    sampling=Sampling(judging.max_tokens, 1.0, load_recipe(run.recipe).train.seed),
                    **judging.request,
                )
                ask(options, plan_evaluation, run_evaluation)
