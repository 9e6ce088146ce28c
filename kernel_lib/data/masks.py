"""Masks: the one that a picture draws, in any encoding, and resizing that keeps the area.

A mask is white on black, or 1 on 0. Some programs draw it as the opacity of one colour instead, or
as index 1 of a palette whose index 0 is the background, whatever their colours. Where that and the
grey levels are each other's complement, the smaller is the mask: no pneumothorax covers half of a
radiograph. A picture in doubt is refused.
"""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np

from kernel_lib.data.pictures import PNG_MAGIC
from kernel_lib.errors import InputError

# Between background and mask, as shares of the largest level.
NEARLY_BLACK, MIDDLE = 1 / 8, (1 / 4, 3 / 4)
# Flat areas of a middle level are a third class; a rim that was smoothed and enlarged has a few.
MAX_FLAT_SHARE = 0.25
# Of so few levels, each that has a flat area is a class; a mask halved and enlarged again has 5.
FEW_LEVELS = 4
# A picture has more middle levels than white, over more of the image than a soft rim; or very many.
PICTURE_SHARES = (0.02, 0.1)
# How far, as a share of the largest level, a colour may lie from those between background and mask.
OFF_COLOUR = 1 / 8
WINDOW = np.ones((3, 3), np.uint8)  # flat where it holds one level


def by_index(data: bytes) -> bytes | None:
    """Return a palette's PNG file with each colour replaced by its index, None for others."""
    if not data.startswith(PNG_MAGIC) or data[25:26] != b"\3":
        return None
    at = len(PNG_MAGIC)
    while data[at + 4 : at + 8] != b"PLTE":
        at += 12 + struct.unpack_from(">I", data, at)[0]
    end = at + 8 + struct.unpack_from(">I", data, at)[0]
    ramp = b"PLTE" + np.arange((end - at - 8) // 3, dtype=np.uint8).repeat(3).tobytes()
    return data[: at + 4] + ramp + struct.pack(">I", zlib.crc32(ramp)) + data[end + 4 :]


def decide(
    levels: np.ndarray,
    indices: np.ndarray | None = None,
    *,
    is_jpeg: bool = False,
    masks_are: str | None = None,
) -> np.ndarray:
    """Return the mask that a picture's levels draw, uint8 0/1.

    masks_are: "inverted" where the mask is what looks like the background, "right" to take a mask
    that looks inverted as it is.
    Shapes: levels (H, W) or (H, W, 3 or 4), BGR and opacity, uint8 or uint16; indices (H, W) of a
    palette's picture → (H, W).
    Raises: InputError, without naming a file, where they may draw more than one mask.
    """
    if indices is not None:
        mask = _by_index(levels, indices)
    elif levels.ndim == 3 and levels.shape[2] == 4:
        mask = _by_opacity(levels)
    else:
        mask = _by_level(_grey(levels), is_jpeg)
    corners = mask[[0, 0, -1, -1], [0, -1, 0, -1]]
    if masks_are is None and corners.all() and 2 * np.count_nonzero(mask) > mask.size:
        raise InputError(
            f"covers {mask.mean():.0%} of its image and all four corners, like a white background: "
            "-p MASKS_ARE inverted reads it so, -p MASKS_ARE right takes it as it is"
        )
    return 1 - mask if masks_are == "inverted" else mask


def _grey(levels: np.ndarray) -> np.ndarray:
    """Return grey levels; one colour on black, as annotation programs draw a class, is white.

    Shapes: (H, W) or (H, W, 3 or 4) → (H, W).
    """
    if levels.ndim == 2:
        return levels
    colours = levels[..., :3]
    coloured = colours.any(axis=2)
    first = colours[coloured][:1]
    on_black = not coloured.all() and np.ptp(first, axis=1).any()
    if on_black and np.array_equal((colours == first).all(axis=2), coloured):
        return coloured.astype(levels.dtype) * np.iinfo(levels.dtype).max
    if (colours != colours[..., :1]).any():
        _check_colours(levels)
    how = cv2.COLOR_BGRA2GRAY if levels.shape[2] == 4 else cv2.COLOR_BGR2GRAY
    return cv2.cvtColor(levels, how)


def _check_colours(levels: np.ndarray) -> None:
    """Refuse flat areas of two colours and a background; a rim's colours lie between two."""
    colours = levels[..., :3]
    if levels.shape[2] == 4 and levels[..., 3].any():
        colours = colours * (levels[..., 3:] > 0)  # what is transparent may hold anything
    flat = colours[(cv2.erode(colours, WINDOW) == cv2.dilate(colours, WINDOW)).all(axis=2)]
    codes, counts = np.unique(flat @ np.array([1, 1 << 16, 1 << 32]), return_counts=True)
    if len(codes) < 3:
        return
    used = (codes[:, None] >> np.array([32, 16, 0]) & 0xFFFF).astype(float)  # (n, 3) RGB
    ground = counts.argmax()
    from_ground = used - used[ground]
    far = np.linalg.norm(from_ground, axis=1).argmax()
    line = from_ground[far] / np.linalg.norm(from_ground[far])
    off = np.linalg.norm(from_ground - np.outer(from_ground @ line, line), axis=1)
    if off.max() > OFF_COLOUR * np.iinfo(levels.dtype).max:
        three = (str(tuple(map(int, used[at]))) for at in (ground, far, off.argmax()))
        raise InputError(
            f"has areas of the colours {', '.join(three)} (RGB), more than mask and background: "
            "save one class as its mask, 255 on 0"
        )


def _by_index(levels: np.ndarray, indices: np.ndarray) -> np.ndarray:
    used, grey = np.unique(indices), _grey(levels)
    if len(used) <= 2 and used[0] == 0:
        return _agreed((indices > 0).astype(np.uint8), grey)
    if len(used) > 2 and (levels[..., :3] != levels[..., :1]).any():
        raise InputError(
            f"has {len(used)} colours of a palette: save one class as its mask, 255 on 0"
        )
    return _by_level(grey)


def _by_opacity(levels: np.ndarray) -> np.ndarray:
    alpha, grey = levels[..., 3], _grey(levels)
    low, high = int(alpha.min()), int(alpha.max())
    if low == high and (low or grey.min() != grey.max()):  # opaque, or transparent by mistake
        return _by_level(grey)
    opaque = _by_level(alpha)
    seen = grey[opaque != 0]
    if not len(seen) or seen.min() == seen.max():
        return _agreed(opaque, grey)
    mask = _by_level(grey)
    if (mask > opaque).any():
        raise InputError("draws one mask by colours and another by its opacity: save it as grey")
    return mask


def _agreed(mask: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Return a mask, or its complement where the grey levels draw that and it is smaller."""
    try:
        other = _by_level(grey)
    except InputError:  # colours that are neither black nor white decide nothing
        return mask
    is_smaller = np.count_nonzero(other) < np.count_nonzero(mask)
    return other if is_smaller and (other != mask).all() else mask


def _by_level(grey: np.ndarray, is_jpeg: bool = False) -> np.ndarray:
    """Return where grey is above half range, or 1 where its levels are only 0 and 1."""
    full = np.iinfo(grey.dtype).max
    counts = cv2.calcHist([grey], [0], None, [full + 1], [0, full + 1]).ravel()
    used = np.flatnonzero(counts)
    top, half = int(used[-1]), full // 2
    if 1 < top <= half or (top == 1 and is_jpeg):
        blurred = ", and JPEG blurs them" if is_jpeg else ""
        raise InputError(
            f"has levels up to {top}{blurred}, so it is neither a 0/1 nor a 0/{full} mask: write a "
            f"PNG with {full} where there is pneumothorax"
        )
    if top > half and len(used) > 2:
        _check_classes(grey, used, is_jpeg)
    return (grey > (half if top > half else 0)).astype(np.uint8)


def _check_classes(grey: np.ndarray, used: np.ndarray, is_jpeg: bool) -> None:
    """Refuse levels that stand for more than background and mask, and pictures."""
    top = int(used[-1])
    fix = f"save one class as its mask, {top} on 0"
    if used[-2] <= NEARLY_BLACK * top:
        raise InputError(
            f"has the levels {', '.join(map(str, used[:-1]))} and {top}, like classes with a void "
            f"rim of {top}: {fix}"
        )
    low, high = (share * top for share in MIDDLE)
    is_few = len(used) <= FEW_LEVELS and not is_jpeg
    if not is_few and not ((used > low) & (used < high)).any():
        return
    least, most = cv2.erode(grey, WINDOW), cv2.dilate(grey, WINDOW)
    flat = grey[least == most]
    classes = np.unique(flat) if is_few else []
    if len(classes) > 2:
        raise InputError(
            f"has areas of the levels {', '.join(map(str, classes))}, two classes: {fix}"
        )
    middle = flat[(flat > low) & (flat < high)]
    n_mask = np.count_nonzero(grey >= high)
    if len(middle) > MAX_FLAT_SHARE * n_mask:
        raise InputError(
            f"has areas of level {int(np.median(middle))}, neither background nor mask: {fix}"
        )
    n_between = np.count_nonzero((least > low) & (most < high))
    if n_between > np.clip(n_mask, *(share * grey.size for share in PICTURE_SHARES)):
        raise InputError(
            f"has {n_between:,} px of middle levels and {n_mask:,} px of mask, like a picture: "
            f"save the mask alone, {top} on 0"
        )


# --- resizing ---


def resize_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a mask resized to shape (h, w), uint8 0/1, with exactly `resized_area` pixels.

    A mask resized as a photograph and cut at a level would lose or gain a few per cent of its area.
    Here the pixels taken are those of greatest coverage: the share of the output pixel's own area
    that the mask fills, or, along an axis that is enlarged, of a window of one input pixel about
    its centre (bilinear interpolation). Ties go to the greater coverage summed over the 3×3
    neighbourhood (the image's edge repeats), then to the first in reading order. All of it is
    exact, in integers.

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
