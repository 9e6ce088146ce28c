"""The grey levels that a DICOM header states: rescale, look-up tables and windows as one table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom import uid

from kernel_lib.data.contrast import as_grey


@dataclass(frozen=True)
class Levels:
    """The grey level of every possible stored value; shapes (n,), from the lowest value on."""

    grey: np.ndarray  # uint8
    values: np.ndarray  # float64, after the modality's rescale or table
    lowest: int
    by: str  # "LUT" or "window"; "range": neither, black and white are its ends


def grey_levels(dataset: pydicom.Dataset, bits: int) -> Levels:
    """Return the grey level 0..255 of every stored value that so many bits allow.

    Source: DICOM PS3.3 C.11.1 (modality) and C.11.2 (VOI); every step maps a value on its own,
    so one table of at most 65,536 entries holds them all.
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
