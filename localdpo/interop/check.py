"""Does an export still do what was trained? The same rows under base + adapter and under the artefact.

What an adapter did to a row is the change of its log-probability since the run began, in nats: to the adapter
that it started from, or to the base. Of a pair it is the margin, the change of the chosen answer less that of
the rejected one; of a demonstration the change itself; of a single answer with a label the change, with the
sign of the label. What an export keeps of it is the slope of its changes b over the trained ones a,

    kept = sum a b / sum a^2,

which is 100% where every row keeps its change, and 0 where the artefact is the model that the run began with.
Unlike the ratio of the means it does not depend on a mean that may be near zero.

Shape legend: M rows, K responses of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import mlx.nn as nn
import numpy as np

from localdpo.core.errors import UserError
from localdpo.interop.trained import Trained
from localdpo.model import lora
from localdpo.model.forward import Forward
from localdpo.model.generate import generate
from localdpo.model.load import load_base
from localdpo.train.assemble import attach_adapter, held_out_prompts
from localdpo.train.data import open_rows

# Below this share of what was trained an export has failed.
LEAST_KEPT: Final = 0.9
PROMPTS: Final = 8
_ROWS_AT_ONCE: Final = 16
Measure = Literal["margin", "gain"]


@dataclass(frozen=True)
class Behaviour:
    """What a model does with the rows of a check.

    Attributes:
        logps_KM: log-probabilities of the responses, nats, float64.
        answers: greedy answers to the prompts, as token ids.
    """

    logps_KM: np.ndarray
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ArtefactReport:
    """What an export kept.

    Attributes:
        of: the rows: held-out ones, or training rows where none are held out.
        rows: how many.
        measure: "margin" of pairs, "gain" of other rows.
        kept: share of it.
        trained, exported: means of the measure, nats; accuracies: shares of pairs above zero.
        largest: largest difference of a response's log-probability, nats.
        equal, prompts: greedy answers that are the same, and how many were asked for.
    """

    of: str
    rows: int
    measure: Measure
    kept: float
    trained: float
    exported: float
    accuracies: tuple[float, float] | None
    largest: float
    equal: int
    prompts: int

    @property
    def passed(self) -> bool:
        """Whether enough is kept."""
        return self.kept >= LEAST_KEPT

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "least_kept": LEAST_KEPT,
            "rows": self.rows,
            "of": self.of,
            "measure": self.measure,
            "kept": self.kept,
            "trained": {"mean": self.trained, "accuracy": self.accuracies and self.accuracies[0]},
            "exported": {"mean": self.exported, "accuracy": self.accuracies and self.accuracies[1]},
            "largest_difference": self.largest,
            "greedy_answers": {"equal": self.equal, "of": self.prompts},
        }


class ArtefactCheck:
    """The rows of a run, and what base + adapter does with them. The base is loaded once and let go.

    Raises UserError(s) where the run's data or its models cannot be read.
    """

    def __init__(self, trained: Trained) -> None:
        recipe = trained.recipe
        base = load_base(recipe.model, trust_remote_code=recipe.trust_remote_code)
        train, valid = open_rows(recipe, base.tokenizer)
        self._rows, self._of = (valid, "held-out") if len(valid) else (train, "training")
        self._positions = np.arange(min(recipe.eval.pairs, len(self._rows)))
        if not len(self._positions):
            raise UserError(f"{trained.run.path}: its data has no rows to check an export with")
        self._prompts = held_out_prompts(base, self._rows, PROMPTS)
        self._tokenizer, self._max_tokens = base.tokenizer, recipe.eval.max_tokens
        attach_adapter(base.model, recipe)
        self._start_KM = self._logps(base.model)
        lora.load_weights(base.model, trained.adapter)
        self._trained = self._behaviour(base.model)
        self._before = self._changes(self._trained.logps_KM)
        if not self._before.any():
            raise UserError(
                f"{trained.adapter}: this checkpoint changes none of the {len(self._before):,} {self._of} "
                "rows, so there is nothing to export yet; train on, or choose another --checkpoint"
            )

    def compare(self, model: nn.Module) -> ArtefactReport:
        """What the model of an artefact, loaded anew, keeps."""
        exported = self._behaviour(model)
        before, after = self._before, self._changes(exported.logps_KM)
        is_pairs = self._rows.store.kind == "pairs"
        return ArtefactReport(
            of=f"{self._of} {'pairs' if is_pairs else 'rows'}",
            rows=len(before),
            measure="margin" if is_pairs else "gain",
            kept=float(before @ after) / float(before @ before),
            trained=float(before.mean()),
            exported=float(after.mean()),
            accuracies=(float((before > 0).mean()), float((after > 0).mean())) if is_pairs else None,
            largest=float(np.abs(exported.logps_KM - self._trained.logps_KM).max()),
            equal=sum(a == b for a, b in zip(self._trained.answers, exported.answers, strict=True)),
            prompts=len(self._prompts),
        )

    def _changes(self, logps_KM: np.ndarray) -> np.ndarray:
        """What was done to each row [M]."""
        change_KM = logps_KM - self._start_KM
        if self._rows.store.kind == "pairs":
            return change_KM[0] - change_KM[1]
        desirable = self._rows.store.desirable
        if desirable is None:
            return change_KM[0]
        return np.where(desirable[self._rows.indices[self._positions]], change_KM[0], -change_KM[0])

    def _behaviour(self, model: nn.Module) -> Behaviour:
        ids = [prompt.tokens for prompt in self._prompts]
        answers = generate(model, self._tokenizer, ids, max_tokens=self._max_tokens)
        return Behaviour(self._logps(model), tuple(answer.drawn for answer in answers))

    def _logps(self, model: nn.Module) -> np.ndarray:
        """Log-probabilities [K, M] of the rows' responses. The plain path, which is right for every model."""
        forward = Forward(model, shared=False)
        logps_KM = np.zeros((self._rows.store.response_lengths.shape[1], len(self._positions)))
        for part in self._rows.parts_by_length(self._positions, _ROWS_AT_ONCE):
            scores = np.array(forward.score(self._rows.batch(part)), dtype=np.float64)
            logps_KM[:, part] = scores.reshape(len(logps_KM), len(part))
        return logps_KM


def table(result: ArtefactReport) -> list[tuple[str, str, str]]:
    """The table that is printed and is in the card, its head first: what, base + adapter, export."""
    rows = [(f"{result.rows:,} {result.of}", "base + adapter", "export")]
    rows.append((f"{result.measure}, nats", f"{result.trained:+.3f}", f"{result.exported:+.3f}"))
    rows.append((f"{result.measure} kept", "100.0%", f"{100 * result.kept:.1f}%"))
    if result.accuracies is not None:
        first, second = result.accuracies
        rows.append(("reward accuracy", f"{first:.3f}", f"{second:.3f}"))
    rows.append(("largest difference, nats", "0", f"{result.largest:.3g}"))
    of = f"of {result.prompts}"
    return [*rows, ("greedy answers equal", f"{result.prompts} {of}", f"{result.equal} {of}")]
