"""Rows that are no pair: broken ones, and those that their format says to leave out."""

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
