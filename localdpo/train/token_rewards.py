"""The reward of every response token of some pairs: beta * ln(policy / reference), as numbers and as text.

The sum over a response is its reward as training reports it. For a loss without a reference (SimPO, ORPO)
the reward of a response is beta times its mean log-probability, so that of a token is
beta * ln(policy) / tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from localdpo.data.inspect import prompt_words, token_spans
from localdpo.data.store import Mixture
from localdpo.data.types import Batch, EncodedRow
from localdpo.model import lora
from localdpo.model.forward import Forward, batch_arrays
from localdpo.records.pairs import PairsRecord, RewardedResponse, WorstPair, write_pairs
from localdpo.records.rundir import RunDir
from localdpo.train.data import Rows

BATCH = 16


@dataclass(frozen=True)
class TokenReward:
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
class ResponseRewards:
    """The tokens of a response in order, and their sums."""

    tokens: tuple[TokenReward, ...]

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
class PairRewards:
    """A pair as text and per token; `row` counts from 1 in `source`, as in messages."""

    row: int
    source: str
    prompt: str
    chosen: ResponseRewards
    rejected: ResponseRewards

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
class ScoredPair:
    """One pair's tokens: per response the log-probabilities under policy and reference, and the rewards."""

    index: int
    logps: tuple[np.ndarray, ...]
    references: tuple[np.ndarray | None, ...]
    rewards: tuple[np.ndarray, ...]

    @property
    def margin(self) -> float:
        chosen, rejected = (math.fsum(values.tolist()) for values in self.rewards)
        return chosen - rejected


def score_pairs(
    forward: Forward, rows: Rows, positions: np.ndarray, reference: lora.Weights | None, beta: float
) -> list[ScoredPair]:
    """The pairs at `positions` under the weights in the model and under `reference`, lowest margin first.

    `reference` is None for a loss without one; `beta` is per nat.
    """
    scored = []
    for batch in rows.by_length(positions, BATCH):
        policy = _token_logps(forward, batch)
        base: list[np.ndarray] | None = None
        if reference is not None:
            with lora.use(forward.model, reference):
                base = _token_logps(forward, batch)
        count = len(batch.indices)
        for i, index in enumerate(batch.indices):
            logps = [policy[k] for k in (i, count + i)]
            references = [None if base is None else base[k] for k in (i, count + i)]
            rewards = [
                beta * own / len(own) if before is None else beta * (own - before)
                for own, before in zip(logps, references, strict=True)
            ]
            scored.append(ScoredPair(int(index), tuple(logps), tuple(references), tuple(rewards)))
    return sorted(scored, key=lambda pair: (pair.margin, pair.index))


def _token_logps(forward: Forward, batch: Batch) -> list[np.ndarray]:
    """Log-probabilities of the tokens of each response row, nats, float64."""
    arrays = batch_arrays(batch, shared=forward.shared)
    logps_T = forward.token_logps(arrays, gradient=False)
    mx.eval(logps_T)
    packed_T = np.array(logps_T, dtype=np.float64)[: int(batch.lengths.sum())]
    return np.split(packed_T, np.cumsum(batch.lengths)[:-1])


def as_text(scored: ScoredPair, store: Mixture, tokenizer: TokenizerWrapper) -> PairRewards:
    """The pair, a row of `store`, with the text of its tokens."""
    row: EncodedRow = store[scored.index]
    inner = tokenizer._tokenizer
    prompt = row.prompt.tolist()

    def response(k: int) -> ResponseRewards:
        ids = row.responses[k].tolist()
        texts = [
            part for count, text in token_spans(prompt, ids, inner) for part in [*[""] * (count - 1), text]
        ]
        references = scored.references[k]
        known = [None] * len(ids) if references is None else references.tolist()
        values = zip(ids, texts, scored.logps[k].tolist(), known, scored.rewards[k].tolist(), strict=True)
        return ResponseRewards(tuple(TokenReward(*value) for value in values))

    text = prompt_words(prompt, inner)
    return PairRewards(row.row + 1, store.source_of(scored.index), text, response(0), response(1))


def write_worst_pairs(
    run: RunDir,
    step: int,
    forward: Forward,
    rows: Rows,
    positions: np.ndarray,
    reference: lora.Weights | None,
    beta: float,
    tokenizer: TokenizerWrapper,
) -> dict[str, Any]:
    """Write the pairs at `positions`, lowest margin first (see records/pairs.py); the fields of the event.

    `reference` is None for a loss without one.
    """
    scored = score_pairs(forward, rows, positions, reference, beta)
    pairs = [as_text(pair, rows.store, tokenizer) for pair in scored]
    worst = []
    for pair in pairs:
        sides = (
            RewardedResponse(side.text, side.reward, tuple((each.text, each.reward) for each in side.tokens))
            for side in (pair.chosen, pair.rejected)
        )
        worst.append(WorstPair(pair.row, pair.source, pair.prompt, pair.margin, *sides))
    path = write_pairs(run, PairsRecord(step, beta, tuple(worst)))
    return {"path": path, "lowest": [[pair.row, pair.margin] for pair in pairs]}
