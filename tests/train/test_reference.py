"""Reference scores: the live ones, kept on disk under everything they depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny_folders import make_model_folder, recipe_text, write_pairs
from training_runs import session_of

from localdpo.core.events import EventWriter, read_events
from localdpo.core.rundir import RunDir
from localdpo.model import lora
from localdpo.train.control import StopRequest
from localdpo.train.loop import Loop
from localdpo.train.reference import ReferenceScores, ScoreFile, cache_file
from localdpo.train.session import Session

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", 24)


def file_of(session: Session) -> Path:
    assert session.train_scores is not None
    (file,) = session.train_scores.files
    return file.file


def fill(session: Session, scores: ReferenceScores, places: np.ndarray, go_on: Any = None) -> list[int]:
    """Score the rows at `places`; the counts that were reported."""
    seen: list[int] = []

    def asked(done: int, total: int) -> bool:
        seen.append(done)
        return True if go_on is None else bool(go_on(done))

    with lora.use(session.base.model, session.start):
        scores.fill(session.forward, session.train, places, batch=4, go_on=asked)
    return seen


def test_cached_scores_are_the_live_ones_in_the_order_of_a_batch(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    text = recipe_text(tiny_model, pairs, pairs, adapter=str(sft_adapter))
    session = session_of(tmp_path, text)
    scores = session.train_scores
    assert scores is not None
    fill(session, scores, np.arange(24))
    again = session_of(tmp_path, text)
    assert again.train_scores is not None
    assert again.train_scores.missing(again.train.indices).size == 0
    for step in range(3):
        for batch in again.training_batch(step):
            live = np.array(again.forward.score(batch))
            np.testing.assert_allclose(again.train_scores.of(batch.indices), live, atol=1e-3, rtol=2e-6)


def test_training_and_held_out_rows_of_one_file_share_their_scores(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    text = recipe_text(tiny_model, pairs, pairs, train={"max_steps": 2}, eval={"pairs": 3})
    for life in range(2):
        session = session_of(tmp_path, text)
        with EventWriter(tmp_path / f"events-{life}.jsonl") as log:
            Loop(session, RunDir(tmp_path), log, StopRequest()).score_reference()
        assert session.train_scores is session.valid_scores
        kinds = {event.type for event in read_events(tmp_path / f"events-{life}.jsonl")}
        assert kinds == ({"reference"} if life == 0 else set())


def test_split_sums_are_kept_whatever_the_weight_of_the_tail(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    def session(alpha: float) -> Session:
        options = {"adapter": str(sft_adapter), "loss": {"ld_alpha": alpha}}
        return session_of(tmp_path, recipe_text(tiny_model, pairs, pairs, **options))

    first = session(0.5)
    assert first.train_scores is not None
    fill(first, first.train_scores, np.arange(24))
    again = session(0.25)
    assert again.train_scores is not None
    assert file_of(again) == file_of(first) != file_of(session(1.0))
    assert again.train_scores.missing(again.train.indices).size == 0
    (batch,) = again.training_batch(0)
    live, kept = again.forward.measure(batch), again.train_scores.arrays(batch)
    for kind, name in (("logps", "reference"), ("public", "reference_public")):
        np.testing.assert_allclose(np.array(kept[name]), np.array(live[kind]), atol=1e-3, rtol=2e-6)
    assert np.abs(np.array(live["logps"]) - np.array(live["public"])).max() > 1


def test_only_rows_that_the_run_draws_are_scored(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    session = session_of(
        tmp_path, recipe_text(tiny_model, pairs, train={"max_steps": 2}, data={"valid_fraction": 0.25})
    )
    with EventWriter(tmp_path / "events.jsonl") as log:
        Loop(session, RunDir(tmp_path), log, StopRequest()).score_reference()
    drawn = {int(i) for step in (0, 1) for b in session.training_batch(step) for i in b.indices}
    held_out = {int(i) for i in session.valid.indices}
    values = np.load(file_of(session))
    scored = {i for i in range(24) if not np.isnan(values[i]).any()}
    assert scored == drawn | held_out
    assert len(drawn) == 8
    assert len(held_out) == 6
    assert np.isnan(values[sorted(set(range(24)) - scored)]).all()


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    text = recipe_text(tiny_model, pairs, pairs)
    session = session_of(tmp_path, text)
    assert session.train_scores is not None
    assert fill(session, session.train_scores, np.arange(24), lambda done: done < 8) == [4, 8]
    later = session_of(tmp_path, text)
    scores = later.train_scores
    assert scores is not None
    every = np.arange(24)
    kept = scores.values(every)
    assert len(scores.missing(np.arange(24))) == 16
    assert fill(later, scores, np.arange(24)) == [4, 8, 12, 16]
    assert not np.isnan(scores.values(every)).any()
    np.testing.assert_array_equal(scores.values(every)[~np.isnan(kept)], kept[~np.isnan(kept)])
    file_of(later).unlink()
    whole = session_of(tmp_path, text)
    assert whole.train_scores is not None
    fill(whole, whole.train_scores, np.arange(24))
    np.testing.assert_array_equal(whole.train_scores.values(every), scores.values(every))
    assert fill(later, scores, np.arange(24)) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "shape", "type", "pickle"])
def test_a_damaged_file_is_made_again(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "scores.npy"
    good = np.ones((5, 2), dtype=np.float32)
    np.save(file, good)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    elif damage in ("empty", "text"):
        file.write_bytes(b"" if damage == "empty" else b"not an array")
    elif damage == "pickle":
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        np.save(file, good[:4] if damage == "shape" else good.astype(np.float64))
    scores = ScoreFile(file, (5, 2))
    assert np.isnan(scores.values).all()
    scores.put(np.arange(5), good)
    scores.save()
    np.testing.assert_array_equal(ScoreFile(file, (5, 2)).values, good)


def test_every_part_of_the_key_counts() -> None:
    parts = {"data": "d", "model": "m", "adapter": "a", "precision": "p"}
    names = {cache_file(Path(), **parts), *(cache_file(Path(), **{**parts, k: "x"}) for k in parts)}
    assert len(names | {cache_file(Path(), **parts, kinds=("logps", "public"))}) == 6


def test_whatever_changes_the_reference_makes_a_new_file(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    def file(model: Path = tiny_model, rows: Path = pairs, **sections: Any) -> Path:
        return file_of(session_of(tmp_path, recipe_text(model, rows, **sections)))

    changed_data = write_pairs(tmp_path / "other.jsonl", 24, start=1)
    other_model = make_model_folder(tmp_path / "model", seed=1)
    template = Path(shutil.copytree(tiny_model, tmp_path / "template"))
    jinja = template / "chat_template.jinja"
    jinja.write_text(jinja.read_text().replace("assistant", "helper"))
    other_adapter = Path(shutil.copytree(sft_adapter, tmp_path / "adapter"))
    weights = mx.load(str(other_adapter / lora.WEIGHTS_FILE))
    name = next(iter(weights))
    mx.save_safetensors(str(other_adapter / lora.WEIGHTS_FILE), {**weights, name: weights[name] + 1e-6})
    other_scale = Path(shutil.copytree(sft_adapter, tmp_path / "scale"))
    config = json.loads((other_scale / lora.CONFIG_FILE).read_text())
    config["lora_parameters"]["scale"] += 1
    (other_scale / lora.CONFIG_FILE).write_text(json.dumps(config))

    files = {
        "plain": file(),
        "data": file(rows=changed_data),
        "model": file(model=other_model),
        "template": file(model=template),
        "raw": file(data={"template": "raw"}),
        "length": file(train={"max_length": 512}),
        "truncation": file(train={"truncation": "keep_end"}),
        "adapter": file(adapter=str(sft_adapter)),
        "adapter byte": file(adapter=str(other_adapter)),
        "adapter scale": file(adapter=str(other_scale)),
    }
    assert len(set(files.values())) == len(files)
    # What does not reach the reference does not make a new one.
    same = file(loss={"beta": 0.5}, train={"learning_rate": 1e-2, "seed": 3}, lora={"rank": 2})
    assert same == files["plain"]


def test_another_precision_makes_a_new_file(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    from localdpo.recipe.load import load_recipe
    from localdpo.train.sources import ScoreFiles

    session = session_of(tmp_path, recipe_text(tiny_model, pairs))
    session.base.model.set_dtype(mx.bfloat16)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    (other,) = ScoreFiles(recipe, session.base).scores(session.train).files
    assert other.file != file_of(session)


def test_a_loss_without_reference_scores_nothing(
    tmp_path: Path, pairs: Path, tiny_model: Path, own_cache: Path
) -> None:
    session = session_of(tmp_path, recipe_text(tiny_model, pairs, loss={"type": "simpo", "beta": 2.0}))
    with EventWriter(tmp_path / "events.jsonl") as log:
        Loop(session, RunDir(tmp_path), log, StopRequest()).score_reference()
    assert session.train_scores is None
    assert not (own_cache / "reference").exists()


def test_scores_of_the_reference_do_not_depend_on_the_adapter_in_the_model(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    """A pass that a resumed run goes on with scores the start adapter, not the trained one."""
    session = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs, adapter=str(sft_adapter)))
    assert session.train_scores is not None
    fill(session, session.train_scores, np.arange(24))
    scored = session.train_scores.files[0].values.copy()
    file_of(session).unlink()
    trained = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs, adapter=str(sft_adapter)))
    model = trained.base.model
    model.update({"model": {"layers": [{"self_attn": {"q_proj": {"lora_b": mx.ones((4, 64))}}}]}})
    with EventWriter(tmp_path / "events.jsonl") as log:
        Loop(trained, RunDir(tmp_path), log, StopRequest()).score_reference()
    assert trained.train_scores is not None
    np.testing.assert_allclose(trained.train_scores.files[0].values, scored, atol=1e-3)
    assert np.array(model.model.layers[0].self_attn.q_proj.lora_b).min() == 1
