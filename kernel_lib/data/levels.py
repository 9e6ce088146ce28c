"""From stored values to 8-bit grey: bits, sign, rescale, tables, windows; pictures gone flat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom import uid

from kernel_lib.errors import InputError

WRONG_BITS = "HighBit or BitsStored disagrees with the values: the bits in use were read"
WRONG_SIGN = "PixelRepresentation disagrees with the values: read with the other sign"
# With the wrong sign the middle levels of 2,500 radiographs, or those about 0, wrap around: the sum
# of the steps between neighbours grows by a factor of 1.28 to 5.6.
CLEARLY_SMOOTHER = 0.8
MAX_MARKER_VALUES = 16  # padding and markers have no more, and say nothing of the sign


def pixel_values(words: np.ndarray, dataset: pydicom.Dataset) -> tuple[np.ndarray, int, list[str]]:
    """Return the stored values, the bits that they take, and notes where the header is wrong.

    words: (H, W) integers as decoded, with unused bits; signed by PixelRepresentation, which is
    corrected in the data set if the values wrap around.
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


@dataclass(frozen=True)
class Levels:
    """The grey level of every possible stored value; shapes (n,), from the lowest value on."""

    grey: np.ndarray  # uint8
    values: np.ndarray  # float64, after the modality's rescale or table
    lowest: int
    by: str  # "LUT" or "window"; "range": neither, black and white are its ends


def grey_levels(dataset: pydicom.Dataset, bits: int) -> Levels:
    """Return the grey level 0..255 of every stored value of so many bits, at most 65,536.

    Source: DICOM PS3.3 C.11.1 (modality) and C.11.2 (VOI).
    """
    signed = bool(dataset.get("PixelRepresentation", 0))
    lowest = -(1 << (bits - 1)) if signed else 0
    values = np.arange(lowest, lowest + (1 << bits), dtype=np.float64)
    bottom, top = values[0], values[-1]
    if dataset.get("ModalityLUTSequence"):
        values, entry_bits = _looked_up(values, dataset.ModalityLUTSequence[0], dataset)
        bottom, top = 0, (1 << entry_bits) - 1
    elif dataset.get("RescaleSlope") is not None:
        slope, intercept = float(dataset.RescaleSlope), float(dataset.get("RescaleIntercept") or 0)
        if slope != 0:
            values = values * slope + intercept
            bottom, top = values.min(), values.max()
    if dataset.get("VOILUTSequence"):
        entries, entry_bits = _looked_up(np.rint(values), dataset.VOILUTSequence[0], dataset)
        return Levels(as_grey(entries / ((1 << entry_bits) - 1)), values, lowest, "LUT")
    window = _window(dataset)
    if window is not None:
        return Levels(as_grey(_windowed(values, *window)), values, lowest, "window")
    return Levels(as_grey((values - bottom) / (top - bottom)), values, lowest, "range")


def padding(dataset: pydicom.Dataset, levels: Levels) -> slice:
    """Return the entries of `levels` that are padding around the picture (PS3.3 C.7.5.1.1.2)."""
    first = dataset.get("PixelPaddingValue")
    last = dataset.get("PixelPaddingRangeLimit", first)
    if not isinstance(first, int) or not isinstance(last, int):
        return slice(0)
    # Beyond the range that the values take, the entry is none of theirs.
    low, high = sorted((first - levels.lowest, last - levels.lowest))
    return slice(max(low, 0), max(high + 1, 0))


def _looked_up(values: np.ndarray, item: pydicom.Dataset, dataset) -> tuple[np.ndarray, int]:
    """Return values through a LUT item, by the nearest entry, and the bits of its entries."""
    n_entries, first, bits = (int(number) for number in item.LUTDescriptor)
    n_entries = n_entries or 65536
    # The descriptor is signed where what it maps is, which its reader may not have known.
    if values.min() < 0 and first > max(values.max(), 32767):
        first -= 65536
    entries = item.LUTData
    if isinstance(entries, bytes):  # OW: words in the file's byte order, or packed bytes
        little = dataset.file_meta.TransferSyntaxUID != uid.ExplicitVRBigEndian
        words = f"{'<' if little else '>'}u2"
        # Packed only where as many bytes as entries are there: fewer words are a table cut short.
        packed = bits <= 8 and n_entries <= len(entries) <= n_entries + 1 < 2 * n_entries
        entries = np.frombuffer(entries, "u1" if packed else words)
    table = np.asarray(entries, np.float64)[:n_entries]
    if len(table) < n_entries or not 1 <= bits <= 16:
        raise ValueError(f"LUT of {len(table)} entries, stated {n_entries} of {bits} bits")
    return table[np.clip(values - first, 0, n_entries - 1).astype(np.int64)], bits


def _window(dataset: pydicom.Dataset) -> tuple[float, float, str] | None:
    """Return centre, width and function of the first complete window; None if it has no width."""
    stated = zip(
        *(_several(dataset.get(f"Window{end}")) for end in ("Center", "Width")), strict=False
    )
    first = next((tuple(map(float, pair)) for pair in stated if "" not in pair), None)
    if first is None:
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    # Some writers put 0 for "no window"; the standard asks for 1 or more (LINEAR), else above 0.
    return (*first, function) if first[1] >= 1 or (first[1] > 0 and function != "LINEAR") else None


def _several(value: object) -> list:
    """Return the values of an element that may have one, several or none; "" where one is blank."""
    many = isinstance(value, (list, tuple)) or hasattr(value, "append")
    return ["" if item is None else item for item in (value if many else [value])]


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Return values through a window, 0..1. Source: DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return (values > centre).astype(np.float64)
    return (values - centre) / width + 0.5


# --- depth in use, and flat pictures ---

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
        counts = np.bincount(stored[::step, ::step].ravel(), minlength=len(table))
        counts[padding] = 0
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


def _is_flat(table: np.ndarray, counts: np.ndarray) -> bool:
    n_levels = len(np.unique(table[counts > 0]))
    return n_levels < FEW_LEVELS or np.ptp(_ends(table, counts, OUTLIERS)) <= NARROW


def _is_missed(table: np.ndarray, values: np.ndarray, counts: np.ndarray) -> bool:
    """Return whether the values beyond an end of a window are many and wider than it.

    Air and collimators are beyond many windows, but nearly constant.
    """
    inside = np.ptp(values[(table > 0) & (table < 255)])
    beyond = (np.where(table == end, counts, 0) for end in (0, 255))
    return any(
        n.sum() > MAX_BEYOND * counts.sum() and np.ptp(_ends(values, n, 0.05)) > inside
        for n in beyond
    )


def _stretched(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the table over the values in use, without outliers where those leave it flat."""
    if np.count_nonzero(counts) == 2:
        raise InputError(
            "has only two grey levels, like a mask: save the radiograph with 8 or 16 bits, or "
            "remove it"
        )
    for outliers in (0, OUTLIERS):
        low, high = _ends(values, counts, outliers)
        table = as_grey((values - low) / ((high - low) or 1))
        if np.ptp(_ends(table, counts, OUTLIERS_AFTER)) > NARROW:
            return table
    raise InputError(
        "has the same grey level in nearly every pixel: save it as grey levels without an alpha "
        "channel, fetch it again, or remove it"
    )


def _ends(values: np.ndarray, counts: np.ndarray, tail: float) -> np.ndarray:
    """Return the lowest and the highest value, without that share of the pixels at either end."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(counts[order])
    last = np.searchsorted(reached, (1 - tail) * reached[-1])
    first = np.searchsorted(reached, tail * reached[-1], side="right")
    return values[order[[min(first, last), last]]]
