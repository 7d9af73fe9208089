"""bfloat16 models, as a GPU trains them: the two paths agree to the rounding of 16 bits."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from model_families import tiny, with_lora
from random_batches import full_logps, random_rows

from localdpo.data.batches import collate
from localdpo.model.forward import Forward, batch_arrays


def half(family: str) -> nn.Module:
    model = tiny(family)
    model.set_dtype(mx.bfloat16)
    return with_lora(model)


def gradients(model: nn.Module, forward: Forward, arrays: dict[str, mx.array]) -> np.ndarray:
    _, grads = nn.value_and_grad(model, lambda: forward.logps(arrays, gradient=True).sum())()
    return np.concatenate([np.array(g.astype(mx.float32)).ravel() for _, g in tree_flatten(grads)])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_log_probabilities_agree_whatever_path_padding_and_company(family: str) -> None:
    model = half(family)
    rows = random_rows(3, seed=1)
    batch = collate(rows, 0, np.arange(3))
    allowed = 0.02 * np.sqrt(batch.lengths)
    expected = full_logps(model, rows)
    wider = replace(
        batch, context=np.pad(batch.context, ((0, 0), (16, 0))), context_pad=batch.context_pad + 16
    )
    for shared in (True, False):
        forward = Forward(model, shared=shared, chunk_bytes=4 * 160 * 64)
        for each in (batch, wider):
            scores = forward.score(each)
            assert scores.dtype == mx.float32
            assert (np.abs(np.array(scores) - expected) <= allowed).all()


def test_gradients_agree_with_and_without_checkpointing() -> None:
    model = half("qwen3")
    batch = collate(random_rows(3, seed=2), 0, np.arange(3))
    found = [
        gradients(
            model, Forward(model, shared=shared, checkpoint=checkpoint), batch_arrays(batch, shared=shared)
        )
        for shared in (True, False)
        for checkpoint in (False, True)
    ]
    for other in found[1:]:
        assert np.linalg.norm(other - found[0]) / np.linalg.norm(found[0]) < 1e-2
