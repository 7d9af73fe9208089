"""What is measured between steps: held-out rows, exact KL to the reference, and sampled answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from localdpo.data.batches import collate
from localdpo.data.types import Batch, EncodedRow
from localdpo.model import lora
from localdpo.model.forward import Forward, batch_arrays
from localdpo.model.generate import SampledAnswer, generate
from localdpo.objective.metrics import Sums
from localdpo.objective.numerics import entropy_per_token, kl_per_token, sequence_kl
from localdpo.objective.scores import ResponseScores
from localdpo.records.progress import Phase
from localdpo.records.rundir import RunDir
from localdpo.train.data import labels
from localdpo.train.step import BatchReference
from localdpo.train.token_rewards import write_worst_pairs

if TYPE_CHECKING:
    from localdpo.train.assemble import Session

# Called where long work begins and goes on: its name, how much is done, of how much.
Work = Callable[[Phase, int, int], None]


@dataclass(frozen=True)
class HeldOutScores:
    """Held-out metrics, and the margin [M] of each pair in the order of the positions; None without pairs."""

    metrics: dict[str, float]
    margins: np.ndarray | None


def evaluate(
    session: Session, step: int, after_batch: Callable[[int], None] = lambda done: None
) -> HeldOutScores:
    """The objective and its metrics over the held-out rows that an evaluation covers [M], after `step`.

    Every row weighs the same, however the batches are cut. All ranks share the batches and get the result.
    `after_batch` is called with the rows that are done; it may take its time (a pause).
    """
    forward, rows, positions, ranks = session.forward, session.valid, session.eval_positions, session.ranks
    reference: BatchReference | None = session.moving or session.valid_scores
    baseline = None if session.baseline is None else session.baseline(rows, rows.indices[positions])
    totals, margins = Sums(), dict[int, float]()
    every = rows.parts_by_length(positions, session.scoring_batch)
    parts = ranks.mine(every)
    # Where the policy is the reference its scores are known, unless the loss reads more of them.
    starts_elsewhere = session.moving is not None or session.recipe.reference_adapter is not None
    known = step == 0 and not starts_elsewhere and reference is not None and not forward.align
    measured = iter(()) if known else forward.measured(rows.batch(part) for part in parts)
    for number, part in enumerate(parts, 1):
        cut = rows.batch(part)
        under_reference = None if reference is None else reference.sums(cut)
        if known:
            assert under_reference is not None
            total_N, public_N = under_reference
            scores = ResponseScores(total_N, tokens=mx.array(cut.lengths), policy_public=public_N)
        else:
            scores = next(measured)
        if under_reference is not None:
            scores = scores.under(*under_reference)
        totals.add(session.objective.sums(scores, labels(cut), baseline))
        pair_margins = session.objective.margins(scores)
        if pair_margins is not None:
            margins.update(zip(part.tolist(), np.array(pair_margins).tolist(), strict=True))
        after_batch(sum(len(other) for other in every[: number * ranks.size]))
    if ranks.size > 1:
        totals, by_rank = Sums(), ranks.gather((totals.sums(), [*margins.items()]))
        for sums, items in by_rank:
            totals.add(sums)
            margins.update(items)
    ordered = np.array([margins[i] for i in positions.tolist()]) if margins else None
    return HeldOutScores(totals.means(), ordered)


def exact_kl(forward: Forward, batch: Batch, reference: lora.Weights) -> float:
    """KL(policy || reference) in nats per response token, over the full vocabulary.

    Measured on the prefixes of the batch's own responses: every scored position of every response,
    chosen and rejected. Not the sequence-level KL under the policy's own samples. Shape legend: T scored
    tokens, D hidden size, V vocabulary.
    """
    arrays = batch_arrays(batch, shared=forward.shared)
    policy_TD = forward.hidden(arrays)
    with lora.use(forward.model, reference):
        reference_TD = forward.hidden(arrays)
        mx.eval(policy_TD, reference_TD)
    total, tokens, step = 0.0, int(batch.lengths.sum()), forward.chunk(policy_TD)
    for start in range(0, tokens, step):
        part = slice(start, start + step)
        policy_TV = forward.head(policy_TD[part])
        with lora.use(forward.model, reference):
            reference_TV = forward.head(reference_TD[part])
            total += cast("float", kl_per_token(policy_TV, reference_TV).sum().item())
    return total / tokens


def mean_entropy(forward: Forward, batch: Batch) -> float:
    """Entropy of the next-token distribution in nats, full vocabulary, mean over all scored positions."""
    hidden_TD = forward.hidden(batch_arrays(batch, shared=forward.shared))
    total, tokens, step = 0.0, int(batch.lengths.sum()), forward.chunk(hidden_TD)
    for start in range(0, tokens, step):
        logits_TV = forward.head(hidden_TD[start : start + step])
        total += cast("float", entropy_per_token(logits_TV).sum().item())
    return total / tokens


@dataclass(frozen=True)
class WatchedPrompt:
    """A prompt whose answers are sampled at each evaluation: what is shown, and its token ids."""

    text: str
    tokens: tuple[int, ...]


class Sampler:
    """Answers of policy and reference to the watched prompts; the reference's are sampled once.

    Attributes:
        mean_tokens: mean length of the policy's latest answers.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        prompts: Sequence[WatchedPrompt],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> None:
        self._model, self._tokenizer, self._prompts = model, tokenizer, prompts
        self._settings: Any = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        self._reference: list[SampledAnswer] | None = None
        self.mean_tokens = 0.0

    def __call__(
        self, reference: lora.Weights, work: Work, *, is_reference: bool = False
    ) -> list[dict[str, str]]:
        """`[{prompt, reference, policy}]`, sampled with one seed for both.

        `is_reference`: the policy is the reference, so its answers are the same.
        """
        if self._reference is None:
            with lora.use(self._model, reference):
                self._reference = self._answers(self._prompts, work)
        answers = self._reference if is_reference else self._answers(self._prompts, work)
        self.mean_tokens = sum(len(answer.tokens) for answer in answers) / len(answers)
        return [
            {"prompt": prompt.text, "reference": before.text, "policy": now.text}
            for prompt, before, now in zip(self._prompts, self._reference, answers, strict=True)
        ]

    def kl(
        self,
        prompts: Sequence[WatchedPrompt],
        forward: Forward,
        reference: lora.Weights,
        pad: int,
        work: Work,
    ) -> dict[str, float]:
        """`kl_sampled`: KL(policy || reference) of whole responses, nats, and its standard error
        `kl_sampled_se`.

        From the policy's answers to `prompts` [n], drawn anew at temperature 1; one that met the limit of
        tokens counts up to there, so the figure is that of responses cut at the limit. n = 1 has no error.
        """
        answers = self._answers(prompts, work, temperature=1.0)
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

    def _answers(
        self, prompts: Sequence[WatchedPrompt], work: Work, **settings: float
    ) -> list[SampledAnswer]:
        ids = [prompt.tokens for prompt in prompts]
        work("sampling", 0, len(ids))
        return generate(
            self._model,
            self._tokenizer,
            ids,
            **self._settings | settings,
            on_answer=lambda done: work("sampling", done, len(ids)),
        )


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation measured.

    Attributes:
        metrics: of the held-out rows; None where there are none.
        worst: fields of the event about the pairs of lowest margin, if they are written.
        samples: answers to the watched prompts.
    """

    metrics: dict[str, float] | None = None
    worst: dict[str, Any] | None = None
    samples: list[dict[str, str]] = field(default_factory=list)


class Evaluator:
    """Measures the held-out rows of a run and samples its watched prompts.

    Attributes:
        rows: how many held-out rows an evaluation covers.
        has_work: whether rows are held out or prompts are watched.
        measures_kl: whether there are a reference and held-out pairs to measure the exact KL on.
    """

    def __init__(self, session: Session, run: RunDir) -> None:
        recipe = session.recipe
        self._session, self._run, self._options = session, run, recipe.eval
        self._has_reference: Final = recipe.loss.spec.needs_reference
        self.rows: Final = len(session.eval_positions)
        self.has_work: Final = bool(self.rows or session.watched)
        self.measures_kl: Final = self._has_reference and recipe.eval.kl_pairs > 0 and len(session.valid) > 0
        self._sampler = Sampler(
            session.base.model,
            session.base.tokenizer,
            session.watched,
            max_tokens=recipe.eval.max_tokens,
            temperature=recipe.eval.temperature,
            seed=recipe.train.seed,
        )

    def __call__(self, step: int, work: Work) -> EvaluationReport:
        """Measure after `step`; `work` is called after each held-out batch and answer."""
        session, samples = self._session, list[dict[str, str]]()
        if session.watched:
            is_start = step == 0 and session.recipe.reference_adapter is None
            samples = self._sampler(session.reference, work, is_reference=is_start)
        if not self.rows:
            return EvaluationReport(samples=samples)
        work("evaluating", 0, self.rows)
        session.ranks.lead("evaluate")
        scores = evaluate(session, step, lambda done: work("evaluating", done, self.rows))
        metrics = scores.metrics | self._against_reference(work)
        if samples:
            metrics["samples/response_tokens"] = self._sampler.mean_tokens
        return EvaluationReport(metrics, self._write_worst(step, scores.margins), samples)

    def kl(self) -> float:
        """Exact KL on the first held-out pairs, to the reference; where that moves, to what it started as."""
        return exact_kl(self._session.forward, self._first_pairs(), self._session.reference)

    def _first_pairs(self) -> Batch:
        valid = self._session.valid
        return valid.batch(np.arange(min(self._options.kl_pairs, len(valid))))

    def _against_reference(self, work: Work) -> dict[str, float]:
        """Entropy of the policy, its exact KL to the reference, and the KL of its own answers."""
        session, metrics = self._session, dict[str, float]()
        if self._options.kl_pairs > 0:
            metrics["entropy"] = mean_entropy(session.forward, self._first_pairs())
            if self._has_reference:
                metrics["kl"] = self.kl()
        if prompts := session.kl_prompts:
            metrics |= self._sampler.kl(prompts, session.forward, session.reference, session.valid.pad, work)
        return metrics

    def _write_worst(self, step: int, margins: np.ndarray | None) -> dict[str, Any] | None:
        """Write the pairs of lowest margin [M]; the fields of their event."""
        count, session = self._options.worst_pairs, self._session
        if margins is None or count == 0:
            return None
        reference = session.reference if session.moving is None else session.moving.weights
        return write_worst_pairs(
            self._run,
            step,
            session.forward,
            session.valid,
            session.eval_positions[np.argsort(margins, kind="stable")[:count]],
            reference if self._has_reference else None,
            session.recipe.loss.beta,
            session.base.tokenizer,
        )
