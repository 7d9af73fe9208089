"""Everything that a run is made of, assembled from its recipe: model, adapters, rows, plan.

This is where the recipe's names become objects, so mistakes that need the files to be seen
(a missing model, an adapter that does not fit, data without a needed field) are found here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from localdpo.core.errors import UserError
from localdpo.core.text import counted
from localdpo.data.encode import encode_prompt
from localdpo.data.inspect import named_parts, prompt_words, report_lines
from localdpo.data.prompts import read_prompt_rows
from localdpo.model import lora
from localdpo.model.arrays import float_types
from localdpo.model.backend import Backend, may_use_tf32
from localdpo.model.forward import Forward, batch_arrays, lengths_of
from localdpo.model.head import text_model
from localdpo.model.load import Base, load_base
from localdpo.model.packed import Segment, segments_of
from localdpo.recipe.schema import Recipe
from localdpo.train import unpaired
from localdpo.train.data import NOTHING_HELD_OUT, Feed, Progress, Rows, open_rows, visited
from localdpo.train.evaluator import WatchedPrompt
from localdpo.train.fit import Layout, fit
from localdpo.train.ranks import ALONE, Ranks
from localdpo.train.reference import MovingReference, ReferenceScores, reference_key
from localdpo.train.step import Objective, Schedule, TrainStep, length_note, make_schedule
from localdpo.train.unpaired import KLBaseline

Note = Callable[[str], None]
DEFAULT_RANK, DEFAULT_SCALE = 8, 20.0
# Rows scored at once without gradients, at most, and how many times a micro-batch of a step, which keeps its
# activations. The CPU gains nothing from more rows and loses to padding.
SCORING_ROWS, SCORING_FACTOR = 16, 4


@dataclass
class Session:
    """An assembled run.

    Attributes:
        base: model and tokenizer; the model carries the adapter that is trained.
        config: the adapter's shape.
        reference: adapter weights of the reference, and the policy's at the start unless the recipe names
            others; where it moves, those that it starts as.
        layout: how its steps are laid out in memory.
        scoring_batch: rows scored at once without gradients, by the reference pass and evaluations.
        train, valid: rows.
        eval_positions: rows of `valid` that an evaluation covers.
        watched: prompts that are answered at each evaluation.
        kl_prompts: held-out prompts that the policy answers there to measure its KL.
        train_scores, valid_scores: reference scores of the rows that the run draws and evaluates; None for
            a loss without a reference, and for one that moves.
        moving: the reference that follows the policy, if the recipe syncs it.
        baseline: computes the KL baseline, for a loss that reads it.
        feed: the micro-batches of the training steps.
        ranks: with which it is trained.
    """

    recipe: Recipe
    backend: Backend
    base: Base
    config: lora.LoraConfig
    reference: lora.Weights
    forward: Forward
    objective: Objective
    schedule: Schedule
    layout: Layout
    scoring_batch: int
    train: Rows
    valid: Rows
    eval_positions: np.ndarray
    watched: list[WatchedPrompt]
    kl_prompts: list[WatchedPrompt]
    train_scores: ReferenceScores | None
    valid_scores: ReferenceScores | None
    moving: MovingReference | None
    baseline: KLBaseline | None
    feed: Feed
    ranks: Ranks = ALONE

    @property
    def scored_ahead(self) -> list[ReferenceScores]:
        """The reference scores that are complete before the first step."""
        ahead = [self.train_scores] if self.recipe.train.reference == "ahead" else []
        return [scores for scores in (*ahead, self.valid_scores) if scores is not None]

    @property
    def compiled(self) -> bool:
        """Whether steps are traced."""
        return self.feed.shapes is not None

    def train_step(self, optimizer: optim.Optimizer) -> TrainStep:
        """What takes the steps, with this optimizer."""
        return TrainStep(
            self.forward,
            self.objective,
            optimizer,
            max_grad_norm=self.recipe.train.max_grad_norm,
            compiled=self.compiled,
            lanes=self.layout.lanes,
            ranks=self.ranks,
        )

    def adapter_json(self) -> dict[str, object]:
        """The content of the checkpoints' adapter_config.json."""
        return self.config.to_json(self.recipe.model)


def assemble(
    recipe: Recipe,
    backend: Backend,
    note: Note,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Session:
    """Load and check everything a run needs; `note` is called with each line that a person should read.

    `progress`: see open_rows. `ranks`: that train it together, all of which assemble it at the same time.

    Raises UserError(s): anything the recipe names that is missing or does not fit.
    """
    base = load_base(recipe.model, trust_remote_code=recipe.trust_remote_code)
    for line in base.notes:
        note(line)
    config = attach_adapter(base.model, recipe)
    if lora.dequantises(base.model):
        note(lora.DORA_NOTE)
    train, valid = open_rows(recipe, base.tokenizer, progress)
    if ranks.size > recipe.train.batch_size:
        raise UserError(
            f"train.batch_size: {counted(recipe.train.batch_size, 'row')} a step for "
            f"{counted(ranks.size, 'rank')}, and each needs one at least"
        )
    train = replace(train, rank=ranks.rank, ranks=ranks.size)
    forward = Forward(
        base.model,
        split=recipe.loss.splits_responses,
        align=recipe.loss.weighs_pairs,
    )
    check_paths(forward, train, note)
    schedule = make_schedule(recipe.train, train.per_epoch)
    layout = fit(recipe, train, schedule, base.model, config, backend, shared=forward.shared)
    forward.checkpoint = layout.checkpoint
    if (length := length_note(recipe.train, schedule)) is not None:
        note(length)
    for line in (*layout.lines, *unpaired.notes(recipe.loss, train, valid)):
        note(line)
    for name, part in named_parts(train.store, valid.store):
        for line in report_lines(name, part):
            note(line)
    if not len(valid):
        note(NOTHING_HELD_OUT)
    eval_positions = np.arange(min(recipe.eval.pairs, len(valid)))
    reference = reference_weights(base.model, recipe, config)
    moving = None
    if (every := recipe.loss.sync_every) is not None:
        moving = MovingReference(forward, reference, every=every, alpha=recipe.loss.sync_alpha)
    batch = scoring_rows(layout.rows, backend)
    train_scores = valid_scores = None
    if recipe.loss.spec.needs_reference and moving is None:
        drawn = visited(train, recipe.train.batch_size, recipe.train.seed, schedule.total)
        key = reference_key(recipe, base, backend, forward)
        kinds = ("logps", "public") if recipe.loss.splits_responses else ("logps",)
        train_scores, valid_scores = (
            ReferenceScores(key, rows, positions, batch=batch, kinds=kinds, note=note, ranks=ranks)
            for rows, positions in ((train, drawn), (valid, eval_positions))
        )
    baseline = None
    if recipe.loss.spec.needs_baseline:
        baseline = KLBaseline(
            forward,
            lambda: reference if moving is None else moving.weights,
            max_length=recipe.train.max_length,
            # Not cut to what goes through a model together, as rows of the data are: all may be long.
            batch=scoring_rows(layout.micro, backend),
            ranks=ranks,
        )
    objective = Objective(recipe.loss)
    kl_samples = recipe.eval.kl_samples if recipe.loss.spec.needs_reference else 0
    return Session(
        recipe=recipe,
        backend=backend,
        base=base,
        config=config,
        reference=reference,
        forward=forward,
        objective=objective,
        schedule=schedule,
        layout=layout,
        scoring_batch=batch,
        train=train,
        valid=valid,
        eval_positions=eval_positions,
        watched=watched_prompts(recipe, base, valid),
        kl_prompts=held_out_prompts(base, valid, kl_samples),
        train_scores=train_scores,
        valid_scores=valid_scores,
        moving=moving,
        baseline=baseline,
        feed=Feed(
            train,
            forward,
            objective,
            recipe.train,
            micro=layout.micro,
            shapes=layout.shapes,
            reference=moving or train_scores,
            baseline=baseline,
            ranks=ranks,
        ),
        ranks=ranks,
    )


def scoring_rows(micro: int, backend: Backend) -> int:
    """Rows that are scored at once without gradients."""
    return min(SCORING_ROWS, (1 if backend.is_cpu else SCORING_FACTOR) * micro)


def adapter_shape(recipe: Recipe) -> lora.LoraConfig:
    """The shape of the adapter that will be trained: the start adapter's, or the recipe's.

    Raises UserError: a recipe that asks for another shape than its adapter has.
    """
    section = recipe.lora
    if recipe.adapter is not None:
        config = replace(lora.read_config(lora.open_adapter(recipe.adapter).path), dropout=section.dropout)
        # Training continues an adapter in the shape it has.
        for name in ("type", "rank", "scale", "keys"):
            wanted, actual = getattr(section, name), getattr(config, name)
            same = set(wanted or ()) == set(actual or ()) if name == "keys" else wanted == actual
            if wanted is not None and not same:
                raise _other_shape(recipe, name, wanted, actual)
        return config
    return lora.LoraConfig(
        type=section.type or "lora",
        layers=-1 if section.layers is None else section.layers,
        rank=section.rank or DEFAULT_RANK,
        scale=section.scale or DEFAULT_SCALE,
        dropout=section.dropout,
        keys=section.keys,
    )


def attach_adapter(model: nn.Module, recipe: Recipe) -> lora.LoraConfig:
    """Put adapters on the model: the recipe's start adapter with its weights, or fresh ones.

    Raises UserError(s): an adapter that does not fit, or a model that cannot be trained.
    """
    if "model" not in text_model(model):
        kind = type(model).__module__.rpartition(".")[2]
        raise UserError(
            f"model {recipe.model}: models of the type {kind} cannot be trained: their blocks are not where "
            "those of llama, qwen3, gemma3 and the like are, which training needs; choose another model"
        )
    config = adapter_shape(recipe)
    require_blocks(recipe, config, len(model.layers))
    lora.attach(model, config, seed=recipe.train.seed)
    if recipe.adapter is not None:
        lora.load_weights(model, lora.open_adapter(recipe.adapter).path)
    return config


def reference_weights(model: nn.Module, recipe: Recipe, config: lora.LoraConfig) -> lora.Weights:
    """The reference's weights for the adapters of the shape `config` on the model, which keep their own.

    Raises UserError: a reference adapter of another shape.
    """
    start = model.trainable_parameters()
    if recipe.reference_adapter is None:
        return start
    if recipe.reference is None:
        lora.detach(model)
        lora.attach(model, config, seed=recipe.train.seed)
    else:
        folder = lora.open_adapter(recipe.reference).path
        if replace(lora.read_config(folder), dropout=config.dropout) != config:
            raise UserError(f"reference_adapter {recipe.reference}: its shape is not that of adapter")
        lora.load_weights(model, folder)
    weights = model.trainable_parameters()
    model.update(start)
    return weights


def require_blocks(recipe: Recipe, config: lora.LoraConfig, blocks: int) -> None:
    """Raise UserError for an adapter of more blocks than the model has, or than the recipe asks for."""
    if config.layers > blocks:
        where = "lora.layers" if recipe.adapter is None else f"adapter {recipe.adapter}: num_layers"
        raise UserError(f"{where}: the model has {counted(blocks, 'block')}, got {config.layers}")
    wanted = recipe.lora.layers
    # -1 means all blocks, as their number does.
    counts = {blocks if layers == -1 else layers for layers in (wanted, config.layers)}
    if wanted is not None and len(counts) > 1:
        raise _other_shape(recipe, "layers", wanted, config.layers)


def _other_shape(recipe: Recipe, name: str, wanted: object, actual: object) -> UserError:
    return UserError(
        f"lora.{name}: {wanted} asked for, but adapter {recipe.adapter} has {actual}; "
        "leave it out to train that adapter on, or fuse it into the model first (mlx_lm.fuse)"
    )


def watched_prompts(recipe: Recipe, base: Base, valid: Rows) -> list[WatchedPrompt]:
    """The prompts answered at each evaluation: the recipe's, or the first held-out ones, once each."""
    wanted, tokenizer = recipe.eval.samples, base.tokenizer
    if wanted == 0:
        return []
    if recipe.eval.prompts is None:
        return held_out_prompts(base, valid, wanted)
    prompts = []
    for row in read_prompt_rows(recipe.eval.prompts, wanted):
        ids = encode_prompt(
            tokenizer._tokenizer,
            row.prompt,
            recipe.data.template,
            tools=row.tools,
            template_kwargs={**recipe.data.chat_template_kwargs, **row.template_kwargs},
            responses=row.responses,
        )
        prompts.append(WatchedPrompt(row.text, tuple(ids.tolist())))
    return prompts


def held_out_prompts(base: Base, valid: Rows, count: int) -> list[WatchedPrompt]:
    """The first `count` different prompts of the held-out rows."""
    prompts: dict[tuple[int, ...], None] = {}
    for i in valid.indices:
        if len(prompts) == count:
            break
        prompts[tuple(valid.store[int(i)].prompt.tolist())] = None
    return [WatchedPrompt(prompt_words(ids, base.tokenizer._tokenizer), ids) for ids in prompts]


def check_paths(forward: Forward, rows: Rows, note: Note) -> None:
    """Compare the shared path with the plain one on two rows; fall back to what gives its numbers.

    Two, since in a line of one row with one response every position is what it would be by itself.

    Raises UserError for a model that has no shared path and whose plain one is not what generates.
    """
    batch = rows.batch(np.arange(2) % len(rows))
    whole = batch_arrays(batch, shared=False)
    plain = np.array(forward.logps(whole, gradient=False))
    bars = tolerance(plain, batch.lengths, forward)
    if not forward.shared:
        note(
            "this model's layers keep a state that cannot be shared: "
            "each response runs with its prompt (plain path)"
        )
        # A line takes the place of a cache; without one nothing has compared the two.
        cached = np.array(Forward(forward.model, shared=False, cached=True).logps(whole, gradient=False))
        gaps = np.abs(cached - plain)
        if (gaps > bars).any():
            kind = type(forward.model).__module__.rpartition(".")[2]
            raise UserError(
                f"model: models of the type {kind} compute other log-probabilities without a cache of keys "
                f"and values than with one, here by {gaps.max():.3g} nats, so that another model would be "
                "trained than the one that answers; choose another model"
            )
        return

    def problem(segments: tuple[Segment, ...]) -> str | None:
        line = replace(batch_arrays(batch, shared=True), segments=segments)
        try:
            logps = np.array(forward.logps(line, gradient=False))
        except (TypeError, ValueError, AttributeError) as error:
            # What layers raise that compute with the mask or the positions they are given.
            return f"does not run on this model ({error})"
        gaps = np.abs(logps - plain)
        return (
            None
            if (gaps <= bars).all()
            else f"differs from the plain one by {gaps.max():.3g} nats on this model"
        )

    if (masked := problem(())) is not None:
        forward.shared = False
        note(f"the shared-prompt path {masked}: the plain path is used")
        return
    segments = segments_of(*lengths_of(batch))
    forward.by_segments = problem(segments) is None


def tolerance(logps: np.ndarray, lengths: np.ndarray, forward: Forward) -> np.ndarray:
    """How far two orders of the same computation may differ, in nats a response.

    float32: 1e-3 or 2e-6 of the value; 16-bit: rounding of each token adds up like a random walk, with
    0.012 nats a token at the root mean square and 0.026 at most on small random models. TF32 rounds to
    10 bits where bfloat16 rounds to 7. A path that is wrong is wrong by nats.
    """
    if float_types(forward.model) != {mx.float32}:
        return 0.05 * np.sqrt(lengths)
    exact = np.maximum(1e-3, 2e-6 * np.abs(logps))
    return np.maximum(exact, 0.05 / 2**3 * np.sqrt(lengths)) if may_use_tf32() else exact
