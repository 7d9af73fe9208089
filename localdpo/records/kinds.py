"""The kinds of runs by the rows that they train on, and what of a run is shown for each.

Which metrics a run has says itself: charts and tiles are those of which its log has values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from localdpo.records.events import Event


@dataclass(frozen=True)
class RunKind:
    """One kind.

    Attributes:
        rows: what it trains on, for people.
        has_beta: whether its rewards are compared with a reference, so that beta means something.
        has_pairs: whether an evaluation writes the pairs of lowest margin.
        before: what the model that it is compared with is called.
    """

    rows: str
    has_beta: bool = True
    has_pairs: bool = False
    before: str = "reference"


KINDS: Final = {
    "pairs": RunKind("pairs", has_pairs=True),
    "unpaired": RunKind("single answers with a label"),
    "demonstrations": RunKind("demonstrations", has_beta=False, before="before training"),
}


# The losses that do not train on pairs, for logs from before the event named the kind.
_BY_LOSS: Final = {"sft": "demonstrations", "kto": "unpaired", "apo_zero_unpaired": "unpaired"}


def kind_of(start: Event | None) -> RunKind:
    """The kind of run that a run.started event begins; old logs tell it by their loss alone."""
    if start is None:
        return KINDS["pairs"]
    kind = start.text("kind") or _BY_LOSS.get(str(start.recipe_section("loss").get("type")))
    return KINDS.get(kind or "", KINDS["pairs"])
