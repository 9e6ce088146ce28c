"""Prepared images as torch batches, which loader processes hand over through /dev/shm."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from kernel_lib.data import augment
from kernel_lib.data.cache import Prepared
from kernel_lib.errors import InputError

# (epoch, row in the cache, times that the epoch showed it before): an item depends on nothing else.
Key = tuple[int, int, int]


class TrainingImages(Dataset):
    """Augmented images and masks by key, (1, S, S) uint8 each, with the row."""

    def __init__(self, prepared: Prepared, augmentation: str, seed: int) -> None:
        self.prepared = prepared
        self.ids = prepared.table["image_id"].tolist()
        self.augment = augment.Augment(augmentation)
        self.seed = seed

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor, int]:
        epoch, row, turn = key
        image, mask = self.augment(
            self.prepared.image(row),
            self.prepared.mask(row),
            augment.item_seed(self.seed, epoch, self.ids[row], turn),
        )
        return _tensor(image), _tensor(mask), row


class PlainImages(Dataset):
    """Images without augmentation, by position in `rows`: (1, S, S) uint8 and the row."""

    def __init__(self, prepared: Prepared, rows: Sequence[int]) -> None:
        self.prepared = prepared
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        row = int(self.rows[position])
        return _tensor(self.prepared.image(row)), row


def training_loader(
    images: TrainingImages, batches: Sequence[Sequence[Key]], workers: int, pin: bool
) -> DataLoader:
    """Return batches in the order given; an item depends on its key, never on its worker."""
    return _loader(images, workers, pin, batch_sampler=batches)


def plain_loader(images: PlainImages, batch_size: int, workers: int, pin: bool) -> DataLoader:
    """Return batches of every image once, in order; the last one may be shorter."""
    return _loader(images, workers, pin, batch_size=batch_size)


def _loader(images: Dataset, workers: int, pin: bool, **batches: object) -> DataLoader:
    return DataLoader(
        images,
        num_workers=workers,
        # Copies start in milliseconds; spawned processes and Python 3.14 have other defaults.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=pin,
        worker_init_fn=_one_thread,
        # A generator of its own: the loader must not draw from the one that drives dropout, or a
        # run resumed in mid-epoch, which makes one loader more, would drop other units.
        generator=torch.Generator(),
        **batches,
    )


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    # A copy: the cache's images are read-only, and an augmented view may run backwards.
    return torch.from_numpy(pixels.copy()).unsqueeze(0)  # (1, S, S)


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)


SHARED_MEMORY = Path("/dev/shm")
PAGE = 4096  # bytes that the smallest tensor, or semaphore, takes
PREFETCHED = 2  # batches that a worker prepares ahead, torch's default


def check_shared_memory(
    workers: int, images: int, size: int, *, way_out: str = "-p WORKERS 0"
) -> None:
    """Raise InputError where /dev/shm is too small for the batches that workers prepare.

    images: uint8 pictures of (size, size) in a batch, over all processes of the training, masks
    counted too. Docker gives 64 MB by default, which would end a training in its first steps.
    """
    if not workers or not SHARED_MEMORY.is_dir():  # as on macOS
        return
    free, needed = shutil.disk_usage(SHARED_MEMORY).free, _needed(workers, images, size)
    if needed > free:
        docker = max(2, math.ceil(2 * needed / 1e9))
        raise InputError(
            f"{SHARED_MEMORY} has {_size_text(free)} free, too little for WORKERS {workers}, which "
            f"hand {_size_text(needed)} of batches over through it: {way_out}, or docker run "
            f"--shm-size {docker}g"
        )


def _needed(workers: int, images: int, size: int) -> int:
    """Return the bytes of all batches at once: those ahead, the one in use and the last one."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each with workers of its own
    share = math.ceil(images / int(os.environ.get("WORLD_SIZE", "1")))
    batch = share * size * size + 3 * PAGE
    semaphores = (16 + 4 * workers) * PAGE
    return ranks * ((PREFETCHED * workers + 2) * batch + semaphores)


def _size_text(n_bytes: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{n_bytes / 1024:.0f} KB"
