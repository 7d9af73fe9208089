"""What a heuristic is, and the options of a check in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

from localdpo.recipe.strict_yaml import KeyPath

Direction = Literal["higher", "lower", "neutral"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

Score: TypeAlias = Callable[[str, str, Mapping[str, Any]], "float | None"]
"""(prompt, answer, facts) -> the number, or None where the heuristic does not apply."""


@dataclass(frozen=True, slots=True)
class Heuristic:
    """One number about an answer.

    Attributes:
        name: short, unique in a table; the name of its row.
        direction: which way is better; neutral where neither is.
        score: from prompt, answer and the other columns of the prompt's row.
        digits: after the point, in a table.
    """

    name: str
    direction: Direction
    score: Score
    digits: int = 3


class OptionProblem(Exception):
    """An option of a check is missing or wrong; `path` leads to it from the check."""

    def __init__(self, path: KeyPath, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


class CheckOptions:
    """The options of one check, read by name. An option that no kind has read is unknown to `finish`."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self._known: set[str] = set()

    def text(self, name: str, default: str | None = None) -> str:
        """A text that is not empty. Raises OptionProblem when it is missing and has no default."""
        value = self._value(name, default)
        if not isinstance(value, str) or not value:
            raise OptionProblem((name,), f"expected text, got {value!r}; put it in quotes")
        return value

    def optional(self, name: str) -> str | None:
        """A text, or None when it is not there."""
        self._known.add(name)
        return self.text(name) if name in self.values else None

    def positive(self, name: str, default: int) -> int:
        """A whole number of at least 1."""
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise OptionProblem((name,), f"expected a whole number >= 1, got {value!r}")
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of `choices`."""
        value = self._value(name, default)
        if value not in choices:
            raise OptionProblem((name,), f"expected one of {', '.join(choices)}, got {value!r}")
        return str(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise OptionProblem((name,), f"expected true or false, got {value!r}")
        return value

    def texts(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """A list of texts, none of them empty."""
        value = self._value(name, default)
        if not isinstance(value, list | tuple) or not value:
            raise OptionProblem((name,), f"expected a list of texts, got {value!r}")
        for index, item in enumerate(value):
            if not isinstance(item, str) or not item.strip():
                raise OptionProblem((name, index), f"expected text, got {item!r}; put it in quotes")
        return tuple(value)

    def mapping(self, name: str) -> Mapping[str, Any] | None:
        """A mapping, or None when it is not there."""
        self._known.add(name)
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise OptionProblem((name,), f"expected a mapping, got {value!r}")
        return value

    def better(self, default: Direction) -> Direction:
        """The option `better`: which direction is better, where the kind's default does not fit the task."""
        return cast(Direction, self.choice("better", DIRECTIONS, default))

    def finish(self) -> None:
        """Raises OptionProblem for an option that the kind does not have."""
        unknown = [name for name in self.values if name not in self._known]
        if unknown:
            known = ", ".join(sorted(self._known))
            raise OptionProblem((unknown[0],), f"no such option of this kind; it has {known}")

    def _value(self, name: str, default: Any) -> Any:
        self._known.add(name)
        value = self.values.get(name, default)
        if value is None:
            raise OptionProblem((name,), "missing" if name not in self.values else "expected a value")
        return value
