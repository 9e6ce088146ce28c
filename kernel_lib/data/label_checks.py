"""The label of an image; and labels together: all empty, inverted, or drawn at another size."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Protocol

import numpy as np

from kernel_lib.data import images, rle
from kernel_lib.errors import InputError

# (runs, the image's shape) of one image's label
Label = tuple[rle.Runs, tuple[int, int]]
AS_THEY_ARE = "-p MASKS_ARE right takes them as they are"
# Sizes that masks are drawn at, and how near to the images' own one can be known: of the
# competition's 2,669 masks no single one fits a smaller such size better than its own.
SIZE_STEPS, LARGEST_SHARE = (16, 50), 15 / 16
ENOUGH_MASKS = 200


class Labelled(Protocol):
    """A row of `Source.train`."""

    path: str  # of the image
    rle: str
    mask_path: str  # "" where the RLE is the label
    label_at: str


def runs_of(row: Labelled, shape: tuple[int, int], masks_are: str | None = None) -> rle.Runs:
    """Return the mask of a labelled image of shape (H, W), from its RLE or its mask file.

    masks_are: "inverted" swaps mask and background; "right" takes a file that looks inverted.
    Raises: InputError naming the label, where it is none or of another size than the image.
    """
    if not row.mask_path:
        try:
            runs = rle.parse(row.rle, shape)
        except rle.RleError as error:
            raise InputError(f"{row.label_at}, image {row.path}: {error}") from error
        return rle.runs_of(1 - rle.mask_of(runs, shape)) if masks_are == "inverted" else runs
    mask = images.read_mask(row.mask_path, masks_are)
    if mask.shape != tuple(shape):
        is_transposed = mask.shape == tuple(shape)[::-1]
        fix = "it may be transposed: swap its rows and columns" if is_transposed else "resize it"
        raise InputError(
            f"{row.mask_path} is {mask.shape[1]}×{mask.shape[0]} and its image {row.path} "
            f"{shape[1]}×{shape[0]}: a mask has its image's size; {fix}"
        )
    return rle.runs_of(mask)


def doubt(labels: Sequence[Label]) -> str | None:
    """Return in words why the labels of all images can't be right; None where nothing says so."""
    masks = [(runs, shape) for runs, shape in labels if len(runs)]
    if labels and not masks:
        return f"all of {len(labels):,} masks are empty: give the labels; or {AS_THEY_ARE}"
    large = [1 for runs, (height, width) in masks if 2 * rle.area(runs) > height * width]
    if len(large) > 1 and 2 * len(large) > len(masks):
        return (
            f"{len(large):,} of {len(masks):,} masks cover more than half of their image, as where "
            f"background and mask are swapped: -p MASKS_ARE inverted swaps them, {AS_THEY_ARE}"
        )
    side = drawn_side(masks)
    if side:
        shape = masks[0][1]
        return (
            f"no run of {len(masks):,} masks reaches beyond the pixels of {side}×{side}, and those "
            f"are the columns they fit, not those of the images ({shape[1]}×{shape[0]}): give "
            f"labels drawn at the images' size, or images of the labels'; or {AS_THEY_ARE}"
        )
    return None


def drawn_side(masks: Sequence[Label]) -> int | None:
    """Return the side of the smaller square that masks were drawn on; None where nothing says so.

    All runs lie within its pixels, and shifted by the height of one of its columns they fall on the
    masks' next columns better than shifted by the images' own.
    """
    if not masks:
        return None
    farthest = max(int(runs[-1].sum()) for runs, _ in masks)
    smallest = isqrt(min(height * width for _, (height, width) in masks))
    sides = range(isqrt(farthest - 1) + 1, int(LARGEST_SHARE * smallest) + 1)
    usual = [side for side in sides if any(side % step == 0 for step in SIZE_STEPS)]
    better = {side: _better(masks[:ENOUGH_MASKS], side) for side in usual}
    side = max(better, key=better.get, default=None)
    return side if side and better[side] > 0 else None


def _better(masks: Sequence[Label], side: int) -> int:
    """Return how many pixels more fall on the next columns where these are `side` px high."""
    gain = 0
    for runs, (height, _) in masks:
        within = runs[runs[:, 1] <= side]  # longer ones span columns, and tell no height
        gain += _shared(within, side) - _shared(within, height)
    return gain


def _shared(runs: rle.Runs, step: int) -> int:
    return rle.shared_px(runs + np.array([step, 0]), runs)
