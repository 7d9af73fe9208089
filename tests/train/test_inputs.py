"""What a run is made of: an input that changed between two lives is refused by name, or accepted."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from tiny_folders import make_adapter, make_model_folder, pair, recipe_text, write_pairs, write_rows
from training_runs import files_of, write_recipe

from localdpo.answering.contestants import contestants
from localdpo.core.errors import UserErrors
from localdpo.evals.inspect_pairs import inspect_run
from localdpo.model import lora
from localdpo.recipe.load import load_recipe
from localdpo.records.events import Event, read_events
from localdpo.records.rundir import RunDir, RunLock
from localdpo.train import inputs, worker
from localdpo.train.control import StopRequest

pytestmark = pytest.mark.slow


@dataclass
class Made:
    """A run of a model, an adapter and data of its own, which took two of four steps."""

    folder: Path

    def __post_init__(self) -> None:
        self.model, self.adapter = self.folder / "model", self.folder / "sft"
        self.train, self.valid, self.prompts = (
            self.folder / f"{name}.jsonl" for name in ("train", "valid", "prompts")
        )
        self.run = RunDir(self.folder / "runs" / "dpo")

    def live(self, *arguments: str) -> int:
        """One life of its worker; the exit code."""
        return worker.main([*arguments, str(self.run.path)])

    @property
    def runs_dir(self) -> str:
        """As it is written in a command."""
        return shlex.quote(str(self.run.path.parent))

    @property
    def events(self) -> list[Event]:
        return read_events(self.run.events)

    @property
    def notes(self) -> list[str]:
        return [event.data["message"] for event in self.events if event.type == "notice"]

    def refused(self) -> list[str]:
        """The lines with which a life of its worker is refused."""
        before = files_of(self.run.checkpoint_path(2)).keys()
        assert self.live() == 2
        assert files_of(self.run.checkpoint_path(2)).keys() == before
        assert self.events[-1].type == "run.failed"
        lines: list[str] = self.events[-1].data["lines"]
        return lines


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALDPO_CACHE", str(folder / "cache"))
        patch.setattr(StopRequest, "install", lambda self: None)
        made = Made(folder / "work")
        make_model_folder(made.model)
        make_adapter(made.adapter, made.model)
        write_pairs(made.train, 16)
        write_pairs(made.valid, 4, start=50)
        write_rows(made.prompts, [{"prompt": "What is question number 7?"}])
        sections: dict[str, Any] = {
            "adapter": str(made.adapter),
            "eval": {"every": 100, "samples": 1, "max_tokens": 2, "prompts": str(made.prompts)},
            "save": {"every": 2, "keep": 9},
        }
        write_recipe(made.run.path, recipe_text(made.model, made.train, made.valid, **sections))
        assert made.live() == 0
        shutil.rmtree(made.run.checkpoint_path(4))
        made.run.latest.unlink()
        made.run.latest.symlink_to("step-000002")
        yield made


@pytest.fixture
def made(begun: Made, tmp_path: Path) -> Iterator[Made]:
    """The run, put back after the test. It stays in its place: its recipe names absolute paths."""
    kept = Path(shutil.copytree(begun.folder, tmp_path / "kept", symlinks=True))
    yield begun
    shutil.rmtree(begun.folder)
    shutil.copytree(kept, begun.folder, symlinks=True)


def append_row(made: Made) -> None:
    with made.train.open("a") as file:
        file.write(json.dumps(pair(90)) + "\n")


def change_weights(folder: Path, file: str) -> None:
    weights = mx.load(str(folder / file))
    name = next(iter(weights))
    mx.save_safetensors(str(folder / file), {**weights, name: weights[name] + 0.5})


def change_text(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


CHANGES: dict[str, Callable[[Made], object]] = {
    "recipe.yaml: changed": lambda made: change_text(made.run.recipe, "batch_size: 4", "batch_size: 5"),
    "data.train {train}: changed (16 rows then, 17 now)": append_row,
    "data.valid {valid}: changed (4 rows then, 3 now)": lambda made: write_pairs(made.valid, 3, start=50),
    "data.valid {valid}: changed (4 rows then, 4 now)": lambda made: write_pairs(made.valid, 4, start=51),
    "eval.prompts {prompts}: changed": lambda made: write_rows(made.prompts, [{"prompt": "Another?"}]),
    "model {model}: changed": lambda made: change_weights(made.model, "model.safetensors"),
    "adapter {adapter}: changed": lambda made: change_weights(made.adapter, lora.WEIGHTS_FILE),
    "tokenizer or chat template of {model}: changed": lambda made: change_text(
        made.model / "chat_template.jinja", "assistant", "helper"
    ),
}


@pytest.mark.parametrize("line", CHANGES)
def test_a_run_whose_input_changed_does_not_go_on(line: str, made: Made) -> None:
    CHANGES[line](made)
    (said,) = made.refused()
    assert said == (
        f"{line.format(**vars(made))} since run dpo began; restore it, or resume with what is there now: "
        f"localdpo train --resume --run dpo --runs-dir {made.runs_dir} --accept-changes"
    )


def test_every_change_is_said_at_once_and_what_is_put_back_goes_on(made: Made) -> None:
    content = made.train.read_bytes()
    append_row(made)
    change_weights(made.adapter, lora.WEIGHTS_FILE)
    assert [line.split(":")[0] for line in made.refused()] == [
        f"adapter {made.adapter}",
        f"data.train {made.train}",
    ]
    made.train.write_bytes(content)
    assert len(made.refused()) == 1


def test_changes_are_accepted_when_asked_for_and_then_kept(made: Made) -> None:
    append_row(made)
    assert made.live("--accept-changes") == 0
    assert f"data.train {made.train}: changed (16 rows then, 17 now) since run dpo began; accepted with " in (
        "\n".join(made.notes)
    )
    state = json.loads((made.run.checkpoint_path(4) / "state.json").read_text())
    before = json.loads((made.run.checkpoint_path(2) / "state.json").read_text())
    rows = [
        {one["what"]: one.get("rows") for one in each["inputs"]}["data.train"] for each in (before, state)
    ]
    assert rows == [16, 17]
    # They are the run's inputs now.
    now = inputs.inputs_of(load_recipe(made.run.recipe))
    inputs.require_unchanged(made.run, load_recipe(made.run.recipe), now, accept=False, note=pytest.fail)


def test_an_unchanged_run_goes_on_without_a_word(made: Made) -> None:
    written = (made.run.path / "inputs.json").stat().st_mtime_ns
    assert made.live() == 0
    assert not [note for note in made.notes if "changed" in note or "digest" in note]
    assert (made.run.path / "inputs.json").stat().st_mtime_ns == written


def test_no_damage_of_the_digests_is_taken_for_them(made: Made) -> None:
    """Every byte; the newest checkpoint then says what the run was made of."""
    recipe, file = load_recipe(made.run.recipe), made.run.path / "inputs.json"
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert inputs.read(made.run) is None, place
    file.write_bytes(content[:100])
    append_row(made)
    notes: list[str] = []
    now = inputs.inputs_of(recipe)
    with pytest.raises(UserErrors, match=r"data\.train .*16 rows then, 17 now"):
        inputs.require_unchanged(made.run, recipe, now, accept=False, note=notes.append)
    assert notes == [f"{file}: damaged; its copy in a checkpoint is used"]
    file.unlink()
    with pytest.raises(UserErrors, match=r"data\.train .*16 rows then, 17 now"):
        inputs.require_unchanged(made.run, recipe, now, accept=False, note=pytest.fail)


def test_a_run_that_kept_no_digests_goes_on_with_a_note(made: Made) -> None:
    (made.run.path / "inputs.json").unlink()
    shutil.rmtree(made.run.checkpoints)
    append_row(made)
    notes: list[str] = []
    recipe = load_recipe(made.run.recipe)
    inputs.require_unchanged(made.run, recipe, inputs.inputs_of(recipe), accept=False, note=notes.append)
    assert notes == ["this run has no record of its inputs: the current ones are recorded from here on"]


def test_missing_inputs_are_named_all_at_once(made: Made) -> None:
    for path in (made.model, made.adapter):
        shutil.rmtree(path)
    made.train.unlink()
    lines = made.refused()
    assert [line.split(":")[0] for line in lines] == [
        f"model {made.model}",
        f"adapter {made.adapter}",
        str(made.train),
    ]


def test_a_start_that_its_own_run_removed_is_named(made: Made) -> None:
    """By that run's save.keep; and while it trains, that this may happen is said."""
    other = RunDir(made.folder / "runs" / "sft")
    write_recipe(other.path, "model: m\n")
    start = other.checkpoint_path(120)
    shutil.copytree(made.adapter, start)
    change_text(made.run.recipe, str(made.adapter), str(start))
    recipe = load_recipe(made.run.recipe)
    assert inputs.living_start(recipe) == []
    with RunLock(other):
        (line,) = inputs.living_start(recipe)
    assert line.startswith(f"adapter {start}: run sft still trains")
    start.rename(other.checkpoint_path(240))
    (line,) = made.refused()
    assert line == (
        f"adapter {start}: run sft has no such checkpoint any more (it keeps its newest save.keep; there "
        "now: step-000240); put it back, or start a new run from one that is there"
    )


def test_inspect_and_compare_say_which_inputs_changed(made: Made) -> None:
    def notes(**options: Any) -> list[str]:
        found: list[str] = []
        inspect_run(made.run.path, note=found.append, **options)
        return found

    assert notes() == []
    change_weights(made.adapter, lora.WEIGHTS_FILE)
    append_row(made)
    adapter, rows = notes(split="train")
    assert adapter.startswith(f"adapter {made.adapter}: changed since run dpo began")
    assert rows.startswith(f"data.train {made.train}: changed (16 rows then, 17 now) since run dpo began")
    assert notes() == [adapter]
    compared: list[str] = []
    contestants(made.run, note=compared.append)
    assert compared == [adapter]


def test_a_recipe_that_is_not_the_one_the_run_began_with_is_told(made: Made) -> None:
    change_text(made.run.recipe, "batch_size: 4", "batch_size: 5")
    line = "recipe.yaml: changed since run dpo began: what is shown is not what it was trained with"
    for look in (lambda note: inspect_run(made.run.path, note=note), partial(contestants, made.run)):
        notes: list[str] = []
        look(note=notes.append)
        assert notes == [line]
    # A run of a version that kept no digest of it.
    inputs.keep(made.run, [one for one in inputs.read(made.run) or () if one.what != inputs.RECIPE])
    contestants(made.run, note=pytest.fail)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again_in_silence(made: Made) -> None:
    weights = made.run.checkpoint_path(2) / lora.WEIGHTS_FILE
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (line,) = made.refused()
    damaged = f"{made.run.path}: all checkpoints are damaged: {weights}: "
    assert line.startswith(damaged)
    assert line.endswith(
        "restore one from a copy, start over as another --run name, or from step 0 in this run: "
        f"localdpo train --resume --run dpo --runs-dir {made.runs_dir} --accept-changes"
    )
    assert made.live("--accept-changes") == 0
    assert [note for note in made.notes if note.startswith(damaged)]
    resumed = next(event for event in reversed(made.events) if event.type == "run.resumed")
    assert resumed.step == 0


def test_damaged_lines_of_the_log_are_told_by_who_looks_at_the_run(made: Made) -> None:
    with made.run.events.open("ab") as log:
        log.write(b"damage\n")
    notes: list[str] = []
    contestants(made.run, note=notes.append)
    inspect_run(made.run.path, note=notes.append)
    lines = made.run.events.read_bytes().count(b"\n")
    assert notes == [f"{made.run.events}: 1 damaged line is skipped (line {lines})"] * 2
