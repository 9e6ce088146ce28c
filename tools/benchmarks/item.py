"""What one training item costs beside a plain Dataset that decodes and augments each time.

    python -m tools.benchmarks.item [--data DIR] [--images 64] [SIZE …]

Ours reads the prepared cache and augments as the default row does. The plain one does what public
solutions do in `__getitem__`: pydicom's pixels, the mask from its RLE pixel by pixel of a flat
array, both resized, albumentations, a tensor. Each is timed with our augmentations and with those
that the first place describes, so that it shows what the cache gives and what the augmentations do.
A last line sets our item against only copying image and mask out of the cache into tensors.
One thread; tensors are uint8 in all of them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pydicom
import torch

from kernel_lib.data import augment, cache, table
from kernel_lib.data.dataset import TrainingImages
from kernel_lib.experiments import EXPERIMENTS
from tools.benchmarks.prepare import drawn, prepared
from tools.benchmarks.rounds import Timed, figure, timed

import albumentations as A  # isort: skip  (after `augment`, which silences its look at the network)

ROW = EXPERIMENTS["UNetResNet34_512_v1"]
SIZES = (512, 1024)
SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        source = table.discover(given.data or drawn(Path(scratch) / "data", given.images))
        frame = source.train.head(given.images)
        for size in given.sizes:
            images_cached = prepared(frame, source.root, size, Path(scratch) / "cache")
            took = timed(works(images_cached, size), given.rounds)
            show(took, size, len(images_cached))


def winners() -> A.Compose:
    """Return the published augmentations of the first place, in today's albumentations.

    A flip; one of contrast, gamma, brightness; one of elastic, grid, optical distortion; a shift
    with zoom and turn. Each group with the probability that its author published.
    """
    light = [
        A.RandomBrightnessContrast(brightness_limit=0, contrast_limit=0.2, p=1),
        A.RandomGamma(p=1),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0, p=1),
    ]
    bent = [
        A.ElasticTransform(alpha=120, sigma=6, p=1),
        A.GridDistortion(p=1),
        A.OpticalDistortion(distort_limit=0.5, p=1),
    ]
    moved = A.Affine(scale=(0.9, 1.1), rotate=(-45, 45), translate_percent=(-0.06, 0.06), p=0.5)
    return A.Compose([A.HorizontalFlip(), A.OneOf(light, p=0.3), A.OneOf(bent, p=0.3), moved])


def unseeded(transform: A.Compose) -> Callable:
    """Return the transform as a plain Dataset calls it: every draw is from one generator."""
    transform.set_random_seed(SEED)

    def apply(image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        out = transform(image=image, mask=mask)
        return out["image"], out["mask"]

    return apply


def works(images_cached: cache.Prepared, size: int) -> dict[str, Callable[[], None]]:
    """Return by name a function that makes an epoch's items."""
    ours = TrainingImages(images_cached, ROW.augment, SEED)
    others = {"notes": augment.Augment(ROW.augment), "winners": unseeded(winners())}

    def of_ours() -> None:
        for i in range(len(images_cached)):
            ours[0, i, 0]

    def bare() -> None:
        for i in range(len(images_cached)):
            _tensor(images_cached.image(i)), _tensor(images_cached.mask(i))

    def each(get: Callable, change: Callable) -> Callable[[], None]:
        def epoch() -> None:
            for i, image_id in enumerate(images_cached.table["image_id"]):
                image, mask = change(*get(i), augment.item_seed(SEED, 0, image_id))
                _tensor(image), _tensor(mask)

        return epoch

    def from_cache(i: int) -> tuple[np.ndarray, np.ndarray]:
        return images_cached.image(i), images_cached.mask(i)

    def from_file(i: int) -> tuple[np.ndarray, np.ndarray]:
        return decoded(images_cached.table["path"].iat[i], images_cached.table["rle"].iat[i], size)

    return {
        "ours": of_ours,
        "bare": bare,
        "cache, winners": each(from_cache, others["winners"]),
        "plain, notes": each(from_file, others["notes"]),
        "plain, winners": each(from_file, others["winners"]),
    }


def decoded(path: str, text: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image and mask (size, size) uint8, straight from DICOM and RLE."""
    image = pydicom.dcmread(path).pixel_array
    flat = np.zeros(image.size, np.uint8)
    at, numbers = 0, [] if text.strip() in ("", "-1") else list(map(int, text.split()))
    for gap, length in zip(numbers[0::2], numbers[1::2], strict=True):
        at += gap
        flat[at : at + length] = 1
        at += length
    mask = np.ascontiguousarray(flat.reshape(image.shape[::-1]).T)  # the RLE runs down columns
    if image.shape != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
        mask = cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST)
    return image, mask


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).unsqueeze(0)  # (1, S, S)


def show(took: Timed, size: int, n: int) -> None:
    def ms(name: str) -> str:
        return f"{1e3 * took.seconds(name) / n:.1f} ms"

    others = {
        "plain, winners": "a plain Dataset with the winner's augmentations",
        "plain, notes": "a plain Dataset with our augmentations",
        "cache, winners": "our cache with the winner's augmentations",
    }
    for name, words in others.items():
        times = took.times_faster("ours", name)
        figure(f"a training item of {size}", ms("ours"), f"{words} {ms(name)}",
               f"{times:.1f} × faster", BARS.get(name, "none"))  # fmt: skip
    figure(f"a training item of {size}", ms("ours"), f"only copied from the cache {ms('bare')}",
           f"{took.times_faster('bare', 'ours'):.1f} × slower")  # fmt: skip


BARS = {"plain, winners": "5 ×", "plain, notes": "2 ×"}

if __name__ == "__main__":
    main()
