"""Starts the worker of a run, follows its events, explains its end; runs other processes beside a screen.

The worker is a process in a session of its own, below a small supervisor (`supervise.py`). It outlives the
terminal that started it, and a failure of the GPU driver, which aborts the process and cannot be caught in
Python, takes nothing else down.
"""

from __future__ import annotations

from localdpo.launch.explain import (
    FINISHED_EXIT,
    STOPPED_AT_ONCE,
    STOPPED_EXIT,
    UNSEEN_EXIT,
    ended_lines,
    explain_death,
    failure,
    full_disk,
    is_device_failure,
)
from localdpo.launch.processes import Job, Worker, start_worker, watch

__all__ = [
    "FINISHED_EXIT",
    "STOPPED_AT_ONCE",
    "STOPPED_EXIT",
    "UNSEEN_EXIT",
    "Job",
    "Worker",
    "ended_lines",
    "explain_death",
    "failure",
    "full_disk",
    "is_device_failure",
    "start_worker",
    "watch",
]
