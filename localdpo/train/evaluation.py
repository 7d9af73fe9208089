"""What is measured between steps: held-out pairs, exact KL to the reference, and sampled answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from localdpo.data.batches import collate
from localdpo.data.types import Batch, EncodedRow
from localdpo.model import lora
from localdpo.model.forward import Forward, batch_arrays
from localdpo.model.generate import SampledAnswer, generate
from localdpo.objective.kl import entropy_per_token, kl_per_token, sequence_kl
from localdpo.objective.metrics import Sums
from localdpo.train.objectives import Objective, label_arrays
from localdpo.train.reference import Reference
from localdpo.train.rows import Rows


@dataclass(frozen=True)
class Evaluation:
    """Held-out metrics, and the margin of each pair in the order of the places [N]; None without pairs."""

    metrics: dict[str, float]
    margins: np.ndarray | None


def evaluate(
    forward: Forward,
    objective: Objective,
    rows: Rows,
    places: np.ndarray,
    reference: Reference | None,
    *,
    batch: int,
    common: Mapping[str, mx.array] | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """The objective and its metrics over the rows at `places` [N], without an update.

    Every row weighs the same, however the batches are cut. `common`: what the objective takes for them all.
    `after_batch` may take its time (a pause).
    """
    totals, margins = Sums(), dict[int, float]()
    for part in rows.parts_by_length(places, batch):
        cut = rows.batch(part)
        arrays = {"lengths": mx.array(cut.lengths), **label_arrays(cut), **(common or {})}
        if reference is not None:
            arrays |= reference.arrays(cut)
        scores = forward.measure(cut)
        totals.add(objective.sums(scores, arrays))
        found = objective.margins(scores, arrays)
        if found is not None:
            margins.update(zip(part.tolist(), np.array(found).tolist(), strict=True))
        after_batch()
    return Evaluation(totals.means(), np.array([margins[i] for i in places.tolist()]) if margins else None)


def exact_kl(forward: Forward, batch: Batch, reference: lora.Weights) -> float:
    """KL(policy || reference) in nats per response token, over the full vocabulary.

    Measured on the prefixes of the batch's own responses: every scored position of every response,
    chosen and rejected. Not the sequence-level KL under the policy's own samples.
    """
    arrays = batch_arrays(batch, shared=forward.shared)
    policy_hidden = forward.hidden(arrays)
    with lora.use(forward.model, reference):
        reference_hidden = forward.hidden(arrays)
        mx.eval(policy_hidden, reference_hidden)
    total, tokens, step = 0.0, int(batch.lengths.sum()), forward.chunk(policy_hidden)
    for start in range(0, tokens, step):
        part = slice(start, min(start + step, tokens))
        policy_logits = forward.head(policy_hidden[part])
        with lora.use(forward.model, reference):
            reference_logits = forward.head(reference_hidden[part])
            total += cast("float", kl_per_token(policy_logits, reference_logits).sum().item())
    return total / tokens


def mean_entropy(forward: Forward, batch: Batch) -> float:
    """Entropy of the next-token distribution in nats, full vocabulary, mean over all scored positions."""
    hidden = forward.hidden(batch_arrays(batch, shared=forward.shared))
    total, tokens, step = 0.0, int(batch.lengths.sum()), forward.chunk(hidden)
    for start in range(0, tokens, step):
        logits = forward.head(hidden[start : min(start + step, tokens)])
        total += cast("float", entropy_per_token(logits).sum().item())
    return total / tokens


@dataclass(frozen=True)
class Watched:
    """A prompt whose answers are sampled at each evaluation: what is shown, and its token ids."""

    text: str
    tokens: tuple[int, ...]


def sampled_kl(
    forward: Forward,
    prompts: Sequence[Watched],
    answers: Sequence[SampledAnswer],
    reference: lora.Weights,
    pad: int,
) -> dict[str, float]:
    """`kl_sampled`: KL(policy || reference) of whole responses, nats, and its standard error `kl_sampled_se`.

    `answers` [n] are the policy's own to `prompts` [n], drawn at temperature 1; one that met the limit of
    tokens counts up to there, so the figure is that of responses cut at the limit. n = 1 has no error.
    """
    rows = [
        EncodedRow(i, np.array(prompt.tokens, dtype=np.int32), (np.array(answer.drawn, dtype=np.int32),))
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    batch = collate(rows, pad, np.arange(len(rows)))
    policy = np.array(forward.score(batch), dtype=np.float64)
    with lora.use(forward.model, reference):
        ratios = policy - np.array(forward.score(batch), dtype=np.float64)
    mean, error = sequence_kl(ratios.tolist())
    return {"kl_sampled": mean} | ({} if error is None else {"kl_sampled_se": error})


class Sampler:
    """Answers of policy and reference to the watched prompts; the reference's are sampled once.

    Attributes:
        mean_tokens: mean length of the policy's latest answers.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        prompts: Sequence[Watched],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> None:
        self._model, self._tokenizer, self._prompts = model, tokenizer, prompts
        self._settings: Any = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        self._reference: list[SampledAnswer] | None = None
        self.mean_tokens = 0.0

    def __call__(self, reference: lora.Weights) -> list[dict[str, str]]:
        """`[{prompt, reference, policy}]`, sampled with one seed for both."""
        if self._reference is None:
            with lora.use(self._model, reference):
                self._reference = self._answers(self._prompts)
        answers = self._answers(self._prompts)
        self.mean_tokens = sum(len(answer.tokens) for answer in answers) / len(answers)
        return [
            {"prompt": prompt.text, "reference": before.text, "policy": now.text}
            for prompt, before, now in zip(self._prompts, self._reference, answers, strict=True)
        ]

    def kl(
        self, prompts: Sequence[Watched], forward: Forward, reference: lora.Weights, pad: int
    ) -> dict[str, float]:
        """`sampled_kl` of the policy's answers to `prompts`, drawn anew at temperature 1."""
        return sampled_kl(forward, prompts, self._answers(prompts, temperature=1.0), reference, pad)

    def _answers(self, prompts: Sequence[Watched], **settings: float) -> list[SampledAnswer]:
        ids = [prompt.tokens for prompt in prompts]
        return generate(self._model, self._tokenizer, ids, **self._settings | settings)
