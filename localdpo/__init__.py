"""localdpo: train language models on human preferences (DPO) with MLX, on your own machine.

The names below are public. Each is looked up on first use, so that `import localdpo` loads neither MLX nor
anything else that is slow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

__version__ = "0.2.0"

if TYPE_CHECKING:
    from localdpo.api.runs import Run, find_run, list_runs
    from localdpo.api.training import rounds, sweep, train
    from localdpo.api.work import build_pairs, check_pairs, compare, evaluate, export
    from localdpo.core.errors import LocalDPOError, TrainingFailed, UserError, UserErrors
    from localdpo.objective.losses import preference_loss
    from localdpo.recipe.load import load_recipe
    from localdpo.recipe.schema import Recipe
    from localdpo.records.answers import answers_object

__all__ = [
    "LocalDPOError",
    "Recipe",
    "Run",
    "TrainingFailed",
    "UserError",
    "UserErrors",
    "__version__",
    "answers_object",
    "build_pairs",
    "check_pairs",
    "compare",
    "evaluate",
    "export",
    "find_run",
    "list_runs",
    "load_recipe",
    "preference_loss",
    "rounds",
    "sweep",
    "train",
]

# Where each name comes from. As text, so that no room below seems to import the rooms above it.
_HOMES: Final = {
    "Run": "api.runs",
    "find_run": "api.runs",
    "list_runs": "api.runs",
    "rounds": "api.training",
    "sweep": "api.training",
    "train": "api.training",
    "build_pairs": "api.work",
    "check_pairs": "api.work",
    "compare": "api.work",
    "evaluate": "api.work",
    "export": "api.work",
    "LocalDPOError": "core.errors",
    "TrainingFailed": "core.errors",
    "UserError": "core.errors",
    "UserErrors": "core.errors",
    "preference_loss": "objective.losses",
    "load_recipe": "recipe.load",
    "Recipe": "recipe.schema",
    "answers_object": "records.answers",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from localdpo.core.process import preload

    preload()
    return getattr(import_module(f"localdpo.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
