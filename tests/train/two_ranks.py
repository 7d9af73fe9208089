"""One of the ranks of test_ranks.py: `two_ranks.py RANK SIZE FOLDER`, started with every rank at once.

Rank 0 prints what it finds as one line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import localdpo.model  # noqa: F401 - ahead of MLX

# isort: split
import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from localdpo.core.errors import LocalDPOError
from localdpo.model import lora
from localdpo.model.arrays import named
from localdpo.model.backend import Backend, choose_device
from localdpo.recipe.load import load_recipe
from localdpo.records.events import Event
from localdpo.records.rundir import RunDir
from localdpo.train import follow, pulse, ranks, worker
from localdpo.train.assemble import assemble
from localdpo.train.control import StopRequest
from localdpo.train.pulse import RankLost
from localdpo.train.step import TrainStep

RANK, SIZE, FOLDER = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
EAGER, TRACED = Backend("cpu", None, False, ()), Backend("cpu", None, True, ())
STEPS = 2


def steps(recipe: Path, among: ranks.Ranks) -> dict[str, Any]:
    """Losses, metrics and summed weight changes of some steps of plain SGD, and a held-out evaluation."""
    session = assemble(load_recipe(recipe), EAGER, lambda note: None, ranks=among)
    model = session.base.model
    move(model)
    optimizer = optim.SGD(1.0)
    taken = TrainStep(
        session.forward, session.objective, optimizer, max_grad_norm=1e9, compiled=False, ranks=among
    )
    results = []
    for step in range(STEPS):
        if session.train_scores is not None:
            with lora.use(model, session.reference):
                session.train_scores.score(session.forward, session.feed.positions(step))
        before = flat(model)
        result = taken(session.feed.arrays(session.feed.batches(step)), 1e-2)
        gradient = (before - flat(model)) / 1e-2
        if session.moving is not None:
            session.moving.after_step(step + 1)
        results.append({"metrics": {**result.metrics, "mean": result.loss}, "gradient": gradient})
    return {"steps": results}


def move(model: Any) -> None:
    """Take the policy away from the reference: where all pairs are tied, rounding decides their order."""
    rng, weights = np.random.default_rng(7), {}
    for name, array in sorted(named(model.trainable_parameters()).items()):
        weights[name] = array + mx.array(rng.normal(size=array.shape).astype(np.float32) * 0.05)
    model.load_weights(list(weights.items()), strict=False)


def flat(model: Any) -> np.ndarray:
    weights = sorted(named(model.trainable_parameters()).items())
    return np.concatenate([np.array(array, dtype=np.float64).ravel() for _, array in weights])


def gap(several: dict[str, Any], alone: dict[str, Any]) -> dict[str, float]:
    """Relative distance of the gradients, and the largest of a metric."""
    gradients, metrics = [], []
    for mine, other in zip(several["steps"], alone["steps"], strict=True):
        scale = np.linalg.norm(other["gradient"])
        gradients.append(float(np.linalg.norm(mine["gradient"] - other["gradient"]) / scale))
        assert mine["metrics"].keys() == other["metrics"].keys()
        metrics += [abs(mine["metrics"][name] - value) for name, value in other["metrics"].items()]
    return {"gradient": max(gradients), "metrics": max(metrics)}


def compare_losses(among: ranks.Ranks) -> dict[str, Any]:
    found = {}
    for recipe in sorted(FOLDER.glob("loss-*.yaml")):
        several = steps(recipe, among)
        if RANK == 0:
            found[recipe.stem] = gap(several, steps(recipe, ranks.ALONE))
    return found


def train(
    run: RunDir, on_event: Callable[[Event], object] | None = None, stop: StopRequest | None = None
) -> Any:
    """Rank 0: train the run. The others: follow. The exit code, or what rank 0 said went wrong."""
    if RANK:
        return follow.follow(None)
    try:
        return worker.train_run(run, stop or StopRequest(), accept=False, on_event=on_event)
    except (LocalDPOError, RankLost) as error:
        return str(error)


def run(name: str) -> RunDir:
    folder = RunDir(FOLDER / name)
    if RANK == 0:
        folder.path.mkdir()
        folder.recipe.write_text((FOLDER / "run.yaml").read_text())
    return folder


def stop_at(step: int, stop: StopRequest) -> Callable[[Event], None]:
    def look(event: Event) -> None:
        if event.type == "step" and event.step == step:
            stop.reason = "stop"

    return look


def stopped_and_resumed() -> dict[str, Any]:
    folder, stop = run("resumed"), StopRequest()
    codes = [train(folder, stop_at(3, stop), stop), train(folder)]
    return {"codes": codes}


def another_recipe() -> Any:
    """The last rank has a recipe of its own."""
    if RANK == 0:
        return train(run("another"))
    return follow.follow(FOLDER / "run.yaml", ["loss.beta=0.3"] if RANK == SIZE - 1 else [])


def death() -> Any:
    """The last rank is killed in the fourth step."""
    folder = run("lost")
    if RANK == SIZE - 1:
        take_step = follow._take_step

        def die(session: Any, train_step: Any, step: int) -> None:
            if step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            take_step(session, train_step, step)

        follow._take_step = die
    return train(folder)


def report(found: dict[str, Any]) -> None:
    if RANK == 0:
        (FOLDER / "found.json").write_text(json.dumps(found))


def main() -> None:
    choose_device()
    # The ranks live on when a run of theirs is over.
    leave, pulse._exit = pulse._exit, lambda code: None
    found: dict[str, Any] = {}
    with ranks.connect() as among:
        found["names"] = among.names
        found["losses"] = compare_losses(among)
        found["sum"] = sum(among.gather(RANK))
        found["long"] = [len(text) for text in among.gather("x" * (10_000 if RANK else 3))]
        among.end()
    found["whole"] = train(run("whole"))
    found["resumed"] = stopped_and_resumed()
    found["another"] = another_recipe()
    pulse._exit = leave
    # Of several ranks this one may end with what is lost.
    report(found)
    found["lost"] = death()
    report(found)


if __name__ == "__main__":
    main()
