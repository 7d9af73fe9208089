"""What tokens cost, by a small dated table that the user can overrule, and how much may be spent."""

from __future__ import annotations

import math
import os
import re
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from localdpo.core.errors import UserError
from localdpo.judging.base import Interrupted, JudgeStopped
from localdpo.recipe.strict_yaml import load_yaml

SHIPPED: Final = Path(__file__).parent / "prices.yaml"
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
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


Rate: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _day(text: str) -> str:
    if not _DAY.fullmatch(text):
        raise ValueError(f"expected a day such as 2026-11-26, got {text!r}")
    return text


Day: TypeAlias = Annotated[str, AfterValidator(_day)]


class Price(BaseModel):
    """US dollars a million tokens. `above`, for longer requests, replaces all of it.

    `date` is the day on which somebody looked it up; None for one that was given without.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    input: Rate
    output: Rate
    cache_write: Rate
    cache_read: Rate
    above: LongPrice | None = None
    date: Day | None = None

    def usd(self, tokens: TokenCounts, batch: bool = False) -> float:
        if self.above is not None and tokens.all_input > self.above.tokens:
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
        if self.above is not None and input_tokens > self.above.tokens:
            return self.above.worst(input_tokens, output_tokens, batch)
        dearest = max(self.input, self.cache_write, self.cache_read)
        total = (input_tokens * dearest + output_tokens * self.output) / _MILLION
        return total * (_BATCH if batch else 1.0)


class LongPrice(Price):
    """The price of requests of more than `tokens` tokens."""

    tokens: Rate


def flat_price(text: str) -> Price:
    """The price of `--price IN,OUT`. What a cache does to it is not known: writing into one is counted at
    1.25 times the input, as Claude's costs, reading from one in full. Raises UserError.
    """
    try:
        sent, said = (float(part) for part in text.split(","))
        return Price(input=sent, output=said, cache_write=1.25 * sent, cache_read=sent)
    except ValueError:
        raise UserError(
            f"--price {text}: expected dollars for a million tokens of input and of output, as in 4,20"
        ) from None


class PriceTable(BaseModel):
    """Prices by model id, and the day they were looked up on, where an entry does not name its own."""

    model_config = ConfigDict(extra="forbid")
    date: Day
    source: str = ""
    models: dict[str, Price]

    @model_validator(mode="after")
    def _date_all(self) -> Self:
        undated = {name for name, price in self.models.items() if price.date is None}
        self.models |= {name: self.models[name].model_copy(update={"date": self.date}) for name in undated}
        return self

    def of(self, model: str) -> Price | None:
        """The price of `model`; an id with a date at its end has that of the id without."""
        name, _, date = model.rpartition("-")
        undated = name if len(date) == 8 and date.isdigit() else model
        return self.models.get(model) or self.models.get(undated)


def load_prices(path: str | os.PathLike[str] | None = None) -> PriceTable:
    """The shipped table, with the user's file on top.

    Raises UserError or UserErrors for a file that is not in the form of `prices.yaml`.
    """
    table = _shipped()
    if path is None:
        return table
    own = load_yaml(Path(path), PriceTable)
    return PriceTable(date=table.date, models=table.models | own.models)


@cache
def _shipped() -> PriceTable:
    return load_yaml(SHIPPED, PriceTable)


class Budget:
    """US dollars that the questions of one command may cost, shared by all its threads.

    `spent` plus what is set aside for questions in flight never exceeds `max_usd`; None is no limit.
    `lost` is the part of `spent` that nobody told: the most that replies can have cost which did not come
    through.
    """

    def __init__(self, max_usd: float | None = None) -> None:
        if max_usd is not None and not (math.isfinite(max_usd) and max_usd >= 0):
            raise ValueError(f"max_usd must be a number >= 0, not {max_usd!r}")
        self.max_usd = max_usd
        self.spent = 0.0
        self.lost = 0.0
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

    def settle(self, worst_usd: float, usd: float, lost: bool = False) -> None:
        """Give back what was set aside for one question, and book what it did cost, or may have: `lost`."""
        with self._changed:
            self._in_flight -= 1
            # Sums of floats leave dust behind; with nothing in flight nothing is set aside.
            self._reserved = self._reserved - self._finite(worst_usd) if self._in_flight else 0.0
            self.spent += self._finite(usd)
            self.lost += self._finite(usd) if lost else 0.0
            self._changed.notify_all()

    def _too_much(self, worst_usd: float) -> JudgeStopped:
        if math.isinf(worst_usd):
            return JudgeStopped(
                "the price of this model is not known, so a limit cannot be kept: "
                "give it with --price IN,OUT, or add the model to a file for --prices"
            )
        return JudgeStopped(
            f"the limit of ${self.max_usd:.2f} is reached: ${self.spent:.4f} spent, and what comes next may "
            f"cost ${worst_usd:.4f}; what was answered is kept, run the same command with a higher limit"
        )

    def words(self) -> str:
        """What was spent, for people."""
        if not self.lost:
            return f"${self.spent:.4f}"
        return f"at most ${self.spent:.4f}, ${self.lost:.4f} of it for replies that did not come through"

    @staticmethod
    def _finite(usd: float) -> float:
        return usd if math.isfinite(usd) else 0.0
