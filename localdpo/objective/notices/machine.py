"""Rules about the machine: memory that is nearly full, and steps that have become slow."""

from __future__ import annotations

import statistics

from localdpo.objective.notices.history import History, Notice, last_step, values_of

MEMORY_SHARE = 0.9
# Steps differ in length with their rows, so medians are compared; the first steps trace and warm up.
SPEED_WINDOW = 32
SPEED_SKIP = 8
SPEED_LOST = 0.3


def memory_nearly_full(history: History) -> Notice | None:
    limit = history.facts.memory_limit_gb
    held = values_of(history.train, "memory_gb", 1) or values_of(history.train, "peak_memory_gb", 1)
    if limit is None or not held or held[0] <= MEMORY_SHARE * limit:
        return None
    return Notice(
        "memory",
        "warning",
        last_step(history),
        f"Memory with cache {held[0]:.1f} GB of {limit:.1f} GB",
        "Beyond this the system swaps, which makes steps many times slower, or ends the run.",
        "Start a new run with a lower train.micro_batch_size or train.max_length, or with "
        "train.gradient_checkpointing=true.",
    )


def slower(history: History) -> Notice | None:
    """The newest steps' tokens per second against the best stretch of as many steps before them."""
    if len(history.train) < SPEED_SKIP + 2 * SPEED_WINDOW:
        return None
    speeds = values_of(history.train[SPEED_SKIP:], "tokens_per_second", 4 * SPEED_WINDOW)
    if len(speeds) < 2 * SPEED_WINDOW:
        return None
    now = statistics.median(speeds[-SPEED_WINDOW:])
    earlier = [
        statistics.median(speeds[start : start + SPEED_WINDOW])
        for start in range(0, len(speeds) - 2 * SPEED_WINDOW + 1, SPEED_WINDOW // 2)
    ]
    if now >= (1.0 - SPEED_LOST) * max(earlier):
        return None
    return Notice(
        "slower",
        "info",
        last_step(history),
        f"{now:.0f} tokens a second, {max(earlier):.0f} before",
        "The same work takes longer: another program uses the machine, it is hot and throttled, or it swaps.",
        "Look at the memory chart and at other programs; training itself is not affected.",
    )
