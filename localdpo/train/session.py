"""Everything that a run is made of, assembled from its recipe: model, adapters, rows, plan.

This is where the recipe's names become objects, so mistakes that need the files to be seen
(a missing model, an adapter that does not fit, data without a needed field) are found here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from localdpo.core.errors import UserError
from localdpo.data.batches import ShapeTable
from localdpo.data.encode import encode_prompt
from localdpo.data.prompts import read_prompt_rows
from localdpo.data.types import Batch
from localdpo.model import lora
from localdpo.model.arrays import float_types
from localdpo.model.backend import Backend, may_use_tf32
from localdpo.model.forward import Forward, batch_arrays, needed_shape
from localdpo.model.load import Base, load_base
from localdpo.recipe.schema import Recipe
from localdpo.train import unpaired
from localdpo.train.evaluation import Watched
from localdpo.train.fit import fit
from localdpo.train.objectives import Objective, label_arrays, make_objective
from localdpo.train.plan import Plan, make_plan
from localdpo.train.reference import Reference, ReferenceScores
from localdpo.train.rows import Rows, visited
from localdpo.train.sources import Tell, open_rows, open_scores
from localdpo.train.sync import MovingReference, moving_reference

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
        micro: rows in memory at once.
        shapes: that micro-batches are padded to; None where steps are not traced.
        start: adapter weights that the policy starts from; the frozen reference's too.
        train, valid: rows.
        eval_places: rows of `valid` that an evaluation covers.
        watched: prompts that are answered at each evaluation.
        kl_prompts: held-out prompts that the policy answers there to measure its KL.
        train_scores, valid_scores: reference scores of the rows that the run draws and evaluates; None for
            a loss without a reference, and for one that moves.
        moving: the reference that follows the policy, if the recipe syncs it.
    """

    recipe: Recipe
    backend: Backend
    base: Base
    config: lora.LoraConfig
    start: lora.Weights
    forward: Forward
    objective: Objective
    plan: Plan
    micro: int
    shapes: ShapeTable | None
    train: Rows
    valid: Rows
    eval_places: np.ndarray
    watched: list[Watched]
    kl_prompts: list[Watched]
    train_scores: ReferenceScores | None
    valid_scores: ReferenceScores | None
    moving: MovingReference | None

    @property
    def train_reference(self) -> Reference | None:
        """What scores training rows under the reference; None for a loss without one."""
        return self.moving or self.train_scores

    @property
    def valid_reference(self) -> Reference | None:
        """The same for held-out rows."""
        return self.moving or self.valid_scores

    @property
    def compiled(self) -> bool:
        """Whether steps are traced."""
        return self.shapes is not None

    @property
    def scoring_batch(self) -> int:
        """Rows scored at once without gradients: by the reference pass and evaluations."""
        return scoring_rows(self.micro, self.backend)

    def training_batch(self, step: int) -> list[Batch]:
        """The micro-batches of the 0-based `step`."""
        train = self.recipe.train
        return self.train.training_batch(step, batch_size=train.batch_size, micro=self.micro, seed=train.seed)

    def training_arrays(self, batches: list[Batch]) -> list[dict[str, mx.array]]:
        """The arrays of a step's micro-batches, with reference scores and what the whole step shares."""
        common = {"count": mx.array(float(self.objective.count(batches)))}
        common |= self.baseline(self.train, np.concatenate([batch.indices for batch in batches]))
        ready = []
        for batch in batches:
            arrays = self._padded(batch) | label_arrays(batch) | common
            if self.train_reference is not None:
                arrays |= self.train_reference.arrays(batch)
            ready.append(arrays)
        return ready

    def _padded(self, batch: Batch) -> dict[str, mx.array]:
        """What a forward pass takes of a micro-batch, in a shape of the table if one holds it."""
        shared = self.forward.shared
        shape = None if self.shapes is None else self.shapes.of(needed_shape(batch, shared=shared))
        return batch_arrays(batch, shared=shared, shape=shape)

    def baseline(self, rows: Rows, indices: np.ndarray) -> dict[str, mx.array]:
        """`baseline`, the KL baseline of these rows of the store, for a loss that reads it; else nothing."""
        if not self.recipe.loss.spec.needs_baseline:
            return {}
        z = unpaired.step_baseline(
            self.forward,
            rows,
            indices,
            self.start if self.moving is None else self.moving.weights,
            max_length=self.recipe.train.max_length,
            batch=self.scoring_batch,
        )
        return {"baseline": z}

    def adapter_json(self) -> dict[str, object]:
        """The content of the checkpoints' adapter_config.json."""
        return self.config.to_json(self.recipe.model)


def assemble(recipe: Recipe, backend: Backend, note: Note, tell: Tell | None = None) -> Session:
    """Load and check everything a run needs; `note` is told in one line what a person should know.

    `tell`: see open_rows.

    Raises:
        UserError, UserErrors: anything the recipe names that is missing or does not fit.
    """
    base = load_base(recipe.model, trust_remote_code=recipe.trust_remote_code)
    for line in base.notes:
        note(line)
    config = attach_adapter(base.model, recipe)
    if lora.dequantises(base.model):
        note(lora.DORA_NOTE)
    train, valid = open_rows(recipe, base.tokenizer, tell)
    forward = Forward(
        base.model,
        split=recipe.loss.splits_responses,
        align=recipe.loss.weighs_pairs,
    )
    check_paths(forward, train, note)
    plan = make_plan(recipe.train, train.per_epoch)
    laid_out = fit(recipe, train, plan, base.model, config, backend, shared=forward.shared)
    forward.checkpoint = laid_out.checkpoint
    for line in (*laid_out.lines, *unpaired.notes(recipe.loss, train, valid)):
        note(line)
    places = np.arange(min(recipe.eval.pairs, len(valid)))
    moving = moving_reference(recipe.loss, forward)
    cached = recipe.loss.spec.needs_reference and moving is None
    micro = laid_out.micro
    drawn = visited(train, recipe.train.batch_size, recipe.train.seed, plan.total)
    train_scores, valid_scores = (
        open_scores(recipe, base, backend, forward, rows, at, batch=scoring_rows(micro, backend), note=note)
        if cached
        else None
        for rows, at in ((train, drawn), (valid, places))
    )
    return Session(
        recipe=recipe,
        backend=backend,
        base=base,
        config=config,
        start=lora.adapter_weights(base.model),
        forward=forward,
        objective=make_objective(recipe.loss),
        plan=plan,
        micro=micro,
        shapes=laid_out.shapes,
        train=train,
        valid=valid,
        eval_places=places,
        watched=watched_prompts(recipe, base, valid),
        kl_prompts=held_out_prompts(base, valid, kl_samples(recipe)),
        train_scores=train_scores,
        valid_scores=valid_scores,
        moving=moving,
    )


def scoring_rows(micro: int, backend: Backend) -> int:
    """Rows that are scored at once without gradients."""
    return min(SCORING_ROWS, (1 if backend.is_cpu else SCORING_FACTOR) * micro)


def adapter_shape(recipe: Recipe) -> lora.LoraConfig:
    """The shape of the adapter that will be trained: the start adapter's, or the recipe's.

    Raises:
        UserError: a recipe that asks for another shape than its adapter has.
    """
    section = recipe.lora
    if recipe.adapter is not None:
        config = replace(lora.read_config(lora.adapter_path(recipe.adapter)), dropout=section.dropout)
        _refuse_other_shape(recipe, config)
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
    """Put adapters on the model: the recipe's start adapter with its weights, or fresh ones."""
    config = adapter_shape(recipe)
    require_blocks(recipe, config, len(model.layers))
    lora.attach(model, config, seed=recipe.train.seed)
    if recipe.adapter is not None:
        lora.load_weights(model, lora.adapter_path(recipe.adapter))
    return config


def require_blocks(recipe: Recipe, config: lora.LoraConfig, blocks: int) -> None:
    """Raise UserError for an adapter of more blocks than the model has, or than the recipe asks for."""
    if config.layers > blocks:
        where = "lora.layers" if recipe.adapter is None else f"adapter {recipe.adapter}: num_layers"
        raise UserError(f"{where}: the model has {blocks} blocks, got {config.layers}")
    asked = recipe.lora.layers
    # -1 and the number of all blocks are the same wish.
    counts = {blocks if layers == -1 else layers for layers in (asked, config.layers)}
    if asked is not None and len(counts) > 1:
        raise _other_shape(recipe, "layers", asked, config.layers)


def _refuse_other_shape(recipe: Recipe, config: lora.LoraConfig) -> None:
    """An adapter is trained on in the shape it has; a recipe that asks for another one is mistaken."""
    for name in ("type", "rank", "scale", "keys"):
        asked, is_ = getattr(recipe.lora, name), getattr(config, name)
        same = set(asked or ()) == set(is_ or ()) if name == "keys" else asked == is_
        if asked is not None and not same:
            raise _other_shape(recipe, name, asked, is_)


def _other_shape(recipe: Recipe, name: str, asked: object, is_: object) -> UserError:
    return UserError(
        f"lora.{name}: {asked} asked for, but adapter {recipe.adapter} has {is_}; "
        "leave it out to train that adapter on, or fuse it into the model first (mlx_lm.fuse)"
    )


def watched_prompts(recipe: Recipe, base: Base, valid: Rows) -> list[Watched]:
    """The prompts answered at each evaluation: the recipe's, or the first held-out ones, once each."""
    wanted, tokenizer = recipe.eval.samples, base.tokenizer
    if wanted == 0:
        return []
    if recipe.eval.prompts is not None:
        found = []
        for row in read_prompt_rows(recipe.eval.prompts, wanted):
            ids = encode_prompt(
                tokenizer._tokenizer,
                row.prompt,
                recipe.data.template,
                tools=row.tools,
                template_kwargs={**recipe.data.chat_template_kwargs, **row.template_kwargs},
                responses=row.responses,
            )
            found.append(Watched(row.text, tuple(ids.tolist())))
        return found
    return held_out_prompts(base, valid, wanted)


def kl_samples(recipe: Recipe) -> int:
    """How many answers measure the sampled KL: none for a loss without a reference."""
    return recipe.eval.kl_samples if recipe.loss.spec.needs_reference else 0


def held_out_prompts(base: Base, valid: Rows, count: int) -> list[Watched]:
    """The first `count` different prompts of the held-out rows."""
    found: dict[tuple[int, ...], None] = {}
    for i in valid.indices:
        if len(found) == count:
            break
        found[tuple(valid.store[int(i)].prompt.tolist())] = None
    return [Watched(base.tokenizer.decode(ids, skip_special_tokens=True).strip(), ids) for ids in found]


def check_paths(forward: Forward, rows: Rows, note: Note) -> None:
    """Compare the shared-prompt path with the plain one on the first row; fall back if they differ.

    The context gets extra padding for the check, so that a model whose positions are absolute is found out.
    """
    if not forward.shared:
        note(
            "this model's layers keep a state that cannot be shared: "
            "each response runs with its prompt (plain path)"
        )
        return
    batch = _more_padding(rows.batch(np.arange(1)))
    try:
        shared = np.array(forward.logps(batch_arrays(batch, shared=True), gradient=False))
    except ValueError as error:
        forward.shared = False
        note(f"the shared-prompt path does not run on this model ({error}): the plain path is used")
        return
    forward.shared = False
    plain = np.array(forward.logps(batch_arrays(batch, shared=False), gradient=False))
    forward.shared = bool((np.abs(shared - plain) <= tolerance(plain, batch.lengths, forward)).all())
    if not forward.shared:
        gap = float(np.abs(shared - plain).max())
        note(
            f"the shared-prompt path differs from the plain one by {gap:.3g} nats on this model: "
            "the plain path is used"
        )


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


def _more_padding(batch: Batch, columns: int = 16) -> Batch:
    context = np.pad(batch.context, ((0, 0), (columns, 0)))
    return replace(batch, context=context, context_pad=batch.context_pad + columns)
