"""An image's label, and signs that all labels together are wrong: empty, inverted, outlines …"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import cv2
import numpy as np

from kernel_lib.data import images, rle
from kernel_lib.errors import InputError

# (runs, the image's shape) of one image's label
Label = tuple[rle.Runs, tuple[int, int]]
AS_THEY_ARE = "-p MASKS_ARE right takes them as they are"
# Heights that masks may have been drawn at: multiples of SIZE_STEPS, as either side, up to
# LARGEST_SHARE of the images' own; or SHARES of it.
SIZE_STEPS, LARGEST_SHARE = (16, 50), 1.1
SHARES = [Fraction(*share) for share in ((1, 2), (1, 3), (2, 3), (1, 4), (3, 4), (1, 5))]
# By which share of the pixels on the next columns another height must fit better than the images'
# own, and how much more where it is near that and masks are few. None of the competition's 2,669
# masks does.
MARGIN, NEARLY, NEAR_MARGIN = 0.01, 0.3, 0.3
ENOUGH_MASKS = 200
BY_ROWS = "written row by row"
# How many times the area grows where outlines are filled; the competition's masks grow by 2 %.
OUTLINES_GROW = 2


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
    """Return in words why the labels of all images can't be right; None without a sign of it."""
    masks = [(runs, shape) for runs, shape in labels if len(runs)]
    if labels and not masks:
        return f"all of {len(labels):,} masks are empty: give the labels; or {AS_THEY_ARE}"
    large = sum(map(_is_large, masks))
    if large > 1 and 2 * large > len(masks):
        return (
            f"{large:,} of {len(masks):,} masks cover more than half of their image, as where "
            f"background and mask are swapped: -p MASKS_ARE inverted swaps them, {AS_THEY_ARE}"
        )
    if doubt := doubt_of_drawing(masks):
        return doubt if BY_ROWS in doubt else f"{doubt}; or {AS_THEY_ARE}"
    grows = [_filled_px(*label) / rle.area(label[0]) for label in masks[:ENOUGH_MASKS]]
    growth = np.median(grows or [1])
    if growth < OUTLINES_GROW:
        return None
    return (
        f"filling the holes of the masks makes the median one {growth:.0f} times as large, as of "
        f"outlines: fill them (cv2.drawContours with thickness -1); or {AS_THEY_ARE}"
    )


def doubt_of_large(named: Sequence[tuple[str, Label]]) -> str | None:
    """Return in words which images' masks are large for a pneumothorax, None where none is."""
    large = [name for name, label in named if _is_large(label)]
    if not large:
        return None
    more = f" and {len(large) - 3:,} more" if len(large) > 3 else ""
    return f"{len(large):,} masks cover more than half an image: {', '.join(large[:3])}{more}"


def _is_large(label: Label) -> bool:
    runs, (height, width) = label
    return 2 * rle.area(runs) > height * width


def _filled_px(runs: rle.Runs, shape: tuple[int, int]) -> int:
    mask = rle.mask_of(runs, shape)
    outer, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.count_nonzero(cv2.drawContours(mask, outer, -1, 1, cv2.FILLED))


def doubt_of_drawing(labels: Sequence[Label]) -> str | None:
    """Return in words that masks were drawn at another size, or in rows; None without a sign."""
    masks = [(runs, shape) for runs, shape in labels if len(runs)]
    size = drawn_at(masks)
    if size is None:
        return None
    height, width = masks[0][1]
    if size == BY_ROWS:
        return (
            f"{len(masks):,} masks look {BY_ROWS}, or of images turned by 90° ({width}×{height}), "
            "and this competition's runs go down the columns: transpose each mask"
        )
    return (
        f"{len(masks):,} masks fit the columns of images {size}, not those of their own images "
        f"({width}×{height}): give masks and images of one size"
    )


def drawn_at(masks: Sequence[Label]) -> str | None:
    """Return the size of images that masks were drawn on, or `BY_ROWS`; None without a sign.

    All runs lie within its pixels, and shifted by its height they fall on the masks' next columns
    better than shifted by the images' own.
    """
    better = {name: _better(masks, steps) for name, steps in _steps(masks).items()}
    name = max(better, key=better.get, default=None)
    return name if name and better[name] > 0 else None


def _steps(masks: Sequence[Label]) -> dict[str, np.ndarray]:
    """Return how many pixels a column may have by each possible size, (N,) each."""
    if not masks:
        return {}
    heights, widths = np.array([shape for _, shape in masks]).T
    ends = np.array([runs[-1].sum() for runs, _ in masks])
    largest = int(LARGEST_SHARE * max(heights.max(), widths.max()))
    usual = [n for n in range(1, largest + 1) if any(n % step == 0 for step in SIZE_STEPS)]
    sizes = {f"{n} px high": np.full(len(masks), n) for n in usual}
    sizes |= {f"{share} as high": np.rint(float(share) * heights).astype(int) for share in SHARES}
    if (heights != widths).any():
        sizes |= {f"{n} px wide": np.rint(n * heights / widths).astype(int) for n in usual}
    possible = {
        name: size
        for name, size in sizes.items()
        if (size <= LARGEST_SHARE * heights).all()
        and (ends <= size * np.maximum(size, np.ceil(size * widths / heights))).all()
    }
    return {BY_ROWS: widths, **possible} if (heights != widths).any() else possible


def _better(masks: Sequence[Label], steps: np.ndarray) -> float:
    """Return how many pixels more fall on the next columns where these are `steps` px high."""
    gain, few = 0.0, NEAR_MARGIN / len(masks)
    for (runs, (height, _)), step in zip(masks[:ENOUGH_MASKS], steps, strict=False):
        within = runs[runs[:, 1] <= min(step, height)]  # longer ones span columns: no height
        margin = MARGIN + few * (abs(step - height) < NEARLY * height)
        gain += _shared(within, step) - (1 + margin) * _shared(within, height)
    return gain


def _shared(runs: rle.Runs, step: int) -> int:
    return rle.shared_px(runs + np.array([step, 0]), runs)
