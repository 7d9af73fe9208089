"""The training loop: steps, and what is measured, written and saved between them.

Everything that happens is a pure function of the recipe and the step, so a run that was killed and
resumed takes the same steps as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import mlx.core as mx

from localdpo.core.errors import UserError
from localdpo.model import lora
from localdpo.model.arrays import random_key
from localdpo.model.backend import memory_limit
from localdpo.objective.notices import LOOK_BACK, Record, RunFacts, new_notices
from localdpo.records.checkpoints import lost_lines
from localdpo.records.control import Command
from localdpo.records.events import EventTail, EventWriter, effective, read_events
from localdpo.records.metrics import logged_metrics
from localdpo.records.progress import Phase
from localdpo.records.rundir import RunDir
from localdpo.train import checkpoint, inputs
from localdpo.train.assemble import Session
from localdpo.train.control import Control, Handler, StopRequest
from localdpo.train.evaluator import Evaluator
from localdpo.train.follow import share_state
from localdpo.train.pulse import RankLost
from localdpo.train.step import make_optimizer

# Between two reports of work that goes on.
REPORT_SECONDS: Final = 1.0


@dataclass(frozen=True)
class TrainingOutcome:
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
        self.run_dir, self.log, self.stop, self.clock, self.inputs = run, log, stop, stop.clock, made_of
        acts: dict[Command, Handler] = {"checkpoint": self._save_command, "evaluate": self._evaluate_command}
        self.control = Control(run, log, stop, acts)
        self.recipe, self.schedule = session.recipe, session.schedule
        self.model, self.moving, self.feed = session.base.model, session.moving, session.feed
        self.adapter_config = session.adapter_json()
        self.forward, self.reference = session.forward, session.reference
        self.train_scores = session.train_scores
        self.scored_ahead, self.ranks = session.scored_ahead, session.ranks
        self.watch = Watch(session)
        self.evaluator = Evaluator(session, run)
        self.step, self._told_unkept = 0, False
        self.seconds = self._reported = 0.0
        self.saved_step = self.evaluated_step = -1
        self.eval_metrics: dict[str, float] = {}
        self.optimizer = make_optimizer(self.recipe.train)
        self.resumed = self._resume()
        share_state(session, self.optimizer, self.step)
        self.train_step = session.train_step(self.optimizer)

    def _resume(self) -> bool:
        """Restore the newest valid checkpoint; False if there is none."""
        newest, problems = checkpoint.newest_valid(self.run_dir)
        before = EventTail(self.run_dir.events)
        events = before.poll()
        lost = lost_lines(self.run_dir, before.last_step)
        if newest is not None:
            checkpoint.restore(newest, self.model, self.optimizer)
            if self.moving is not None:
                self.moving.weights = checkpoint.moved_reference(newest.path)
            self.step, self.seconds = newest.state.step, newest.state.seconds
            self.saved_step, self.eval_metrics = newest.state.step, newest.state.metrics
            self.log.write("run.resumed", self.step, checkpoint=f"checkpoints/{newest.path.name}")
        else:
            mx.random.seed(self.recipe.train.seed)
            if any(event.type == "step" for event in effective(events)):
                # All checkpoints are damaged: readers drop the steps that are taken again.
                self.log.write("run.resumed", 0)
        saved = next((event.step for event in reversed(events) if event.type == "checkpoint"), None)
        if saved is not None and not (folder := self.run_dir.checkpoint_path(saved)).exists():
            self.notice("lost-checkpoint", f"{folder}: saved before, and missing now")
        for problem in problems:
            self.notice("damaged-checkpoint", f"skipped a damaged checkpoint: {problem}")
        if lost is not None:
            self.notice("lost-lines", lost)
        self.watch.replay(self.run_dir.events)
        return newest is not None

    def run(self) -> TrainingOutcome:
        """Take the steps that are left.

        Raises UserError when a loss or gradient is not finite, RankLost, after saving, when a rank ended.
        """
        try:
            return self._run()
        except RankLost:
            # Ranks meet before the weights move, so these are the weights of the last whole step.
            if self.step > max(0, self.saved_step):
                self.save()
            raise

    def _run(self) -> TrainingOutcome:
        self.score_reference()
        if self.stop.reason is None and not self.resumed:
            self.evaluate()
        while not self._is_over():
            self.control.between_steps(self.step)
            if self._is_over():
                break
            self.take_step()
            finished = self.step == self.schedule.total
            if self.step % self.recipe.eval.every == 0 or finished:
                self.evaluate()
            if self.step % self.recipe.save.every == 0 or finished:
                self.save()
        if self.saved_step != self.step and self.step > 0 and self.stop.save:
            self.save()
        self._keep_scores()
        self.control.refuse_rest()
        stopped_by = self.stop.reason if self.step < self.schedule.total else None
        return TrainingOutcome(stopped_by, self.eval_metrics, self.seconds)

    def _is_over(self) -> bool:
        return self.step == self.schedule.total or self.stop.reason is not None

    def score_reference(self) -> None:
        """Score what the run needs before its first step under the reference, unless it is on disk."""
        passes = self.scored_ahead
        if not passes:
            return
        with lora.use(self.model, self.reference):
            for number, scores in enumerate(passes):
                if self.stop.reason is not None:
                    break
                later = sum(len(part) for other in passes[number + 1 :] for part in other.todo())
                self.ranks.lead(f"score {number}")
                scores.fill(self.forward, partial(self._after_reference_batch, later))
        # Buffers of its sizes serve no step.
        mx.clear_cache()

    def _after_reference_batch(self, later: int, done: int, total: int) -> bool:
        """Report a reference pass; False ends it. `later`: rows that the passes after this one will score."""
        self.log.write("reference", done=done, total=total, **({"later": later} if later else {}))
        self.control.within_work(self.step)
        return self.stop.reason is None

    def _score_step(self) -> dict[str, float]:
        """Score the rows of the next step under the reference; what it took, and how many rows are left."""
        scores = self.train_scores
        if scores is None or not (before := scores.left):
            return {}
        began = self.clock.now()
        with lora.use(self.model, self.reference):
            rows = scores.score(self.forward, self.feed.positions(self.step))
        if scores.is_due:
            self._keep_scores()
        took = self.clock.now() - began
        return {"reference_seconds": took, "reference_rows": rows, "reference_left": before - rows}

    def _keep_scores(self) -> None:
        """Write what steps scored under the reference. A cache that cannot be written costs no step."""
        if self.train_scores is not None:
            try:
                self.train_scores.save()
            except UserError as error:
                if not self._told_unkept:
                    self.notice("reference-cache", f"{error}; the run goes on, and its resume scores again")
                self._told_unkept = True

    def take_step(self) -> None:
        """One optimizer step and its event."""
        self.ranks.lead("step")
        self.ranks.seed(self.recipe.train.seed, self.step)
        reference = self._score_step()
        began = self.clock.now()
        batches = self.feed.batches(self.step)
        rate = self.schedule.learning_rate(self.step)
        result = self.train_step(self.feed.arrays(batches), rate)
        positions, tokens = self.feed.positions(self.step), self.feed.tokens(self.step)
        self.step += 1
        for what, value in (("loss", result.loss), ("gradient norm", result.grad_norm)):
            if not math.isfinite(value):
                named = self.feed.rows.store.name_rows(self.feed.rows.indices[positions])
                raise UserError(
                    f"step {self.step}: the {what} is not finite ({named}), so training stopped and nothing "
                    "was saved after it; try a lower train.learning_rate"
                )
        if self.moving is not None:
            self.moving.after_step(self.step)
        seconds = self.clock.now() - began
        self.seconds += seconds
        peak, cache = mx.get_peak_memory(), mx.get_cache_memory()
        metrics = {
            **result.metrics,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "learning_rate": rate,
            "epoch": self.schedule.epoch(self.step),
            "step_seconds": seconds,
            "tokens_per_second": sum(tokens) / seconds,
            "peak_memory_gb": peak / 1e9,
            "cache_memory_gb": cache / 1e9,
            # What MLX holds: arrays and cache, or the peak if that is more.
            "memory_gb": max(peak, mx.get_active_memory() + cache) / 1e9,
        }
        extra: dict[str, Any] = reference
        if self.ranks.size > 1:
            speeds = [count / spent for count, spent in zip(tokens, result.seconds, strict=True)]
            # A rank without rows, as in the last batch of an epoch, has no speed.
            slowest = min((speed, rank) for rank, speed in enumerate(speeds) if tokens[rank])
            metrics["slowest_rank_tokens_per_second"] = slowest[0]
            extra = {**extra, "rank_tokens_per_second": speeds, "slowest_rank": slowest[1]}
        if self.evaluator.measures_kl and self.step % self.recipe.eval.kl_every == 0:
            measured = self.clock.now()
            metrics["kl"] = self.evaluator.kl()
            # What the measurement took is no part of the step, but of the time that is left.
            extra = {**extra, "kl_seconds": self.clock.now() - measured}
        if self.step % self.recipe.train.log_every == 0 or self.step == self.schedule.total:
            self.log.write("step", self.step, metrics=metrics, **extra)
        self._write_notices(self.watch.step(self.step, metrics))

    def evaluate(self) -> None:
        """Measure the held-out rows and sample the watched prompts; write both."""
        began = self.clock.now()
        report = self.evaluator(self.step, self._work)
        took = self.clock.now() - began
        if report.metrics is not None:
            self.eval_metrics = report.metrics
            pairs = self.evaluator.rows
            self.log.write("eval", self.step, metrics=report.metrics, pairs=pairs, seconds=took)
            if report.worst is not None:
                self.log.write("pairs", self.step, **report.worst)
            self._write_notices(self.watch.evaluation(self.step, report.metrics))
        if report.samples:
            # Without held-out rows the answers are all that an evaluation is.
            seconds = {"seconds": took} if report.metrics is None else {}
            self.log.write("samples", self.step, samples=report.samples, **seconds)
        mx.clear_cache()
        self.evaluated_step = self.step

    def _work(self, phase: Phase, done: int = 0, total: int = 0) -> None:
        """Report long work when it begins, and once a second while it goes on; take commands meanwhile."""
        now = self.clock.now()
        if done == 0 or now - self._reported > REPORT_SECONDS:
            counts = {"done": done, "total": total} if total else {}
            self.log.write("phase", self.step, phase=phase, **counts)
            self._reported = now
        if done:
            self.control.within_work(self.step)

    def _evaluate_command(self, answer: Callable[[str], None]) -> None:
        if self.evaluated_step == self.step:
            raise UserError(f"step {self.step} is evaluated already")
        if not self.evaluator.has_work:
            raise UserError("there is nothing to evaluate: no rows are held out and no prompts are watched")
        answer(f"evaluating after step {self.step}")
        self.evaluate()

    def save(self) -> None:
        """Publish a checkpoint."""
        began = self.clock.now()
        self._work("saving")
        state = checkpoint.TrainState(
            self.step, random_key(), self.seconds, self.eval_metrics, inputs.to_json(self.inputs)
        )
        self.log.sync()
        self._keep_scores()
        path = checkpoint.save(
            self.run_dir,
            self.model,
            self.optimizer,
            state,
            self.adapter_config,
            self.recipe.save.keep,
            reference=None if self.moving is None else self.moving.weights,
        )
        self.saved_step = self.step
        self.log.write(
            "checkpoint", self.step, path=f"checkpoints/{path.name}", seconds=self.clock.now() - began
        )

    def _save_command(self, answer: Callable[[str], None]) -> None:
        if self.step == 0:
            raise UserError("no step is taken yet, so there is nothing to save")
        if self.saved_step != self.step:
            self.save()
        answer(f"saved as checkpoints/{self.run_dir.checkpoint_path(self.step).name}")

    def notice(self, name: str, message: str) -> None:
        """Write a line that the dashboard and the command show."""
        self.log.write("notice", self.step, level="info", name=name, message=message)

    def _write_notices(self, notices: list[dict[str, str]]) -> None:
        for fields in notices:
            self.log.write("notice", self.step, **fields)


class Watch:
    """The history of a run's metrics; each new record may raise notices, each once."""

    def __init__(self, session: Session) -> None:
        train = session.recipe.train
        self.facts = RunFacts(
            pairs_per_step=min(train.batch_size, len(session.train)),
            pairs_per_eval=len(session.eval_positions),
            total_steps=session.schedule.total,
            warmup_steps=session.schedule.warmup,
            memory_limit_gb=memory_limit(session.backend.device) / 1e9,
        )
        self._data = session.recipe.loss.spec.data
        self._train: list[Record] = []
        self._evals: list[Record] = []
        self._raised: list[tuple[str, str]] = []

    def step(self, step: int, metrics: dict[str, float]) -> list[dict[str, str]]:
        """Fields of the notices that this step raises."""
        self._train.append((step, metrics))
        if len(self._train) > 2 * LOOK_BACK:
            # The rules read the first record and the newest ones; a long run does not keep them all.
            self._train[1:-LOOK_BACK] = []
        return self._new()

    def evaluation(self, step: int, metrics: dict[str, float]) -> list[dict[str, str]]:
        """Fields of the notices that this evaluation raises."""
        self._evals.append((step, metrics))
        return self._new()

    def replay(self, log: Path) -> None:
        """Take up the history that is in the event log, so that a resumed run raises nothing twice."""
        for event in effective(read_events(log)):
            if event.type == "step" and event.step is not None:
                self._train.append((event.step, logged_metrics(event)))
            elif event.type == "eval" and event.step is not None:
                self._evals.append((event.step, logged_metrics(event)))
            elif event.type == "notice" and "why" in event.data:
                self._raised.append((event.data["name"], event.data["level"]))

    def _new(self) -> list[dict[str, str]]:
        raised = new_notices(self._raised, self._train, self._evals, self.facts, self._data)
        self._raised += [(notice.name, notice.level) for notice in raised]
        return [notice.fields() for notice in raised]
