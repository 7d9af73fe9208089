"""What tokens cost: a small dated table that the user can overrule, since no API tells prices."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from localdpo.core.errors import UserError, UserErrors
from localdpo.judging.rubric import read_text
from localdpo.recipe.strict_yaml import read_yaml

SHIPPED: Final = Path(__file__).parent / "prices.yaml"
_RATES: Final = ("input", "output", "cache_write", "cache_read")
_MILLION: Final = 1_000_000
_BATCH: Final = 0.5


@dataclass(frozen=True, slots=True)
class Tokens:
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

    def usd(self, tokens: Tokens, batch: bool = False) -> float:
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
    document = read_yaml(read_text(path))
    if document.problems:
        raise UserErrors([UserError(f"{path}:{one.line} {one.message}") for one in document.problems])
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
    """The price an entry gives, or None when it is not one."""
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
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    )
