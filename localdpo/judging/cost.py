"""What tokens cost, by a small dated table that the user can overrule, and how much may be spent."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from localdpo.core.errors import UserError, UserErrors
from localdpo.core.text import is_number
from localdpo.judging.base import Interrupted, JudgeStopped
from localdpo.judging.rubric import read_yaml_file

SHIPPED: Final = Path(__file__).parent / "prices.yaml"
_RATES: Final = ("input", "output", "cache_write", "cache_read")
_MILLION: Final = 1_000_000
_BATCH: Final = 0.5
_LOOK_AGAIN: Final = 0.2  # seconds; how soon a waiting thread sees that the run is being stopped


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of one request; the three kinds of input do not overlap."""

    input: int
    output: int
    cache_write: int = 0
    cache_read: int = 0

    @property
    def all_input(self) -> int:
        """The length of the request."""
        return self.input + self.cache_write + self.cache_read


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars a million tokens. `above`, for requests of more than `above_tokens`, replaces all of it."""

    input: float
    output: float
    cache_write: float
    cache_read: float
    above_tokens: int | None = None
    above: Price | None = None

    def usd(self, tokens: TokenCounts, batch: bool = False) -> float:
        """What one request costs."""
        if self.above is not None and self.above_tokens is not None and tokens.all_input > self.above_tokens:
            return self.above.usd(tokens, batch)
        total = (
            tokens.input * self.input
            + tokens.output * self.output
            + tokens.cache_write * self.cache_write
            + tokens.cache_read * self.cache_read
        )
        return total / _MILLION * (_BATCH if batch else 1.0)

    def worst(self, input_tokens: int, output_tokens: int, batch: bool = False) -> float:
        """The most that a request of at most so many tokens can cost, whatever is cached."""
        if self.above is not None and self.above_tokens is not None and input_tokens > self.above_tokens:
            return self.above.worst(input_tokens, output_tokens, batch)
        dearest = max(self.input, self.cache_write, self.cache_read)
        total = (input_tokens * dearest + output_tokens * self.output) / _MILLION
        return total * (_BATCH if batch else 1.0)


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices by model id, and the day they were looked up on."""

    date: str
    models: dict[str, Price]

    def of(self, model: str) -> Price | None:
        """The price of `model`; an id with a date at its end has that of the id without."""
        name, _, date = model.rpartition("-")
        undated = name if len(date) == 8 and date.isdigit() else model
        return self.models.get(model) or self.models.get(undated)


def load_prices(path: Path | None = None) -> PriceTable:
    """The shipped table, with the user's file on top.

    Raises UserError or UserErrors for a file that is not in the form of `prices.yaml`.
    """
    table = _read(SHIPPED)
    if path is None:
        return table
    own = _read(path)
    return PriceTable(own.date, table.models | own.models)


def _read(path: Path) -> PriceTable:
    document = read_yaml_file(path)
    value = document.value
    if not isinstance(value, dict) or not isinstance(value.get("models"), dict) or "date" not in value:
        raise UserError(f"{path}: expected `date:` and `models:` with a price for each, as in {SHIPPED}")
    models: dict[str, Price] = {}
    problems = []
    for name, entry in value["models"].items():
        price = _price(entry)
        if price is None:
            line = document.lines[("models", name)]
            rates = ", ".join(_RATES)
            problems.append(UserError(f"{path}:{line} models.{name}: expected numbers >= 0 for {rates}"))
        else:
            models[name] = price
    if problems:
        raise UserErrors(problems)
    return PriceTable(str(value["date"]), models)


def _price(entry: Any) -> Price | None:
    """The price of an entry, or None when it is not one."""
    if not isinstance(entry, dict) or not all(_is_rate(entry.get(name)) for name in _RATES):
        return None
    into, out, write, read = (float(entry[name]) for name in _RATES)
    price = Price(into, out, write, read)
    if entry.keys() == set(_RATES):
        return price
    above = entry.get("above")
    if entry.keys() != {*_RATES, "above"} or not isinstance(above, dict) or not _is_rate(above.get("tokens")):
        return None
    longer = _price({name: value for name, value in above.items() if name != "tokens"})
    return replace(price, above_tokens=int(above["tokens"]), above=longer) if longer else None


def _is_rate(value: Any) -> bool:
    return is_number(value) and math.isfinite(value) and value >= 0


class Budget:
    """US dollars that the questions of one command may cost, shared by all its threads.

    `spent` plus what is set aside for questions in flight never exceeds `max_usd`; None is no limit.
    """

    def __init__(self, max_usd: float | None = None) -> None:
        if max_usd is not None and not (math.isfinite(max_usd) and max_usd >= 0):
            raise ValueError(f"max_usd must be a number >= 0, not {max_usd!r}")
        self.max_usd = max_usd
        self.spent = 0.0
        self._reserved = 0.0
        self._in_flight = 0
        self._changed = threading.Condition()

    def reserve(self, worst_usd: float, stop: threading.Event) -> None:
        """Set the worst case of one question aside; waits while others in flight may give some back.

        Raises JudgeStopped when it does not fit although nothing is in flight, or when the price is not
        known (infinity) and there is a limit; Interrupted when `stop` is set while waiting.
        """
        with self._changed:
            while self.max_usd is not None and self.spent + self._reserved + worst_usd > self.max_usd:
                if self._in_flight == 0 or math.isinf(worst_usd):
                    raise self._too_much(worst_usd)
                if stop.is_set():
                    raise Interrupted("waiting for the budget")
                self._changed.wait(_LOOK_AGAIN)
            self._in_flight += 1
            self._reserved += self._finite(worst_usd)

    def settle(self, worst_usd: float, usd: float) -> None:
        """Give back what was set aside for one question, and book what it did cost."""
        with self._changed:
            self._in_flight -= 1
            # Sums of floats leave dust behind; with nothing in flight nothing is set aside.
            self._reserved = self._reserved - self._finite(worst_usd) if self._in_flight else 0.0
            self.spent += self._finite(usd)
            self._changed.notify_all()

    def _too_much(self, worst_usd: float) -> JudgeStopped:
        if math.isinf(worst_usd):
            return JudgeStopped(
                "the price of this model is not known, so a limit cannot be kept: "
                "add the model to a file of prices"
            )
        return JudgeStopped(
            f"the limit of ${self.max_usd:.2f} is reached: ${self.spent:.4f} spent, and what comes next may "
            f"cost ${worst_usd:.4f}; what was answered is kept, run the same command with a higher limit"
        )

    @staticmethod
    def _finite(usd: float) -> float:
        return usd if math.isfinite(usd) else 0.0
