"""Weights & Biases. WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline and the like mean what they always mean.

A run that is shown again is resumed by its id where a server has it. Without a server (offline) a run is
written anew and takes the place of its earlier folders that were not uploaded yet.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from localdpo.records.rundir import Ending
from localdpo.trackers.base import PROJECT, SAMPLE_COLUMNS, Row, TrackedRun, charted

# The x axis of all charts, as transformers' callback has it.
_STEP: Final = "train/global_step"
_UPLOADED: Final = "*.wandb.synced"


class Wandb:
    """A run of Weights & Biases; its files are in the folder of the run, unless WANDB_DIR says otherwise."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._wandb = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            name=run.name,
            config=dict(run.recipe),
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP, step_sync=True)
        self._folder = Path(self._run.dir).parent
        self.place = str(self._folder if self._run.offline else self._run.url)
        self.last_step = int(self._run.step) - 1

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            values: dict[str, Any] = {**charted(row.metrics), _STEP: row.step, "_timestamp": row.time}
            if row.samples:
                table = [list(sample) for sample in row.samples]
                values["samples"] = self._wandb.Table(columns=list(SAMPLE_COLUMNS), data=table)
            self._run.log(values, step=row.step)

    def finish(self, ending: Ending) -> None:
        offline = self._run.offline
        self._run.finish(exit_code=0 if ending in ("finished", "stopped") else 1)
        if offline:
            for earlier in self._folder.parent.glob(f"offline-run-*-{self._run.id}"):
                if earlier != self._folder and not list(earlier.glob(_UPLOADED)):
                    shutil.rmtree(earlier)
