"""The `loss` section of a recipe, made from the tables in `localdpo.objective`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from annotated_types import Gt, Le
from pydantic import ValidationInfo, field_validator, model_validator

from localdpo.objective.options import OptionValue
from localdpo.objective.registry import LOSSES, LossSum, loss_sum
from localdpo.recipe.base import Count, Losses, Section, Text, Weights, option

# Options of training, not of the loss function.
SYNC_OPTIONS: Final = ("sync_every", "sync_alpha")


def _option(name: str) -> Any:
    """The field of a loss option: bounds and meaning from the registry, the default from the chosen loss."""
    specs = {loss: spec.options[name] for loss, spec in LOSSES.items() if name in spec.options}
    first = next(iter(specs.values()))
    readers = f" ({', '.join(specs)})" if len(specs) <= 2 else ""

    def default(values: dict[str, Any]) -> OptionValue:
        chosen = (specs[loss] for loss in _listed(values.get("type", ())) if loss in specs)
        return next(chosen, first).default

    return option(
        default,
        first.description + readers,
        gt=first.low if first.open_low else None,
        ge=None if first.open_low else first.low,
        lt=first.high if first.open_high else None,
        le=None if first.open_high else first.high,
    )


def _listed(losses: str | tuple[str, ...]) -> tuple[str, ...]:
    """The losses that a value of `loss.type` names, one or several."""
    return (losses,) if isinstance(losses, str) else losses


def _equal_weights(values: dict[str, Any]) -> tuple[float, ...] | None:
    return (1.0,) * len(values["type"]) if isinstance(values.get("type"), tuple) else None


class LossSection(Section):
    """The objective. Which options a loss reads, and their bounds, are in `localdpo.objective.registry`."""

    type: Text | Losses = option("sigmoid", "the loss, or a list of losses to add up: " + ", ".join(LOSSES))
    weights: Weights | None = option(
        _equal_weights,
        "weight of each loss of a list in loss.type; 1 each unless given",
    )
    beta: float = _option("beta")
    label_smoothing: float = _option("label_smoothing")
    reference_free: bool = _option("reference_free")
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = _option("f_divergence")
    f_alpha: float = _option("f_alpha")
    ld_alpha: float = _option("ld_alpha")
    use_weighting: bool = _option("use_weighting")
    discopop_tau: float = _option("discopop_tau")
    dpop_lambda: float = _option("dpop_lambda")
    r_dpo_alpha: float = _option("r_dpo_alpha")
    simpo_gamma: float = _option("simpo_gamma")
    desirable_weight: float = _option("desirable_weight")
    undesirable_weight: float = _option("undesirable_weight")
    # TRL's defaults are 512 steps and 0.6; how many steps fit depends on the length of the run.
    sync_every: Count | None = option(
        None,
        "the reference moves towards the policy every N steps (TR-DPO); null: it is frozen",
    )
    sync_alpha: Annotated[float, Gt(0), Le(1)] = option(
        0.6,
        "how far it moves: reference = sync_alpha * policy + (1 - sync_alpha) * reference",
    )

    @field_validator("type")
    @classmethod
    def _known(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        loss_sum(value)  # raises ValueError for one that is not known
        return value

    @field_validator("weights")
    @classmethod
    def _one_each(cls, value: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        losses = info.data.get("type")
        if value is None or losses is None:
            return _equal_weights(info.data) if value is None else value
        if isinstance(losses, str):
            raise ValueError(
                f"loss.type is one loss ({losses}), which takes no weight; remove it or list losses"
            )
        loss_sum(losses, value)  # raises ValueError unless there are as many
        return value

    # Defaults are not validated, so this sees exactly the options that the recipe sets.
    @field_validator("*", mode="before")
    @classmethod
    def _read_by_loss(cls, value: Any, info: ValidationInfo) -> Any:
        name, losses = str(info.field_name), info.data.get("type")
        if name in ("type", "weights", *SYNC_OPTIONS) or losses is None:
            return value
        chosen = loss_sum(losses)
        if name in chosen.options:
            problem = chosen.options[name].combination_problem(value, info.data)
            if problem is not None:
                raise ValueError(problem)
            return value
        readers = ", ".join(other for other, its in LOSSES.items() if name in its.options)
        raise ValueError(
            f"the {chosen.name} loss does not use it; remove it or choose one that does: {readers}"
        )

    @field_validator(*SYNC_OPTIONS, mode="before")
    @classmethod
    def _reference_can_move(cls, value: Any, info: ValidationInfo) -> Any:
        losses = info.data.get("type")
        if value is None or losses is None:
            return value
        chosen = loss_sum(losses)
        if not chosen.needs_reference:
            raise ValueError(f"the {chosen.name} loss has no reference that could move; remove it")
        if info.data.get("reference_free") is True:
            raise ValueError(
                "with reference_free the loss does not read the reference; remove one of the two"
            )
        if info.field_name == "sync_alpha" and info.data.get("sync_every", 0) is None:
            raise ValueError("it is read only where sync_every is given; remove it or set that")
        return value

    @model_validator(mode="after")
    def _required(self) -> LossSection:
        missing = sorted(name for name in self.spec.requires if getattr(self, name) == 0)
        if missing:
            raise ValueError(f"the {self.spec.name} loss needs loss.{' and loss.'.join(missing)} above 0")
        return self

    @property
    def spec(self) -> LossSum:
        """The chosen loss, or the weighted sum of the chosen losses."""
        return loss_sum(self.type, self.weights)

    @property
    def options(self) -> dict[str, Any]:
        """The options that the chosen losses read, as keyword arguments of `localdpo.preference_loss`."""
        values = {name: getattr(self, name) for name in self.spec.options}
        return {name: values[name] for name in self.spec.in_effect(values)}

    @property
    def weighs_pairs(self) -> bool:
        """Whether pairs are weighed by the policy's own probabilities."""
        return bool(self.options.get("use_weighting", False))

    @property
    def splits_responses(self) -> bool:
        """Whether the tokens that a response has beyond the other one count differently."""
        return bool(self.options.get("ld_alpha", 1.0) < 1.0)
