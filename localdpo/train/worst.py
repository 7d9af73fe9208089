"""The pairs that the policy ranks worst at an evaluation, written token by token (see records/pairs.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from localdpo.model import lora
from localdpo.model.forward import Forward
from localdpo.records.pairs import PairsRecord, RewardedResponse, WorstPair, write_pairs
from localdpo.records.rundir import RunDir
from localdpo.train.rows import Rows
from localdpo.train.token_rewards import PairRewards, as_text, score_pairs


@dataclass(frozen=True)
class WorstPairs:
    """Finds and writes them; `count` at most are kept."""

    run: RunDir
    forward: Forward
    rows: Rows
    tokenizer: TokenizerWrapper
    beta: float
    count: int

    def write(
        self, step: int, places: np.ndarray, margins: np.ndarray, reference: lora.Weights | None
    ) -> dict[str, Any]:
        """Write the file of `step` and return the fields of its event.

        `margins` [N] belong to the rows at `places` [N]; `reference` is None for a loss without one.
        """
        lowest = places[np.argsort(margins, kind="stable")[: self.count]]
        found = score_pairs(self.forward, self.rows, lowest, reference, self.beta)
        pairs = [
            as_text(one, self.rows.store, self.tokenizer)
            for one in sorted(found, key=lambda one: (one.margin, one.index))
        ]
        record = PairsRecord(step, self.beta, tuple(_record(pair) for pair in pairs))
        return {
            "path": write_pairs(self.run, record),
            "lowest": [[pair.row, pair.margin] for pair in pairs],
        }


def _record(pair: PairRewards) -> WorstPair:
    chosen, rejected = (
        RewardedResponse(
            response.text, response.reward, tuple((it.text, it.reward) for it in response.tokens)
        )
        for response in (pair.chosen, pair.rejected)
    )
    return WorstPair(pair.row, pair.source, pair.prompt, pair.margin, chosen, rejected)
