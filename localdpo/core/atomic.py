"""Writes that are either there in full or not at all.

The way is always the same: write beside the target under a temporary name, force it to the disk, rename
it over the target, force the folder. A process that is killed between any two of these calls leaves the
old content or the new, never a mixture, and at most a temporary that `clean_leftovers` takes away.
The trade-off: each write costs two or three disk flushes, so this is for files of which a run writes a
few (recipes, checkpoints), not for the event log.

A folder cannot be renamed over a full one. `published_dir` then sets the old one aside first; between the
two renames neither has its name, and `clean_leftovers` puts the old one back if the kill came there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from localdpo.core.errors import UserError

MANIFEST: Final = "manifest.json"
MANIFEST_VERSION: Final = 1
_TEMP: Final = "tmp"
_ASIDE: Final = "old"
# The name of a temporary, of a crash or of a living writer.
_LEFTOVER: Final = re.compile(rf"\.(?P<name>.+)\.(?P<kind>{_TEMP}|{_ASIDE})-[0-9a-f]{{12}}")
# What Finder, macOS on foreign disks (a `._NAME` beside every NAME) and Windows' Explorer leave in folders.
_LITTER: Final = re.compile(
    r"\.DS_Store|\._.+|\.localized|\.apdisk|\.fseventsd|\.Spotlight-V100|\.Trashes|\.TemporaryItems|Icon\r"
    r"|Thumbs\.db|desktop\.ini"
)
# What a file system says that has no symbolic links (exFAT, FAT, many network shares) or no locks.
_UNSUPPORTED: Final = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK}
)
# mlx (0.32) says a short write in these words, without the errno.
_MLX_WRITE_FAILED: Final = "Unable to write"
# What a disk or its permissions say when they refuse a call that names a file.
_REFUSED: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EIO, errno.ENOSPC, errno.EDQUOT}
    # A name that goes through a file, or round in links.
    | {errno.ENOTDIR, errno.ELOOP}
)
# With less free nothing useful can be written, an explanation included.
LEAST_BYTES: Final = 64 * 1024
_DEAD_AFTER_SECONDS: Final = 3600.0
# How a file begins that stands for one in Git LFS.
_LFS: Final = b"version https://git-lfs.github.com/spec/"
# A file above this is not hashed completely.
WHOLE_FILE: Final = 64 * 2**20
SAMPLES, SAMPLE_BYTES = 32, 2**16


# --- space ---------------------------------------------------------------------------------------------


def out_of_space(error: OSError) -> bool:
    """Whether `error` says that the disk, or the person's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def free_bytes(path: Path) -> int:
    """Bytes that an ordinary user can still write on the file system that holds `path`."""
    folder = path.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def is_full(folder: Path) -> bool:
    """Whether not even LEAST_BYTES can be written into `folder`. Tried out: a quota shows in no number."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(LEAST_BYTES))
            file.flush()
    except OSError as error:
        return out_of_space(error)
    return False


def no_space_error(path: Path, needed: int) -> UserError:
    """The error for a file `path` that does not fit on the disk: bytes needed and bytes free."""
    return UserError(
        f"{path}: no space left on the disk (or over quota): {needed:,} bytes needed, "
        f"{free_bytes(path):,} free; make room and run the same command again"
    )


def is_refusal(error: BaseException) -> bool:
    """Whether a disk or its permissions refused a file."""
    return isinstance(error, OSError) and error.errno in _REFUSED and error.filename is not None


@contextlib.contextmanager
def disk_refusals() -> Iterator[None]:
    """Turn every refusal by a disk or its permissions within the block into a UserError.

    The code that opens a file explains other OSErrors (such as a missing file); the rest are bugs.
    """
    try:
        yield
    except OSError as error:
        if not is_refusal(error):
            raise
        path = Path(os.fsdecode(error.filename))
        leftover = _LEFTOVER.fullmatch(path.name)
        path = path if leftover is None else path.with_name(leftover["name"])
        raise UserError(f"{path}: cannot be read or written ({error.strerror})") from error


def require_space(path: Path, needed: int) -> None:
    """Raise UserError unless `needed` bytes are free where `path` is (or will be)."""
    if free_bytes(path) < needed:
        raise no_space_error(path, needed)


@contextlib.contextmanager
def _temporary(final: Path, needed: int) -> Iterator[Path]:
    """A new name beside `final` to write `needed` bytes to; what is there goes when the block raises.

    Raises UserError about `final` where they do not fit, before the block or in it.
    """
    require_space(final, needed)
    temp = _beside(final, _TEMP)
    try:
        yield temp
    except BaseException as error:
        full = _says_full(error, final)
        # A temporary that cannot be taken away now (a disk in trouble) must not hide what went wrong.
        with contextlib.suppress(OSError):
            _remove(temp)
        if full:
            raise no_space_error(final, needed) from error
        raise


def _says_full(error: BaseException, path: Path) -> bool:
    if isinstance(error, OSError):
        return out_of_space(error)
    mlx_failed = isinstance(error, RuntimeError) and _MLX_WRITE_FAILED in str(error)
    return mlx_failed and free_bytes(path) <= LEAST_BYTES


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_unsupported(error: OSError) -> bool:
    """Whether `error`, of making a link or taking a lock, says that the file system knows no such thing."""
    return error.errno in _UNSUPPORTED


# --- what file managers leave ----------------------------------------------------------------------------


def entries(folder: Path, pattern: str = "*") -> list[Path]:
    """What is in a folder and matches `pattern`, sorted, without the litter of file managers."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if not _LITTER.fullmatch(path.name) or _LEFTOVER.fullmatch(path.name)
    )


def newest_first(folder: Path, pattern: str) -> list[Path]:
    """`entries`, the most recently written first, without those that go meanwhile."""
    stamped = []
    for path in entries(folder, pattern):
        with contextlib.suppress(FileNotFoundError):
            stamped.append((-path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(stamped)]


def remove_empty_dir(folder: Path) -> None:
    """`rmdir` of a folder in which nothing but such litter is. Raises OSError when there is more."""
    if not entries(folder):
        for path in folder.iterdir():
            _remove(path)
    folder.rmdir()


# --- flushing ------------------------------------------------------------------------------------------


def fsync_fd(fd: int) -> None:
    """Force an open file to the disk. On macOS fsync stops at the drive's cache; F_FULLFSYNC does not."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        try:
            fcntl.fcntl(fd, full)
            return
        except OSError as error:
            # Network and some foreign file systems do not know the call; plain fsync is what they have.
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
    os.fsync(fd)


def fsync_dir(path: Path) -> None:
    """Force the names in a folder to the disk, where the file system can (network shares often cannot)."""
    try:
        _fsync_path(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise


def _fsync_path(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        fsync_fd(fd)
    finally:
        os.close(fd)


# --- files and links -----------------------------------------------------------------------------------


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of the UTF-8 form of `text`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Put `data` at `path`, replacing what is there. Raises UserError when it does not fit the disk."""
    path = Path(path)
    with _temporary(path, len(data)) as temp:
        _write_through(temp, data)
        os.replace(temp, path)
        fsync_dir(path.parent)


@contextlib.contextmanager
def published_file(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to and to read from, which takes the place of `path` when the block ends.

    When the block raises, the file is removed and `path` stays as it was. Raises OSError, also for a full
    disk: only the caller knows how to say it.
    """
    temp = _beside(path, _TEMP)
    try:
        with temp.open("x+b") as file:
            yield file
            file.flush()
            fsync_fd(file.fileno())
        os.replace(temp, path)
        fsync_dir(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)


def _write_through(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fsync_fd(fd)
    finally:
        os.close(fd)


def replace_symlink(link: str | Path, target: str) -> None:
    """Make `link` a symbolic link to `target` (kept as given, so relative stays relative), atomically."""
    link = Path(link)
    with _temporary(link, len(target)) as temp:
        os.symlink(target, temp)
        os.replace(temp, link)
        fsync_dir(link.parent)


# --- folders -------------------------------------------------------------------------------------------


def make_folder(folder: Path) -> None:
    """Create a folder that a person named, and those above it, unless it is there. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if out_of_space(error):
            raise no_space_error(folder, LEAST_BYTES) from error
        raise UserError(f"{folder}: this folder cannot be made ({error.strerror}); name another") from error


@contextlib.contextmanager
def new_dir(final: Path, needed: int) -> Iterator[Path]:
    """Give an empty folder to fill with files; it takes the name `final` when the block ends.

    Where a folder that holds anything has that name by then, it stays and OSError is raised: of several
    processes one makes it. UserError as in `published_dir`.
    """
    with _temporary(final, needed) as temp:
        os.mkdir(temp)
        yield temp
        for path in entries(temp):
            _fsync_path(path)
        os.rename(temp, final)
        fsync_dir(final.parent)


@contextlib.contextmanager
def published_dir(final: Path, needed: int, *, replace: bool = True) -> Iterator[Path]:
    """Give an empty folder to fill with files; publish it as `final`, with its manifest, when the block ends.

    An earlier folder `final` is replaced, unless `replace` is false; it stays as it was when the block
    raises. `needed` is the size of what will be written, in bytes, checked before. Raises UserError when the
    disk is full, also when it is mlx that could not write, and when `final` came to be meanwhile and is not
    to be replaced.
    """
    with _temporary(final, needed) as temp:
        os.mkdir(temp)
        yield temp
        for path in entries(temp):
            _fsync_path(path)
        write_manifest(temp)
        fsync_dir(temp)
        aside = _beside(final, _ASIDE)
        replaced = replace and final.is_dir()
        if replaced:
            os.rename(final, aside)
        try:
            os.rename(temp, final)
        except BaseException as error:
            if replaced:
                os.rename(aside, final)
            elif isinstance(error, OSError) and final.is_dir():
                raise UserError(
                    f"{final}: another process wrote this folder meanwhile, and it is not replaced; name "
                    "another folder"
                ) from error
            raise
        fsync_dir(final.parent)
        if replaced:
            shutil.rmtree(aside)


def remove_dir(folder: Path) -> None:
    """Take a folder away. A kill in the middle leaves a temporary, never a half of it under its name."""
    temp = _beside(folder, _TEMP)
    os.rename(folder, temp)
    shutil.rmtree(temp)


def write_manifest(folder: Path) -> None:
    """Write `manifest.json`: size and sha256 of every other file of `folder`, forced to the disk."""
    files: dict[str, Any] = {}
    for path in entries(folder):
        if not path.is_file() or path.is_symlink():
            raise ValueError(f"{path}: only plain files can be published")
        if path.name != MANIFEST:
            files[path.name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    text = json.dumps({"v": MANIFEST_VERSION, "files": files}, indent=1, sort_keys=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    _write_through(folder / MANIFEST, text.encode() + b"\n")


def published_names(folder: Path) -> set[str]:
    """The names of what was published as a folder, by its manifest; empty where that cannot be read."""
    try:
        return {MANIFEST, *_read_manifest((folder / MANIFEST).read_bytes())}
    except (OSError, ValueError, RecursionError):
        return set()


def verified_digests(
    folder: str | Path, only: Sequence[str] | None = None
) -> tuple[dict[str, str], list[str]]:
    """The sha256 of each file of a published folder, by name, and what is wrong with them.

    `only`: the files to look at; None: all that the manifest names. Files that the manifest does not name are
    no problem (a file manager leaves some).
    """
    folder = Path(folder)
    try:
        files = _read_manifest((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return {}, [f"{folder}: {MANIFEST} is missing"]
    except (OSError, ValueError, RecursionError) as error:
        return {}, [f"{folder / MANIFEST}: not readable: {error}"]
    problems = [f"{folder / MANIFEST}: it does not name {name}" for name in only or () if name not in files]
    wanted = {name: entry for name, entry in files.items() if only is None or name in only}
    problems += [text for name, entry in wanted.items() if (text := _file_problem(folder / name, entry))]
    return {name: entry["sha256"] for name, entry in wanted.items()}, problems


def _read_manifest(content: bytes) -> dict[str, dict[str, Any]]:
    record = json.loads(content)
    if not isinstance(record, dict) or record.get("v") != MANIFEST_VERSION:
        raise ValueError(f"expected a manifest of version {MANIFEST_VERSION}")
    files = record.get("files")
    if not isinstance(files, dict) or not files:
        raise ValueError("it names no files")
    for name, entry in files.items():
        if name in ("", ".", "..") or "/" in name or not name.isprintable():
            raise ValueError(f"{name!r} is not a plain file name")
        if not isinstance(entry, dict) or not {"sha256", "bytes"} <= entry.keys():
            raise ValueError(f"the entry of {name!r} lacks sha256 or bytes")
    return files


def _file_problem(path: Path, entry: dict[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{path}: {size} bytes, expected {entry['bytes']}"
        if sha256_of(path) != entry["sha256"]:
            return f"{path}: its sha256 is not the one in {MANIFEST}"
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: not readable: {error.strerror}"
    return None


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_fetched(path: Path) -> None:
    """Raise UserError for a file of which Git LFS has left its pointer only, as a clone without it does."""
    with path.open("rb") as stream:
        if stream.read(len(_LFS)) == _LFS:
            raise UserError(
                f"{path}: only the pointer that Git LFS keeps in the file's place; fetch it: git lfs pull"
            )


def file_hash(file: Path) -> bytes:
    """A hash that stands for the content of a file: of all of it, or, above WHOLE_FILE, of its size, its time
    and samples of its bytes."""
    stat = file.stat()
    with file.open("rb") as stream:
        if stat.st_size <= WHOLE_FILE:
            return hashlib.file_digest(stream, "sha256").digest()
        digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        for part in range(SAMPLES):
            stream.seek(stat.st_size * part // SAMPLES)
            digest.update(stream.read(SAMPLE_BYTES))
        return digest.digest()


# --- leftovers -----------------------------------------------------------------------------------------


def clean_leftovers(folder: Path, *, shared: bool = False) -> None:
    """Take away the temporaries of an earlier crash in `folder` (not below it).

    A folder that was set aside goes back to its name if nothing took its place. Only the one process that
    writes here may call this: the temporaries of a living writer would go too. `shared`: others write here as
    well, so only what nobody has written to for an hour goes.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        # Another process may take it away at the same time.
        with contextlib.suppress(FileNotFoundError):
            if shared and time.time() - path.lstat().st_mtime <= _DEAD_AFTER_SECONDS:
                continue
            final = folder / match["name"]
            if match["kind"] == _ASIDE and not final.exists():
                os.rename(path, final)
            else:
                _remove(path)


def _beside(path: Path, kind: str) -> Path:
    """A new hidden name in the folder of `path`; temporaries must be on the same file system."""
    return path.with_name(f".{path.name}.{kind}-{secrets.token_hex(6)}")
