"""Prepared images as torch batches."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from kernel_lib.data import augment
from kernel_lib.data.cache import Prepared

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
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        multiprocessing_context=_start_method(workers),
        pin_memory=pin,
        worker_init_fn=_one_thread,
        # A generator of its own: the loader must not draw from the one that drives dropout, or a
        # run resumed in mid-epoch, which makes one loader more, would drop other units.
        generator=torch.Generator(),
    )


def plain_loader(images: PlainImages, batch_size: int, workers: int, pin: bool) -> DataLoader:
    """Return batches of every image once, in order; the last one may be shorter."""
    return DataLoader(
        images,
        batch_size=batch_size,
        shuffle=False,
        drop_last=False,
        num_workers=workers,
        multiprocessing_context=_start_method(workers),
        pin_memory=pin,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),
    )


def _start_method(workers: int) -> str | None:
    """Return how workers start: as copies on Linux, which every epoch's do in milliseconds.

    Also in a process that was itself spawned, or under Python 3.14, whose defaults are others.
    """
    return "fork" if workers and sys.platform == "linux" else None


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    # A copy: the cache's images are read-only, and an augmented view may run backwards.
    return torch.from_numpy(pixels.copy()).unsqueeze(0)  # (1, S, S)


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)
