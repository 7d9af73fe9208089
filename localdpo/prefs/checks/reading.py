"""What reading alone shows: rows that are no pair, columns that nobody reads, scores against the order."""

from __future__ import annotations

from localdpo.prefs.findings import Check

UNREADABLE = Check(
    "unreadable-rows",
    "error",
    "a row that cannot be read",
    "mend the field that is named, or take the row out; training stops at it",
    drops=True,
)
UNUSABLE = Check(
    "unusable-rows",
    "info",
    "a well-formed row that makes no pair",
    "nothing has to be done: training leaves it out, and so does cleaning",
    drops=True,
)
UNREAD = Check(
    "unread-columns",
    "warning",
    "columns that nobody reads",
    "put what belongs to the prompt into it, or take the columns out",
    rows=False,
)
SHARED = Check(
    "shared-words-as-prompt",
    "info",
    "prompts that are the words which both answers happen to open with",
    "give the prompt a column of its own, called prompt",
    rows=False,
)
SCORES = Check(
    "scores-against-order",
    "warning",
    "the rejected answer has the higher score",
    "turn the pair round, or take it out",
)
