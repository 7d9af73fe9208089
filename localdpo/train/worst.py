"""The pairs that the policy ranks worst at an evaluation, token by token, as files of the run.

`pairs/step-000120.json` holds those of lowest margin at step 120:

    {"step": 120, "beta": 0.1, "pairs": [{"row": 7, "source": "demo:preferences/valid", "prompt": "...",
      "margin": -0.8, "chosen": {"text": "...", "reward": 0.1, "tokens": [["Sev", 0.02], ...]},
      "rejected": {...}}, ...]}

A token's number is its reward; one whose text is empty is a part of the character that a later one completes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from localdpo.core.atomic import write_bytes
from localdpo.model import lora
from localdpo.model.forward import Forward
from localdpo.records.events import finite
from localdpo.records.log import seal
from localdpo.records.rundir import RunDir
from localdpo.train.rows import Rows
from localdpo.train.token_rewards import PairRewards, ResponseRewards, as_text, score_pairs


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
        """Write the file of `step` and give the fields of its event.

        `margins` [N] belong to the rows at `places` [N]; `reference` is None for a loss without one.
        """
        lowest = places[np.argsort(margins, kind="stable")[: self.count]]
        found = score_pairs(self.forward, self.rows, lowest, reference, self.beta)
        pairs = [
            as_text(one, self.rows.store, self.tokenizer)
            for one in sorted(found, key=lambda one: (one.margin, one.index))
        ]
        path = pairs_file(self.run, step)
        path.parent.mkdir(exist_ok=True)
        content = {"step": step, "beta": self.beta, "pairs": [_as_object(pair) for pair in pairs]}
        write_bytes(path, seal(json.dumps(finite(content), ensure_ascii=False)))
        return {
            "path": str(path.relative_to(self.run.path)),
            "lowest": [[pair.row, pair.margin] for pair in pairs],
        }


def _as_object(pair: PairRewards) -> dict[str, Any]:
    return {
        "row": pair.row,
        "source": pair.source,
        "prompt": pair.prompt,
        "margin": pair.margin,
        "chosen": _response(pair.chosen),
        "rejected": _response(pair.rejected),
    }


def pairs_file(run: RunDir, step: int) -> Path:
    """Where the pairs of an evaluation are."""
    return run.path / "pairs" / f"step-{step:06d}.json"


def _response(response: ResponseRewards) -> dict[str, Any]:
    tokens = [[token.text, token.reward] for token in response.tokens]
    return {"text": response.text, "reward": response.reward, "tokens": tokens}
