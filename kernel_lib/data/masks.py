"""Resizing masks so that their area holds.

A mask resized as a photograph and cut at a level loses or gains a few per cent of its area at the
sizes used here, which bounds the dice of what is trained on it. Here the number of pixels is fixed
first, and then the pixels that the mask covers most are taken.
"""

from __future__ import annotations

import cv2
import numpy as np

from kernel_lib.errors import InputError


def resize_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a mask resized to shape (h, w), uint8 0/1, with exactly `resized_area` pixels.

    The pixels taken are those of greatest coverage: the share of the output pixel's own area that
    the mask fills. Along an axis that is enlarged, where that share would only repeat pixels, it is
    the share of a window of one input pixel about the output pixel's centre (bilinear
    interpolation). Ties go to the pixel with the greater coverage summed over its 3×3
    neighbourhood (beyond the image's edge the edge repeats), then to the first in reading order.
    All of it is exact, in integers.

    Shapes: mask (H, W), any dtype, nonzero = 1.
    Raises: InputError when the mask is not two-dimensional or a side of either shape is below 1.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or min(mask.shape) < 1:
        raise InputError(f"the mask has shape {mask.shape}, not (H, W) of at least 1 px each")
    if len(shape) != 2 or min(shape) < 1:
        raise InputError(f"the size to resize to is {tuple(shape)}, not (h, w) of at least 1 each")
    mask = mask != 0
    if mask.shape == tuple(shape):
        return mask.view(np.uint8)
    resized = np.zeros(shape, dtype=np.uint8)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return resized
    in_rows, out_rows = _reach(rows[0], rows[-1] + 1, mask.shape[0], shape[0])
    in_columns, out_columns = _reach(columns[0], columns[-1] + 1, mask.shape[1], shape[1])
    crop = mask[in_rows, in_columns]
    n_px = resized_area(int(np.count_nonzero(crop)), mask.shape, shape)
    if mask.shape[0] % shape[0] or mask.shape[1] % shape[1]:
        cover = _cover_rows(crop.astype(np.int64), in_rows.start, mask.shape[0], out_rows, shape[0])
        cover = _cover_rows(cover.T, in_columns.start, mask.shape[1], out_columns, shape[1]).T
    else:
        cover = _block_sums(mask, out_rows, out_columns, shape)
    resized[out_rows, out_columns] = _greatest(np.ascontiguousarray(cover), n_px)
    return resized


def resized_area(area_px: int, old: tuple[int, int], new: tuple[int, int]) -> int:
    """Return the pixels of a mask of `area_px` px after resizing from old (H, W) to new (h, w).

    The area scales with h·w / (H·W), halves rounded up; a mask that is not empty keeps at least one
    pixel, so that no positive image turns negative.
    """
    old_px, new_px = old[0] * old[1], new[0] * new[1]
    rounded = (2 * area_px * new_px + old_px) // (2 * old_px)
    return max(rounded, 1) if area_px else 0


def _reach(first: int, end: int, n_in: int, n_out: int) -> tuple[slice, slice]:
    """Return input rows first … end, one more on each side, and the output rows they may cover."""
    low, high = _windows(np.arange(n_out), n_in, n_out)
    touched = np.flatnonzero((high > 2 * n_out * first) & (low < 2 * n_out * end))
    # One row more on each side: the input's tells a border of zeros from the image's own edge,
    # the output's gives the outermost pixels their whole neighbourhood.
    return (
        slice(max(first - 1, 0), min(end + 1, n_in)),
        slice(max(touched[0] - 1, 0), min(touched[-1] + 2, n_out)),
    )


def _windows(rows: np.ndarray, n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of each output row's window, in units of 1 / (2 n_out) of an input row."""
    centre = (2 * rows + 1) * n_in
    reach = max(n_in, n_out)  # half an output row when shrinking, half an input row when enlarging
    return centre - reach, centre + reach


def _cover_rows(values: np.ndarray, offset: int, n_in: int, rows: slice, n_out: int) -> np.ndarray:
    """Return the sum of the values under each output row's window, in units of 1 / (2 n_out).

    Shapes: values (k, m), the input rows from offset on, → (rows, m).
    """
    # The image goes on beyond its edge, as bilinear interpolation has it. Where the crop ends
    # inside the image, its last row is empty, and so is what follows.
    padded = np.pad(values, ((1, 1), (0, 0)), mode="edge")  # (k + 2, m)
    before = np.zeros((len(padded) + 1, padded.shape[1]), dtype=np.int64)  # (k + 3, m)
    np.cumsum(padded, axis=0, out=before[1:])
    unit = 2 * n_out

    def sum_up_to(position: np.ndarray) -> np.ndarray:
        position = np.clip(position - (offset - 1) * unit, 0, len(padded) * unit)
        row, part = np.divmod(position, unit)
        within = padded[np.minimum(row, len(padded) - 1)]
        return unit * before[row] + part[:, None] * within

    low, high = _windows(np.arange(rows.start, rows.stop), n_in, n_out)
    return sum_up_to(high) - sum_up_to(low)


def _block_sums(
    mask: np.ndarray, rows: slice, columns: slice, shape: tuple[int, int]
) -> np.ndarray:
    """Return the cover up to a factor, where each output pixel is a block of input pixels.

    Shapes: mask (H, W) bool → (rows, columns), of the output of shape (h, w).
    """
    high, wide = mask.shape[0] // shape[0], mask.shape[1] // shape[1]  # of a block, px
    crop = mask[rows.start * high : rows.stop * high, columns.start * wide : columns.stop * wide]
    sums = crop.reshape(-1, high, crop.shape[1]).sum(axis=1, dtype=np.int64)
    return sums.reshape(len(sums), -1, wide).sum(axis=2)


def _greatest(cover: np.ndarray, n_px: int) -> np.ndarray:
    """Return the n_px pixels of greatest cover (h, w), bool; at least n_px are above zero."""
    # Most pixels are full or empty: only those between them, at the border, need a selection.
    full = cover.max()
    left = n_px - np.count_nonzero(cover == full)
    between = cover[(cover > 0) & (cover < full)]
    last = np.partition(between, -left)[-left] if left > 0 else full
    taken = cover > last
    tied = np.flatnonzero(cover == last)
    # Sums of whole numbers below 2**53 are exact in float64.
    around = cv2.boxFilter(
        cover.astype(np.float64), -1, (3, 3), normalize=False, borderType=cv2.BORDER_REPLICATE
    )
    order = np.argsort(-around.ravel()[tied], kind="stable")
    taken.ravel()[tied[order[: n_px - int(taken.sum())]]] = True
    return taken
