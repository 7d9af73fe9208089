"""Who answers: the base of a run, the adapter it started from, the one it trained, and those of other runs.

All of them live in one loaded base: `Contestants` puts one adapter on it at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localdpo.core.errors import UserError
from localdpo.model import lora
from localdpo.model.load import Base, fingerprint, model_path
from localdpo.recipe.load import load_recipe
from localdpo.records.answers import Role
from localdpo.records.checkpoints import Note, Verified, require_checkpoint
from localdpo.records.rundir import RunDir, run_of
from localdpo.train.inputs import ADAPTER, MODEL, TOKENIZER, tell_changes

NO_ADAPTER = "none"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model that answers: the base with an adapter, or without one.

    Attributes:
        name: for programs and files, unique in a comparison: base, sft, dpo (ipo, ...), run:OTHER.
        label: for people: base, SFT, DPO (IPO, ...), OTHER. A run on demonstrations trains SFT; what it
            started from is then called start, as is what a run on preferences has trained, by its name.
        adapter: its folder; None is the base itself.
        fingerprint: a hash of the adapter's shape and weights; NO_ADAPTER without one.
        role: what it is to the run.
    """

    name: str
    label: str
    adapter: Path | None
    fingerprint: str
    role: Role = "other"


def contestants(
    run: RunDir, with_runs: Sequence[RunDir] = (), *, first: str | None = None, note: Note
) -> list[Contestant]:
    """Base, start adapter (if the run had one), trained adapter, then the trained adapters of `with_runs`.

    `first`: the adapter that a series of rounds began with, which comes last.
    `note` is called with one line for each damaged checkpoint that is skipped and for inputs that changed
    since a run began.

    Raises UserError: a run without a valid checkpoint, an adapter that is not there, another run with another
    base, or one that is named twice.
    """
    recipe = load_recipe(run.recipe)
    trained = trained_name(run)
    tell_changes(run, recipe, {MODEL, TOKENIZER, ADAPTER}, note)
    models = [Contestant("base", "base", None, NO_ADAPTER, "base")]
    if recipe.adapter is not None:
        before = run_of(Path(recipe.adapter).expanduser())
        label = "start" if trained == "SFT" else "SFT"
        if before is not None and trained_name(before) != "SFT":
            label = before.name
        name = "sft" if label == "SFT" else "start"
        models.append(_adapted(name, label, lora.open_adapter(recipe.adapter, note), "start"))
    models.append(_adapted(trained.lower(), trained, require_checkpoint(run, note), "trained"))
    for other in with_runs:
        base = load_recipe(other.recipe).model
        if base != recipe.model and fingerprint(model_path(base)) != fingerprint(model_path(recipe.model)):
            raise UserError(
                f"--with {other.name}: its base is {base}, that of {run.name} is {recipe.model}; "
                "only runs on one base can be compared"
            )
        tell_changes(other, load_recipe(other.recipe), {MODEL, TOKENIZER}, note)
        models.append(_adapted(f"run:{other.name}", other.name, require_checkpoint(other, note), "other"))
    if first is not None:
        models.append(_adapted("sft", "SFT", lora.open_adapter(first, note), "other"))
    names = [model.name for model in models] + [f"run:{run.name}"]
    if twice := [model.label for model in models if model.role == "other" and names.count(model.name) > 1]:
        raise UserError(f"--with {twice[0]}: this run is compared already; name each run once")
    return models


def trained_name(run: RunDir) -> str:
    """What to call the adapter that the run trained: DPO, SFT, IPO, ..."""
    loss = load_recipe(run.recipe).loss.spec.name
    return "DPO" if loss == "sigmoid" else loss.upper()


def _adapted(name: str, label: str, adapter: Verified, role: Role) -> Contestant:
    return Contestant(
        name, label, adapter.path, lora.adapter_fingerprint(adapter.path, adapter.digests), role
    )


class Contestants:
    """Contestants on one loaded base. Adapters of any shape may follow each other.

    Attributes:
        base: the model, without an adapter between two uses.

    Raises UserError: an adapter that does not fit the base.
    """

    def __init__(self, base: Base, every: Sequence[Contestant]) -> None:
        self.base = base
        self._adapters: dict[str, tuple[lora.LoraConfig, lora.Weights]] = {}
        # All weights are read before the first answer: a training run may delete old checkpoints.
        for contestant in every:
            if contestant.adapter is not None:
                shape = lora.read_config(contestant.adapter)
                with self._attached(shape):
                    lora.load_weights(base.model, contestant.adapter)
                    self._adapters[contestant.name] = (shape, base.model.trainable_parameters())

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """While the context holds, the model is this contestant."""
        if name not in self._adapters:
            yield
            return
        shape, weights = self._adapters[name]
        with self._attached(shape):
            self.base.model.update(weights)
            yield

    @contextmanager
    def _attached(self, shape: lora.LoraConfig) -> Iterator[None]:
        lora.attach(self.base.model, shape, seed=0)
        try:
            yield
        finally:
            lora.detach(self.base.model)
