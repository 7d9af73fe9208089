"""The folder of a run: its layout, its lock, its state, and the list of all runs.

runs/NAME/
    recipe.yaml          the resolved recipe; a run belongs to one recipe for good
    events.jsonl         the event log
    checkpoints/         step-000120/, ... and LATEST, a symbolic link to the newest
    control/             commands for the worker, a file each
    worker.log           stdout and stderr of the worker
    lock                 held (flock) and signed with its process id by the worker while it lives
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from localdpo.core.atomic import clean_leftovers, fsync_dir, write_text
from localdpo.core.errors import UserError
from localdpo.core.events import Event, read_events

State = Literal["new", "running", "finished", "failed", "stopped", "crashed"]

_ENDS: Final[dict[str, State]] = {
    "run.finished": "finished",
    "run.failed": "failed",
    "run.stopped": "stopped",
    "run.crashed": "crashed",
}
_STARTS: Final = frozenset({"run.started", "run.resumed"})
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
# A look at the lock (`is_running`) holds it for microseconds; a worker that starts just then waits it out.
_LOCK_PATIENCE: Final = 0.5


class RunDir:
    """The paths of one run and what can be told from them. Making one touches nothing on the disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.events = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.latest = self.checkpoints / "LATEST"
        self.control = self.path / "control"
        self.worker_log = self.path / "worker.log"
        self.lock = self.path / "lock"

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
        differences: Callable[[str, str], str] | None = None,
    ) -> RunDir:
        """The run `name`, made if it is not there yet, with `recipe_text` as its recipe.

        A run that has the same recipe text is given back as it is. Raises UserError if it has another
        recipe; `differences(old_text, new_text)` may then say in a few words what differs. Raises
        UserError too for a name that is no plain file name and for a folder that holds something else.
        """
        check_name(name)
        run = cls(Path(runs_dir) / name)
        if run.exists():
            _refuse_other_recipe(run, recipe_text, differences)
            return run
        _make_folder(run)
        write_text(run.recipe, recipe_text)
        fsync_dir(run.path.parent)
        return run

    def clean(self) -> None:
        """Take away what an earlier crash left half written. Only for the holder of the lock."""
        clean_leftovers(self.path)
        clean_leftovers(self.checkpoints)
        clean_leftovers(self.control)

    def checkpoint_path(self, step: int) -> Path:
        """`checkpoints/step-000120` of this run."""
        return self.checkpoints / f"step-{step:06d}"

    def is_running(self) -> bool:
        """Whether a worker lives. Only looks: the lock is tried and let go at once."""
        try:
            fd = os.open(self.lock, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
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


def is_end(event: Event) -> bool:
    """Whether the event ends a worker's life."""
    return event.type in _ENDS


def state_of(events: Iterable[Event], running: bool) -> State:
    """The state that follows from the events of a run and from whether its lock is held.

    A run that was started, has not ended and holds no lock has crashed.
    """
    if running:
        return "running"
    state: State = "new"
    for event in events:
        state = "crashed" if event.type in _STARTS else _ENDS.get(event.type, state)
    return state


class RunLock:
    """The worker's hold on its run, for as long as it lives. The kernel lets go when the process dies.

    A context manager. `acquire` raises UserError when another worker has it. `signed=False` leaves the
    process id of the last worker in it (for who writes a dead worker's end).
    """

    def __init__(self, run: RunDir, *, signed: bool = True) -> None:
        self.run = run
        self._signed = signed
        self._fd: int | None = None

    def acquire(self) -> None:
        fd = os.open(self.run.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _flock_patiently(fd)
        except BlockingIOError:
            os.close(fd)
            raise already_running(self.run) from None
        if self._signed:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


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


def new_run_name(runs_dir: str | Path, prefix: str) -> str:
    """The first of PREFIX, PREFIX-2, PREFIX-3, ... that does not exist in `runs_dir`.

    Characters that a run name cannot have become '-'.
    """
    stem = _stem(prefix)
    number = 1
    while True:
        name = stem if number == 1 else f"{stem}-{number}"
        if not os.path.lexists(Path(runs_dir) / name):
            return name
        number += 1


def runs_of(runs_dir: str | Path, prefix: str) -> list[RunDir]:
    """The runs that `new_run_name(runs_dir, prefix)` named, the most recently active first."""
    pattern = re.compile(rf"{re.escape(_stem(prefix))}(-[0-9]+)?")
    return [run for run in list_runs(runs_dir) if pattern.fullmatch(run.name)]


def _stem(prefix: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", prefix).lstrip(".-")[:80] or "run"


def run_of(checkpoint: Path) -> RunDir | None:
    """The run that a path to a checkpoint leads into, whether the checkpoint is there or not; None for any
    other path."""
    run = RunDir(checkpoint.parent.parent)
    return run if checkpoint.parent.name == run.checkpoints.name and run.exists() else None


def list_runs(runs_dir: str | Path) -> list[RunDir]:
    """Every run in `runs_dir`, the most recently active first; empty if there is no such folder."""
    root = Path(runs_dir)
    if not root.is_dir():
        return []
    runs = [RunDir(path) for path in root.iterdir() if not path.name.startswith(".")]
    return sorted((run for run in runs if run.exists()), key=lambda run: (-_last_active(run), run.name))


def find_run(runs_dir: str | Path, name: str | None = None) -> RunDir:
    """The run `name`, or the most recently active one. Raises UserError if there is none."""
    runs = list_runs(runs_dir)
    if not runs:
        raise UserError(
            f"{runs_dir}: no runs here; start one with `localdpo train RECIPE` or give --runs-dir"
        )
    if name is None:
        return runs[0]
    for run in runs:
        if run.name == name:
            return run
    known = ", ".join(run.name for run in runs[:5])
    raise UserError(f"{runs_dir}: no run named {name!r}; the latest are {known}")


def _last_active(run: RunDir) -> float:
    for path in (run.events, run.recipe):
        try:
            return path.stat().st_mtime
        except FileNotFoundError:
            continue
    return 0.0


def _refuse_other_recipe(
    run: RunDir, recipe_text: str, differences: Callable[[str, str], str] | None
) -> None:
    old = run.recipe.read_text(encoding="utf-8")
    if old == recipe_text:
        return
    what = f" ({differences(old, recipe_text)})" if differences is not None else ""
    raise UserError(f"{run.path}: this run belongs to another recipe{what}; choose another --run name")


def _make_folder(run: RunDir) -> None:
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{run.path}: expected a folder for the run, found a file in the way") from None
    except PermissionError:
        raise UserError(f"{run.path}: no permission to make this folder; give another --runs-dir") from None
    clean_leftovers(run.path)
    if found := sorted(path.name for path in run.path.iterdir()):
        raise UserError(
            f"{run.path}: not the folder of a run (no recipe.yaml, but {found[0]}); choose another --run name"
        )
