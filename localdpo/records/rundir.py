"""The folder of a run: its layout, its lock, its state, and the list of all runs.

runs/NAME/
    recipe.yaml          the resolved recipe; a run belongs to one recipe for good
    inputs.json          digests of what it is made of
    events.jsonl         the event log
    checkpoints/         step-000120/, ... and LATEST, a symbolic link to the newest
    control/             commands for the worker, a file each
    pairs/               the pairs of lowest margin at each evaluation
    answers/             answers of its models, votes.jsonl: what people said of them
    eval/                evaluations, and verdicts.jsonl: what judges said
    exports.jsonl        the exports that were made of it
    trackers/            what the processes that report to trackers printed
    worker.log           stdout and stderr of the worker
    lock                 held (flock) while a worker lives, with its process id in it

A run is made with its recipe in one rename. Who starts, cleans or takes away a run does so under its lock.
The lock goes with the descriptor, from the command that starts a worker to the supervisor and the worker, so
that there is no moment between them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from itertools import chain, count
from pathlib import Path
from typing import ClassVar, Final, Literal, TypeVar

from localdpo.core.atomic import (
    clean_leftovers,
    entries,
    is_unsupported,
    new_dir,
    no_space_error,
    out_of_space,
    remove_empty_dir,
)
from localdpo.core.errors import UserError
from localdpo.core.names import command_line
from localdpo.records.events import Event, EventTail, read_events

Ending = Literal["finished", "failed", "stopped", "crashed"]
State = Literal["new", "running", Ending]

# The events that end a worker's life, and the state of the run after each.
ENDS: Final[dict[str, Ending]] = {
    "run.finished": "finished",
    "run.failed": "failed",
    "run.stopped": "stopped",
    "run.crashed": "crashed",
}
_STARTS: Final = frozenset({"run.started", "run.resumed"})
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
# A look at the lock (`is_running`) holds it for microseconds; a worker that starts just then waits it out.
_LOCK_PATIENCE: Final = 0.5
_LOCK_BYTES: Final = 4096  # a block of the file system
# The environment variable with the number of the descriptor through which a process was given a run's lock.
LOCK_FD: Final = "LOCALDPO_LOCK_FD"
# What makes a folder that of a series: of rounds, and of a sweep (series.py, sweeps.py).
SERIES_RECIPES: Final = ("series.yaml", "sweep.json")
# What a run has that did not begin, and what its log may say.
_FIRST_FILES: Final = frozenset({"events.jsonl", "worker.log", "inputs.json", "recipe.yaml", "lock"})
_FIRST_FOLDERS: Final = frozenset({"control", "checkpoints"})
_FIRST_EVENTS: Final = frozenset(
    {"phase", "data", "notice", "control", "run.failed", "run.stopped", "run.crashed"}
)


class RunDir:
    """The paths of one run and what follows from them. Making one touches nothing on the disk.

    Attributes:
        made_here: whether `create` or `create_new` made the run and gave this very object for it.
        command: that makes such a folder.
        nouns: what one, and what several of them are called.
    """

    command: ClassVar = "train"
    nouns: ClassVar = ("run", "runs")

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.made_here = False
        self.recipe = self.path / "recipe.yaml"
        self.events = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.latest = self.checkpoints / "LATEST"
        self.control = self.path / "control"
        self.worker_log = self.path / "worker.log"
        self.lock = self.path / "lock"
        self.answers = self.path / "answers"
        self.votes = self.path / "votes.jsonl"
        self.evaluations = self.path / "eval"
        self.verdicts = self.evaluations / "verdicts.jsonl"
        self.pairs = self.path / "pairs"
        self.exports = self.path / "exports.jsonl"
        self.trackers = self.path / "trackers"

    @property
    def name(self) -> str:
        return self.path.absolute().name

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    def exists(self) -> bool:
        """Whether this is the folder of a run: it has a recipe."""
        return self.recipe.is_file()

    @classmethod
    def create(
        cls,
        runs_dir: str | Path,
        name: str,
        recipe_text: str,
        differences: Callable[[str, str], str] = lambda old, new: "its text differs",
    ) -> RunDir:
        """The run `name`, made if it is not there yet, with `recipe_text` as its recipe.

        A run that has the same recipe is returned as it is. Of two processes that make one run at the same
        moment, one does; its recipe counts. Raises UserError if the run has another recipe:
        `differences(old_text, new_text)` says in a few words what differs, "" where the texts mean the same.
        Raises UserError too for a name that is no plain file name and for a folder that holds something else.
        """
        check_name(name)
        run = cls(spelled(Path(runs_dir) / name))
        if not run._make(recipe_text):
            old = run.recipe.read_text(encoding="utf-8")
            if old != recipe_text and (what := differences(old, recipe_text)):
                own = path_in(runs_dir_of(run), run)
                raise UserError(
                    f"{run.path}: belongs to another recipe ({what}); choose another --run name, or go on "
                    f"with its own: --resume --run {own}, without a recipe"
                )
        return run

    @classmethod
    def create_new(cls, runs_dir: str | Path, prefix: str, recipe_text: str) -> RunDir:
        """A new run under the first free name of PREFIX, PREFIX-2, ...; never one that another process makes.

        Raises UserError for a folder that cannot be made.
        """
        while True:
            run = cls(Path(runs_dir) / new_run_name(runs_dir, prefix))
            if run._make(recipe_text):
                return run

    def _make(self, recipe_text: str) -> bool:
        """Make the run, its recipe in it, by one rename; False if there is one, or another process was first.

        Raises UserError for a folder that holds something else or cannot be made, and a disk without locks.
        """
        data = recipe_text.encode()
        while not self.exists():
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                clean_leftovers(self.path.parent, shared=True)
                if self.path.is_dir():
                    self._remove_remains()
                with new_dir(Path(os.path.realpath(self.path)), len(data) + _LOCK_BYTES) as folder:
                    (folder / self.recipe.name).write_bytes(data)
                    with RunLock(RunDir(folder), signed=False):
                        self.made_here = True
                return True
            except OSError as error:
                self.made_here = False
                # Another process may have made it, or taken it away, in between.
                if not (error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) and self.path.is_dir()):
                    raise _folder_error(self, error) from error
        return False

    def _remove_remains(self) -> None:
        """Take away a folder with nothing in it but what file managers and killed makers leave.

        Raises UserError if it holds something else.
        """
        clean_leftovers(self.path)
        foreign = [path.name for path in entries(self.path) if path.name != self.lock.name]
        if foreign and not self.exists():
            raise UserError(
                f"{self.path}: holds no {self.nouns[0]} but {foreign[0]}; choose another --run name"
            )
        if not foreign:
            self.lock.unlink(missing_ok=True)
            remove_empty_dir(self.path)

    def discard(self) -> bool:
        """Take away a run that was made here and that nothing came of; whether it is gone.

        Nothing goes of a run that another process has by now, or that holds anything but what the first
        moments of a run make.
        """
        if self.made_here:
            with contextlib.suppress(UserError, OSError), RunLock(self, signed=False):
                if self._is_unbegun():
                    self._take_away()
                    return True
        return False

    def delete(self) -> None:
        """Delete the run. Raises UserError when a worker has it, OSError when it cannot be."""
        with RunLock(self, signed=False):
            self._take_away()

    def _take_away(self) -> None:
        """Rename the folder first, so that no reader finds half a run."""
        aside = self.path.with_name(f".{self.name}.deleted-{secrets.token_hex(6)}")
        self.path.rename(aside)
        try:
            shutil.rmtree(aside)
        except OSError:
            aside.rename(self.path)
            raise

    def _is_unbegun(self) -> bool:
        for path in entries(self.path):
            if path.name in _FIRST_FOLDERS and path.is_dir() and not entries(path):
                continue
            if path.name not in _FIRST_FILES or path.is_dir():
                return False
        tail = EventTail(self.events)
        return {event.type for event in tail.poll()} <= _FIRST_EVENTS and tail.bad_lines == 0

    def clean(self) -> None:
        """Take away what an earlier crash left half written. Only for the holder of the lock.

        What is in `control` is of other processes, which may write there now.
        """
        clean_leftovers(self.path)
        clean_leftovers(self.checkpoints)

    def checkpoint_path(self, step: int) -> Path:
        """`checkpoints/step-000120` of this run."""
        return self.checkpoints / f"step-{step:06d}"

    def is_running(self) -> bool:
        """Whether a worker lives, or is being started."""
        return self.is_locked()

    def is_locked(self) -> bool:
        """Whether a process holds the lock. Only looks: the lock is tried and let go at once."""
        try:
            fd = os.open(self.lock, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            # Without locks no worker can have started here; the run was copied to this disk.
            if not is_unsupported(error):
                raise
        finally:
            os.close(fd)
        return False

    def pid(self) -> int | None:
        """The process id that the last worker wrote into its lock."""
        try:
            return int(self.lock.read_text())
        except (OSError, ValueError):
            return None

    def status(self) -> State:
        """What the run is doing, from its lock and its event log."""
        running = self.is_running()
        return state_of(read_events(self.events), running)


Kind = TypeVar("Kind", bound=RunDir)


def is_end(event: Event) -> bool:
    """Whether the event ends a worker's life."""
    return event.type in ENDS


def state_of(events: Iterable[Event], running: bool) -> State:
    """The state that follows from the events of a run and from whether its lock is held.

    A run that was started, has not ended and holds no lock has crashed.
    """
    if running:
        return "running"
    state: State = "new"
    for event in events:
        state = "crashed" if event.type in _STARTS else ENDS.get(event.type, state)
    return state


class RunLock:
    """The hold on a run: of who makes it, of its worker and supervisor for as long as they live.

    The kernel lets go when the last process that has the descriptor is gone. A process that was started
    with one (LOCK_FD) holds the lock already and takes it over. A context manager. `acquire` raises UserError
    when another has the run, and when there is none. `signed=False` leaves the process id in it as it is.
    """

    def __init__(self, run: RunDir, *, signed: bool = True) -> None:
        self.run = run
        self._signed = signed
        self._fd: int | None = None

    @property
    def fd(self) -> int:
        """The descriptor, to give it to another process. ValueError if the lock is not held."""
        if self._fd is None:
            raise ValueError(f"{self.run.lock}: not held")
        return self._fd

    def acquire(self) -> None:
        fd = _given_fd(self.run)
        while fd is None:
            fd = _lock_file(self.run)
        self._fd = fd
        try:
            if self._signed:
                self.sign(os.getpid())
        except BaseException:
            self.release()
            raise

    def sign(self, pid: int) -> None:
        """Write the worker's process id into the lock. Raises UserError when the disk is full."""
        data = f"{pid}\n".encode()
        try:
            os.pwrite(self.fd, data, 0)
            os.ftruncate(self.fd, len(data))
        except OSError as error:
            raise _lock_error(self.run, error) from error

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def _given_fd(run: RunDir) -> int | None:
    """The descriptor of the lock of `run` that this process was started with, for its first taker."""
    try:
        fd = int(os.environ.get(LOCK_FD, ""))
        is_ours = os.path.samestat(os.fstat(fd), os.stat(run.lock))
    except (ValueError, OSError):
        return None
    if not is_ours:
        return None
    del os.environ[LOCK_FD]
    # A compiler that the worker starts must not keep the run locked.
    os.set_inheritable(fd, False)
    return fd


def _lock_file(run: RunDir) -> int | None:
    """Open the lock file and lock it; None when its last holder took it away meanwhile."""
    try:
        fd = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _lock_error(run, error) from error
    try:
        _flock_patiently(fd)
        is_there = run.lock.exists() and os.path.samestat(os.fstat(fd), os.stat(run.lock))
    except BaseException as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            raise already_running(run) from None
        if isinstance(error, OSError):
            raise _lock_error(run, error) from error
        raise
    if is_there:
        return fd
    os.close(fd)
    return None


def _lock_error(run: RunDir, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UserError(f"{run.path}: there is no such run")
    if out_of_space(error):
        return no_space_error(run.lock, _LOCK_BYTES)
    if is_unsupported(error):
        return UserError(
            f"{run.path.parent}: this disk keeps no locks ({error.strerror}), as network shares and some "
            "foreign disks do not, so two workers could train one run; give a --runs-dir on another disk"
        )
    return UserError(f"{run.lock}: the run cannot be locked: {error.strerror}; give another --runs-dir")


def _flock_patiently(fd: int) -> None:
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def already_running(run: RunDir) -> UserError:
    """The error for starting a worker in a run that has one."""
    pid = run.pid()
    who = f" (process {pid})" if pid is not None else ""
    return UserError(f"{run.path}: the run is running{who}; stop it first, or choose another --run name")


def check_name(name: str) -> None:
    """Raise UserError unless `name` can be the name of a run (and so is a plain file name)."""
    if _NAME.fullmatch(name) is None:
        raise UserError(
            f"{name!r} is no name for a run: expected letters, digits, '.', '_' and '-', at most 100, "
            "the first a letter, digit or '_'"
        )


def spelled(path: Path) -> Path:
    """`path` as its folder is spelled: a disk that takes no two names that differ in case only, as a Mac's
    mostly is, finds it under any spelling, and it must not be two runs in messages and commands.
    """
    if not path.exists() or path.name in (names := os.listdir(path.parent)):
        return path
    same = (path.with_name(name) for name in names if name.casefold() == path.name.casefold())
    return next((other for other in same if os.path.samefile(path, other)), path)


def new_run_name(runs_dir: str | Path, prefix: str) -> str:
    """The first of PREFIX, PREFIX-2, PREFIX-3, ... that does not exist in `runs_dir`.

    Characters that a run name cannot have become '-'.
    """
    stem = _stem(prefix)
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    return next(name for name in names if not os.path.lexists(Path(runs_dir) / name))


def runs_of(runs_dir: str | Path, prefix: str, kind: type[Kind]) -> list[Kind]:
    """The runs that `new_run_name(runs_dir, prefix)` named, the most recently active first."""
    pattern = re.compile(rf"{re.escape(_stem(prefix))}(-[0-9]+)?")
    return [run for run in folders_of(runs_dir, kind) if pattern.fullmatch(run.name)]


def _stem(prefix: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", prefix).lstrip(".-")[:80] or "run"


def run_of(checkpoint: Path) -> RunDir | None:
    """The run that a path to a checkpoint leads into, whether the checkpoint is there or not; None for any
    other path."""
    run = RunDir(checkpoint.parent.parent)
    return run if checkpoint.parent.name == run.checkpoints.name and run.exists() else None


def list_runs(runs_dir: str | Path) -> list[RunDir]:
    """Every run in `runs_dir`, the most recently active first; empty if there is no such folder.

    Raises UserError if it is a file.
    """
    return folders_of(runs_dir, RunDir)


def folders_of(runs_dir: str | Path, kind: type[Kind]) -> list[Kind]:
    """The same of runs or of series."""
    root = Path(runs_dir)
    if root.is_file():
        raise UserError(f"{root}: is a file; name the folder of the runs")
    if not root.is_dir():
        return []
    runs = [kind(path) for path in root.iterdir() if not path.name.startswith(".")]
    return sorted((run for run in runs if run.exists()), key=lambda run: (-_last_active(run), run.name))


def find_run(runs_dir: str | Path, name: str | None = None) -> RunDir:
    """The run `name`, or the most recently active one.

    Raises UserError if there is none, or if the latest is one of a series, which must be named:
    SERIES/round-1.
    """
    return find_folder(runs_dir, name, RunDir)


def find_folder(runs_dir: str | Path, name: str | None, kind: type[Kind]) -> Kind:
    """The same of runs or of series."""
    found = folders_of(runs_dir, kind)
    if name is None and found:
        # Which run of a series is meant nobody can know, and an older one is not the latest.
        latest = runs_below(runs_dir)[0].path if kind is RunDir else found[0].path
        if latest == found[0].path:
            return found[0]
    if name is not None and (run := kind(spelled(Path(runs_dir) / name))).exists():
        return run
    one, several = kind.nouns
    # Where series are looked for, their runs are no answer.
    known = [path_in(runs_dir, run) for run in (runs_below(runs_dir) if kind is RunDir else found)]
    inside = [run for run in known if name is None or Path(name) in Path(run).parents]
    if kind is RunDir and inside:
        within = Path(runs_dir) / (name or "")
        holds = (
            f"the latest run is {inside[0]}, of a series" if name is None and found else "holds several runs"
        )
        raise UserError(f"{within}: {holds}; name one of them: {', '.join(inside[:5])}")
    if not known:
        raise UserError(
            f"{runs_dir}: no {several} here; start one with `{command_line(kind.command, 'RECIPE')}` "
            "or give --runs-dir"
        )
    raise UserError(f"{runs_dir}: no {one} named {name!r}; the latest are {', '.join(known[:5])}")


def runs_below(runs_dir: str | Path) -> list[RunDir]:
    """Every run in `runs_dir` and in the series there, the most recently active first.

    Raises UserError if it is a file.
    """
    root, runs = Path(runs_dir), list_runs(runs_dir)
    if root.is_dir():
        own = {run.path for run in runs}
        folders = (path for path in root.iterdir() if path.is_dir() and path not in own)
        runs += [run for folder in folders if not folder.name.startswith(".") for run in list_runs(folder)]
    return sorted(runs, key=lambda run: (-_last_active(run), run.path))


def runs_dir_of(run: RunDir) -> Path:
    """The folder in which commands look for a run, or a series: that of its series for a run of one."""
    folder = run.path.parent
    # Of `.` and `..` the folder above has no name here.
    is_named = folder.name not in ("", "..")
    is_series = is_named and any((folder / recipe).is_file() for recipe in SERIES_RECIPES)
    return folder.parent if is_series else folder


def path_in(runs_dir: str | Path, run: RunDir) -> str:
    """What a run in `runs_dir` is called: its name, or SERIES/NAME."""
    return run.path.relative_to(runs_dir).as_posix()


def _last_active(run: RunDir) -> float:
    for path in (run.events, run.recipe):
        try:
            return path.stat().st_mtime
        except FileNotFoundError:
            continue
    return 0.0


def _folder_error(run: RunDir, error: OSError) -> UserError:
    """The error for the folder of a run that cannot be made."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return UserError(f"{run.path}: expected a folder for the run, found a file in the way")
    if isinstance(error, PermissionError):
        return UserError(f"{run.path}: no permission to make this folder; give another --runs-dir")
    if out_of_space(error):
        return no_space_error(run.path, _LOCK_BYTES)
    return UserError(f"{run.path}: this folder cannot be made: {error.strerror}")
