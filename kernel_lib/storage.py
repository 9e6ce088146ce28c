"""Atomic writes, folder locks, and zip archives read with size limits."""

from __future__ import annotations

import errno
import glob
import io
import json
import lzma
import os
import secrets
import shlex
import shutil
import socket
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from kernel_lib.errors import InputError

# Own locks instead of filelock: version 3.29, in Kaggle's image, truncates a held lock file when
# another process requests it, which loses the holder's name, or what is being written.
try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None

# DataLoader workers of a killed process inherit its lock; every 5 s they check for their parent.
ORPHAN_GRACE_S = 15.0


@contextmanager
def atomic_write(path: Path, mode: str = "wb", **open_options: Any) -> Iterator[IO]:
    """Open a file that takes its name only once it is complete and on the disk.

    It is written beside `path` under a temporary name, flushed, then renamed: a reader, or a
    process started after a kill, sees the old file or the new one and never a part. An exception
    inside removes the temporary file and leaves the old one as it was; the next write removes what
    a killed process left.

    Raises: InputError with the space needed and free if the disk is full, or if no file can be
    created.
    """
    path = Path(path)
    part, written = None, 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = _open_part(path)
        with os.fdopen(handle, mode, **open_options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames no open file
            part.replace(path)  # while its lock is still held
    except BaseException as error:
        if part is not None and part.exists():
            written = part.stat().st_size
            part.unlink(missing_ok=True)
        if disk_full(error):
            raise InputError(_no_space_text(path, written)) from error
        if part is None and isinstance(error, OSError):
            raise InputError(_cannot_write_text(path, error)) from error
        raise


def check_writable(folder: Path, setting: str) -> None:
    """Raise InputError where no file can be made in a folder, which need not exist yet.

    `setting` is the notebook's parameter that names it, or a command's option with its dashes.
    """
    try:
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        with disk_full_as_input_error(folder), tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        option = setting if setting.startswith("-") else f"-p {setting}"
        raise InputError(
            _cannot_write_text(f"{setting} {folder}", error, f"{option} another folder")
        ) from error


def check_output(
    folder: Path, names: Iterable[str], is_ours: Callable[[], bool], kind: str
) -> None:
    """Raise InputError if `-o folder` cannot be written, or holds more than an earlier result.

    `names` are all files and folders of a result, `is_ours` returns whether they are one, and
    `kind` names it in the message.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"-o {folder} is a file: give a folder")
    check_writable(folder, "-o")
    paths = folder.iterdir() if folder.exists() else ()
    existing = {path.name for path in paths if not path.name.startswith(".")}
    foreign = existing - set(names)
    if existing and not foreign and not is_ours():
        foreign = existing
    if foreign:
        raise InputError(
            f"-o {folder} holds {min(foreign)}, and no earlier {kind}: give a new folder, or an "
            "empty one"
        )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, complete or not at all."""
    with atomic_write(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_json(path: Path, value: Any, default: Callable | None = None) -> None:
    """Write indented JSON, complete or not at all; NaN raises ValueError, since JSON has none."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, default=default) + "\n")


@contextmanager
def replace_files(folder: Path, remove: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a folder; files written to it then replace those of `folder`, in order of name.

    After an exception, of a full disk say, all of `folder` is as it was. `remove` names files of
    `folder` that are deleted before the first is replaced. For one process at a time
    (`folder_lock`).
    """
    with _staging_folder(folder) as staging:
        yield staging
        folder.mkdir(parents=True, exist_ok=True)
        for stale in remove:
            (folder / stale).unlink(missing_ok=True)
        for path in sorted(staging.iterdir()):
            path.replace(folder / path.name)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, which then takes the place of `folder` and all that it held.

    After an exception `folder` is the old one; after a kill it is the old or the new one, once the
    next call, or `recover_folder`, has put it back. For one process at a time (`folder_lock`).
    """
    recover_folder(folder)
    try:
        with _staging_folder(folder) as staging:
            yield staging
            if folder.exists():  # rename cannot replace a folder that is not empty
                folder.replace(_hidden(folder, "old"))
            staging.replace(folder)
    finally:
        recover_folder(folder)


def recover_folder(folder: Path) -> None:
    """Restore or remove what a process killed in `atomic_folder` left; call under `folder_lock`."""
    before = _hidden(folder, "old")
    if before.exists() and not folder.exists():  # killed between the two renames
        before.replace(folder)
    for stale in (_hidden(folder, "part"), before):
        shutil.rmtree(stale, ignore_errors=True)


@contextmanager
def _staging_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, and remove it afterwards."""
    staging = _hidden(folder, "part")
    shutil.rmtree(staging, ignore_errors=True)  # of a killed process
    try:
        with disk_full_as_input_error(folder):
            staging.mkdir(parents=True)
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _hidden(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


@contextmanager
def disk_full_as_input_error(path: Path) -> Iterator[None]:
    """Turn an error of a full disk within the block into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        if disk_full(error):
            raise InputError(_no_space_text(path, 0)) from error
        raise


def disk_full(error: BaseException | None) -> bool:
    """Return whether a full disk caused an error, itself or somewhere in its chain of causes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full_text(path: Path) -> str:
    """Return the words that the disk of `path` is full, with the space that is left."""
    place = next(folder for folder in (path, *path.parents) if folder.exists())
    free = f"{shutil.disk_usage(place).free / 1e6:.1f} MB free"
    if hasattr(os, "statvfs"):
        counts = os.statvfs(place)
        if counts.f_files and not counts.f_favail:  # f_files is 0 on disks without inodes
            return f"its disk is full, with room for no other file, {free}"
    return f"its disk is full, with {free}"


@contextmanager
def folder_lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Lock a folder for this process, by a locked hidden file beside it.

    After a kill the file remains, unlocked. Processes on other machines are excluded too if the
    shared file system supports locks; on Windows nothing is locked.

    Raises: InputError that names another process that holds the folder, unless `wait` asks to print
    that and wait; or if no file can be created there.
    """
    if fcntl is None:
        yield
        return
    path = _hidden(folder, "lock")
    try:
        with disk_full_as_input_error(folder):
            handle = _open_locked(path, folder, wait)
    except OSError as error:
        raise InputError(_cannot_write_text(folder, error)) from error
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)  # still locked: a waiting process then tries again
        finally:
            os.close(handle)


def _open_locked(path: Path, folder: Path, wait: bool) -> int:
    """Return an open, locked file that names this process."""
    deadline = time.monotonic() + ORPHAN_GRACE_S
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _lock(handle)
            if not locked:
                owner = _owner(handle)
                if wait:
                    print(f"{folder}: waiting for {_owner_text(owner)}", flush=True)
                    locked = _lock(handle, wait=True)
                elif _is_gone(owner) and time.monotonic() < deadline:
                    time.sleep(0.1)  # its orphaned workers still hold the lock
                else:
                    raise InputError(
                        f"{folder} is being worked in by {_owner_text(owner)}: wait until it has "
                        "ended, or end it; two would write over each other"
                    )
            if locked and _still_named(handle, path):
                _write_owner(handle, path)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # not locked, or a file that its previous holder has deleted: try again


def _write_owner(handle: int, path: Path) -> None:
    """Write this process into a locked file, or remove the file where the disk is full."""
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join(shlex.join(sys.orig_argv).split())[:200],
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    }
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(owner).encode(), 0)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _owner(handle: int) -> dict[str, Any]:
    try:
        return json.loads(os.pread(handle, 4096, 0))
    except ValueError:  # just locked, its owner not written yet
        return {}


def _owner_text(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    return f"process {owner['pid']} on {owner['host']} since {owner['since']} ({owner['command']})"


def _is_gone(owner: dict[str, Any]) -> bool:
    """Return whether the process was one of this machine and has ended."""
    if not owner or owner["host"] != socket.gethostname():
        return False
    try:
        os.kill(owner["pid"], 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


def _lock(handle: int, wait: bool = False) -> bool:
    """Lock an open file; return False if another process holds it, True without file locks."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:  # any other error: a file system without locks
        return not isinstance(error, BlockingIOError)
    return True


def _still_named(handle: int, path: Path) -> bool:
    """Return whether `path` is still this open file."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _open_part(path: Path) -> tuple[int, Path]:
    """Return a new, locked temporary file beside `path`; delete stale ones, locked by nobody."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        try:
            handle = os.open(stale, os.O_RDONLY)
        except FileNotFoundError:
            continue
        if _lock(handle):
            with suppress(PermissionError):  # on Windows it is open
                stale.unlink(missing_ok=True)
        os.close(handle)
    while True:
        part = _hidden(path, f"{secrets.token_hex(4)}.part")
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if _lock(handle) and _still_named(handle, part):
            return handle, part
        os.close(handle)  # another process deleted it as stale before it was locked


def _cannot_write_text(what: Path | str, error: OSError, fix: str = "choose another folder") -> str:
    return f"{what} cannot be written ({error.strerror or error}): fix that, or {fix}"


def _no_space_text(path: Path, written: int) -> str:
    before = path.stat().st_size if path.is_file() else 0
    needed = max(written, before) / 1e6
    needs = f"it needs {needed:.1f} MB or more, and " if needed >= 0.1 else ""
    stays = "the old one is as it was; " if before else ""
    return (
        f"{path} cannot be written: {needs}{disk_full_text(path)}: free some space and run the "
        f"same command again ({stays}finished work is kept)"
    )


# What reading a damaged file may raise: zip structure, compression, encryption, names, JSON.
DAMAGED_FILE_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, KeyError, OSError,
    OverflowError, RuntimeError, ValueError, MemoryError,
)  # fmt: skip


class ArchiveError(InputError):
    """A fault in an archive; the message does not name the archive, so that the caller can."""


class _OwnPosition(io.FileIO):
    """A file to read whose position is this object's: forked processes share that of its handle."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._at = 0

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = max(0, os.fstat(self.fileno()).st_size - self._at)
        data = os.pread(self.fileno(), size, self._at)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence)
        if start is None:
            start = os.fstat(self.fileno()).st_size
        if start + offset < 0:
            raise OSError(errno.EINVAL, "a position before the file's start")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def __del__(self) -> None:
        self.close()  # an archive does not close a file that it was given


def open_archive(source: Path | IO[bytes]) -> zipfile.ZipFile:
    """Return the open archive, its list of members read; forked processes may read it too.

    Raises:
        FileNotFoundError: There is no such file.
        ArchiveError: It is damaged, or lists a member twice.
    """
    try:
        if isinstance(source, Path) and hasattr(os, "pread"):  # not on Windows, nor is fork
            source = _OwnPosition(source)
        archive = zipfile.ZipFile(source)
    except FileNotFoundError:
        raise
    except DAMAGED_FILE_ERRORS as error:
        raise ArchiveError(str(error) or type(error).__name__) from error
    names = archive.namelist()
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ArchiveError(f"it holds {repeated!r} twice")
    return archive


def read_member(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    """Return a member's bytes, reading at most `max_bytes`; ArchiveError if it is larger."""
    try:
        with archive.open(name) as member:
            content = member.read(max_bytes + 1)  # at its end a wrong checksum raises
    except DAMAGED_FILE_ERRORS as error:
        raise ArchiveError(f"{name}: {error or type(error).__name__}") from error
    if len(content) > max_bytes:
        raise ArchiveError(f"{name} unpacks to more than {max_bytes:,} bytes")
    return content
