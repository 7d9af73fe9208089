"""The one reader of checkpoints: the newest intact one, whatever LATEST is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from localdpo.core.atomic import published_dir
from localdpo.core.errors import UserError
from localdpo.records import checkpoints
from localdpo.records.checkpoints import (
    checkpoint_folders,
    lost_lines,
    newest_checkpoint,
    newest_intact,
    read_log,
    require_checkpoint,
    set_latest,
    verified_adapter,
)
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir

FILES = ("adapter_config.json", "adapters.safetensors")


def publish(run: RunDir, step: int) -> Path:
    run.checkpoints.mkdir(exist_ok=True)
    path = run.checkpoint_path(step)
    with published_dir(path, 1) as temp:
        for name in (*FILES, "state.json"):
            (temp / name).write_text(f"{name} {step}")
    set_latest(path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir.create(tmp_path / "runs", "dpo", "model: a\n")
    publish(run, 20)
    publish(run, 120)
    return run


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def make_latest(run: RunDir, kind: str) -> None:
    """LATEST in one of the states that it may be found in."""
    link = run.checkpoints / "LATEST"
    link.unlink()
    if kind == "a folder":
        shutil.copytree(run.checkpoint_path(20), link)
    elif kind == "a file":
        link.write_text("step-000020")
    elif kind != "gone":
        link.symlink_to(kind)


STATES = ["gone", "a folder", "a file", "/", "..", "../..", ".", "LATEST", "step-000999", "step-000020"]


@pytest.mark.parametrize("kind", STATES)
def test_whatever_latest_is_the_newest_intact_checkpoint_is_read(run: RunDir, kind: str) -> None:
    make_latest(run, kind)
    assert newest_checkpoint(run) == run.checkpoint_path(120)
    assert verified_adapter(run.checkpoints / "LATEST", FILES).path == run.checkpoint_path(120)


@pytest.mark.parametrize("kind", STATES)
def test_latest_is_mended_and_nothing_is_deleted_for_it(run: RunDir, kind: str) -> None:
    make_latest(run, kind)
    set_latest(run.checkpoint_path(120))
    assert os.readlink(run.checkpoints / "LATEST") == "step-000120"
    kept = [path.name for path in run.checkpoints.iterdir() if ".aside-" in path.name]
    assert kept == (["LATEST.aside-1"] if kind == "a folder" else [])
    assert len(checkpoint_folders(run.checkpoints)) == 2


def test_latest_names_checkpoints_only(run: RunDir) -> None:
    with pytest.raises(ValueError, match="is no checkpoint"):
        set_latest(run.path / "elsewhere")


@pytest.mark.parametrize("name", [*FILES, "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_in_one_line(run: RunDir, name: str) -> None:
    flip(run.checkpoint_path(120) / name)
    said: list[str] = []
    found = require_checkpoint(run, said.append)
    assert found.path == run.checkpoint_path(20)
    assert len(said) == 1
    assert said[0].startswith("skipped a damaged checkpoint: ")
    assert str(run.checkpoint_path(120) / name) in said[0]
    assert said[0].endswith(f"; used instead: {run.checkpoint_path(20)}")


def test_with_no_whole_checkpoint_left_every_damage_is_told(run: RunDir) -> None:
    for step in (20, 120):
        flip(run.checkpoint_path(step) / FILES[1])
    with pytest.raises(UserError, match=r"no checkpoint to use: all are damaged: .*000120/.*000020/"):
        require_checkpoint(run, print)
    with pytest.raises(UserError, match="no checkpoint to use: all are damaged"):
        verified_adapter(run.checkpoints / "LATEST", FILES, print)


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to use yet"):
        require_checkpoint(RunDir(tmp_path), print)


def test_a_checkpoint_that_training_takes_away_while_it_is_read_is_no_damage(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoints.verified_digests

    def racing(folder: Path) -> object:
        if folder.name == "step-000120" and folder.is_dir():
            publish(run, 140)
            for old in (20, 120):
                shutil.rmtree(run.checkpoint_path(old))
        return real(folder)

    monkeypatch.setattr(checkpoints, "verified_digests", racing)
    found, problems = newest_intact(run.checkpoints)
    assert found is not None
    assert (found.path, problems) == (run.checkpoint_path(140), [])


def test_an_adapter_is_compared_with_its_manifest_where_there_is_one(run: RunDir, tmp_path: Path) -> None:
    folder = run.checkpoint_path(120)
    assert verified_adapter(folder, FILES).digests.keys() == set(FILES)
    # What is no part of the adapter does not matter to who only uses it.
    flip(folder / "state.json")
    verified_adapter(folder, FILES)
    flip(folder / FILES[1])
    with pytest.raises(
        UserError, match=r"adapters\.safetensors: its sha256 is not the one in manifest\.json"
    ):
        verified_adapter(folder, FILES)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        verified_adapter(folder, FILES)
    other = tmp_path / "other"
    other.mkdir()
    assert verified_adapter(other, FILES).digests == {}


def test_a_fall_back_that_nobody_is_told_of_is_an_error(run: RunDir) -> None:
    flip(run.checkpoint_path(120) / FILES[1])
    with pytest.raises(UserError, match=r"damaged checkpoint: .*; the newest intact one is .*step-000020"):
        verified_adapter(run.checkpoints / "LATEST", FILES)
    said: list[str] = []
    assert verified_adapter(run.checkpoints / "LATEST", FILES, said.append).path == run.checkpoint_path(20)
    assert len(said) == 1


def test_a_log_that_ends_before_a_checkpoint_has_lost_lines(run: RunDir) -> None:
    with EventWriter(run.events) as log:
        for step in (0, 20, 119):
            log.write("step", step)
    notes = list[str]()
    assert [event.step for event in read_log(run, notes.append, alive=False)] == [0, 20, 119]
    lost = f"{run.events}: lines are lost (it ends at step 119, a checkpoint is of step 120)"
    assert notes == [lost]
    assert lost_lines(run, 119) == lost
    # A worker that lives writes its checkpoint before it says so.
    read_log(run, notes.append, alive=True)
    assert notes == [lost]
    with EventWriter(run.events) as log:
        log.write("checkpoint", 120)
    read_log(run, notes.append, alive=False)
    assert notes == [lost]
    run.events.unlink()
    assert read_log(run, notes.append, alive=False) == []
    assert notes[1:] == [lost.replace("step 119", "step 0")]
