"""What file managers leave behind, and disks without links, without locks, or without case in names."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from localdpo.core.atomic import entries, published_dir, verified_digests
from localdpo.core.errors import UserError
from localdpo.records.answers import answers_files
from localdpo.records.checkpoints import adapter_folder, newest_checkpoint, set_latest
from localdpo.records.rundir import RunDir, RunLock, find_run, list_runs, spelled
from localdpo.records.wording import closing_lines

LITTER = (".DS_Store", "._recipe.yaml", "Icon\r", "Thumbs.db")


def litter(*folders: Path) -> None:
    """What Finder, a foreign disk and Explorer leave in folders."""
    for folder in folders:
        for name in LITTER:
            (folder / name).write_bytes(b"\0")


def published(run: RunDir, step: int, name: str = "state.json") -> Path:
    run.checkpoints.mkdir(exist_ok=True)
    with published_dir(run.checkpoint_path(step), 0) as temp:
        (temp / name).write_text("{}")
        litter(temp)
    return run.checkpoint_path(step)


def test_a_folder_with_nothing_but_litter_takes_a_run_and_gives_it_back(tmp_path: Path):
    folder = tmp_path / "dpo"
    folder.mkdir()
    litter(tmp_path, folder)
    run = RunDir.create(tmp_path, "dpo", "model: m\n")
    assert [one.name for one in list_runs(tmp_path)] == ["dpo"]
    run.control.mkdir()
    litter(folder, run.control)
    assert run.discard()
    assert not folder.exists()


def test_what_a_person_put_there_is_no_litter(tmp_path: Path):
    run = RunDir.create(tmp_path, "dpo", "model: m\n")
    (run.path / "notes.txt").write_text("mine")
    assert not run.discard()
    assert (run.path / "notes.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "_notes").write_text("mine")
    with pytest.raises(UserError, match="holds no run but "):
        RunDir.create(tmp_path, "other", "model: m\n")


def test_litter_in_a_checkpoint_is_no_part_of_it_and_harms_nothing(tmp_path: Path):
    run = RunDir.create(tmp_path, "dpo", "model: m\n")
    checkpoint = published(run, 3)
    litter(run.checkpoints, checkpoint)
    (checkpoint / ".DS_Store").write_bytes(b"changed")
    assert verified_digests(checkpoint)[1] == []
    assert newest_checkpoint(run) == checkpoint


def test_shadow_files_of_a_foreign_disk_are_not_read_as_the_files_beside_them(tmp_path: Path):
    (tmp_path / "answers").mkdir()
    for name in ("a.jsonl", "._a.jsonl", "._b.jsonl"):
        (tmp_path / "answers" / name).write_bytes(b"\0")
    assert [path.name for path in answers_files(tmp_path)] == ["a.jsonl"]
    assert [path.name for path in entries(tmp_path, "**/*")] == ["answers", "a.jsonl"]
    assert entries(tmp_path / "nowhere") == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_without_links_the_newest_checkpoint_is_named_itself(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "symlink", refuse)
    run = RunDir.create(tmp_path, "dpo", "model: m\n")
    assert adapter_folder(run) == run.latest
    for step in (3, 6):
        set_latest(published(run, step))
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-000003", "step-000006"]
    assert closing_lines(run, [])[1] == f"adapter: {run.checkpoint_path(6)}"


def test_a_full_disk_is_not_taken_for_one_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    run = RunDir.create(tmp_path, "dpo", "model: m\n")
    checkpoint = published(run, 3)
    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(PermissionError):
        set_latest(checkpoint)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_a_run_is_shown_and_not_trained(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = RunDir.create(tmp_path, "dpo", "model: m\n")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert not run.is_running()
    assert run.status() == "new"
    with pytest.raises(UserError, match=r"this disk keeps no locks .*give a --runs-dir on another"):
        RunLock(run).acquire()
    with pytest.raises(UserError, match="this disk keeps no locks"):
        RunDir.create(tmp_path, "other", "model: m\n")


def test_a_name_that_differs_in_case_only_is_the_same_run_where_the_disk_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    RunDir.create(tmp_path, "Demo", "model: m\n")
    assert spelled(tmp_path / "demo") == tmp_path / "demo"
    with pytest.raises(UserError, match="no run named 'demo'"):
        find_run(tmp_path, "demo")
    # As a disk without case finds it: under this spelling too, while the folder lists the first.
    (tmp_path / "demo").symlink_to("Demo")
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [name for name in listdir(path) if name != "demo"])
    assert spelled(tmp_path / "demo") == tmp_path / "Demo"
    assert RunDir.create(tmp_path, "demo", "model: m\n").name == "Demo"
    with pytest.raises(UserError, match="Demo: belongs to another recipe"):
        RunDir.create(tmp_path, "demo", "model: n\n")
