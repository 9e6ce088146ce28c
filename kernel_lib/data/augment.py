"""Augmentations by name; a new one is a function here and a line in `AUGMENTATIONS`."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable

import cv2
import numpy as np

from kernel_lib.registry import lookup

# albumentations looks for a newer version of itself on the network when imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A


def notes() -> A.Compose:
    """Return the reference solution's augmentation: each group with probability 0.5.

    Flips and quarter turns; brightness ±0.05, contrast ±5 % or gamma ±5 %; blur 3×3 or a
    perspective warp.
    """
    return A.Compose(
        [
            A.OneOf([A.HorizontalFlip(p=1), A.VerticalFlip(p=1), A.RandomRotate90(p=1)], p=0.5),
            A.OneOf(
                [
                    A.RandomBrightnessContrast(
                        brightness_limit=0.05, contrast_limit=0, brightness_by_max=True, p=1
                    ),
                    A.RandomBrightnessContrast(brightness_limit=0, contrast_limit=0.05, p=1),
                    A.RandomGamma(gamma_limit=(95, 105), p=1),
                ],
                p=0.5,
            ),
            A.OneOf(
                [
                    A.Blur(blur_limit=(3, 3), p=1),
                    A.Perspective(scale=(0.02, 0.05), border_mode=cv2.BORDER_CONSTANT, p=1),
                ],
                p=0.5,
            ),
        ]
    )


def flips() -> A.Compose:
    """Return horizontal flips with small turns, shifts and zooms: a chest stays upright."""
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Affine(
                scale=(0.9, 1.1),
                rotate=(-7, 7),
                translate_percent=(-0.04, 0.04),
                p=0.6,
                border_mode=cv2.BORDER_CONSTANT,
            ),
            A.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.1, p=0.5),
        ]
    )


def distortions() -> A.Compose:
    """Return a stronger `flips`, with gamma and bent images: for many epochs on few masks.

    Source: the kinds of change are those of the competition's first place.
    """
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Affine(
                scale=(0.85, 1.15),
                rotate=(-12, 12),
                shear=(-5, 5),
                translate_percent=(-0.06, 0.06),
                p=0.7,
                border_mode=cv2.BORDER_CONSTANT,
            ),
            A.OneOf(
                [
                    A.ElasticTransform(alpha=60, sigma=12, approximate=True, p=1),
                    A.GridDistortion(num_steps=5, distort_limit=0.2, p=1),
                    A.OpticalDistortion(distort_limit=0.2, p=1),
                ],
                p=0.3,
            ),
            A.OneOf(
                [
                    A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=1),
                    A.RandomGamma(gamma_limit=(70, 140), p=1),
                ],
                p=0.6,
            ),
        ]
    )


def hflip() -> A.Compose:
    """Return horizontal flips only."""
    return A.Compose([A.HorizontalFlip(p=0.5)])


def none() -> A.Compose:
    """Return an augmentation that changes nothing."""
    return A.Compose([])


AUGMENTATIONS: dict[str, Callable[[], A.Compose]] = {
    "notes": notes,
    "flips": flips,
    "distortions": distortions,
    "hflip": hflip,
    "none": none,
}


class Augment:
    """An augmentation by name: (image (H, W) uint8, mask (H, W) 0/1, seed) → both, changed alike.

    It depends only on the seed: albumentations' own generator would repeat in forked workers.
    Raises: InputError for an unknown name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._transform = lookup("AUGMENT", name, AUGMENTATIONS)()

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        _seed(self._transform, np.random.default_rng(seed))
        if not mask.any():  # most images: the draws do not depend on it, and it stays empty
            changed = self._transform(image=image)["image"]
            return changed, np.zeros(changed.shape, mask.dtype)
        out = self._transform(image=image, mask=mask)
        return out["image"], out["mask"]

    def __reduce__(self) -> tuple[type[Augment], tuple[str]]:
        return Augment, (self.name,)


def _seed(transform: A.BaseCompose | A.BasicTransform, generator: np.random.Generator) -> None:
    """Give each transform a seed of its own.

    albumentations hands one seed to all of them: half of the items would then get every transform,
    the others none.
    """
    own = int(generator.integers(2**32))
    # Not `set_random_seed`, which would make generators for all inner ones at every level.
    transform.set_random_state(np.random.default_rng(own), random.Random(own))
    for inner in getattr(transform, "transforms", ()):  # after it, since it hands them its own
        _seed(inner, generator)


def item_seed(seed: int, epoch: int, image_id: str, turn: int = 0) -> int:
    """Return the seed of an image in an epoch, 0 to 2^32 − 1, equal on every worker and machine.

    `turn` counts how often the epoch has shown the image before: each time it looks different.
    """
    name = f"{seed}/{epoch}/{image_id}" + (f"/{turn}" if turn else "")
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
