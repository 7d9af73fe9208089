"""Trackio: the local store, or the Space or server that TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names.

It knows runs by their names, so the name has the id in it. The times that it shows are those of reporting.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from localdpo.records.rundir import Ending
from localdpo.trackers.base import PROJECT, SAMPLE_COLUMNS, Row, TrackedRun, charted


class Trackio:
    """A run of Trackio."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._table = trackio.Table
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run: Any = trackio.init(
            project=project,
            name=f"{run.name}-{run.id}",
            config=dict(run.recipe),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.place = self._run.url or f"trackio show --project {project}"
        # Without a step, Trackio counts on from the last one that it has.
        self.last_step = int(self._run._next_step) - 1

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            values: dict[str, Any] = dict(charted(row.metrics))
            if row.samples:
                table = [list(sample) for sample in row.samples]
                values["samples"] = self._table(columns=list(SAMPLE_COLUMNS), data=table)
            self._run.log(values, step=row.step)

    def finish(self, ending: Ending) -> None:
        self._run.finish()
