"""Which tokens of its pairs a run rewarded: beta * ln(policy / reference) of every response token.

The policy is the run's newest checkpoint, the reference the adapter that it started from (where the
reference is synced, the one in the checkpoint); both are weights in one loaded base. The sum over a
response is the pair's reward as training reports it.

For a loss without a reference (SimPO, ORPO) the reward of a response is beta times its mean
log-probability, so that of a token is beta * ln(policy) / tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import mlx.core as mx
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from localdpo.core.errors import UserError
from localdpo.core.rundir import RunDir
from localdpo.data.inspect import token_spans
from localdpo.data.types import Batch, EncodedRow
from localdpo.model import lora
from localdpo.model.forward import Forward, batch_arrays
from localdpo.model.load import Base, load_base
from localdpo.recipe.load import load_recipe
from localdpo.recipe.schema import Recipe
from localdpo.train.checkpoint import moved_reference
from localdpo.train.rows import Rows
from localdpo.train.session import attach_adapter, check_paths, open_rows

Split = Literal["valid", "train"]
BATCH = 16


@dataclass(frozen=True)
class TokenScore:
    """A response token. `text` is empty for all but the last of the tokens that make one character.

    Attributes:
        logp, reference_logp: nats; the latter is None for a loss without a reference.
        reward: beta * (logp - reference_logp); see the module for a loss without a reference.
    """

    id: int
    text: str
    logp: float
    reference_logp: float | None
    reward: float


@dataclass(frozen=True)
class InspectedResponse:
    """The tokens of a response in order, and their sums."""

    tokens: tuple[TokenScore, ...]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def reward(self) -> float:
        return math.fsum(token.reward for token in self.tokens)

    @property
    def logp(self) -> float:
        return math.fsum(token.logp for token in self.tokens)

    @property
    def reference_logp(self) -> float | None:
        known = [token.reference_logp for token in self.tokens if token.reference_logp is not None]
        return math.fsum(known) if known else None


@dataclass(frozen=True)
class InspectedPair:
    """A pair as text and per token; `row` counts from 1 in the source, as in messages."""

    row: int
    prompt: str
    chosen: InspectedResponse
    rejected: InspectedResponse

    @property
    def margin(self) -> float:
        return self.chosen.reward - self.rejected.reward

    @property
    def ranked(self) -> Literal["right", "wrong", "tie"]:
        """Whether the chosen response has the higher reward."""
        if self.margin == 0.0:
            return "tie"
        return "right" if self.margin > 0.0 else "wrong"


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        checkpoint: name of the policy's checkpoint.
        source: of the split's rows, as the recipe names it.
        rows, scored: pairs of the split, and how many of them (the first) were scored.
        accuracy, margin: means over the scored pairs.
        pairs: the pair that was asked for, or the worst first.
    """

    checkpoint: str
    split: Split
    source: str
    loss: str
    beta: float
    rows: int
    scored: int
    accuracy: float
    margin: float
    pairs: tuple[InspectedPair, ...]


@dataclass(frozen=True)
class _Scored:
    """One pair's tokens: per response the log-probabilities under policy and reference, and the rewards."""

    index: int
    logps: tuple[np.ndarray, ...]
    references: tuple[np.ndarray | None, ...]
    rewards: tuple[np.ndarray, ...]

    @property
    def margin(self) -> float:
        chosen, rejected = (math.fsum(values.tolist()) for values in self.rewards)
        return chosen - rejected


def inspect_run(
    run_dir: Path,
    *,
    split: Split = "valid",
    pair: int | None = None,
    worst: int = 20,
    limit: int | None = None,
    note: Callable[[str], None],
) -> Inspection:
    """Score the pair at row `pair` of the split, or find the `worst` of its first `limit` pairs.

    `note` is told in one line what a person should know about the model. The base is loaded once.

    Raises:
        UserError: no checkpoint yet, rows that are no pairs, no such row, or a model that does not load.
    """
    latest, recipe = _opened(RunDir(run_dir))
    base = load_base(recipe.model, trust_remote_code=recipe.trust_remote_code)
    attach_adapter(base, recipe)
    train, valid = open_rows(recipe, base.tokenizer)
    rows = train if split == "train" else valid
    places = _places(recipe, split, rows, pair, limit)
    forward = Forward(base.model)
    check_paths(forward, rows, note)
    reference = _reference(base, recipe, latest)
    lora.load_weights(base.model, latest)
    scored = list(_score(forward, rows, places, reference, recipe.loss.beta))
    scored.sort(key=lambda one: (one.margin, one.index))
    margins = np.array([one.margin for one in scored])
    return Inspection(
        checkpoint=latest.name,
        split=split,
        source=_source(recipe, split),
        loss=recipe.loss.spec.name,
        beta=recipe.loss.beta,
        rows=len(rows),
        scored=len(scored),
        accuracy=float((margins > 0.0).mean()),
        margin=float(margins.mean()),
        pairs=tuple(_as_text(one, rows.store[one.index], base.tokenizer) for one in scored[:worst]),
    )


def _opened(run: RunDir) -> tuple[Path, Recipe]:
    """The run's newest checkpoint and its recipe."""
    latest = run.latest_checkpoint()
    if latest is None:
        raise UserError(f"{run.path}: no checkpoint to inspect yet")
    recipe = load_recipe(run.recipe)
    data = recipe.loss.spec.data
    if data != "pairs":
        raise UserError(
            f"{run.path}: inspect shows pairs, and the {recipe.loss.spec.name} loss trains on "
            f"{'unpaired rows' if data == 'unpaired' else data}"
        )
    return latest, recipe


def _reference(base: Base, recipe: Recipe, latest: Path) -> lora.Weights | None:
    """The reference's adapter at the checkpoint; None for a loss without a reference."""
    if recipe.loss.sync_every is not None:
        return moved_reference(latest)
    return lora.adapter_weights(base.model) if recipe.loss.spec.needs_reference else None


def _source(recipe: Recipe, split: Split) -> str:
    return recipe.data.train if split == "train" or recipe.data.valid is None else recipe.data.valid


def _places(recipe: Recipe, split: Split, rows: Rows, pair: int | None, limit: int | None) -> np.ndarray:
    """Places of `rows` to score: that of one row of the source, or the first `limit`.

    Raises:
        UserError: the split has no rows, or not this one.
    """
    source = _source(recipe, split)
    if len(rows) == 0:
        raise UserError(f"{source}: no rows are held out; give --split train")
    if pair is None:
        return np.arange(len(rows) if limit is None else min(limit, len(rows)))
    numbers = np.array([rows.store[int(i)].row + 1 for i in rows.indices])
    found = np.flatnonzero(numbers == pair)
    if len(found) == 0:
        raise UserError(f"--pair {pair}: {_why_not(rows, pair, numbers)} ({split} rows of {source})")
    return found


def _why_not(rows: Rows, pair: int, numbers: np.ndarray) -> str:
    """Why a row of the source is not among those of the split."""
    report = rows.store.report
    for reason, dropped in report.dropped.items():
        if pair - 1 in dropped:
            return f"this row was dropped: {reason}"
    if any(row.row + 1 == pair for row in rows.store):
        return "this row is in the other split; see --split"
    return f"expected a row from {numbers.min()} to {numbers.max()}"


def _score(
    forward: Forward, rows: Rows, places: np.ndarray, reference: lora.Weights | None, beta: float
) -> Iterator[_Scored]:
    """The pairs at `places` under the weights in the model and under `reference`, longest first."""
    for batch in rows.by_length(places, BATCH):
        policy = _token_logps(forward, batch)
        base: list[np.ndarray] | None = None
        if reference is not None:
            with lora.use(forward.model, reference):
                base = _token_logps(forward, batch)
        count = len(batch.indices)
        for i, index in enumerate(batch.indices):
            own = (i, count + i)
            yield _Scored(
                index=int(index),
                logps=tuple(policy[k] for k in own),
                references=tuple(None if base is None else base[k] for k in own),
                rewards=tuple(_rewards(policy[k], None if base is None else base[k], beta) for k in own),
            )


def _rewards(policy: np.ndarray, reference: np.ndarray | None, beta: float) -> np.ndarray:
    """Rewards of a response's tokens, float64, the shape of `policy`."""
    if reference is None:
        return beta * policy / len(policy)
    return beta * (policy - reference)


def _token_logps(forward: Forward, batch: Batch) -> list[np.ndarray]:
    """Log-probabilities of the tokens of each response row, nats, float64."""
    arrays = batch_arrays(batch, shared=forward.shared)
    logps = forward.token_logps(arrays, gradient=False)
    mx.eval(logps)
    packed = np.array(logps, dtype=np.float64)[: int(batch.lengths.sum())]
    return np.split(packed, np.cumsum(batch.lengths)[:-1])


def _as_text(scored: _Scored, row: EncodedRow, tokenizer: TokenizerWrapper) -> InspectedPair:
    """The pair with the text of its tokens."""
    inner = tokenizer._tokenizer
    prompt = row.prompt.tolist()

    def response(k: int) -> InspectedResponse:
        ids = row.responses[k].tolist()
        texts = [
            part for count, text in token_spans(prompt, ids, inner) for part in [*[""] * (count - 1), text]
        ]
        references = scored.references[k]
        known = [None] * len(ids) if references is None else references.tolist()
        values = zip(ids, texts, scored.logps[k].tolist(), known, scored.rewards[k].tolist(), strict=True)
        return InspectedResponse(tuple(TokenScore(*value) for value in values))

    text = inner.decode(prompt, skip_special_tokens=True).strip()
    return InspectedPair(row.row + 1, text, response(0), response(1))
