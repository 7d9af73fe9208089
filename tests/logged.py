"""Events as a run logs them, for tests of what is made of them."""

from __future__ import annotations

from localdpo.records.events import Event

RECIPE = {"loss": {"beta": 0.1}, "eval": {"every": 4}, "save": {"every": 5}}


def event(type: str, step: int | None = None, time: float = 0.0, **data: object) -> Event:
    return Event(v=1, time=time, type=type, step=step, data=data)


def started(total: int = 10) -> Event:
    return event("run.started", total_steps=total, recipe=RECIPE, model="demo:model", loss="sigmoid")


def step(number: int, seconds: float | None = 2.0) -> Event:
    return event("step", number, metrics={"loss": 0.5, "step_seconds": seconds})


STARTED = event(
    "run.started",
    total_steps=60,
    model="demo:model",
    loss="sigmoid",
    device="cpu",
    recipe={"eval": {"every": 10}},
    versions={"mlx": "1"},
)
METRICS = {"kl": 0.0123456, "loss": 0.69314718, "rewards/accuracies": 0.5, "zeta": 1, "rewards/margins": None}
EVAL = event("eval", 10, metrics=METRICS, pairs=64, seconds=1.5)
TIED = event(
    "eval", 0, metrics={"loss": 0.6931, "rewards/accuracies": 0.0, "rewards/ties": 1.0, "kl": 0.0}, pairs=64
)
NOTICE = event(
    "notice", 3, level="warning", name="displacement", message="both\nfall", why="w", **{"try": "t"}
)
