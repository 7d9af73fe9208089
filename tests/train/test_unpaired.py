"""Training on single responses with a label: the KL baseline, its place in a step, and what is measured."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from rich.console import Console
from tiny_folders import pair, recipe_text, write_pairs, write_rows
from training_runs import (
    EAGER,
    assert_same_arrays,
    files_of,
    session_of,
    step_of,
    train,
    weights_of,
    write_recipe,
)

from localdpo.core.errors import UserError
from localdpo.evals.inspect_pairs import inspect_run
from localdpo.model import lora
from localdpo.model.backend import prepare
from localdpo.recipe.load import load_recipe
from localdpo.records.rundir import RunDir
from localdpo.train.assemble import Session, assemble
from localdpo.train.dry_run import dry_run
from localdpo.train.evaluator import evaluate
from localdpo.train.loop import Watch
from localdpo.train.step import StepResult
from localdpo.train.unpaired import mismatched_rows, partners

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]
BETA = 0.1
RATE = 2.0**20


def rated(number: int, label: bool | None = None) -> dict[str, Any]:
    """One side of `pair(number)` and its label, in turns unless given."""
    good = number % 2 == 0 if label is None else label
    both = pair(number)
    return {"prompt": both["prompt"], "completion": both["chosen" if good else "rejected"], "label": good}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", [rated(n) for n in range(12)])


def text(model: Path, source: Path, **sections: Any) -> str:
    loss = {"type": "kto", **sections.pop("loss", {})}
    train = {"batch_size": 8, **sections.pop("train", {})}
    return recipe_text(model, source, sections.pop("held_out", source), loss=loss, train=train, **sections)


def prepared(folder: Path, recipe: str) -> Session:
    """A session with a scored reference."""
    session = session_of(folder, recipe)
    with lora.use(session.base.model, session.reference):
        for scores in (session.train_scores, session.valid_scores):
            assert scores is not None
            scores.fill(session.forward, lambda done, total: True)
    return session


def logp(session: Session, prompt: np.ndarray, response: np.ndarray) -> float:
    """Log-probability of a response by one unpadded forward, in float64."""
    ids = np.concatenate([prompt, response])
    z = np.array(session.base.model(mx.array(ids[None, :-1])).astype(mx.float32)).astype(np.float64)[0]
    z -= z.max(-1, keepdims=True)
    logps = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return float(logps[np.arange(len(ids) - 1), ids[1:]][len(prompt) - 1 :].sum())


def log_ratio(session: Session, prompt: np.ndarray, response: np.ndarray) -> float:
    policy = logp(session, prompt, response)
    with lora.use(session.base.model, session.reference):
        return policy - logp(session, prompt, response)


def shifted_baseline(session: Session, places: list[int]) -> float:
    """z by hand for rows with different prompts: each prompt with the completion of the row before it."""
    store = session.train.store
    ratios = [
        log_ratio(session, store[row].prompt, store[before].responses[0])
        for before, row in pairwise([places[-1], *places])
    ]
    return max(0.0, float(np.mean(ratios)))


def likelier(session: Session) -> None:
    """A policy under which the mismatched completions are likelier than under the reference: z is above 0."""
    for seed in range(20):
        session.base.model.update(session.reference)
        rng = np.random.default_rng(seed)
        for name, w in weights_of(session).items():
            if name.endswith("lora_b"):
                noise = rng.normal(size=w.shape).astype(np.float32) * 0.1
                session.base.model.load_weights([(name, mx.array(w + noise))], strict=False)
        z = session.baseline(session.train, np.arange(len(session.train)))
        if float(z.item()) > 0.5:
            return
    raise AssertionError("no policy with a baseline above 0")


# --- who gets whose completion ------------------------------------------------------------------------


def test_completions_move_on_by_one_where_all_prompts_differ() -> None:
    assert partners([b"a", b"b", b"c"]) == [(0, 2), (1, 0), (2, 1)]


def test_halves_of_a_pair_never_get_each_other() -> None:
    assert partners([b"a", b"a", b"b", b"b"]) == [(0, 2), (1, 3), (2, 0), (3, 1)]
    assert partners([b"a", b"b", b"a"]) == [(2, 1), (1, 0)]


def test_rows_of_one_prompt_have_no_partners() -> None:
    assert partners([]) == partners([b"a"]) == partners([b"a"] * 3) == []


@given(st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=12))
def test_partners_are_of_other_prompts_and_nobody_is_left_out_without_need(prompts: list[bytes]) -> None:
    found = partners(prompts)
    assert all(prompts[row] != prompts[other] for row, other in found)
    firsts, others = [row for row, _ in found], [other for _, other in found]
    assert len(set(firsts)) == len(set(others)) == len(found)
    largest = max((prompts.count(prompt) for prompt in prompts), default=0)
    assert len(found) == min(len(prompts), 2 * (len(prompts) - largest))


def test_mismatched_rows_depend_on_the_set_alone_and_keep_to_the_limit(
    tmp_path: Path, rows: Path, tiny_model: Path
) -> None:
    session = session_of(tmp_path, text(tiny_model, rows))
    first = mismatched_rows(session.train, np.array([7, 2, 9]), 1024)
    again = mismatched_rows(session.train, np.array([2, 9, 7]), 1024)
    store = session.train.store
    assert [row.row for row in first] == [row.row for row in again] == [2, 7, 9]
    for row, other in zip(first, (9, 2, 7), strict=True):
        assert row.prompt.tolist() == store[row.row].prompt.tolist()
        assert row.responses[0].tolist() == store[other].responses[0].tolist()
    limit = max(len(row.prompt) for row in first) + 2
    for cut, row in zip(mismatched_rows(session.train, np.array([7, 2, 9]), limit), first, strict=True):
        kept = cut.responses[0].tolist()
        assert kept == row.responses[0][: limit - len(row.prompt)].tolist()
        assert len(cut.prompt) + len(kept) <= limit


# --- one step -----------------------------------------------------------------------------------------


def sgd_step(session: Session, **options: Any) -> tuple[StepResult, dict[str, np.ndarray]]:
    """The first step with SGD, and each weight's gradient."""
    before = weights_of(session)
    result = step_of(session, optim.SGD(RATE), **options)(session.feed.arrays(session.feed.batches(0)), RATE)
    after = weights_of(session)
    return result, {name: (before[name] - after[name]) / RATE for name in before}


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    floor = 1e-3 * max(float(np.linalg.norm(g)) for g in expected.values())
    for name, g in expected.items():
        assert np.linalg.norm(found[name] - g) <= tolerance * max(float(np.linalg.norm(g)), floor), name


def test_the_first_step_is_half_a_weight_with_a_baseline_of_zero(
    tmp_path: Path, rows: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    recipe = text(tiny_model, rows, adapter=str(sft_adapter), loss={"desirable_weight": 1.5})
    result, _ = sgd_step(prepared(tmp_path, recipe))
    labels = [
        rated(n)["label"] for batch in session_of(tmp_path, recipe).feed.batches(0) for n in batch.indices
    ]
    assert result.loss == pytest.approx(np.mean(np.where(labels, 0.75, 0.5)), rel=1e-5)
    assert result.metrics["kl_baseline"] < 1e-5
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert abs(result.metrics[name]) < 1e-5


def test_a_step_is_that_of_numpy_and_the_baseline_takes_no_gradient(
    tmp_path: Path, rows: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    recipe = text(tiny_model, rows, adapter=str(sft_adapter), loss={"beta": BETA, **weights})
    session = prepared(tmp_path, recipe)
    likelier(session)
    places = sorted(int(i) for batch in session.feed.batches(0) for i in batch.indices)
    z = shifted_baseline(session, places)
    assert z > 0.1
    store = session.train.store
    ratios = np.array([log_ratio(session, store[i].prompt, store[i].responses[0]) for i in places])
    good = np.array([store[i].desirable for i in places])
    values = np.where(good, 1.5, 0.5) / (1 + np.exp(np.where(good, 1, -1) * BETA * (ratios - z)))

    (arrays,) = session.feed.arrays([session.train.batch(np.array(places))])
    policy = np.array(session.forward.score(session.train.batch(np.array(places))))
    slopes = np.where(good, -1, 1) * BETA * values * (1 - values / np.where(good, 1.5, 0.5)) / len(places)

    def linear(tree: Any) -> mx.array:
        session.base.model.update(tree)
        return (session.forward.logps(arrays, gradient=True) * mx.array(slopes.astype(np.float32))).sum()

    trainable = session.base.model.trainable_parameters()
    expected = {name: np.array(g) for name, g in tree_flatten(mx.grad(linear)(trainable))}
    session.base.model.update(trainable)
    result, gradients = sgd_step(session)
    assert result.loss == pytest.approx(values.mean(), rel=1e-5)
    assert_close(gradients, expected, 1e-4)
    assert result.metrics["kl_baseline"] == pytest.approx(z, rel=1e-4, abs=1e-4)
    assert result.metrics["rewards/chosen"] == pytest.approx(BETA * ratios[good].mean(), rel=1e-3, abs=1e-4)
    assert result.metrics["rewards/rejected"] == pytest.approx(
        BETA * ratios[~good].mean(), rel=1e-3, abs=1e-4
    )
    assert result.metrics["logps/chosen"] == pytest.approx(policy[good].mean(), rel=1e-5)


def test_the_baseline_is_that_of_numpy(tmp_path: Path, rows: Path, tiny_model: Path) -> None:
    session = session_of(tmp_path, text(tiny_model, rows))
    likelier(session)
    z = session.baseline(session.train, np.arange(12))
    assert z.item() == pytest.approx(shifted_baseline(session, list(range(12))), rel=1e-4)
    assert session.baseline(session.train, np.array([3])).item() == 0.0
    anchored = session_of(tmp_path, text(tiny_model, rows, loss={"type": "apo_zero_unpaired"}))
    assert anchored.baseline is None


def test_micro_batches_add_up_to_the_batch(tmp_path: Path, rows: Path, tiny_model: Path) -> None:
    def step(micro: int) -> tuple[StepResult, dict[str, np.ndarray]]:
        session = prepared(tmp_path, text(tiny_model, rows, train={"micro_batch_size": micro}))
        likelier(session)
        return sgd_step(session)

    whole, expected = step(8)
    assert whole.metrics["kl_baseline"] > 0.1
    for micro in (3, 1):
        result, gradients = step(micro)
        assert_close(gradients, expected, 1e-5)
        assert result.loss == pytest.approx(whole.loss, rel=1e-5)
        assert result.metrics == pytest.approx(whole.metrics, rel=1e-5, abs=2e-6)


def test_compiled_equals_eager(tmp_path: Path, rows: Path, tiny_model: Path) -> None:
    found = []
    for compiled in (False, True):
        recipe = text(tiny_model, rows, train={"micro_batch_size": 8, "compile": compiled})
        session = prepared(tmp_path, recipe)
        likelier(session)
        found.append(sgd_step(session, compiled=compiled))
    (eager, gradients), (traced, gradients_traced) = found
    assert traced.metrics == pytest.approx(eager.metrics, rel=1e-4, abs=1e-5)
    assert_close(gradients_traced, gradients, 1e-3)


def test_a_step_without_desirable_rows_has_no_figures_of_them(tmp_path: Path, tiny_model: Path) -> None:
    data = write_rows(tmp_path / "bad.jsonl", [rated(n, label=False) for n in range(5)])
    result, _ = sgd_step(prepared(tmp_path, text(tiny_model, data)))
    assert "rewards/rejected" in result.metrics
    assert not {"rewards/chosen", "rewards/margins", "logps/chosen", "displacement"} & result.metrics.keys()


# --- whole runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [None, 2])
@pytest.mark.every(2)
def test_a_resumed_run_takes_the_same_steps(
    sync: int | None, tmp_path: Path, rows: Path, tiny_model: Path
) -> None:
    recipe = text(
        tiny_model,
        rows,
        loss={} if sync is None else {"sync_every": sync},
        train={"batch_size": 5, "epochs": 2, "micro_batch_size": 2},
        lora={"dropout": 0.2},
        eval={"kl_samples": 2, "max_tokens": 2},
        save={"every": 2, "keep": 9},
    )
    whole = train(tmp_path / "whole", recipe, backend=prepare())
    assert any(metrics["kl_baseline"] > 0 for metrics in whole.metrics("step"))
    resumed = RunDir(tmp_path / "resumed")
    resumed.checkpoints.mkdir(parents=True)
    for name in ("recipe.yaml", "events.jsonl"):
        (resumed.path / name).write_bytes((whole.run.path / name).read_bytes())
    os.rename(whole.run.checkpoint_path(2), resumed.checkpoint_path(2))
    train(resumed.path, recipe, backend=prepare())
    for step in (4, 6):
        assert_same_arrays(files_of(resumed.checkpoint_path(step)), files_of(whole.run.checkpoint_path(step)))


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
@pytest.mark.every(2)
@pytest.mark.long
def test_training_learns_the_labels(loss: str, tmp_path: Path, tiny_model: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", [rated(n) for n in range(40)])
    held_out = write_rows(tmp_path / "valid.jsonl", [rated(n) for n in range(40, 52)])
    recipe = text(
        tiny_model,
        data,
        held_out=held_out,
        loss={"type": loss},
        train={"epochs": 6, "learning_rate": 3e-3},
    )
    run = train(tmp_path / "run", recipe)
    first, last = run.metrics("eval")[0], run.metrics("eval")[-1]
    assert first["loss"] == pytest.approx(0.5, abs=1e-6)
    assert last["loss"] < 0.4
    assert last["rewards/chosen"] > 0.2
    assert last["rewards/rejected"] < -0.2
    assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"])
    assert ("kl_baseline" in last) == (loss == "kto")
    assert "rewards/accuracies" not in last
    assert last["kl"] > 0


@pytest.mark.long
def test_swapped_labels_are_learnt_the_other_way_round(tmp_path: Path, tiny_model: Path) -> None:
    swapped = [{**rated(n), "label": not rated(n)["label"]} for n in range(40)]
    data = write_rows(tmp_path / "train.jsonl", swapped)
    held_out = write_rows(tmp_path / "valid.jsonl", [rated(n) for n in range(40, 52)])
    options = {"epochs": 3, "learning_rate": 3e-3}
    run = train(tmp_path / "run", text(tiny_model, data, held_out=held_out, train=options))
    assert run.metrics("eval")[-1]["rewards/margins"] < -0.2


def test_held_out_figures_are_those_of_numpy_however_they_are_cut(
    tmp_path: Path, rows: Path, tiny_model: Path
) -> None:
    session = prepared(tmp_path, text(tiny_model, rows))
    likelier(session)
    found = [evaluate(replace(session, scoring_batch=size), 1).metrics for size in (12, 5, 1)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5, abs=1e-5)
    store, z = session.valid.store, shifted_baseline(session, list(range(12)))
    ratios = np.array([log_ratio(session, row.prompt, row.responses[0]) for row in store])
    good = np.array([row.desirable for row in store])
    losses = 1 / (1 + np.exp(np.where(good, 1, -1) * BETA * (ratios - z)))
    assert found[0]["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert found[0]["rewards/chosen"] == pytest.approx(BETA * ratios[good].mean(), rel=1e-3, abs=1e-4)
    assert found[0]["displacement"] == pytest.approx((ratios[good] < 0).mean())


def test_a_moving_reference_is_the_one_behind_the_baseline(
    tmp_path: Path, rows: Path, tiny_model: Path
) -> None:
    session = session_of(tmp_path, text(tiny_model, rows, loss={"sync_every": 1, "sync_alpha": 1.0}))
    likelier(session)
    assert session.moving is not None
    session.moving.after_step(1)
    assert abs(session.baseline(session.train, np.arange(12)).item()) < 1e-5


# --- what a person is told ----------------------------------------------------------------------------


def notes_of(folder: Path, recipe: str) -> list[str]:
    notes: list[str] = []
    assemble(load_recipe(write_recipe(folder, recipe)), EAGER, notes.append)
    return [note for note in notes if not note.startswith("memory:")]


def test_pairs_are_split_and_that_is_said(tmp_path: Path, tiny_model: Path) -> None:
    data, held_out = write_pairs(tmp_path / "p.jsonl", 6), write_pairs(tmp_path / "v.jsonl", 3, start=6)
    assert notes_of(tmp_path, text(tiny_model, data, held_out=held_out)) == [
        "data.train: 6 pairs, each taken as one desirable and one undesirable row",
        "data.valid: 3 pairs, each taken as one desirable and one undesirable row",
    ]
    assert notes_of(tmp_path, text(tiny_model, data, held_out=None)) == [
        "data.train: 6 pairs, each taken as one desirable and one undesirable row"
    ]


@pytest.mark.parametrize(
    ("desirable", "weights", "said"),
    [
        (6, {}, None),
        (6, {"desirable_weight": 1.3}, None),
        (
            6,
            {"desirable_weight": 1.4},
            "6 desirable rows weigh 1.40 times as much as 6 undesirable ones; KTO's",
        ),
        (4, {}, "4 desirable rows weigh 0.50 times as much as 8 undesirable ones"),
        (4, {"desirable_weight": 2.5}, None),
        (9, {"undesirable_weight": 2.5}, None),
        (9, {}, "set loss.desirable_weight between 0.333 and 0.444"),
        (0, {}, "all 12 training rows are undesirable: nothing says what to prefer"),
        (12, {}, "all 12 training rows are desirable"),
    ],
)
def test_labels_that_do_not_weigh_as_advised_are_noted(
    desirable: int, weights: dict[str, float], said: str | None, tmp_path: Path, tiny_model: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [rated(n, label=n < desirable) for n in range(12)])
    notes = notes_of(tmp_path, text(tiny_model, data, loss=weights))
    assert len(notes) == (0 if said is None else 1)
    assert said is None or said in notes[0]


def test_notices_about_pairs_stay_silent(tmp_path: Path, rows: Path, tiny_model: Path) -> None:
    watch = Watch(session_of(tmp_path, text(tiny_model, rows, train={"epochs": 200})))
    fallen = {"logratio_per_token/chosen": -0.5, "rewards/accuracies": 0.0, "loss": 0.4}
    for step in range(1, 150):
        assert watch.step(step, {**fallen, "rewards/margins": float(step)}) == []
    (notice,) = watch.step(150, {"loss": float("nan")})
    assert notice["name"] == "nan"


def test_a_dry_run_shows_labels_and_notes(tmp_path: Path, tiny_model: Path) -> None:
    def shown(data: Path) -> str:
        stream = io.StringIO()
        recipe = load_recipe(write_recipe(tmp_path, text(tiny_model, data, held_out=None)))
        dry_run(recipe, Console(file=stream, width=200))
        return stream.getvalue()

    pairs = shown(write_pairs(tmp_path / "pairs.jsonl", 40))
    assert "80 rows read, 0 truncated, 0 with a merged boundary, 40 desirable, 40 undesirable" in pairs
    assert "data.train: 40 pairs, each taken as one desirable and one undesirable row" in pairs
    assert "desirable response (" in pairs
    assert "train response" in pairs
    few = shown(write_rows(tmp_path / "rows.jsonl", [rated(n, label=n < 3) for n in range(40)]))
    assert "desirable rows weigh 0.0" in few


def test_held_out_halves_stay_together(tmp_path: Path, tiny_model: Path) -> None:
    recipe = text(
        tiny_model, write_pairs(tmp_path / "pairs.jsonl", 20), held_out=None, data={"valid_fraction": 0.2}
    )
    session = session_of(tmp_path, recipe)
    held = [session.valid.store[int(i)].row for i in session.valid.indices]
    assert sorted(set(held)) == sorted(held)[::2]
    assert not set(held) & {session.train.store[int(i)].row for i in session.train.indices}


def test_a_prompt_of_two_rows_is_answered_once(tmp_path: Path, tiny_model: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl", 4)
    session = session_of(tmp_path, text(tiny_model, data, eval={"samples": 3}))
    asked = [watched.tokens for watched in session.watched]
    assert asked == [tuple(session.valid.store[n].prompt.tolist()) for n in (0, 2, 4)]


def test_inspect_says_that_it_shows_pairs(tmp_path: Path, rows: Path, tiny_model: Path) -> None:
    run = train(tmp_path / "run", text(tiny_model, rows, train={"max_steps": 1}))
    with pytest.raises(UserError, match="inspect shows pairs, and the kto loss trains on unpaired rows"):
        inspect_run(run.run.path, note=lambda line: None)
