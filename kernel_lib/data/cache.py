"""`prepare` decodes every radiograph once, into two files from which any image is one read."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Set
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from kernel_lib import storage
from kernel_lib.competition import COMPETITION
from kernel_lib.data import images
from kernel_lib.data.cache_store import Journal, Row, Store, Task, outcomes
from kernel_lib.data.images import Skipped
from kernel_lib.errors import InputError
from kernel_lib.notebook import bar
from kernel_lib.workers import n_cores

SPLITS = ("train", "test", "nih")
ON_BAD_FILE = ("stop", "skip", "blank")
# What "skip" may leave out, as a share of all images and of those with a mask.
MAX_SKIPPED, MAX_POSITIVES_SKIPPED = 0.05, 0.1
# The competition's own size, for a test image so broken that it does not tell.
ASSUMED_SHAPE = (COMPETITION.side_px,) * 2
TABLE_COLUMNS = ("image_id", "path", "height", "width", "rle", "area_px", "patient")


@dataclass(frozen=True)
class Prepared:
    """Decoded images and masks of one size S; `table` has a row for each.

    table: DataFrame[image_id, path, height, width, rle, area_px, patient], in the order given to
    `prepare`; height, width and area_px are the file's own, patient is "" where not known.
    skipped: images whose file or label could not be read. notes: changes to images and doubts about
    them, with counts.
    Small to pickle. Files are opened at each read and not mapped: mapped pages would count as this
    process's memory, and a file cut short would kill the process.
    """

    table: pd.DataFrame
    skipped: list[Skipped]
    notes: list[str]
    _store: Store
    _slots: np.ndarray  # of each row

    @property
    def size(self) -> int:
        return self._store.size

    @property
    def folder(self) -> Path:
        return self._store.folder

    def __len__(self) -> int:
        return len(self._slots)

    def image(self, i: int) -> np.ndarray:
        """Return image i as (S, S) uint8, read-only."""
        store = self._store
        return self._read(store.pixels, i, store.pixel_bytes).reshape(self.size, self.size)

    def mask(self, i: int) -> np.ndarray:
        """Return mask i as (S, S) uint8 0/1; all 0 where there is no label."""
        if not self._areas_px[i]:
            return np.zeros((self.size, self.size), np.uint8)
        bits = self._read(self._store.masks, i, self._store.mask_bytes)
        return np.unpackbits(bits, count=self.size**2).reshape(self.size, self.size)

    def subset(self, rows: np.ndarray) -> Prepared:
        """Return only those rows, renumbered from 0; the files are shared."""
        table = self.table.iloc[rows].reset_index(drop=True)
        return replace(self, table=table, _slots=self._slots[rows])

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the image ids, in order, and of the cache's journal."""
        listed = "\n".join(self.table["image_id"]).encode()
        return hashlib.sha256(listed + self._store.journal.read_bytes()).hexdigest()

    @cached_property
    def _areas_px(self) -> np.ndarray:
        return self.table["area_px"].to_numpy()  # a row's look-up in the table would take longer

    def _read(self, path: Path, i: int, n_bytes: int) -> np.ndarray:
        """Return the bytes of image i in a file, (n_bytes,) uint8, read-only."""
        data = b""
        with suppress(FileNotFoundError):
            file = os.open(path, os.O_RDONLY)  # each time: microseconds, nothing to share or close
            try:
                data = os.pread(file, n_bytes, int(self._slots[i]) * n_bytes)
            finally:
                os.close(file)
        if len(data) < n_bytes:
            raise InputError(
                f"{path} is gone, or was cut, after it was prepared: run the same command again, "
                "which makes it again"
            )
        return np.frombuffer(data, np.uint8)


def prepare(
    frame: pd.DataFrame,
    root: Path | str,
    size: int,
    cache_dir: Path | str,
    split: str,
    *,
    workers: int | None = None,
    on_bad_file: str = "stop",
    masks_are: str | None = None,
) -> Prepared:
    """Decode each image of a table once, resized to (size, size), and open the result.

    Written to <cache_dir>/<data key>/<size>/<split>. Continues where it was stopped, and repeats
    what changed: images by path, bytes and time of change, masks by their label.
    frame: image_id, path and, for training, rle, mask_path, label_at, as `table.discover` returns.
    workers: spawned processes, by default as many as cores; a script must call this under
    `if __name__ == "__main__":`.
    on_bad_file: "stop" raises at the first file that can't be read or label outside its image,
    "skip" leaves it out, "blank" puts a black image without mask; both list it in `skipped`.
    masks_are: "inverted" swaps mask and background; "right" takes masks that look inverted.
    Raises: InputError naming file and row, or what is wrong with cache_dir.
    """
    if split not in SPLITS or on_bad_file not in ON_BAD_FILE or size < 1:
        raise InputError(
            f"size {size} must be at least 1, split {split!r} one of {SPLITS}, "
            f"on_bad_file {on_bad_file!r} one of {ON_BAD_FILE}"
        )
    repeated = frame["image_id"][frame["image_id"].duplicated()]
    if len(repeated):
        raise InputError(f"image {repeated.iloc[0]} stands twice in the table of {split} images")
    folder = Path(cache_dir) / data_key(root) / str(size) / split
    store = Store(folder, size)
    with _locked(folder, root), closing(Journal(store)) as journal:
        filler = _Filler(store, journal, on_bad_file, split != "test", masks_are)
        tasks = filler.plan(frame)
        progress_bar = bar(
            total=len(frame),
            initial=len(frame) - len(tasks) - len(filler.bad),
            desc=f"prepare {split} {size}",
            unit="image",
            disable=not tasks,
        )
        n_workers = workers or n_cores()
        with progress_bar, closing(outcomes(store, tasks, n_workers)) as results:
            for task, result in results:
                filler.take(task, result)
                progress_bar.update()
        return filler.prepared(frame)


def check_skipped(prepared: Prepared, n_images: int, positive: Set[str]) -> None:
    """Raise InputError where more was left out than MAX_SKIPPED and MAX_POSITIVES_SKIPPED allow.

    n_images: given to `prepare`; positive: the ids among them that have, or may have, a mask.
    """
    n, lost = len(prepared.skipped), positive & {image.image_id for image in prepared.skipped}
    if n > MAX_SKIPPED * n_images or len(lost) > MAX_POSITIVES_SKIPPED * len(positive):
        raise InputError(
            f"{n:,} of {n_images:,} images can't be used, {len(lost):,} of {len(positive):,} with "
            f'a mask among them; ON_BAD_FILE="skip" leaves out {MAX_SKIPPED:.0%} at most, or '
            f"{MAX_POSITIVES_SKIPPED:.0%} of those with a mask: correct the files, first "
            f"{prepared.skipped[0]}"
        )


def data_key(root: Path | str) -> str:
    """Return the cache's name for a data folder: its own, and a hash of its resolved path."""
    path = Path(root).resolve()
    name = re.sub(r"[^\w.-]+", "_", path.name) or "root"
    return f"{name}-{hashlib.sha256(str(path).encode()).hexdigest()[:10]}"


@dataclass
class _Filler:
    """The slots to fill, and the images that could not be."""

    store: Store
    journal: Journal
    on_bad_file: str
    is_training: bool
    masks_are: str | None
    bad: dict[str, Skipped] = field(default_factory=dict)  # by image id
    blank: dict[str, Row] = field(default_factory=dict)

    def plan(self, frame: pd.DataFrame) -> list[Task]:
        """Return the tasks left to do, with slots reserved and marked as not done."""
        self.journal.assign(frame["image_id"].tolist())
        tasks = []
        for record in frame.to_dict("records"):
            try:
                task = self._task(record)
                tasks += [task] if task else []
            except InputError as error:
                self._refuse(record["image_id"], record["path"], error)
        self._check_room(tasks)
        self.journal.undo([task.slot for task in tasks])
        self.store.reserve(len(self.journal.slots))
        return tasks

    def take(self, task: Task, result: Row | InputError) -> None:
        """Note a slot that was filled, or a file that could not be read."""
        if isinstance(result, Row):
            self.journal.done(task.slot, result)
        else:
            self._refuse(task.image_id, task.path, result)

    def prepared(self, frame: pd.DataFrame) -> Prepared:
        rows, slots, notes = [], [], {}
        for record in frame.to_dict("records"):
            name = record["image_id"]
            slot = self.journal.slots[name]
            row = self.blank.get(name) if name in self.bad else self.journal.rows[slot]
            if row is None:
                continue
            rle = row.rle or ("" if name in self.bad else record.get("rle", ""))
            rows.append(
                (name, record["path"], row.height, row.width, rle, row.area_px, row.patient)
            )
            slots.append(slot)
            notes[record["path"]] = row.notes
        table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
        skipped, lines = list(self.bad.values()), images.noted(notes)
        return Prepared(table, skipped, lines, self.store, np.array(slots, np.int64))

    def _task(self, record: dict) -> Task | None:
        """Return the task of an image; None where its slot is as it should be."""
        slot = self.journal.slots[record["image_id"]]
        mask_path, text = record.get("mask_path", ""), record.get("rle", "")
        digest = [hashlib.sha256(text.encode()).hexdigest()[:16]]
        label = _file_stamp(mask_path) if mask_path else digest
        label += [self.masks_are] if self.masks_are else []
        source = _file_stamp(record["path"])
        row = self.journal.rows.get(slot)
        if row is not None and row.source == source and row.label == label:
            return None
        return Task(
            slot=slot,
            image_id=record["image_id"],
            path=record["path"],
            rle=text,
            mask_path=mask_path,
            label_at=record.get("label_at", "") or f"label of {record['image_id']}",
            source=source,
            label=label,
            masks_are=self.masks_are,
            known=row if row is not None and row.source == source else None,
        )

    def _refuse(self, name: str, path: str, error: InputError) -> None:
        if self.on_bad_file == "stop":
            # A label that does not fit is seldom the only one.
            skippable = self.is_training and isinstance(error, images.ImageError)
            hint = '; or go on without it by ON_BAD_FILE="skip"' if skippable else ""
            raise InputError(f"{error}{hint}")
        self.bad[name] = Skipped(name, path, str(error))
        if self.on_bad_file == "blank":
            slot = self.journal.slots[name]
            self.journal.undo([slot])
            self.store.reserve(len(self.journal.slots))
            self.store.write_pixels(slot, np.zeros((self.store.size,) * 2, np.uint8))
            try:
                height, width = images.size_of(path)
            except InputError:
                height, width = ASSUMED_SHAPE
            self.blank[name] = Row([], [], height, width, 0, "", "")

    def _check_room(self, tasks: list[Task]) -> None:
        new = sum(task.slot not in self.journal.rows for task in tasks)
        needed = new * (self.store.pixel_bytes + self.store.mask_bytes // 4)
        free = shutil.disk_usage(self.store.folder).free
        if needed > free:
            raise InputError(
                f"the cache needs {needed / 1e9:.1f} GB for {new} images of {self.store.size} px, "
                f"and {self.store.folder} has {free / 1e9:.1f} GB free: make room, give another "
                "CACHE_DIR, or a smaller SIZE"
            )


def _file_stamp(path: str) -> list[str | int]:
    try:
        stat = os.stat(path)
    except OSError as error:
        raise images.ImageError(f"{path} can't be read: {error.strerror or error}") from error
    return [path, stat.st_size, stat.st_mtime_ns]


@contextmanager
def _locked(folder: Path, root: Path | str) -> Iterator[None]:
    """Let one process in at a time (a second one waits), and name a cache that can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with storage.folder_lock(folder, wait=True):
            path, text = folder.parents[1] / "DATA_DIR.txt", f"{Path(root).resolve()}\n"
            if not (path.is_file() and path.read_bytes() == text.encode()):
                storage.write_text(path, text)
            yield
    except OSError as error:
        reason = (
            storage.disk_full_text(folder) if storage.disk_full(error) else error.strerror or error
        )
        raise InputError(
            f"the cache {folder} can't be written: {reason}; make room, or give another CACHE_DIR "
            "(the next call continues with what is done)"
        ) from error
