"""The trackers by the names that a recipe gives them: one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Final, Literal

from localdpo.core.errors import UserError, UserErrors
from localdpo.trackers.base import TrackedRun, Tracker
from localdpo.trackers.mlflow import MLflow
from localdpo.trackers.tensorboard import TensorBoard
from localdpo.trackers.trackio import Trackio
from localdpo.trackers.wandb import Wandb

# As in report_to of Hugging Face's trainers. Each is the name of its package and of the extra, too.
TrackerName = Literal["wandb", "tensorboard", "trackio", "mlflow"]

TRACKERS: Final[Mapping[str, Callable[[TrackedRun], Tracker]]] = {
    "wandb": Wandb,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "mlflow": MLflow,
}


def require_packages(names: Iterable[str], place: str = "report_to") -> None:
    """Raises UserErrors if the package of a tracker is not installed; `place` is the option that names it."""
    missing = [
        UserError(f"{place}: {name} needs the package {name}: pip install 'localdpo[{name}]'")
        for name in names
        # A folder of the same name, as wandb leaves one behind, is a package without a file.
        if (spec := find_spec(name)) is None or spec.origin is None
    ]
    if missing:
        raise UserErrors(missing)
