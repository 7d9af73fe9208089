"""What a device says when it fails, and what to do then: the one table, for a process and for its viewers.

MLX reports some failures as a RuntimeError, others end the process from a thread of the driver's, so the same
words come from an exception, from a run's log or from what a worker printed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from localdpo.records.events import Event

# Begins the line with the command that resumes a run; in logs of earlier versions it began otherwise.
RESUME_WITH: Final = "resume with: "
_RESUME_LINES: Final = (RESUME_WITH, "go on with: ")
# What a person changes: of a run that trains, and of anything else that loads a model.
LESS_MEMORY: Final = (
    "lower train.micro_batch_size or train.max_length, or set train.gradient_checkpointing=true (a new run)"
)
_SMALLER: Final = "close other programs, lower --max-tokens, or take a smaller model"
_COMPILER: Final = "it needs a C++ compiler (g++) and room for temporary files (TMPDIR)"
_AWAY: Final = "let the display sleep meanwhile, or run it where nothing is drawn (over SSH)"


@dataclass(frozen=True)
class Death:
    """One way to die: `says` is found in what the process said; `training` and `elsewhere` are remedies."""

    says: re.Pattern[str]
    cause: str
    training: str
    elsewhere: str


# The most telling first.
DEATHS: Final = (
    Death(
        re.compile(r"rank( [0-9]+ \([^\n]*\))? was lost"),
        "its process was killed or crashed, or its machine is gone",
        "resume on the machines that are there; the batch stays the same on any number of ranks",
        "start the ranks again",
    ),
    Death(
        re.compile(r"metal::malloc\] Resource limit"),
        "the GPU driver has no room for more arrays",
        "resume from the last checkpoint: a new process has none; "
        "set train.compile=false if it happens again (a new run)",
        "run the same command again: what was generated is kept",
    ),
    Death(
        re.compile(r"greater than the maximum (allowed )?buffer size"),
        "one array is larger than the GPU allows",
        "lower train.micro_batch_size or train.max_length (a new run)",
        "give shorter prompts or a lower --max-tokens",
    ),
    Death(
        re.compile(
            r"kIOGPUCommandBuffer\w*OutOfMemory|Insufficient Memory|metal::malloc"
            r"|(?i:cuda[^\n]*out[ _]of[ _]memory)|cudaErrorMemoryAllocation"
        ),
        "the GPU ran out of memory",
        LESS_MEMORY,
        _SMALLER,
    ),
    Death(
        re.compile(r"kIOGPUCommandBuffer\w*ImpactingInteractivity|Impacting Interactivity"),
        "macOS stopped a GPU command that held up the display",
        f"{_AWAY}; a smaller batch alone does not help, a lower train.max_length may (a new run)",
        _AWAY,
    ),
    Death(
        re.compile(r"kIOGPUCommandBuffer\w*(Timeout|Hang)|cudaErrorLaunchTimeout"),
        "the system stopped a GPU command that ran for too long",
        "lower train.micro_batch_size and train.max_length (a new run)",
        "give shorter prompts",
    ),
    Death(
        re.compile(r"kIOGPUCommandBuffer|\[METAL\] Command buffer execution failed"),
        "the GPU gave up on a command",
        "resuming usually works",
        "run the same command again: what was generated is kept",
    ),
    Death(
        re.compile(r"cuda\w*(\([^\n]*\))? failed: |cudaError\w+|CUDA_ERROR_\w+|CU(BLAS|DNN)_STATUS_\w+"),
        "the CUDA driver reported an error",
        "resume from the last checkpoint; if it happens again, look at the driver's log (dmesg)",
        "run the same command again; if it happens again, look at the driver's log (dmesg)",
    ),
    Death(
        re.compile(r"\[Compile::eval_cpu\] Failed"),
        f"MLX could not compile for the CPU: {_COMPILER}",
        "resume then",
        "run the same command again then",
    ),
    Death(
        re.compile(r"MemoryError|std::bad_alloc|\[malloc|[Uu]nable to allocate|Cannot allocate memory"),
        "memory ran out",
        LESS_MEMORY,
        _SMALLER,
    ),
)


def death_in(text: str) -> Death | None:
    """The device's failure that `text` reports; None for anything else, a bug included."""
    return next((death for death in DEATHS if death.says.search(text)), None)


def training_hint(text: str) -> str | None:
    """`cause: remedy` for a run that trained."""
    death = death_in(text)
    return None if death is None else f"{death.cause}: {death.training}"


def end_lines(end: Event | None) -> list[str]:
    """What the event that ended a run says about it, the most telling first, without the resume command.

    Only a mistake that a person can mend and a death that was seen have lines of their own.
    """
    if end is None:
        return []
    lines, error = end.data.get("lines"), end.data.get("error")
    if isinstance(lines, list):
        return [str(line) for line in lines if not str(line).startswith(_RESUME_LINES)]
    if not isinstance(error, str):
        return []
    hint = training_hint(error)
    return [error] if hint is None else [error, f"hint: {hint}"]


def error_hint(error: BaseException) -> str | None:
    """`cause: remedy` for an exception outside of training; None where no device is to blame."""
    death = death_in(f"{type(error).__name__}: {error}") if is_device_error(error) else None
    return None if death is None else f"{death.cause}: {death.elsewhere}"


def is_device_error(error: BaseException) -> bool:
    """Whether a device failed: MLX raises RuntimeError, the interpreter MemoryError."""
    known = isinstance(error, MemoryError | RuntimeError)
    return known and death_in(f"{type(error).__name__}: {error}") is not None
