from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from localdpo.core import atomic
from localdpo.core.errors import UserError

# Every call by which the module changes the disk: a kill can come before or after each.
CALLS = ("open", "write", "fsync", "close", "replace", "rename", "symlink", "mkdir")


def save(folder: Path, text: str) -> None:
    with atomic.published_dir(folder, needed=len(text)) as temp:
        (temp / "weights").write_text(text)
        (temp / "state").write_text(text * 2)


def read(folder: Path) -> str:
    assert atomic.verified_digests(folder)[1] == []
    assert (folder / "state").read_text() == (folder / "weights").read_text() * 2
    return (folder / "weights").read_text()


def test_a_file_is_written_and_replaced(tmp_path: Path):
    path = tmp_path / "f"
    atomic.write_text(path, "é1")
    atomic.write_bytes(path, b"2")
    assert path.read_bytes() == b"2"
    assert os.listdir(tmp_path) == ["f"]


def test_a_link_is_made_and_replaced(tmp_path: Path):
    link = tmp_path / "LATEST"
    atomic.replace_symlink(link, "a")
    atomic.replace_symlink(link, "b")
    assert os.readlink(link) == "b"
    assert os.listdir(tmp_path) == ["LATEST"]


def test_a_folder_is_published_with_its_manifest(tmp_path: Path):
    final = tmp_path / "step-1"
    save(final, "one")
    manifest = json.loads((final / "manifest.json").read_text())
    assert manifest["v"] == 1
    assert manifest["files"]["weights"]["bytes"] == 3
    assert read(final) == "one"
    save(final, "two")
    assert read(final) == "two"
    assert os.listdir(tmp_path) == ["step-1"]


def test_the_manifest_is_written_last_and_all_is_flushed_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    order: list[str] = []
    real_fsync, real_rename, real_open = os.fsync, os.rename, os.open
    names: dict[int, str] = {}

    def open_(path: str, *args: int, **kwargs: int) -> int:
        fd = real_open(path, *args, **kwargs)
        names[fd] = Path(path).name
        return fd

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(names[fd]), real_fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (order.append("rename"), real_rename(a, b)))
    save(tmp_path / "final", "x")
    assert order[:3] == ["state", "weights", "manifest.json"]
    assert order[3].startswith(".final.tmp-")
    assert order[4:] == ["rename", tmp_path.name]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path):
    def fail() -> None:
        with atomic.published_dir(tmp_path / "c", 0) as temp:
            (temp / "weights").write_text("half")
            raise KeyError

    save(tmp_path / "c", "old")
    with pytest.raises(KeyError):
        fail()
    assert os.listdir(tmp_path) == ["c"]
    assert read(tmp_path / "c") == "old"


def test_only_plain_files_are_published(tmp_path: Path):
    with pytest.raises(ValueError, match="plain files"), atomic.published_dir(tmp_path / "c", 0) as temp:
        (temp / "link").symlink_to("/etc/hostname")


# --- damage --------------------------------------------------------------------------------------------


def test_every_flipped_byte_and_every_cut_is_found(tmp_path: Path):
    folder = tmp_path / "c"
    save(folder, "some weights")
    for name in ("weights", "state", "manifest.json"):
        path = folder / name
        content = path.read_bytes()
        for place in range(len(content)):
            damaged = bytearray(content)
            damaged[place] ^= 0x01
            path.write_bytes(damaged)
            # White space in the manifest carries nothing; every other byte does.
            if not (name == "manifest.json" and chr(content[place]).isspace()):
                assert atomic.verified_digests(folder)[1], (name, place)
            path.write_bytes(content[:place])
            if content[place:].strip():
                assert atomic.verified_digests(folder)[1], (name, place)
        path.write_bytes(content)
    assert atomic.verified_digests(folder)[1] == []


def test_missing_parts_are_named(tmp_path: Path):
    folder = tmp_path / "c"
    assert "manifest.json is missing" in atomic.verified_digests(folder)[1][0]
    save(folder, "x")
    (folder / "weights").unlink()
    assert atomic.verified_digests(folder)[1] == [f"{folder / 'weights'}: missing"]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", "", "a/b"])
def test_a_manifest_cannot_lead_out_of_its_folder(name: str, tmp_path: Path):
    entry = {"sha256": "0" * 64, "bytes": 1}
    (tmp_path / "manifest.json").write_text(json.dumps({"v": 1, "files": {name: entry}}))
    assert "not a plain file name" in atomic.verified_digests(tmp_path)[1][0]


# --- kills ---------------------------------------------------------------------------------------------


OLD, NEW = "old content", "new content, longer"
JOBS: dict[str, tuple[Callable[[Path, str], None], Callable[[Path], str]]] = {
    "file": (atomic.write_text, lambda path: path.read_text()),
    "link": (atomic.replace_symlink, lambda path: os.readlink(path)),
    "folder": (save, read),
}


def counting(patch: pytest.MonkeyPatch, act: Callable[[int], None]) -> Counter[str]:
    """Make every call of CALLS announce itself: act(number of this call), before it is made."""
    counts: Counter[str] = Counter()

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            counts[name] += 1
            act(sum(counts.values()))
            return real(*args, **kwargs)

        patch.setattr(os, name, call)

    for name in CALLS:
        wrap(name)
    return counts


class InterruptedWrite(OSError):
    """The error that the test puts in."""


def check_after_crash(job: str, path: Path) -> str:
    atomic.clean_leftovers(path.parent)
    assert os.listdir(path.parent) == [path.name]
    return JOBS[job][1](path)


@pytest.mark.parametrize("job", JOBS)
def test_an_error_at_any_call_leaves_old_or_new(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write, _ = JOBS[job]
    seen = set()
    number = 0
    failed = True
    while failed:
        number += 1
        path = tmp_path / str(number) / "target"
        path.parent.mkdir()
        write(path, OLD)
        failed = False

        def fail(now: int, wanted: int = number) -> None:
            if now == wanted:
                raise InterruptedWrite(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            counting(patch, fail)
            try:
                write(path, NEW)
            except InterruptedWrite:
                failed = True
        seen.add(check_after_crash(job, path))
    assert seen == {OLD, NEW}
    assert number > 5


KILLER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import pytest, signal
import test_atomic as t
root, job = Path(sys.argv[1]), sys.argv[2]
write, _ = t.JOBS[job]
number, killed = 0, True
while killed:
    number += 1
    path = root / str(number) / "target"
    path.parent.mkdir()
    write(path, t.OLD)
    child = os.fork()
    if child == 0:
        patch = pytest.MonkeyPatch()
        t.counting(patch, lambda now: os.kill(os.getpid(), signal.SIGKILL) if now == number else None)
        write(path, t.NEW)
        os._exit(0)
    killed = os.waitpid(child, 0)[1] != 0
"""


@pytest.mark.parametrize("job", JOBS)
def test_a_kill_at_any_call_leaves_old_or_new(job: str, tmp_path: Path):
    here = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", KILLER, str(tmp_path), job, here], check=True, timeout=60)
    seen = [
        check_after_crash(job, path / "target")
        for path in sorted(tmp_path.iterdir(), key=lambda p: int(p.name))
    ]
    assert len(seen) > 5
    # Once it is new it stays new: there is one moment of change.
    assert seen == [OLD] * seen.count(OLD) + [NEW] * seen.count(NEW)
    assert {OLD, NEW} == set(seen)


def test_a_folder_that_is_taken_away_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(path: Path) -> None:
        next(path.iterdir()).unlink()
        raise InterruptedWrite

    save(tmp_path / "c", "x")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(InterruptedWrite):
            atomic.remove_dir(tmp_path / "c")
    assert not (tmp_path / "c").exists()
    atomic.clean_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []
    save(tmp_path / "c", "x")
    atomic.remove_dir(tmp_path / "c")
    assert os.listdir(tmp_path) == []


def test_leftovers_go_and_other_hidden_files_stay(tmp_path: Path):
    for name in (".DS_Store", ".x.tmp-nothex", "x.tmp-0123456789ab"):
        (tmp_path / name).write_text("")
    (tmp_path / ".f.tmp-0123456789ab").write_text("")
    (tmp_path / ".d.tmp-0123456789ab").mkdir()
    (tmp_path / ".d.tmp-0123456789ab" / "weights").write_text("")
    (tmp_path / ".l.tmp-0123456789ab").symlink_to("nowhere")
    atomic.clean_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".DS_Store", ".x.tmp-nothex", "x.tmp-0123456789ab"]
    atomic.clean_leftovers(tmp_path / "missing")


# --- a full disk ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    ("job", "call"),
    [
        *(("file", call) for call in ("open", "write", "fsync", "replace")),
        *(("link", call) for call in ("symlink", "fsync", "replace")),
        *(("folder", call) for call in ("mkdir", "open", "write", "fsync", "rename")),
    ],
)
def test_a_full_disk_at_any_call_is_one_line(
    job: str, call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real_open = os.open

    def full(*args: object, **kwargs: object) -> object:
        if call == "open" and not args[1] & os.O_CREAT:
            return real_open(*args, **kwargs)
        raise OSError(number, "full")

    write, look = JOBS[job]
    path = tmp_path / "target"
    write(path, OLD)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(UserError, match=r"no space left .* bytes needed, .* free"):
            write(path, NEW)
    assert os.listdir(tmp_path) == ["target"]
    # A link whose folder cannot be flushed is in place already; whatever is there is whole.
    assert look(path) == (NEW if (job, call) == ("link", "fsync") else OLD)


def test_the_preflight_refuses_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"5,000 bytes needed, 1,000 free"):
        atomic.write_bytes(tmp_path / "f", b"x" * 5000)
    with (
        pytest.raises(UserError, match=r"5,000 bytes needed, 1,000 free"),
        atomic.published_dir(tmp_path / "new" / "c", 5000),
    ):
        pytest.fail("the block must not run")
    assert os.listdir(tmp_path) == []


def test_a_short_write_of_mlx_on_a_full_disk_is_the_same_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def write() -> None:
        with atomic.published_dir(tmp_path / "c", 0):
            raise RuntimeError("[write] Unable to write 4096 bytes to file.")

    with pytest.raises(RuntimeError, match="Unable to write"):
        write()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(UserError, match="no space left"):
        write()
    assert os.listdir(tmp_path) == []


def test_a_size_limit_of_the_system_leaves_what_was_there(tmp_path: Path):
    """A real failing write, not a patched one: the kernel refuses to let a file grow."""
    code = (
        "import sys, resource, signal; from pathlib import Path; from localdpo.core import atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: atomic.write_bytes(Path(sys.argv[1]), b'x' * 10000)\n"
        "except OSError as error: print(error.errno)\n"
    )
    path = tmp_path / "f"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == errno.EFBIG
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


# --- flushing ------------------------------------------------------------------------------------------


def test_macos_flushes_the_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    monkeypatch.setattr(atomic.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(atomic.fcntl, "fcntl", lambda fd, command: calls.append(f"fcntl {command}"))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync"))
    atomic.fsync_fd(0)
    assert calls == ["fcntl 51"]


def test_a_file_system_without_that_call_gets_plain_fsync(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []

    def refuse(fd: int, command: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(atomic.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(atomic.fcntl, "fcntl", refuse)
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync"))
    atomic.fsync_fd(0)
    assert calls == ["fsync"]


def test_a_folder_that_came_to_be_meanwhile_stays_unless_it_is_to_be_replaced(tmp_path: Path):
    def publish(text: str, *, replace: bool) -> None:
        with atomic.published_dir(tmp_path / "out", 10, replace=replace) as folder:
            (folder / "a").write_text(text)

    with atomic.published_dir(tmp_path / "out", 10, replace=True) as slow:
        publish("first", replace=False)
        with pytest.raises(UserError, match="out: another process wrote this folder meanwhile"):
            publish("second", replace=False)
        assert (tmp_path / "out" / "a").read_text() == "first"
        (slow / "a").write_text("third")
    assert (tmp_path / "out" / "a").read_text() == "third"
    assert os.listdir(tmp_path) == ["out"]
