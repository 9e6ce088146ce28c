"""Which bits of a DICOM's words are pixels, also where HighBit and BitsStored are wrong."""

from __future__ import annotations

import numpy as np
import pydicom

from kernel_lib.data.contrast import depth

WRONG_BITS = "HighBit or BitsStored disagrees with the values: the bits in use were read"


def pixel_values(words: np.ndarray, dataset: pydicom.Dataset) -> tuple[np.ndarray, int, list[str]]:
    """Return the stored values, the bits that they take, and a note where the header is wrong.

    words: (H, W) integers as decoded, unused bits and all; signed by PixelRepresentation.
    Source: DICOM PS3.5 8.1.1. What lies beyond BitsStored is no pixel, unless the values below
    carry over into it.
    """
    signed, container = words.dtype.kind == "i", 8 * words.itemsize
    bits = min(int(dataset.BitsStored), container)
    notes = [] if bits == dataset.BitsStored else [WRONG_BITS]
    if bits == container == 8:
        return words, bits, notes
    lowest, highest = int(words.min()), int(words.max())
    shift = _shift(dataset, bits, container)
    if not shift and _fit(lowest, highest, bits, signed):
        # 16 of 16 bits is also what writers state who do not know.
        used = depth(lowest, highest, signed=signed) if bits == container == 16 else bits
        return words, used, notes
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
    values = _cut(raw, carried[-1] + 1, signed)
    return values, depth(int(values.min()), int(values.max()), signed=signed), [WRONG_BITS]


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
