"""The training loop: steps, and what is measured, written and saved between them.

Everything that happens is a pure function of the recipe and the step, so a run that was killed and
resumed takes the same steps as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from localdpo.core.errors import UserError
from localdpo.data.types import Batch
from localdpo.model import lora
from localdpo.model.arrays import random_key
from localdpo.records.checkpoints import lost_lines
from localdpo.records.control import Command
from localdpo.records.events import EventTail, EventWriter
from localdpo.records.rundir import RunDir
from localdpo.train import checkpoint, inputs
from localdpo.train.control import Act, Control, StopRequest
from localdpo.train.evaluation import Evaluation, Sampler, evaluate, exact_kl, mean_entropy
from localdpo.train.optimizers import make_optimizer
from localdpo.train.session import Session
from localdpo.train.step import StepResult, TrainStep
from localdpo.train.watch import Watch
from localdpo.train.worst import WorstPairs


@dataclass(frozen=True)
class Outcome:
    """How a run ended: all steps done, or what stopped it."""

    stopped_by: str | None
    metrics: dict[str, float]
    seconds: float


class Loop:
    """A run of a session into a run folder. `made_of`: its inputs, which each checkpoint names."""

    def __init__(
        self,
        session: Session,
        run: RunDir,
        log: EventWriter,
        stop: StopRequest,
        made_of: Sequence[inputs.Input] = (),
    ) -> None:
        self.inputs = made_of
        self.session, self.run_dir, self.log, self.stop = session, run, log, stop
        self.recipe, self.plan = session.recipe, session.plan
        self.clock = stop.clock
        acts: dict[Command, Act] = {"checkpoint": self._save_now, "evaluate": self._evaluate_now}
        self.control = Control(run, log, stop, acts)
        self.watch = Watch(session)
        self.step = 0
        self.seconds = 0.0
        self.saved_step = self.evaluated_step = -1
        self.eval_metrics: dict[str, float] = {}
        sampling = self.recipe.eval
        self.sampler = Sampler(
            session.base.model,
            session.base.tokenizer,
            session.watched,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=self.recipe.train.seed,
        )
        self.worst = WorstPairs(
            run,
            session.forward,
            session.valid,
            session.base.tokenizer,
            self.recipe.loss.beta,
            sampling.worst_pairs,
        )
        train = self.recipe.train
        self.optimizer = make_optimizer(train)
        self.resumed = self._restore()
        self.train_step = TrainStep(
            session.forward,
            session.objective,
            self.optimizer,
            max_grad_norm=train.max_grad_norm,
            compiled=session.compiled,
        )

    def _restore(self) -> bool:
        """Go on from the newest whole checkpoint, if there is one."""
        found, problems = checkpoint.newest_valid(self.run_dir)
        before = EventTail(self.run_dir.events)
        events = before.poll()
        lost = lost_lines(self.run_dir, before.last_step)
        if found is not None:
            checkpoint.restore(found, self.session.base.model, self.optimizer)
            if self.session.moving is not None:
                self.session.moving.weights = checkpoint.moved_reference(found.path)
            self.step, self.seconds = found.state.step, found.state.seconds
            self.saved_step, self.eval_metrics = found.state.step, found.state.metrics
            self.log.write("run.resumed", self.step, checkpoint=f"checkpoints/{found.path.name}")
        else:
            mx.random.seed(self.recipe.train.seed)
            if any(event.type == "step" for event in events):
                # It died before its first checkpoint: readers drop the steps that are taken again.
                self.log.write("run.resumed", 0)
        for problem in problems:
            self.notice("damaged-checkpoint", f"passed over a damaged checkpoint: {problem}")
        if lost is not None:
            self.notice("lost-lines", lost)
        self.watch.replay(self.run_dir.events)
        return found is not None

    def run(self) -> Outcome:
        """Take the steps that are left. Raises UserError when a loss or gradient is not finite."""
        self.score_reference()
        if self.stop.reason is None and not self.resumed:
            self._evaluate()
        while self._goes_on():
            self.take_step()
            finished = self.step == self.plan.total
            if self.step % self.recipe.eval.every == 0 or finished:
                self._evaluate()
            if self.step % self.recipe.save.every == 0 or finished:
                self.save()
        if self.saved_step != self.step and self.step > 0 and self.stop.save:
            self.save()
        self.control.refuse_rest("the run has ended")
        stopped_by = self.stop.reason if self.step < self.plan.total else None
        return Outcome(stopped_by, self.eval_metrics, self.seconds)

    def _goes_on(self) -> bool:
        """Obey the commands that wait, then say whether to take another step."""
        if self.step < self.plan.total and self.stop.reason is None:
            self.control.between_steps(self.step)
        return self.step < self.plan.total and self.stop.reason is None

    def _evaluate(self) -> None:
        self.evaluate()
        self.evaluated_step = self.step

    def _evaluate_now(self, answer: Callable[[str], None]) -> None:
        """The command `evaluate`."""
        if self.evaluated_step == self.step:
            raise UserError(f"step {self.step} is evaluated already")
        if not len(self.session.eval_places) and not self.session.watched:
            raise UserError("there is nothing to evaluate: no rows are held out and no prompts are watched")
        answer(f"evaluating after step {self.step}")
        self._evaluate()

    def _save_now(self, answer: Callable[[str], None]) -> None:
        """The command `checkpoint`."""
        if self.step == 0:
            raise UserError("no step is taken yet, so there is nothing to save")
        if self.saved_step != self.step:
            self.save()
        answer(f"saved as checkpoints/{self.run_dir.checkpoint_path(self.step).name}")

    def score_reference(self) -> None:
        """Score what the run will need under the reference, unless it is on disk."""
        session = self.session
        if session.train_scores is None or session.valid_scores is None:
            return
        passes = [session.train_scores, session.valid_scores]
        with lora.use(session.base.model, session.start):
            for number, scores in enumerate(passes):
                later = sum(len(part) for other in passes[number + 1 :] for part in other.todo())
                scores.fill(session.forward, partial(self._go_on, later))
        # Buffers of its sizes serve no step.
        mx.clear_cache()

    def _go_on(self, later: int, done: int, total: int) -> bool:
        """After a batch of the reference pass; `later`: rows that the passes after this one will score."""
        self.log.write("reference", done=done, total=total, **({"later": later} if later else {}))
        self.control.within_work(self.step)
        return self.stop.reason is None

    def take_step(self) -> None:
        """One optimizer step and its event."""
        began = self.clock.now()
        batches = self.session.training_batch(self.step)
        rate = self.plan.learning_rate(self.step)
        result = self.train_step(self.session.training_arrays(batches), rate)
        self.step += 1
        self._require_finite(result, batches)
        if self.session.moving is not None:
            self.session.moving.after_step(self.step)
        seconds = self.clock.now() - began
        self.seconds += seconds
        metrics = {
            **result.metrics,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "learning_rate": rate,
            "epoch": self.plan.epoch(self.step),
            "step_seconds": seconds,
            "tokens_per_second": _tokens(batches) / seconds,
            **memory_metrics(),
        }
        measured = self.clock.now()
        if self._kl_due():
            metrics["kl"] = self.kl()
        # What the measurement took is no part of the step, but of the time that is left.
        extra = {"kl_seconds": self.clock.now() - measured} if "kl" in metrics else {}
        if self.step % self.recipe.train.log_every == 0 or self.step == self.plan.total:
            self.log.write("step", self.step, metrics=metrics, **extra)
        self._notices(self.watch.step(self.step, metrics))

    def _require_finite(self, result: StepResult, batches: list[Batch]) -> None:
        if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
            return
        indices = np.concatenate([batch.indices for batch in batches])
        what = "loss" if not math.isfinite(result.loss) else "gradient norm"
        raise UserError(
            f"step {self.step}: the {what} is not finite ({self.session.train.store.name_rows(indices)}), "
            "so training stopped and nothing was saved after it; "
            "try a lower train.learning_rate"
        )

    def _kl_due(self) -> bool:
        every, pairs = self.recipe.eval.kl_every, self.recipe.eval.kl_pairs
        return self._has_reference() and pairs > 0 and self.step % every == 0 and len(self.session.valid) > 0

    def _has_reference(self) -> bool:
        return self.recipe.loss.spec.needs_reference

    def kl(self) -> float:
        """Exact KL on the first held-out pairs, to where the run started (the reference, unless it moves)."""
        return exact_kl(self.session.forward, self._kl_batch(), self.session.start)

    def _kl_batch(self) -> Batch:
        pairs = np.arange(min(self.recipe.eval.kl_pairs, len(self.session.valid)))
        return self.session.valid.batch(pairs)

    def evaluate(self) -> None:
        """Measure the held-out rows and sample the watched prompts; write both."""
        session, began = self.session, self.clock.now()
        samples = self.sampler(session.start) if session.watched else []
        if len(session.eval_places):
            found = self._held_out()
            self.eval_metrics = found.metrics | self._against_reference()
            if samples:
                self.eval_metrics["samples/response_tokens"] = self.sampler.mean_tokens
            worst = self._worst(found)
            seconds, pairs = self.clock.now() - began, len(session.eval_places)
            self.log.write("eval", self.step, metrics=self.eval_metrics, pairs=pairs, seconds=seconds)
            if worst is not None:
                self.log.write("pairs", self.step, **worst)
            self._notices(self.watch.evaluation(self.step, self.eval_metrics))
        if samples:
            self.log.write("samples", self.step, samples=samples)
        mx.clear_cache()

    def _held_out(self) -> Evaluation:
        session = self.session
        return evaluate(
            session.forward,
            session.objective,
            session.valid,
            session.eval_places,
            session.valid_reference,
            batch=session.scoring_batch,
            after_batch=partial(self.control.within_work, self.step),
            common=session.baseline(session.valid, session.valid.indices[session.eval_places]),
        )

    def _against_reference(self) -> dict[str, float]:
        """Entropy of the policy, its exact KL to the reference, and the KL of its own answers."""
        session, metrics = self.session, dict[str, float]()
        if self.recipe.eval.kl_pairs > 0:
            metrics["entropy"] = mean_entropy(session.forward, self._kl_batch())
            if self._has_reference():
                metrics["kl"] = self.kl()
        if session.kl_prompts:
            metrics |= self.sampler.kl(session.kl_prompts, session.forward, session.start, session.train.pad)
        return metrics

    def _worst(self, found: Evaluation) -> dict[str, Any] | None:
        """Keep the pairs of lowest margin; the fields of their event."""
        if found.margins is None or self.recipe.eval.worst_pairs == 0:
            return None
        session = self.session
        reference = session.start if session.moving is None else session.moving.weights
        return self.worst.write(
            self.step,
            session.eval_places,
            found.margins,
            reference if self._has_reference() else None,
        )

    def save(self) -> None:
        """Publish a checkpoint."""
        began = self.clock.now()
        state = checkpoint.TrainState(
            self.step, random_key(), self.seconds, self.eval_metrics, inputs.to_json(self.inputs)
        )
        self.log.sync()
        path = checkpoint.save(
            self.run_dir,
            self.session.base.model,
            self.optimizer,
            state,
            self.session.adapter_json(),
            self.recipe.save.keep,
            reference=None if self.session.moving is None else self.session.moving.weights,
        )
        self.saved_step = self.step
        self.log.write(
            "checkpoint", self.step, path=f"checkpoints/{path.name}", seconds=self.clock.now() - began
        )

    def notice(self, name: str, message: str) -> None:
        """Tell a person something in one line."""
        self.log.write("notice", self.step, level="info", name=name, message=message)

    def _notices(self, fields: list[dict[str, str]]) -> None:
        for notice in fields:
            self.log.write("notice", self.step, **notice)


def memory_metrics() -> dict[str, float]:
    """What MLX took at most, keeps in its cache, and holds: arrays and cache, or the peak if that is more."""
    peak, cache = mx.get_peak_memory(), mx.get_cache_memory()
    held = max(peak, mx.get_active_memory() + cache)
    return {"peak_memory_gb": peak / 1e9, "cache_memory_gb": cache / 1e9, "memory_gb": held / 1e9}


def _tokens(batches: list[Batch]) -> int:
    """Unpadded tokens of a step: each prompt once, and every response."""
    return int(sum(b.context.size - b.context_pad.sum() + len(b.indices) + b.lengths.sum() for b in batches))
