"""What can be measured of an answer without a judge: the kinds of heuristics, and files of checks.

A heuristic looks at a prompt, an answer and the facts of the row and returns a number, or None where it does
not apply: an answer that is not scored is never counted as 0.
"""

from __future__ import annotations

from localdpo.heuristics.kinds import GENERAL, HEURISTICS, STANDARD, Direction, Heuristic

__all__ = ["GENERAL", "HEURISTICS", "STANDARD", "Direction", "Heuristic"]
