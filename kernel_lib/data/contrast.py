"""How stored levels become 8-bit grey: the depth that is in use, and pictures gone flat."""

from __future__ import annotations

import numpy as np

from kernel_lib.errors import InputError

DEPTHS = (8, 10, 12, 14, 16)  # bits that detectors have
FLAT_BELOW = 25.6  # grey levels in use, a tenth of all: a radiograph has more than 100
FLAT = "less than a tenth of the grey levels was in use: stretched to the values that are there"


def as_grey(fraction: np.ndarray) -> np.ndarray:
    """Fractions of full white as uint8, halves rounded up; outside 0..1 clipped.

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
    """Return the note on a picture whose 16-bit file needs fewer bits."""
    return f"16 bits are stated and {bits} are in use: white is the top of {bits} bits"


def unflattened(
    grey: np.ndarray, values: np.ndarray, stored: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Return the picture, or where it is flat its values stretched to 0..255, and the note on that.

    Shapes: grey (H, W) uint8; stored (H, W), indices into values (n,), of which white is highest.
    Raises: InputError, without naming a file, where the picture has one value only.
    """
    # A few of the pixels show of nearly every radiograph that it is not flat.
    if _levels_in_use(grey[::8, ::8]) >= FLAT_BELOW or _levels_in_use(grey) >= FLAT_BELOW:
        return grey, []
    shown = values[stored]
    lowest, highest = shown.min(), shown.max()
    if lowest == highest:
        raise InputError(
            "has the same grey level in every pixel: save its picture as grey levels without an "
            "alpha channel, fetch it again, or remove it"
        )
    return as_grey((values - lowest) / (highest - lowest))[stored], [FLAT]


def _levels_in_use(grey: np.ndarray) -> int:
    return np.count_nonzero(np.bincount(grey.ravel()))
