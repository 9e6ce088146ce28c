"""A disk that is full somewhere within what a stage writes, and later has room again.

A trial takes one stage to a small disk of its own, on which perhaps another life of it has begun,
or left other results. The disk has too little room from the start, in bytes or in files, or is
filled by somebody else at the n-th file that the stage touches. Then the stage must end by itself,
with the one error that says so, all that was there must be as it was or as it will be, and with
room again it must end with what an undisturbed run leaves.
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.torture import intact, lives
from tools.torture.stages import AT_ONCE, PROCESSES, Place

BYTES, FILES = 1 << 28, 1 << 14  # a disk with room
CLONE_NEWNS = 0x20000  # os.unshare is Python 3.12's
BALLAST = ".ballast"


@dataclass(frozen=True)
class Shortage:
    """What is left of a disk: so many bytes, or files, at once or once somebody else fills it."""

    n_bytes: int | None = None
    n_files: int | None = None
    at_event: int | None = None


class Disk:
    """A disk in memory, mounted on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, n_bytes: int = BYTES, n_files: int = FILES) -> None:
        size = f"size={max(1, n_bytes // 1024)}k,nr_inodes={n_files}"
        _mount("-o", f"remount,{size}", self.folder)

    def used(self) -> tuple[int, int]:
        """Return bytes and files."""
        now = os.statvfs(self.folder)
        return (now.f_blocks - now.f_bfree) * now.f_frsize, now.f_files - now.f_ffree

    def leave(self, n_bytes: int) -> None:
        """Fill all but so many bytes of it; `empty` gives them back."""
        now = os.statvfs(self.folder)
        if (taken := now.f_bavail * now.f_frsize - n_bytes) > 0:
            with open(self.folder / BALLAST, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, taken)

    def empty(self) -> None:
        """Give it room again."""
        (self.folder / BALLAST).unlink(missing_ok=True)
        self.resize()


def own_mounts() -> None:
    """See mounts of its own from now on, which end with this process, however that ends.

    PermissionError where it may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise PermissionError(f"no disk can be mounted here: {os.strerror(ctypes.get_errno())}")
    _mount("--make-rprivate", "/")


@contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    """Mount a disk on a folder."""
    folder.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={BYTES},nr_inodes={FILES}", "tmpfs", folder)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make the folder read-only, as Kaggle's inputs are."""
    _mount("--bind", folder, folder)
    try:
        _mount("-o", "remount,ro,bind", folder)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def _mount(*how: str | Path) -> None:
    done = subprocess.run(["mount", *how], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(f"no disk can be mounted here: {done.stderr.strip()}")


class Trials:
    """Trials of full disks, each of one stage; the place's trials lie on that disk."""

    def __init__(self, place: Place, disk: Disk, chance: random.Random) -> None:
        self.place, self.disk, self.chance = place, disk, chance
        self._written: dict[str, tuple[int, int]] = {}

    def trial(self, name: str) -> tuple[bool, list[str]]:
        """Return whether the disk was full before the stage had ended, and what went wrong."""
        place, disk, begun, short = self.place, self.disk, *self._drawn(name)
        self._begin(name, begun)
        before = intact.seen(place.trial)
        status, output = self._short_life(name, short)
        disk.empty()
        if status:
            wrong = _unclear(status, output, place.trial)
            wrong += intact.broken(name, before, place)
            wrong = wrong or self._goes_on(name)
        else:
            wrong = place.differences(name)
        return bool(status), [f"{name}, before it {begun}, {short}: {line}" for line in wrong]

    def _drawn(self, name: str) -> tuple[str, Shortage]:
        """Return what is there when the stage begins, and what it then lacks."""
        # Whether it stands or not, thresholds and inference write all of it again.
        begun = ("nothing", "half", *("all", "other") * (name in AT_ONCE))
        begun = self.chance.choice(begun)
        if begun == "half":
            self.place.usual(name)  # before the folder is this trial's
        n_bytes, n_files = self._most(name)
        kind = self.chance.choice(("bytes", "bytes", "files", "event", "event"))
        if kind == "files":
            return begun, Shortage(n_files=self.chance.randint(0, n_files))
        left = self.chance.randint(0, n_bytes)
        if kind == "bytes":
            return begun, Shortage(n_bytes=left)
        event = self.chance.randint(1, self.place.usual(name).events)
        return begun, Shortage(n_bytes=self.chance.choice((0, left // 4)), at_event=event)

    def _begin(self, name: str, begun: str) -> None:
        """Leave of an earlier life of the stage nothing, a half, all, or other results."""
        place = self.place
        place.fresh(name)
        if begun == "half":
            usual, processes = place.usual(name), PROCESSES.get(name, 1)
            place.live(name, lives.drawn(self.chance, usual, processes))
        elif begun == "all":
            place.copy(place.whole)
        elif begun == "other":
            status, output = place.live(name, otherwise=True)
            if status:
                raise RuntimeError(f"{name} does not end otherwise:\n{output}")

    def _most(self, name: str) -> tuple[int, int]:
        """Return bytes and files that a stage makes."""
        if name not in self._written:
            self.place.fresh(name)
            before = self.disk.used()
            self.place.copy(self.place.whole)
            after = self.disk.used()
            self._written[name] = after[0] - before[0], after[1] - before[1]
        return self._written[name]

    def _short_life(self, name: str, short: Shortage) -> tuple[int, str]:
        """Return a life of the stage with too little room."""
        place, disk = self.place, self.disk
        n_bytes, n_files = disk.used()
        if short.n_files is not None:
            disk.resize(n_files=n_files + short.n_files)
        elif short.at_event is None:
            disk.resize(n_bytes=n_bytes + short.n_bytes)

        def work() -> None:
            if short.at_event is not None and os.environ.get("RANK", "0") == "0":
                lives.at_event(short.at_event, lambda: disk.leave(short.n_bytes))
            place.do(name, place.trial)

        return lives.live(work, processes=PROCESSES.get(name, 1))

    def _goes_on(self, name: str) -> list[str]:
        status, output = self.place.live(name)
        if status:
            return [f"does not go on once there is room, status {status}:\n{output}"]
        return self.place.differences(name)


def _unclear(status: int, output: str, folder: Path) -> list[str]:
    """Return what is wrong with how a stage ended on a full disk."""
    error = output.rpartition("Error: ")[2]
    if status == lives.REFUSED and str(folder) in error and "free some space" in error:
        return []
    return [f"ended with status {status}, and not with the error that its disk is full:\n{output}"]
