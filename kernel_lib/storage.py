"""Writes that appear whole or not at all, and folders that one process at a time works in."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from kernel_lib.errors import InputError

# A killed process's forked children look after their parent every five seconds.
ORPHANS_END_S = 15.0


@contextmanager
def atomic_write(path: Path, mode: str = "wb", **open_options: Any) -> Iterator[IO]:
    """A file that takes its name only once it is complete and on the disk.

    Written beside `path` under a temporary name, flushed, then renamed: a reader, or a process
    started after a kill, sees the old file or the new one and never a part. Whatever breaks
    inside removes the temporary file and leaves the old one as it was; what a killed process left
    goes with the next write. Raises InputError, with what it needs and what is free, where the
    disk is full, and with the reason where no file can be made there.
    """
    path = Path(path)
    name, written = None, 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = _part(path)
        with os.fdopen(handle, mode, **open_options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # mkstemp makes files private; artefacts are for whoever may read the folder.
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)  # before the lock on it goes
    except BaseException as error:
        if name is not None and os.path.exists(name):
            written = os.stat(name).st_size
            Path(name).unlink(missing_ok=True)
        if disk_full(error):
            raise InputError(_no_room(path, written)) from error
        if name is None and isinstance(error, OSError):
            raise InputError(_cannot(path, error)) from error
        raise


def check_writable(folder: Path, setting: str) -> None:
    """InputError where no file can be made in a folder, before hours are spent on what it is for.

    The folder need not be there yet, and is not made. `setting` names it: a notebook's parameter,
    or a command's option with its dashes.
    """
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with named_if_full(folder), tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        given = setting if setting.startswith("-") else f"-p {setting}"
        raise InputError(
            f"{setting} {folder} cannot be written ({error.strerror or error}): fix that, or "
            f"{given} another folder"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with atomic_write(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_json(path: Path, value: Any, default: Callable | None = None) -> None:
    """Write indented JSON, whole or not at all; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, default=default) + "\n")


@contextmanager
def replace_files(folder: Path, without: Iterable[str] = ()) -> Iterator[Path]:
    """A folder to write files in that then replace those of `folder`, by name in order.

    Where something breaks, a full disk say, all of `folder` stays as it was. `without` names files
    that are removed before the first is replaced. For one process at a time (`folder_lock`).
    """
    with _aside(folder) as aside:
        yield aside
        folder.mkdir(parents=True, exist_ok=True)
        for stale in without:
            (folder / stale).unlink(missing_ok=True)
        for path in sorted(aside.iterdir()):
            path.replace(folder / path.name)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which then takes the place of `folder` and of all that it held.

    Where something breaks, or the process is killed, `folder` is the old one or the new one, or is
    the old one again once `tidy` has been called, as the next call does. For one process at a time
    (`folder_lock`).
    """
    tidy(folder)
    try:
        with _aside(folder) as aside:
            yield aside
            if folder.exists():  # no folder can be renamed onto one that holds something
                folder.replace(_before(folder))
            aside.replace(folder)
    finally:
        tidy(folder)


def tidy(folder: Path) -> None:
    """Remove what a process killed in `atomic_folder` left; call it under `folder_lock`."""
    before = _before(folder)
    if before.exists() and not folder.exists():  # killed between the two renames
        before.replace(folder)
    for left in (_part_of(folder), before):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """An empty folder beside that one, of which nothing stays."""
    aside = _part_of(folder)
    shutil.rmtree(aside, ignore_errors=True)  # of a killed process
    try:
        with named_if_full(folder):
            aside.mkdir(parents=True)
            yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _part_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


def _before(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


@contextmanager
def named_if_full(path: Path) -> Iterator[None]:
    """InputError that `path` cannot be written, where what is done meanwhile fills its disk."""
    try:
        yield
    except OSError as error:
        if disk_full(error):
            raise InputError(_no_room(path, 0)) from error
        raise


def disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error: what closes a broken file may raise another."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def room(path: Path) -> str:
    """What a full disk says of itself: the one on which `path` lies, or would."""
    place = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    # A disk counts files too; one that does not has none of them at all.
    counted = os.statvfs(place)
    if counted.f_files and not counted.f_favail:
        return f"its disk is full, with room for no other file, {free / 1e6:.1f} MB free"
    return f"its disk is full, with {free / 1e6:.1f} MB free"


@contextmanager
def folder_lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Write in a folder as the only process, by a hidden file beside it, held and then removed.

    A killed process leaves that file and not the hold. Where another process holds it, `wait` says
    so and waits; without it an InputError names that process. Processes of other machines count
    where the file system they share passes locks on.
    """
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        with named_if_full(folder):
            handle = _taken(lock, folder, wait)
    except OSError as error:
        raise InputError(_cannot(folder, error)) from error
    try:
        yield
    finally:
        try:
            lock.unlink(missing_ok=True)  # still held: whoever waits for this file looks again
        finally:
            os.close(handle)


def _taken(lock: Path, folder: Path, wait: bool) -> int:
    """An open, held lock file that says who holds it."""
    patience = time.monotonic() + ORPHANS_END_S
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _held(handle):
                owner = _owner(handle)
                if wait:
                    print(f"{folder}: waiting for {_named(owner)}", flush=True)
                    fcntl.flock(handle, fcntl.LOCK_EX)
                elif _gone(owner) and time.monotonic() < patience:
                    time.sleep(0.1)  # its children hold on for a moment
                    os.close(handle)
                    continue
                else:
                    raise InputError(
                        f"{folder} is being worked in by {_named(owner)}: wait until it has ended, "
                        "or end it; two would write over each other"
                    )
            if _is_at(handle, lock):
                _sign(handle, lock)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # of the one before, who removed it


def _sign(handle: int, lock: Path) -> None:
    """Say in a held lock file who holds it; where there is no room for that it goes again."""
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_self()).encode(), 0)
    except OSError:
        lock.unlink(missing_ok=True)
        raise


def _self() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join(shlex.join(sys.orig_argv).split())[:200],
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    }


def _owner(handle: int) -> dict[str, Any]:
    try:
        return json.loads(os.pread(handle, 4096, 0))
    except ValueError:  # it was taken this moment
        return {}


def _named(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    return f"process {owner['pid']} on {owner['host']} since {owner['since']} ({owner['command']})"


def _gone(owner: dict[str, Any]) -> bool:
    """Whether the process was one of this machine and is no more."""
    if not owner or owner["host"] != socket.gethostname():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _held(handle: int) -> bool:
    """Take an open file's lock unless another holds it; where there are no locks it is taken."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _is_at(handle: int, path: Path | str) -> bool:
    """Whether an open file still has that name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _part(path: Path) -> tuple[int, str]:
    """A new temporary file beside `path`, held; those of it that nobody holds are removed."""
    for left in glob.glob(str(path.parent / f".{glob.escape(path.name)}.*.part")):
        try:
            handle = os.open(left, os.O_RDONLY)
        except FileNotFoundError:
            continue
        if _held(handle):
            Path(left).unlink(missing_ok=True)
        os.close(handle)
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        if _held(handle) and _is_at(handle, name):
            return handle, name
        os.close(handle)  # another process took it for a left one


def _cannot(path: Path, error: OSError) -> str:
    reason = error.strerror or error
    return f"{path} cannot be written ({reason}): fix that, or choose another folder"


def _no_room(path: Path, written: int) -> str:
    before = path.stat().st_size if path.is_file() else 0
    needed = max(written, before) / 1e6
    needs = f"it needs {needed:.1f} MB or more, and " if needed >= 0.1 else ""
    stays = "the old one is as it was; " if before else ""
    return (
        f"{path} cannot be written: {needs}{room(path)}: make room and run the same command again "
        f"({stays}what is done stays)"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
