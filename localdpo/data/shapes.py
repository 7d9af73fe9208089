"""The shapes that the micro-batches of a run are padded to: few, so that a compiled step is traced few times.

A trace serves one shape, and MLX keeps every trace, so their number must be bounded. Which rows a step takes
is known before it begins; so are the sizes that each of its micro-batches needs, and `plan_shapes` chooses
the table under which they are padded least. A pure function of these sizes: a resumed run has the same table.

A prompt that is longer than the context of its shape ends at the head of its responses, so that what a shape
holds is bounded by whole sequences and responses; a model whose prompt is not shared has no context at all.
Two micro-batches with different numbers of rows share no shape: a row that is not there would have to be
kept out of every loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Widths of a table are multiples of this, and 16 at least: kernels like round sizes, and MLX's attention on a
# GPU takes a way of its own for a few queries.
MULTIPLE, NARROWEST = 8, 16
# Different needs that are merged pair by pair; more are first merged by rounding up.
_MERGED = 400
_ROUNDS = 50


@dataclass(frozen=True, order=True)
class Shape:
    """Sizes of a micro-batch's arrays.

    Attributes:
        rows: P.
        whole: columns of prompt and response together.
        response: those of them that run once for every response.
        packed: scored tokens of all responses, padding included.
    """

    rows: int
    whole: int
    response: int
    packed: int

    @property
    def context(self) -> int:
        """Columns of the prompts that run once for all responses; 0 where none do."""
        return self.whole - self.response

    def holds(self, need: Shape) -> bool:
        """Whether a micro-batch that needs these sizes can be padded to this shape."""
        return (
            self.rows == need.rows
            and self.whole >= need.whole
            and self.response >= need.response
            and self.packed >= need.packed
        )


def columns(shapes: NDArray[np.int64], responses: int) -> NDArray[np.int64]:
    """What is computed for shapes [..., 4] with `responses` a row: tokens and scored tokens, with padding."""
    rows, whole, response, packed = np.moveaxis(shapes, -1, 0)
    return rows * (whole + (responses - 1) * response) + packed


@dataclass(frozen=True)
class ShapeTable:
    """The shapes of a run, and what they cost.

    Attributes:
        shapes: by what is computed for one, the cheapest first.
        computed: columns (see `columns`) of all micro-batches that were planned for.
        needed: the same with a shape for every micro-batch.
        real: those of them that hold a token.
        planned: micro-batches.
    """

    shapes: tuple[Shape, ...]
    computed: int
    needed: int
    real: int
    planned: int

    @property
    def padding(self) -> float:
        """Share of what is computed that is padding, or the end of a prompt once more."""
        return 1.0 - self.real / self.computed

    @property
    def least_padding(self) -> float:
        """The same with a shape for every micro-batch: what rows and responses of different lengths cost."""
        return 1.0 - self.real / self.needed

    def of(self, need: Shape) -> Shape | None:
        """The cheapest shape that holds these sizes; None if there is none."""
        return next((shape for shape in self.shapes if shape.holds(need)), None)


def plan_shapes(needs: NDArray[np.int64], responses: int, *, real: int, most: int) -> ShapeTable:
    """A table of at most `most` shapes that holds every need, with little padding.

    Needs are merged two by two, those first whose common shape adds the least to what is computed; then each
    need takes the cheapest shape that holds it and every shape shrinks to what it has to hold, until nothing
    changes.

    Args:
        needs: [N, 4], the fields of `Shape` for each micro-batch, N >= 1. `whole` is above `response` where
            the prompt is shared, else the same.
        responses: of a row.
        real: tokens and scored tokens of all micro-batches.

    Raises:
        ValueError: micro-batches of more than `most` different numbers of rows.
    """
    rounded = np.maximum(_round_up(needs, MULTIPLE), NARROWEST)
    rounded[:, 0] = needs[:, 0]
    shared = needs[:, 1] > needs[:, 2]
    rounded[:, 1] = np.where(shared, np.maximum(rounded[:, 1], rounded[:, 2] + NARROWEST), rounded[:, 2])
    if len(np.unique(rounded[:, 0])) > most:
        raise ValueError(f"plan_shapes: expected at most {most} different numbers of rows")
    kinds, of = _unique(rounded)
    counts = np.bincount(of)
    found = _fit_closely(kinds, _merged(kinds, counts, responses, most), responses)
    found = found[np.lexsort([*found.T[::-1], columns(found, responses)])]
    taken, cost = _assign(kinds, found, responses)
    return ShapeTable(
        shapes=tuple(Shape(*(int(size) for size in found[i])) for i in np.unique(taken)),
        computed=int((cost * counts).sum()),
        needed=int((columns(kinds, responses) * counts).sum()),
        real=real,
        planned=len(needs),
    )


def _round_up(values: NDArray[np.int64], multiple: int) -> NDArray[np.int64]:
    return -(-values // multiple) * multiple


def _merged(
    kinds: NDArray[np.int64], counts: NDArray[np.int64], responses: int, most: int
) -> NDArray[np.int64]:
    """At most `most` shapes that hold all kinds, by merging the two that add the least again and again."""
    shapes, weights = _grouped(kinds, counts)
    alive = np.ones(len(shapes), dtype=bool)

    def added(i: int) -> NDArray[np.float64]:
        """What merging shape i with each of the others adds to what is computed."""
        own = columns(shapes, responses)
        both = columns(np.maximum(shapes[i], shapes), responses) * (weights[i] + weights)
        extra = (both - own[i] * weights[i] - own * weights).astype(np.float64)
        extra[~alive | (shapes[:, 0] != shapes[i, 0])] = np.inf
        extra[i] = np.inf
        return extra

    extra = np.stack([added(i) for i in range(len(shapes))])
    for _ in range(len(shapes) - most):
        i, j = np.unravel_index(np.argmin(extra), extra.shape)
        shapes[i], weights[i], alive[j] = np.maximum(shapes[i], shapes[j]), weights[i] + weights[j], False
        extra[j], extra[:, j] = np.inf, np.inf
        extra[i] = extra[:, i] = added(int(i))
    return shapes[alive]


def _grouped(
    kinds: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At most `_MERGED` shapes that hold the kinds, and the micro-batches of each: by rounding up."""
    multiple, cells = MULTIPLE, kinds
    while True:
        groups, of = _unique(cells)
        if len(groups) <= _MERGED:
            break
        multiple = multiple * 5 // 4
        cells = np.column_stack([kinds[:, 0], _round_up(kinds[:, 1:], multiple)])
    shapes, weights = np.zeros_like(groups), np.zeros(len(groups), dtype=np.int64)
    np.maximum.at(shapes, of, kinds)
    np.add.at(weights, of, counts)
    return shapes, weights


def _unique(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the different rows, sorted; the place of each row among them): a faster np.unique."""
    order = np.lexsort(sizes.T[::-1])
    ordered = sizes[order]
    first = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))
    of = np.empty(len(sizes), dtype=np.int64)
    of[order] = np.cumsum(first) - 1
    return ordered[first], of


def _fit_closely(kinds: NDArray[np.int64], shapes: NDArray[np.int64], responses: int) -> NDArray[np.int64]:
    """The shapes shrunk to what they hold, once each kind takes the cheapest one."""
    for _ in range(_ROUNDS):
        taken, _ = _assign(kinds, shapes, responses)
        closer = np.zeros_like(shapes)
        np.maximum.at(closer, taken, kinds)
        closer = closer[np.unique(taken)]
        if np.array_equal(closer, shapes):
            break
        shapes = closer
    return shapes


def _assign(
    kinds: NDArray[np.int64], shapes: NDArray[np.int64], responses: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the cheapest shape that holds each kind, what is computed for it); the first of equally cheap ones."""
    never = np.iinfo(np.int64).max
    taken, least = np.zeros(len(kinds), dtype=np.int64), np.full(len(kinds), never)
    for i, (shape, cost) in enumerate(zip(shapes, columns(shapes, responses), strict=True)):
        holds = (kinds[:, 0] == shape[0]) & (kinds[:, 1:] <= shape[1:]).all(axis=1) & (cost < least)
        taken[holds], least[holds] = i, cost
    return taken, least
