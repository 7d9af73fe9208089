"""Log-probabilities of pairs under base and adapter. The only file of this room that loads a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from localdpo.data.batches import collate, split_micro
from localdpo.data.encode import Encoder, Limits
from localdpo.data.types import Pair, TemplateChoice
from localdpo.model import lora
from localdpo.model.backend import prepare
from localdpo.model.forward import Forward
from localdpo.model.load import load_base
from localdpo.prefs.checks.reference import Score

# Rows at once; on the CPU more gain nothing.
ROWS = 4


def scorer(
    model: str,
    adapter: str | None,
    template: TemplateChoice,
    limits: Limits,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    trust_remote_code: bool,
) -> Score:
    """Load the model (and its adapter) once; gives what scores pairs. Rows that are dropped have no score.

    Raises UserError for a model or adapter that does not load.
    """
    prepare()
    base = load_base(model, trust_remote_code=trust_remote_code)
    if adapter is not None:
        folder = lora.adapter_path(adapter)
        lora.attach(base.model, lora.read_config(folder), seed=0)
        lora.load_weights(base.model, folder)
    tokenizer = base.tokenizer._tokenizer
    encoder = Encoder(
        tokenizer,
        template,
        limits,
        end_ids=base.tokenizer.eos_token_ids,
        template_kwargs=template_kwargs,
    )
    forward = Forward(base.model)
    pad = int(tokenizer.pad_token_id or tokenizer.eos_token_id or 0)

    def score(pairs: list[Pair]) -> list[tuple[float, float, int, int]]:
        rows = encoder.encode(list(enumerate(pairs))).rows
        sizes = [len(row.prompt) + sum(map(len, row.responses)) for row in rows]
        found: dict[int, tuple[float, float, int, int]] = {}
        for part in split_micro(np.arange(len(rows)), sizes, ROWS) if rows else []:
            batch = collate([rows[int(i)] for i in part], pad, part)
            chosen, rejected = np.array(forward.score(batch)).reshape(2, -1).tolist()
            better, worse = batch.lengths.reshape(2, -1).tolist()
            found.update(zip(map(int, part), zip(chosen, rejected, better, worse, strict=True), strict=True))
        return [found[i] for i in range(len(rows))]

    return score
