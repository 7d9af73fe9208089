"""How long an answer is. Neither way is better, but judges tend to like longer answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from localdpo.heuristics.base import Heuristic, Kind, Options

UNITS: Final = ("words", "characters")


def words(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
    """Words: runs of characters between white space."""
    return float(len(answer.split()))


def characters(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
    """Characters (code points), white space around the answer aside."""
    return float(len(answer.strip()))


def standard() -> Heuristic:
    """Words."""
    return Heuristic("words", "neutral", words, digits=1)


def empty() -> Heuristic:
    """1 for an answer of white space alone, else 0."""
    return Heuristic("empty", "lower", lambda prompt, answer, facts: float(not answer.strip()))


def build(name: str, options: Options) -> Heuristic:
    """Options: `unit`, one of words (default) and characters."""
    unit = options.choice("unit", UNITS, "words")
    return Heuristic(name, options.better("neutral"), words if unit == "words" else characters, digits=1)


KIND: Final = Kind("length", build)
