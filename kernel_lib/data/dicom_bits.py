"""The bits of a DICOM's words that are pixels, and their sign, also where the header is wrong."""

from __future__ import annotations

import numpy as np
import pydicom

from kernel_lib.data.contrast import depth

WRONG_BITS = "HighBit or BitsStored disagrees with the values: the bits in use were read"
WRONG_SIGN = "PixelRepresentation disagrees with the values: read with the other sign"
# With the wrong sign the middle levels of 2,500 radiographs, or those about 0, wrap around: the sum
# of the steps between neighbours grows by a factor of 1.28 to 5.6.
CLEARLY_SMOOTHER = 0.8
MAX_MARKER_VALUES = 16  # padding and markers have no more, and say nothing of the sign


def pixel_values(words: np.ndarray, dataset: pydicom.Dataset) -> tuple[np.ndarray, int, list[str]]:
    """Return the stored values, the bits that they take, and notes where the header is wrong.

    words: (H, W) integers as decoded, unused bits and all; signed by PixelRepresentation, which is
    corrected in the data set where the values wrap around by it.
    """
    signed, container = words.dtype.kind == "i", 8 * words.itemsize
    stated = min(int(dataset.BitsStored), container)
    values, bits, notes = _stored(words, dataset, stated)
    if _wrap_around(values, bits, signed):
        signed = not signed
        dataset.PixelRepresentation = int(signed)
        values, notes = _cut(values.astype(np.int64), bits, signed), [WRONG_SIGN, *notes]
    # 16 of 16 bits is also what writers state who do not know.
    if bits > stated or bits == container == 16:
        bits = depth(int(values.min()), int(values.max()), signed=signed)
    return values, bits, notes


def _stored(
    words: np.ndarray, dataset: pydicom.Dataset, bits: int
) -> tuple[np.ndarray, int, list[str]]:
    """Return the stored values, the bits that hold them, and a note where those are not `bits`.

    Source: DICOM PS3.5 8.1.1. Bits beyond BitsStored are no pixel, unless the values below carry
    over into them.
    """
    signed, container = words.dtype.kind == "i", 8 * words.itemsize
    notes = [] if bits == dataset.BitsStored else [WRONG_BITS]
    if bits == container == 8:
        return words, bits, notes
    lowest, highest = int(words.min()), int(words.max())
    shift = _shift(dataset, bits, container)
    if not shift and _fit(lowest, highest, bits, signed):
        return words, bits, notes
    raw = words.astype(np.int64) & ((1 << container) - 1)
    for position in _overlay_bits(dataset):
        if not shift <= position < shift + bits:
            raw &= ~(1 << position)
    # Values that fill the low bits and no others were never moved to the upper ones.
    if shift and _fit(lowest, highest, bits, signed) and (raw & ((1 << shift) - 1)).any():
        shift, notes = 0, [WRONG_BITS]
    raw >>= shift
    if not (raw >> bits).any():
        return _cut(raw, bits, signed), bits, notes
    most = min(container - shift, 16)
    ordered = raw ^ (1 << (container - shift - 1)) if signed else raw  # negative values lowest
    carried = [bit for bit in range(bits, most) if _carries(ordered, bit)]
    if not carried:
        return _cut(raw, bits, signed), bits, notes
    return _cut(raw, carried[-1] + 1, signed), carried[-1] + 1, [WRONG_BITS]


def _wrap_around(values: np.ndarray, bits: int, signed: bool) -> bool:
    """Return whether values of so many bits are clearly smoother with the other sign."""
    if bits <= 8 and not signed:  # nobody has signed radiographs of 8 bits
        return False
    step = max(min(values.shape) // 256, 1)
    few = values[::step, ::step].astype(np.int64)
    other = _cut(few, bits, not signed)
    if len(np.unique(few[few != other])) <= MAX_MARKER_VALUES:
        return False
    return _steps(other) < CLEARLY_SMOOTHER * _steps(few)


def _steps(values: np.ndarray) -> int:
    return sum(int(np.abs(np.diff(values, axis=axis)).sum()) for axis in (0, 1))


def _shift(dataset: pydicom.Dataset, bits: int, container: int) -> int:
    """Return how many unused bits lie below the pixel's; 0 where HighBit can't be right."""
    high = dataset.get("HighBit")
    return int(high) + 1 - bits if high is not None and bits <= high < container else 0


def _fit(lowest: int, highest: int, bits: int, signed: bool) -> bool:
    half = 1 << (bits - 1)
    return -half <= lowest and highest < half if signed else highest < 2 * half


def _cut(raw: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Return the values of the low bits, in two's complement where they are signed."""
    values, half = raw & ((1 << bits) - 1), 1 << (bits - 1)
    return (values ^ half) - half if signed else values


def _overlay_bits(dataset: pydicom.Dataset) -> list[int]:
    """Return the bits in which overlays lie among the pixels (PS3.3 C.9.2, retired)."""
    positions = (dataset.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2))
    return [int(element.value) for element in positions if element is not None and element.value]


def _carries(raw: np.ndarray, bit: int) -> bool:
    """Return whether the bits below wrap around where this one changes, as digits of a number do.

    Beside an overlay, or noise, they go on as they were.
    """
    gained = 0
    for axis in (0, 1):
        step = np.diff(raw & ((1 << bit) - 1), axis=axis)
        change = np.diff(raw >> bit & 1, axis=axis) << bit
        gained += int((np.abs(step) - np.abs(step + change)).sum())
    return gained > 0
