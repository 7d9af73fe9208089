"""The table of losses is complete, true, and free of mlx."""

from __future__ import annotations

import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from loss_oracles import ORACLES, random_pairs, unpaired_loss
from pydantic import ValidationError

from localdpo.objective.losses import PAIR_FORMULAS, UNPAIRED_FORMULAS, preference_loss
from localdpo.objective.options import OPTIONS, OptionSpec
from localdpo.objective.registry import LOSSES, LossSpec, loss_spec
from localdpo.objective.scores import ResponseScores
from localdpo.recipe.loss import LossSection
from localdpo.train.step import Objective

# A value that differs from the default and is in range.
OTHER_VALUES = {
    "beta": 0.37,
    "label_smoothing": 0.2,
    "reference_free": True,
    "f_divergence": "js",
    "f_alpha": 0.2,
    "ld_alpha": 0.3,
    "use_weighting": True,
    "discopop_tau": 0.5,
    "dpop_lambda": 2.0,
    "r_dpo_alpha": 0.1,
    "simpo_gamma": 1.0,
    "desirable_weight": 0.6,
    "undesirable_weight": 1.7,
}


def context(name, option):
    """The other option that has to be set for this one to be read."""
    spec = LOSSES[name].options[option]
    return {} if spec.needs is None else {spec.needs: spec.needs_value}


def evaluate(name, **options):
    arrays = [mx.array(a) for a in random_pairs(np.random.default_rng(0), (32,))]
    if LOSSES[name].requires:
        options = {"label_smoothing": 0.1, **options}
    pw, pl, rw, rl, nw, nl = arrays
    if LOSSES[name].data == "unpaired":
        return np.array(unpaired_loss(name, pw, rw, nw > 20, baseline=mx.array(0.7), **options))
    public = (0.5 * pw, 0.9 * pl, 0.4 * rw, 0.8 * rl)
    return np.array(
        preference_loss(
            name,
            *(pw, pl, rw, rl),
            chosen_tokens=nw,
            rejected_tokens=nl,
            public=public,
            alignment=(pw / nw, pl / nl),
            **options,
        )
    )


def test_the_registry_and_the_notices_need_no_mlx():
    code = (
        "import sys; import localdpo.objective.registry, localdpo.objective.notices; "
        "assert not {m.split('.')[0] for m in sys.modules} & {'mlx', 'numpy'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", LOSSES)
def test_every_entry_has_a_function_and_a_source(name):
    spec = LOSSES[name]
    formulas = UNPAIRED_FORMULAS if spec.data == "unpaired" else PAIR_FORMULAS
    assert callable(formulas[name])
    assert spec.summary
    assert spec.source
    assert spec.name == name
    assert spec.requires <= spec.options.keys()
    assert (name in ORACLES) == (spec.data == "pairs")


@pytest.mark.parametrize(("name", "option"), [(n, o) for n, s in LOSSES.items() for o in s.options])
def test_every_option_changes_the_value(name, option):
    needed = context(name, option)
    changed = evaluate(name, **needed, **{option: OTHER_VALUES[option]})
    assert not np.allclose(evaluate(name, **needed), changed, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n, s in LOSSES.items() if s.data != "demonstrations"])
def test_every_option_of_another_loss_is_refused(name):
    for option, value in OTHER_VALUES.items():
        if option not in LOSSES[name].options:
            with pytest.raises(ValueError, match=f"'{name}' does not read '{option}'"):
                evaluate(name, **{option: value})


@pytest.mark.parametrize("name", [n for n, s in LOSSES.items() if s.data != "demonstrations"])
def test_defaults_are_the_registrys(name):
    spec = LOSSES[name]
    defaults = {o: s.default for o, s in spec.options.items() if o not in spec.requires and s.needs is None}
    np.testing.assert_array_equal(evaluate(name), evaluate(name, **defaults))
    for option in spec.options.values():
        assert option.problem(option.default) is None


def test_needs_tokens_is_true_exactly_where_the_counts_matter():
    pw, pl, rw, rl, nw, nl = (mx.array(a) for a in random_pairs(np.random.default_rng(0), (32,)))
    for name, spec in LOSSES.items():
        if spec.data != "pairs":
            continue
        options = {"label_smoothing": 0.1} if spec.requires else {}
        one, other = (
            np.array(preference_loss(name, pw, pl, rw, rl, chosen_tokens=t, rejected_tokens=nl, **options))
            for t in (nw, 2 * nw)
        )
        assert np.allclose(one, other) != spec.needs_tokens


def test_a_loss_is_added_by_its_entry_and_its_formula(monkeypatch):
    """Nothing else has to know it: options, sums, modifiers, the recipe and the step take it from there."""
    options = {name: OPTIONS[name] for name in ("beta", "ld_alpha", "use_weighting")}
    entry = LossSpec("cubic", "cube of the margin", "nobody", options)
    monkeypatch.setitem(LOSSES, "cubic", entry)
    monkeypatch.setitem(PAIR_FORMULAS, "cubic", lambda scores, *, beta: (beta * scores.h) ** 3)

    pw, pl, rw, rl, nw, nl = (mx.array(a) for a in random_pairs(np.random.default_rng(0), (8,)))
    h = (np.array(pw) - np.array(rw)) - (np.array(pl) - np.array(rl))
    cubes = (0.2 * h.astype(np.float64)) ** 3
    np.testing.assert_allclose(np.array(preference_loss("cubic", pw, pl, rw, rl, beta=0.2)), cubes, rtol=1e-4)
    both = preference_loss(["cubic", "sft"], pw, pl, rw, rl, beta=0.2, chosen_tokens=nw, rejected_tokens=nl)
    np.testing.assert_allclose(np.array(both), cubes - np.array(pw / nw), rtol=1e-4)
    halved = tuple(a / 2 for a in (pw, pl, rw, rl))
    shorter = preference_loss("cubic", pw, pl, rw, rl, beta=0.2, public=halved, ld_alpha=0.0)
    np.testing.assert_allclose(np.array(shorter), cubes / 8, rtol=1e-4)

    section = LossSection.model_validate({"type": "cubic", "beta": 0.2, "use_weighting": True})
    assert section.weighs_pairs
    policy, reference = mx.concatenate([pw, pl]), mx.concatenate([rw, rl])
    certain = mx.zeros(policy.shape)  # pairs that the policy writes itself weigh 1
    scores = ResponseScores(policy, reference, mx.concatenate([nw, nl]), alignment=certain)
    sums = Objective(section).sums(scores)
    assert sums["loss"][0].item() == pytest.approx(cubes.sum(), rel=1e-4)
    with pytest.raises(ValidationError, match="the cubic loss does not use it"):
        LossSection.model_validate({"type": "cubic", "label_smoothing": 0.1})


def test_unknown_losses_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean robust"):
        loss_spec("robus")
    with pytest.raises(ValueError, match="the losses are sigmoid"):
        loss_spec("zzz")


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        (OptionSpec(0.1, 0.0, None, "", open_low=True), 0, "expected above 0, got 0"),
        (OptionSpec(0.1, 0.0, None, "", open_low=True), 1e-9, None),
        (OptionSpec(0.1, 0.0, 0.5, "", open_high=True), 0.5, "expected 0 or more and below 0.5, got 0.5"),
        (OptionSpec(0.1, 0.0, 1.0, ""), 1, None),
        (OptionSpec(0.1, None, None, ""), -3.0, None),
        (OptionSpec(0.1, None, None, ""), "3", "expected a number, got '3'"),
        (OptionSpec(0.1, None, None, ""), float("inf"), "expected a number, got inf"),
        (OptionSpec(0.1, 0.0, 1.0, ""), True, "expected 0 or more and 1 or less, got True"),
        (OptionSpec(False, None, None, ""), True, None),
        (OptionSpec("a", None, None, "", choices=("a", "b")), "b", None),
        (OptionSpec("a", None, None, "", choices=("a", "b")), "c", "expected one of a, b, got 'c'"),
        (OptionSpec(False, None, None, ""), 0, "expected true or false, got 0"),
    ],
)
def test_option_bounds(option, value, problem):
    assert option.problem(value) == problem
