"""Reference scores: the live ones, kept on disk under everything that their bits depend on."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny_folders import make_adapter, make_model_folder, recipe_text, write_pairs
from training_runs import (
    EAGER,
    assert_same_arrays,
    files_of,
    session_of,
    train,
    weights_of,
    write_recipe,
)

from localdpo.core.errors import UserError
from localdpo.model import lora
from localdpo.model.backend import Backend
from localdpo.recipe.load import load_recipe
from localdpo.records.events import EventWriter, read_events
from localdpo.records.rundir import RunDir
from localdpo.train.assemble import Session, assemble
from localdpo.train.control import StopRequest
from localdpo.train.loop import Loop
from localdpo.train.reference import ReferenceScores

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", 24)


def scores_of(session: Session) -> ReferenceScores:
    assert session.train_scores is not None
    return session.train_scores


def file_of(session: Session) -> Path:
    return scores_of(session).file


def fill(session: Session, go_on: Any = None) -> list[int]:
    """Score the training rows; the counts that were reported."""
    seen: list[int] = []

    def asked(done: int, total: int) -> bool:
        seen.append(done)
        return True if go_on is None else bool(go_on(done))

    with lora.use(session.base.model, session.reference):
        scores_of(session).fill(session.forward, asked)
    return seen


def score_all(session: Session, log: Path) -> list[dict[str, Any]]:
    """Score all that the run will need; what was reported."""
    train = session.recipe.train.model_copy(update={"reference": "ahead"})
    session.recipe = session.recipe.model_copy(update={"train": train})
    with EventWriter(log) as writer:
        Loop(session, RunDir(log.parent), writer, StopRequest()).score_reference()
    return [event.data for event in read_events(log) if event.type == "reference"]


def known(scores: ReferenceScores) -> list[int]:
    """The rows that are scored."""
    return np.flatnonzero(~np.isnan(scores.values).any(axis=1)).tolist()


def test_cached_scores_are_the_live_ones_in_the_order_of_a_batch(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    text = recipe_text(tiny_model, pairs, pairs, adapter=str(sft_adapter))
    fill(session_of(tmp_path, text))
    again = session_of(tmp_path, text)
    assert scores_of(again).todo() == []
    for step in range(3):
        for batch in again.feed.batches(step):
            live = np.array(again.forward.score(batch))
            np.testing.assert_allclose(scores_of(again).of(batch.indices), live, atol=1e-3, rtol=2e-6)


def test_a_run_that_is_started_again_scores_nothing(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    text = recipe_text(tiny_model, pairs, pairs, train={"max_steps": 2}, eval={"pairs": 3})
    first, second = (score_all(session_of(tmp_path, text), tmp_path / f"{n}.jsonl") for n in range(2))
    assert [(event["done"], event.get("later")) for event in first] == [(4, 3), (8, 3), (3, None)]
    assert second == []


def test_a_pass_over_the_same_batches_finds_what_the_first_one_scored(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    session = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs))
    assert session.valid_scores is not None
    assert session.valid_scores.file == file_of(session)
    assert [event["done"] for event in score_all(session, tmp_path / "events.jsonl")] == list(range(4, 25, 4))
    np.testing.assert_array_equal(session.valid_scores.values, scores_of(session).values)


@pytest.mark.parametrize("kind", ["lora", pytest.param("dora", marks=pytest.mark.long)])
def test_a_reference_that_is_not_the_start(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path, kind: str
) -> None:
    """Its scores are those of a run that starts there, and the policy keeps its own start."""
    start = tmp_path / "start"
    make_adapter(start, tiny_model, seed=9, kind=kind)
    given = {"eval": {"pairs": 3}} | ({"lora": {"type": "dora"}} if kind == "dora" else {})

    def session(adapter: Path | None, **others: Any) -> Session:
        options = {"adapter": None if adapter is None else str(adapter), **given, **others}
        return session_of(tmp_path, recipe_text(tiny_model, pairs, pairs, **options))

    for name, adapter in (("base", None), ("sft", sft_adapter if kind == "lora" else start)):
        moved = session(start, reference_adapter="base" if adapter is None else str(adapter))
        assert_same_arrays(weights_of(moved), weights_of(session(start)))
        assert file_of(moved) == file_of(session(adapter)), name
        fill(moved)
        scores, plain = scores_of(moved).values.copy(), session(adapter)
        file_of(plain).unlink()
        fill(plain)
        np.testing.assert_array_equal(scores, scores_of(plain).values)
    other = tmp_path / "other"
    make_adapter(other, tiny_model, rank=2, kind=kind)
    with pytest.raises(UserError, match="other: its shape is not that of adapter"):
        session(start, reference_adapter=str(other))


def test_a_run_beside_another_reference_begins_away_from_it(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    options = {"train": {"max_steps": 1}, "eval": {"pairs": 3, "kl_samples": 0}}
    text = recipe_text(
        tiny_model, pairs, pairs, adapter=str(sft_adapter), reference_adapter="base", **options
    )
    run = train(tmp_path / "run", text)
    first = run.metrics("eval")[0]
    assert first["kl"] > 1e-4
    assert first["rewards/margins"] != 0


def test_split_sums_are_kept_whatever_the_weight_of_the_tail(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    def session(alpha: float) -> Session:
        options = {"adapter": str(sft_adapter), "loss": {"ld_alpha": alpha}}
        return session_of(tmp_path, recipe_text(tiny_model, pairs, pairs, **options))

    first = session(0.5)
    fill(first)
    again = session(0.25)
    assert file_of(again) == file_of(first) != file_of(session(1.0))
    assert scores_of(again).todo() == []
    (batch,) = again.feed.batches(0)
    live, kept = again.forward.measure(batch), scores_of(again).sums(batch)
    for stored, scored in zip(kept, (live.policy, live.policy_public), strict=True):
        np.testing.assert_allclose(np.array(stored), np.array(scored), atol=1e-3, rtol=2e-6)
    assert np.abs(np.array(live.policy) - np.array(live.policy_public)).max() > 1


def test_only_rows_that_the_run_draws_are_scored(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    session = session_of(
        tmp_path, recipe_text(tiny_model, pairs, train={"max_steps": 2}, data={"valid_fraction": 0.25})
    )
    score_all(session, tmp_path / "events.jsonl")
    drawn = {int(i) for step in (0, 1) for b in session.feed.batches(step) for i in b.indices}
    assert len(drawn) == 8
    assert known(scores_of(session)) == sorted(drawn)
    assert session.valid_scores is not None
    assert known(session.valid_scores) == session.valid.indices.tolist()


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    text = recipe_text(tiny_model, pairs, pairs)
    assert fill(session_of(tmp_path, text), lambda done: done < 8) == [4, 8]
    later = session_of(tmp_path, text)
    assert len(known(scores_of(later))) == 8
    assert fill(later) == [4, 8, 12, 16]
    file_of(later).unlink()
    whole = session_of(tmp_path, text)
    fill(whole)
    np.testing.assert_array_equal(scores_of(whole).values, scores_of(later).values)
    assert fill(later) == []


@pytest.mark.long
def test_what_else_uses_the_cache_changes_no_bit_of_a_run(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def text(**options: Any) -> str:
        section = {"max_steps": 3, "batch_size": 4, **options}
        return recipe_text(tiny_model, pairs, pairs, adapter=str(sft_adapter), train=section)

    def run(name: str, cache: str) -> dict[str, np.ndarray]:
        monkeypatch.setenv("LOCALDPO_CACHE", str(tmp_path / cache))
        return files_of(train(tmp_path / name, text()).run.latest)

    monkeypatch.setenv("LOCALDPO_CACHE", str(tmp_path / "shared"))
    for steps, batch, seed in ((1, 3, 0), (2, 7, 0), (6, 4, 1), (2, 4, 0)):
        fill(session_of(tmp_path, text(max_steps=steps, batch_size=batch, seed=seed)))
    alone = run("alone", "own")
    assert_same_arrays(run("among others", "shared"), alone)
    assert_same_arrays(run("once more", "shared"), alone)


def test_scoring_as_needed_takes_the_steps_of_scoring_ahead(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step scores the rows that are not known; the cache has the same scores in the end."""

    def run(name: str, reference: str) -> tuple[Any, dict[str, np.ndarray]]:
        monkeypatch.setenv("LOCALDPO_CACHE", str(tmp_path / f"cache of {name}"))
        text = recipe_text(
            tiny_model,
            pairs,
            write_pairs(tmp_path / "valid.jsonl", 5, start=50),
            adapter=str(sft_adapter),
            train={"epochs": 2, "batch_size": 5, "reference": reference, "learning_rate": 1e-3},
            eval={"every": 5, "pairs": 5, "samples": 1, "kl_samples": 2, "max_tokens": 4},
        )
        done = train(tmp_path / name, text)
        scores = scores_of(session_of(tmp_path, text))
        assert scores.todo() == []
        return done, {**files_of(done.run.latest), "scores": scores.values}

    ahead, expected = run("ahead", "ahead")
    needed, found = run("as needed", "as_needed")
    assert_same_arrays(found, expected)
    assert needed.metrics("eval") == ahead.metrics("eval")
    scored = [event.data for event in needed.events if event.type == "step"]
    rows = [step.get("reference_rows", 0) for step in scored]
    assert sum(rows) == 24
    assert rows[0] >= 5
    assert rows[5:] == [0] * 5
    left = [step.get("reference_left", 0) for step in scored]
    assert left == [24 - sum(rows[: n + 1]) for n in range(len(rows))]
    assert {event.data["total"] for event in needed.events if event.type == "reference"} == {5}
    assert not any("reference_rows" in event.data for event in ahead.events)
    (start, *_) = needed.metrics("eval")
    assert start["rewards/ties"] == 1.0
    assert start["kl"] == start["kl_sampled"] == start["rewards/margins"] == 0.0


def test_a_cache_that_takes_nothing_costs_a_run_no_step(
    tmp_path: Path, pairs: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run says it once, and its checkpoint is saved."""

    writes = list[Path]()

    def refuse(path: Path, data: bytes) -> None:
        writes.append(path)
        if path != writes[0]:  # the held-out rows, which are scored ahead
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("localdpo.train.reference.write_bytes", refuse)
    monkeypatch.setattr("localdpo.train.reference.SAVE_SECONDS", -1.0)
    steps = {"max_steps": 2, "batch_size": 2, "reference": "as_needed"}
    done = train(tmp_path / "run", recipe_text(tiny_model, pairs, train=steps))
    assert done.run.latest.exists()
    (notice,) = [event.data for event in done.events if event.data.get("name") == "reference-cache"]
    assert "No space left on device); set LOCALDPO_CACHE" in notice["message"]
    assert notice["message"].endswith("; the run goes on, and its resume scores again")


def test_two_runs_at_once_lose_nothing_of_each_other(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    text = recipe_text(tiny_model, pairs, pairs)
    one, two = session_of(tmp_path, text), session_of(tmp_path, text)
    fill(one, lambda done: done < 16)
    two_known = len(known(scores_of(two)))
    assert fill(two, lambda done: False) == [4]
    assert two_known == 0
    assert len(known(scores_of(session_of(tmp_path, text)))) == 20
    # The one that knows less writes last.
    before = scores_of(two).values.copy()
    scores_of(two).values[:] = np.nan
    scores_of(two)._changed = True
    scores_of(two).save()
    np.testing.assert_array_equal(scores_of(session_of(tmp_path, text)).values, before)


def test_no_damage_is_trained_on(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    """Every byte of the header and every seventh of the values; cuts; what others left under the name."""
    text = recipe_text(tiny_model, pairs, pairs)
    session = session_of(tmp_path, text)
    fill(session)
    file, good = file_of(session), scores_of(session).values.copy()
    whole = file.read_bytes()
    start = whole.index(b"\n") + 1

    def damaged(content: bytes) -> bool:
        file.write_bytes(content)
        scores_of(session).values[:] = np.nan
        refused = not scores_of(session)._read()
        return refused and bool(np.isnan(scores_of(session).values).all())

    for place in [*range(start), *range(start, len(whole), 7)]:
        for bit in (1, 128):
            assert damaged(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]), place
    assert all(damaged(whole[:size]) for size in range(0, len(whole), 11))
    assert damaged(whole + b"\0")
    assert damaged(whole[:start] + whole[start:][::-1])
    other = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs, train={"max_steps": 2}))
    fill(other)
    assert damaged(file_of(other).read_bytes())
    notes: list[str] = []
    recipe = load_recipe(write_recipe(tmp_path, text))
    # Training and held-out rows are the same here, and so is their file.
    assert {file_of(assemble(recipe, EAGER, notes.append)) for _ in range(2)} == {file}
    told = {note for note in notes if "reference scores" in note}
    assert len(told) == 1
    assert told.pop().startswith(f"{file}: this file of reference scores is damaged")
    file.write_bytes(b"")
    again = session_of(tmp_path, text)
    fill(again)
    np.testing.assert_array_equal(scores_of(session_of(tmp_path, text)).values, good)


def test_a_cache_that_cannot_be_written_is_one_line_and_dead_temporaries_go(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    session = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs))
    folder = file_of(session).parent
    folder.mkdir(parents=True)
    dead, young = (folder / f".{name * 32}.scores.tmp-0123456789ab" for name in "ab")
    for temporary in (dead, young):
        temporary.write_bytes(b"")
    os.utime(dead, (time.time() - 7200,) * 2)
    fill(session, lambda done: False)
    assert (dead.exists(), young.exists()) == (False, True)
    file_of(session).unlink()
    file_of(session).mkdir()
    with pytest.raises(UserError, match=r"reference scores cannot be written .* LOCALDPO_CACHE"):
        fill(session)


def test_whatever_changes_the_scores_makes_a_new_file(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALDPO_MEMORY_GB", "64")  # no device is asked

    def file(model: Path = tiny_model, rows: Path = pairs, **sections: Any) -> Path:
        backend = sections.pop("backend", EAGER)
        return file_of(session_of(tmp_path, recipe_text(model, rows, rows, **sections), backend=backend))

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
        "rows that are visited": file(train={"max_steps": 2}),
        "rows at once": file(train={"micro_batch_size": 3}),
        "dora": file(lora={"type": "dora"}),
        "pairs that are weighed": file(loss={"use_weighting": True}),
        "device": file(backend=Backend("cuda", None, False, ())),
        "blas": file(backend=Backend("cpu", "libopenblas.so.0", False, ())),
    }
    assert len(set(files.values())) == len(files)
    # What does not reach the reference does not make a new one.
    same = file(loss={"beta": 0.5}, train={"learning_rate": 1e-2, "seed": 3}, lora={"rank": 2})
    assert same == files["plain"]
    monkeypatch.setattr("localdpo.train.reference.version", lambda name: "9.9.9")
    assert file() not in files.values()


def test_another_precision_makes_a_new_file(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    from localdpo.train.reference import ReferenceScores, reference_key

    session = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs))

    def file() -> Path:
        key = reference_key(session.recipe, session.base, session.backend, session.forward)
        return ReferenceScores(key, session.train, np.arange(24), batch=4, note=lambda line: None).file

    assert file() == file_of(session)
    session.base.model.set_dtype(mx.bfloat16)
    assert file() != file_of(session)


def test_a_loss_without_reference_scores_nothing(
    tmp_path: Path, pairs: Path, tiny_model: Path, own_cache: Path
) -> None:
    session = session_of(tmp_path, recipe_text(tiny_model, pairs, loss={"type": "simpo", "beta": 2.0}))
    assert score_all(session, tmp_path / "events.jsonl") == []
    assert session.train_scores is None
    assert not (own_cache / "reference").exists()


def test_scores_of_the_reference_do_not_depend_on_the_adapter_in_the_model(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    """A pass that a resumed run goes on with scores the start adapter, not the trained one."""
    session = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs, adapter=str(sft_adapter)))
    fill(session)
    scored = scores_of(session).values.copy()
    file_of(session).unlink()
    trained = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs, adapter=str(sft_adapter)))
    model = trained.base.model
    model.update({"model": {"layers": [{"self_attn": {"q_proj": {"lora_b": mx.ones((4, 64))}}}]}})
    score_all(trained, tmp_path / "events.jsonl")
    np.testing.assert_array_equal(scores_of(trained).values, scored)
    assert np.array(model.model.layers[0].self_attn.q_proj.lora_b).min() == 1
