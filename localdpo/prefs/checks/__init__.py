"""The table of checks. A new one is an entry in its family's file; a new family is a line here."""

from __future__ import annotations

from localdpo.prefs.checks.duplicates import Duplicates
from localdpo.prefs.checks.labels import Labels
from localdpo.prefs.checks.markers import Markers
from localdpo.prefs.checks.overlap import Overlap
from localdpo.prefs.checks.reading import SCORES, SHARED, UNREAD, UNREADABLE, UNUSABLE
from localdpo.prefs.checks.reference import Reference
from localdpo.prefs.checks.sizes import Sizes
from localdpo.prefs.checks.skew import Skew
from localdpo.prefs.checks.tokens import Tokens
from localdpo.prefs.findings import Check, Family

FAMILIES: tuple[type[Family], ...] = (Sizes, Labels, Duplicates, Overlap, Markers, Skew, Tokens, Reference)
CHECKS: tuple[Check, ...] = (
    UNREADABLE,
    UNUSABLE,
    UNREAD,
    SHARED,
    SCORES,
    *(check for family in FAMILIES for check in family.checks),
)
