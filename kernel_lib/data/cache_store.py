"""The cache's files, and the processes that fill their slots, with few images in flight.

A cache folder holds, for images of one size S:
  pixels.u8    S·S bytes a slot, the resized image
  masks.bits   S·S bits a slot (rounded up to bytes), the resized mask; a sparse file
  rows.jsonl   what is in the slots, a line an event, only ever appended to
A slot is done once rows.jsonl has its line, written after its pixels and mask: a process killed at
any moment loses only the images in work. All writing goes through pwrite: a full disk is then an
error, where a memory map would be killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np

from kernel_lib.data import images, label_checks, rle
from kernel_lib.data.masks import resize_mask
from kernel_lib.errors import InputError
from kernel_lib.workers import start_worker

# A cache of another number is made again.
FORMAT = 2


@dataclass(frozen=True)
class Row:
    """The content of a slot: its source, and what is known of it."""

    source: list[str | int]  # path, bytes, mtime_ns of the image: a change decodes it again
    label: list[str | int]  # the same of the label: a change makes the mask again
    height: int
    width: int
    area_px: int
    patient: str
    rle: str  # only where the label is a mask image, or inverted
    notes: list[str] = field(default_factory=list)  # on the image, of `images.Radiograph`


@dataclass(frozen=True)
class Task:
    """One slot to fill."""

    slot: int
    image_id: str
    path: str
    rle: str
    mask_path: str
    label_at: str
    source: list[str | int]
    label: list[str | int]
    masks_are: str | None = None  # "right" or "inverted", as the user says
    known: Row | None = None  # given where the pixels are good and only the mask is not


class Store:
    """A cache folder's files."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.pixels, self.pixel_bytes = folder / "pixels.u8", size * size
        self.masks, self.mask_bytes = folder / "masks.bits", -(-size * size // 8)
        self.journal = folder / "rows.jsonl"

    def write_pixels(self, slot: int, image: np.ndarray) -> None:
        _write_at(self.pixels, slot * self.pixel_bytes, image)

    def write_mask(self, slot: int, mask: np.ndarray) -> None:
        _write_at(self.masks, slot * self.mask_bytes, np.packbits(mask))

    def reserve(self, n_slots: int) -> None:
        """Make the files large enough for n slots; holes take no room on disk."""
        for path, each in ((self.pixels, self.pixel_bytes), (self.masks, self.mask_bytes)):
            with open(path, "ab") as file:
                if file.tell() < n_slots * each:
                    file.truncate(n_slots * each)

    def has_room(self, n_slots: int) -> bool:
        """Return whether both files have room for n slots."""
        files = ((self.pixels, self.pixel_bytes), (self.masks, self.mask_bytes))
        return all(path.is_file() and path.stat().st_size >= n_slots * n for path, n in files)


class Journal:
    """rows.jsonl, opened for appending: the slot of each image, and the Row of each done slot.

    Lines: {"format", "size"} first; {"slot", "image_id"} gives a slot to an image for good;
    {"slot", "row"} says that it is done, and with null that it is so no longer.
    """

    def __init__(self, store: Store) -> None:
        self.slots: dict[str, int] = {}
        self.rows: dict[int, Row] = {}
        self._file = open(store.journal, "ab+")  # noqa: SIM115 (closed by `close`)
        try:
            self._load(store)
        except (ValueError, KeyError, TypeError):  # not ours, of an older format, or damaged
            self.slots, self.rows = {}, {}
            self._file.truncate(0)
            for path in (store.pixels, store.masks):
                path.unlink(missing_ok=True)
            self._append({"format": FORMAT, "size": store.size})

    def assign(self, image_ids: list[str]) -> None:
        """Give each image without a slot the next free one."""
        new = [name for name in image_ids if name not in self.slots]
        for name in new:
            self.slots[name] = len(self.slots)
        self._append(*({"slot": self.slots[name], "image_id": name} for name in new))

    def done(self, slot: int, row: Row) -> None:
        """Mark a slot whose pixels and mask have been written."""
        self._append({"slot": slot, "row": asdict(row)})
        self.rows[slot] = row

    def undo(self, slots: list[int]) -> None:
        """Mark slots that are about to be written over."""
        stale = [slot for slot in slots if slot in self.rows]
        self._append(*({"slot": slot, "row": None} for slot in stale))
        for slot in stale:
            del self.rows[slot]

    def close(self) -> None:
        self._file.close()

    def _load(self, store: Store) -> None:
        self._file.seek(0)
        data = self._file.read()
        complete = data[: data.rfind(b"\n") + 1]
        # A killed process may have left half a line, which the next line would otherwise join.
        self._file.truncate(len(complete))
        head, *events = map(json.loads, complete.splitlines() or [b"null"])
        if head != {"format": FORMAT, "size": store.size}:
            raise ValueError(f"head {head}")
        for event in events:
            if "image_id" in event:
                self.slots[event["image_id"]] = event["slot"]
            elif event["row"] is None:
                self.rows.pop(event["slot"], None)
            else:
                self.rows[event["slot"]] = Row(**event["row"])
        # Slots without a row may have no room yet, where a process ended before it made some.
        if self.rows and not store.has_room(max(self.rows) + 1):
            raise ValueError("pixels.u8 or masks.bits is gone or was cut")

    def _append(self, *events: dict) -> None:
        # One write, no buffer left behind: what is written is there even if we are killed next.
        text = "".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events)
        self._file.write(text.encode())
        self._file.flush()


def fill(store: Store, task: Task) -> Row:
    """Decode the task's image and label, write both to their slot, and return what they are.

    Raises: InputError naming the file at fault (and the label's rows); OSError from the cache.
    """
    known, pixels = task.known, None
    if known is None:
        radiograph = images.open_radiograph(task.path)
        pixels, patient, notes = radiograph.pixels, radiograph.patient or "", radiograph.notes
        shape = pixels.shape
    else:
        shape, patient, notes = (known.height, known.width), known.patient, known.notes
    runs = label_checks.runs_of(task, shape, task.masks_are)
    if pixels is not None:
        store.write_pixels(task.slot, resized(pixels, store.size))
    if len(runs):
        mask = resize_mask(rle.mask_of(runs, shape), (store.size, store.size))
        store.write_mask(task.slot, mask)
    is_new = task.mask_path or task.masks_are == "inverted"
    own_rle = rle.to_string(runs) if is_new else ""
    return Row(task.source, task.label, *shape, rle.area(runs), patient, own_rle, list(notes))


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return (H, W) uint8 stretched to (size, size): by area when shrinking, else bilinear."""
    if pixels.shape == (size, size):
        return pixels
    shrinks = pixels.shape[0] * pixels.shape[1] > size * size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(pixels, (size, size), interpolation=how)


def _write_at(path: Path, offset: int, data: np.ndarray) -> None:
    """Write a uint8 array from its own memory: a copy of an image costs as much as the write."""
    file = os.open(path, os.O_WRONLY)
    try:
        view = np.ascontiguousarray(data).reshape(-1).data
        while view:
            written = os.pwrite(file, view, offset)
            view, offset = view[written:], offset + written
    finally:
        os.close(file)


BATCH = 8
# Processes take seconds to start: they are used where this process, after a second of work, would
# need several more. How long an image takes (3 ms or 300) is not known before.
TRIAL_S = 1.0
WORTH_S = 4.0
BATCHES_AHEAD = 4

Outcome = tuple[Task, Row | InputError]


def outcomes(store: Store, tasks: list[Task], workers: int) -> Iterator[Outcome]:
    """Fill the tasks' slots and yield the outcome of each, in no fixed order.

    Raises: OSError where the cache can't be written; RuntimeError where a worker dies.
    """
    start = time.monotonic()
    for n_done, task in enumerate(tasks, 1):
        yield from _fill_batch(store, [task])
        spent_s = time.monotonic() - start
        left_s = spent_s / n_done * (len(tasks) - n_done)
        if workers > 1 and spent_s >= TRIAL_S and left_s > WORTH_S:
            yield from _by_processes(store, tasks[n_done:], workers)
            return


def _by_processes(store: Store, tasks: list[Task], workers: int) -> Iterator[Outcome]:
    # Forked processes would inherit the threads' locks (OpenCV's, torch's) of this one.
    context = multiprocessing.get_context("spawn")
    try:
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
    except OSError as error:  # of its semaphores in /dev/shm, not of the cache's own disk
        print(f"note: images are decoded by one process: {error.strerror or error} in /dev/shm")
        for task in tasks:
            yield from _fill_batch(store, [task])
        return
    waiting: set[Future] = set()
    try:
        for start in range(0, len(tasks), BATCH):
            if len(waiting) >= BATCHES_AHEAD * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
            waiting.add(pool.submit(_fill_batch, store, tasks[start : start + BATCH]))
        for future in waiting:
            yield from future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker of `prepare` died (out of memory, or the calling script lacks "
            '`if __name__ == "__main__":`); what is done is kept: call again, with workers=1'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _fill_batch(store: Store, tasks: list[Task]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for task in tasks:
        try:
            outcomes.append((task, fill(store, task)))
        except InputError as error:
            outcomes.append((task, error))
    return outcomes
