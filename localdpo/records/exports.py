"""The exports of a run: `runs/NAME/exports.jsonl`, append-only, a line for every export that was checked.

    {"time":1700000000.0,"v":1,"target":"mlx","checkpoint":"step-000050","settings":{...},"check":{...},
     "path":"exports/demo-mlx","written":true}

The fields are those of export.json in the artefact, and where it is; `written` is false for one that failed
its check. See records/log.py for how lines are written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from localdpo.records.log import LogWriter, encode
from localdpo.records.rundir import RunDir


def note_export(run: RunDir, record: Mapping[str, Any]) -> None:
    """Add an export to the run's list. Raises UserError when the disk is full."""
    with LogWriter(run.exports) as log:
        log.append(encode({"time": time.time(), **record}))
