"""How stored levels become 8-bit grey: the depth that is in use, and pictures gone flat."""

from __future__ import annotations

import numpy as np

from kernel_lib.errors import InputError

DEPTHS = (8, 10, 12, 14, 16)  # bits that detectors have
FEW_LEVELS = 25.6  # grey levels in use, a tenth of all: a radiograph has more than 100
NARROW = 64  # levels that nearly all pixels lie within; 98 was the least of 2,500 radiographs
OUTLIERS = 0.005  # of the pixels, at either end: markers that are burnt in, dead pixels
OUTLIERS_AFTER = 0.02  # the same after stretching, so that more outliers than that are seen
MAX_BEYOND = 1 / 3  # of the pixels, beyond one end of a window
FLAT = (
    "less than a quarter of the grey range, or a tenth of its levels, was in use: stretched to the "
    "values that are there"
)
MISSED = "the window misses over a third of the pixels: stretched to the values that are there"


def as_grey(fraction: np.ndarray) -> np.ndarray:
    """Return fractions of full white as uint8, halves rounded up; outside 0..1 clipped.

    Raises: ValueError for NaN, which would otherwise pass as black.
    """
    if np.isnan(fraction).any():
        raise ValueError("its rescale or window makes levels that are no numbers")
    return np.floor(np.clip(fraction, 0, 1) * 255 + 0.5).astype(np.uint8)


def depth(lowest: int, highest: int, *, signed: bool = False) -> int:
    """Return the least of DEPTHS that holds these stored values, of at most 16 bits."""
    bits = max(highest, ~lowest).bit_length() + 1 if signed else highest.bit_length()
    return next(depth for depth in DEPTHS if bits <= depth)


def depth_note(bits: int) -> str:
    return f"16 bits are stated and {bits} are in use: white is the top of {bits} bits"


def shown(
    table: np.ndarray,
    values: np.ndarray,
    stored: np.ndarray,
    *,
    padding: slice = slice(0),
    by_window: bool = False,
) -> tuple[np.ndarray, list[str]]:
    """Return the picture by its table, or its values stretched to 0..255, with a note on that.

    Shapes: table (n,) uint8, the grey of each of values (n,), of which white is highest; stored
    (H, W), indices into both. Those in `padding` are no part of the picture. A table that is
    `by_window` may also miss too much of it.
    Raises: InputError, without naming a file, where nearly all pixels have one value, or all two.
    """
    notes: list[str] = []
    # For nearly every radiograph a few of the pixels suffice to find no fault.
    for step in (max(min(stored.shape) // 128, 1), 1):
        counts = _counts(stored[::step, ::step], len(table), padding)
        fault = FLAT if _is_flat(table, counts) else None
        if not fault and by_window and _is_missed(table, values, counts):
            fault = MISSED
        if not fault:
            break
    else:
        table, notes = _stretched(values, counts), [fault]
        table[padding] = 0
    if stored.dtype == np.uint8 and np.array_equal(table, np.arange(256)):
        return np.ascontiguousarray(stored), notes
    return table[stored], notes


def _counts(stored: np.ndarray, n: int, padding: slice) -> np.ndarray:
    counts = np.bincount(stored.ravel(), minlength=n)
    counts[padding] = 0
    return counts


def _is_flat(table: np.ndarray, counts: np.ndarray) -> bool:
    n_levels = len(np.unique(table[counts > 0]))
    return n_levels < FEW_LEVELS or _width(table, counts, OUTLIERS) <= NARROW


def _is_missed(table: np.ndarray, values: np.ndarray, counts: np.ndarray) -> bool:
    """Return whether the values beyond an end of a window are many and wider than it.

    Air and collimators are beyond many windows, but nearly constant.
    """
    inside = np.ptp(values[(table > 0) & (table < 255)])
    beyond = (np.where(table == end, counts, 0) for end in (0, 255))
    return any(
        n.sum() > MAX_BEYOND * counts.sum() and _width(values, n, 0.05) > inside for n in beyond
    )


def _stretched(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the table over the values in use, without outliers where those leave it flat."""
    if np.count_nonzero(counts) == 2:
        raise InputError(
            "has two grey levels only, as a mask or a 1-bit picture: save the radiograph with 8 or "
            "16 bits, or remove it"
        )
    for outliers in (0, OUTLIERS):
        low, high = _ends(values, counts, outliers)
        table = as_grey((values - low) / ((high - low) or 1))
        if _width(table, counts, OUTLIERS_AFTER) > NARROW:
            return table
    raise InputError(
        "has the same grey level in nearly every pixel: save its picture as grey levels without "
        "an alpha channel, fetch it again, or remove it"
    )


def _width(values: np.ndarray, counts: np.ndarray, tail: float) -> float:
    low, high = _ends(values, counts, tail)
    return float(high - low)


def _ends(values: np.ndarray, counts: np.ndarray, tail: float) -> np.ndarray:
    """Return the lowest and the highest value, without that share of the pixels at either end."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(counts[order])
    last = np.searchsorted(reached, (1 - tail) * reached[-1])
    first = np.searchsorted(reached, tail * reached[-1], side="right")
    return values[order[[min(first, last), last]]]
