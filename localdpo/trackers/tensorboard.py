"""TensorBoard: an event file in the folder of the run, so that `tensorboard --logdir runs` shows every run.

A run that is shown again is written to a new file, which takes the place of the earlier one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from localdpo.records.rundir import Ending
from localdpo.trackers.base import SAMPLE_COLUMNS, Row, TrackedRun, charted

_FILES: Final = "events.out.tfevents.*"


class TensorBoard:
    """The event file of a run. Its numbers are float32, as in every event file."""

    last_step: Final = -1

    def __init__(self, run: TrackedRun) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary, self._text = event_pb2.Event, summary_pb2.Summary, text_pb
        earlier = list(run.folder.glob(_FILES))
        self._writer = EventFileWriter(str(run.folder))
        for path in earlier:
            path.unlink()
        # A TensorBoard that shows the earlier file drops its points when it reads this.
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(self._event(wall_time=run.started, step=0, session_log=session))
        recipe = json.dumps(run.recipe, indent=2, ensure_ascii=False)
        self._add(0, run.started, text_pb("recipe", f"```\n{recipe}\n```"))
        self._writer.flush()
        self.place = f"tensorboard --logdir {run.folder.parent}"

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            summary = self._summary()
            for name, value in charted(row.metrics).items():
                summary.value.add(tag=name, simple_value=value)
            self._add(row.step, row.time, summary)
            if row.samples:
                table = [[cell.encode() for cell in line] for line in (SAMPLE_COLUMNS, *row.samples)]
                self._add(row.step, row.time, self._text("samples", table))
        self._writer.flush()

    def finish(self, ending: Ending) -> None:
        self._writer.close()

    def _add(self, step: int, time: float, summary: object) -> None:
        self._writer.add_event(self._event(wall_time=time, step=step, summary=summary))
