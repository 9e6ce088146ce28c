"""Room in /dev/shm, through which loader processes hand over their batches."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from kernel_lib.errors import InputError

FOLDER = Path("/dev/shm")
PAGE = 4096  # bytes that the smallest tensor, or semaphore, takes
PREFETCHED = 2  # batches that a worker prepares ahead, torch's default


def check(
    workers: int, images: int, size: int, *, free: int | None = None, way_out: str = "-p WORKERS 0"
) -> None:
    """Raise InputError where /dev/shm is too small for the batches that workers prepare.

    images: uint8 pictures of (size, size) in a batch, over all processes of the training, masks
    counted too. Docker gives 64 MB by default, which would end a training in its first steps.
    free: bytes free in the folder, measured where it is None.
    """
    if not workers or (free is None and not FOLDER.is_dir()):
        return
    free = shutil.disk_usage(FOLDER).free if free is None else free
    needed = _needed(workers, images, size)
    if needed > free:
        docker = max(2, math.ceil(2 * needed / 1e9))
        raise InputError(
            f"{FOLDER} has {_size_text(free)} free, too little for WORKERS {workers}, which hand "
            f"{_size_text(needed)} of batches over through it: {way_out}, or docker run --shm-size "
            f"{docker}g"
        )


def _needed(workers: int, images: int, size: int) -> int:
    """Return the bytes of all batches at once: those ahead, the one in use and the last one."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each with workers of its own
    share = math.ceil(images / int(os.environ.get("WORLD_SIZE", "1")))
    batch = share * size * size + 3 * PAGE
    semaphores = (16 + 4 * workers) * PAGE
    return ranks * ((PREFETCHED * workers + 2) * batch + semaphores)


def _size_text(n_bytes: int) -> str:
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (0, "KB")) if n_bytes >= u)
    return f"{n_bytes / (unit or 1024):.{0 if not unit else 1}f} {name}"
