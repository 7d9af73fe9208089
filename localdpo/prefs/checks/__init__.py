"""The table of checks. A new one is an entry in its family's file, a new family also a line here."""

from __future__ import annotations

from typing import Final

from localdpo.prefs.checks.base import Check, Family
from localdpo.prefs.checks.lengths import Lengths, TokenLengths
from localdpo.prefs.checks.overlap import Overlap
from localdpo.prefs.checks.reference import ReferenceAccuracy
from localdpo.prefs.checks.repeats import Duplicates, Labels
from localdpo.prefs.checks.texts import Markers, Skew

# What reading alone shows: rows that are no pair, columns that nobody reads, scores against the order.
UNREADABLE = Check(
    "unreadable-rows",
    "error",
    "a row that cannot be read",
    "fix the field that is named, or remove the row; training stops at it",
    drops=True,
)
UNUSABLE = Check(
    "unusable-rows",
    "info",
    "a well-formed row that makes no pair",
    "no action needed: training drops it, and so does cleaning",
    drops=True,
)
UNREAD = Check(
    "unread-columns",
    "warning",
    "columns that nobody reads",
    "put what belongs to the prompt into it, or remove the columns",
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
    "swap the two answers, or remove the pair",
)

FAMILIES: Final[tuple[type[Family], ...]] = (
    Lengths,
    Labels,
    Duplicates,
    Markers,
    Skew,
    Overlap,
    TokenLengths,
    ReferenceAccuracy,
)
CHECKS: Final[tuple[Check, ...]] = (
    UNREADABLE,
    UNUSABLE,
    UNREAD,
    SHARED,
    SCORES,
    *(check for family in FAMILIES for check in family.checks),
)
