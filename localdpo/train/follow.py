"""The ranks beside rank 0: they do what it says, and write nothing but their own lines on stderr.

What rank 0 says is a word: `step`, `evaluate`, `score N` (the N-th of what is scored ahead) or `end`.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.optimizers as optim
import yaml
from mlx.utils import tree_unflatten

from localdpo import __version__
from localdpo.core.errors import USER_ERROR_EXIT, LocalDPOError, UserError, UserErrors
from localdpo.model import lora
from localdpo.model.arrays import named
from localdpo.model.backend import Backend, prepare
from localdpo.out import note, say_errors
from localdpo.recipe.load import follow_links, load_recipe
from localdpo.recipe.schema import Recipe
from localdpo.records.wording import differing, flatten, option_words
from localdpo.train import inputs
from localdpo.train.control import StopRequest
from localdpo.train.evaluator import evaluate
from localdpo.train.ranks import Ranks, connect
from localdpo.train.step import TrainStep, make_optimizer

if TYPE_CHECKING:
    from localdpo.train.assemble import Session

VERSIONED = ("mlx", "mlx-lm", "transformers", "datasets")


def versions() -> dict[str, str]:
    """Of this package, of Python and of what the numbers of a run depend on."""
    own = {"localdpo": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in VERSIONED}


def follow(recipe: Path | None, overrides: Sequence[str] = ()) -> int:
    """Train as one of the ranks beside rank 0, to the end of the run; the exit code.

    `recipe`: the file of the command, with its overrides, which must say what rank 0's says; None: rank 0's.
    """
    with connect() as ranks:
        # Requests to stop are for rank 0, which has them too; the second ends this process.
        StopRequest().install()
        try:
            _follow(ranks, recipe, overrides)
        except LocalDPOError as error:
            ranks.fail(error.lines)
            say_errors(error)
            ranks.await_end()
            return USER_ERROR_EXIT
    return 0


def _follow(ranks: Ranks, file: Path | None, overrides: Sequence[str]) -> None:
    backend = prepare()
    led = Recipe.model_validate(yaml.safe_load(ranks.lead("")))
    own = led if file is None else follow_links(load_recipe(file, overrides), led)[0]
    require_same(ranks, own, inputs.inputs_of(own), backend)
    from localdpo.train.assemble import assemble

    session = assemble(led, backend, lambda line: note(f"{ranks.names[ranks.rank]}: {line}"), ranks=ranks)
    optimizer = make_optimizer(led.train)
    step = share_state(session, optimizer, 0)
    train_step = session.train_step(optimizer)
    while (word := str(ranks.lead(""))) != "end":
        if word == "step":
            _take_step(session, train_step, step)
            step += 1
        elif word == "evaluate":
            evaluate(session, step)
        else:
            with lora.use(session.base.model, session.reference):
                scores = session.scored_ahead[int(word.removeprefix("score "))]
                scores.fill(session.forward, lambda done, total: True)


def _take_step(session: Session, train_step: TrainStep, step: int) -> None:
    """The part of `Loop.take_step` that all ranks have."""
    session.ranks.seed(session.recipe.train.seed, step)
    if session.train_scores is not None:
        with lora.use(session.base.model, session.reference):
            session.train_scores.score(session.forward, session.feed.positions(step))
    train_step(session.feed.arrays(session.feed.batches(step)), session.schedule.learning_rate(step))
    if session.moving is not None:
        session.moving.after_step(step + 1)


def share_state(session: Session, optimizer: optim.Optimizer, step: int) -> int:
    """Give every rank the weights and moments of rank 0, and the step that they are of, which is returned."""
    ranks, model, moving = session.ranks, session.base.model, session.moving
    if ranks.size == 1:
        return step
    optimizer.init(model.trainable_parameters())
    state: dict[str, Any] = {"adapter": model.trainable_parameters(), "optimizer": optimizer.state}
    if moving is not None:
        state["reference"] = moving.weights
    copied: Any = tree_unflatten(list(ranks.copy(named(state)).items()))
    if not ranks.leads:
        model.update(copied["adapter"])
        optimizer.state = copied["optimizer"]
        if moving is not None:
            moving.weights = copied["reference"]
    return ranks.lead(step)


def require_same(ranks: Ranks, recipe: Recipe, made_of: Sequence[inputs.Input], backend: Backend) -> None:
    """Compare the ranks' recipes, inputs, versions and devices with those of rank 0.

    Raises UserErrors, on every rank the same: a line for each difference.
    """
    facts: dict[str, Mapping[str, object]] = {
        "recipe": flatten(recipe.model_dump(mode="json")),
        "inputs": {entry.label: entry.digest for entry in made_of},
        "versions": versions() | {"device": backend.device},
    }
    first, *others = ranks.gather(facts)
    problems = []
    for name, other in zip(ranks.names[1:], others, strict=True):
        for what, values in first.items():
            for key, (there, here) in differing([values, other[what]]):
                if what == "inputs":
                    problems.append(f"{name}: {key} is not the one that {ranks.names[0]} has")
                else:
                    problems.append(
                        f"{name}: {key} is {option_words(here)}, on {ranks.names[0]} {option_words(there)}"
                    )
    if problems:
        raise UserErrors([UserError(problem) for problem in problems])
