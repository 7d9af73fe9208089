"""What the viewer itself must tell: a run that has gone silent or died, memory that the log did not warn of.

Pure: from the state of a run and the time. What the worker saw (NaN, KL, accuracy, ...) is in its log.
"""

from __future__ import annotations

from typing import Final

from localdpo.core.text import format_seconds
from localdpo.dashboard.state import Notice, RunState
from localdpo.records.metrics import measured
from localdpo.records.progress import silent_for

_MEMORY_SHARE: Final = 0.9
# The worker's own notice of the same thing; older logs do not have it.
_MEMORY_NOTICE: Final = "memory"


def alarms(state: RunState, alive: bool, now: float) -> list[Notice]:
    """The alarms of a run at the Unix time `now`. `alive`: whether a worker holds the run's lock."""
    found = (_damage(state, now), _silence(state, alive, now), _death(state, alive), _memory(state))
    return [alarm for alarm in found if alarm is not None]


def _damage(state: RunState, now: float) -> Notice | None:
    if state.damage is None:
        return None
    return Notice(
        now if state.last_time is None else state.last_time,
        None,
        "warning",
        "damaged-log",
        state.damage,
        "What those lines said is missing on all screens: another program wrote into the log, the disk was "
        "full, or it is failing.",
        "The checkpoints have checksums of their own and are not affected.",
    )


def _silence(state: RunState, alive: bool, now: float) -> Notice | None:
    quiet = silent_for(state.progress, now) if alive else None
    if quiet is None or state.last_time is None:
        return None
    return Notice(
        state.last_time,
        state.progress.step,
        "warning",
        "silence",
        f"Nothing from the worker for {format_seconds(quiet)}, though its process lives",
        "A step takes much longer than those before, the machine slept, or the worker hangs.",
        "Look at worker.log in the run's folder and at the machine's memory; x stops the run.",
    )


def _death(state: RunState, alive: bool) -> Notice | None:
    if alive or state.state(False) != "crashed" or state.last_time is None:
        return None
    said = state.ended.data.get("lines") if state.ended is not None else None
    lines = [str(line) for line in said] if isinstance(said, list) else []
    return Notice(
        state.last_time,
        state.progress.step,
        "critical",
        "crashed",
        lines[0] if lines else f"The worker is gone; its last step was {state.progress.step}",
        "The process ended without a word of its own: a signal, the system short of memory, a failed driver.",
        "; ".join(lines[1:]) or "Resume the run: it goes on from its last checkpoint.",
    )


def _memory(state: RunState) -> Notice | None:
    held = measured(state.train, "memory_gb")
    limit = state.start.memory_limit_gb
    if held is None or limit is None or held.last is None or state.last_time is None:
        return None
    if held.last <= _MEMORY_SHARE * limit or any(_MEMORY_NOTICE in notice.name for notice in state.notices):
        return None
    return Notice(
        state.last_time,
        state.progress.step,
        "warning",
        "memory",
        f"Memory with cache {held.last:.3g} GB, {held.last / limit:.0%} of the {limit:.3g} GB there are",
        "A longer batch than any before may not fit; the process is then ended without warning.",
        "Start a new run with a lower train.micro_batch_size or train.max_length, or with "
        "train.gradient_checkpointing=true.",
    )
