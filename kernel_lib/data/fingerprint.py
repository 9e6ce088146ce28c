"""Fingerprints, by which a radiograph is recognised whatever its file is called.

A fingerprint is a unit vector of 1,024 numbers. Files keep and compare its code: the signs of its
products with 512 fixed random vectors, of which a share differs that grows with the angle between
two fingerprints (Charikar 2002). Two pictures are the same where at most `MOST_DIFFERING` bits
differ. Measured on 2,205 real radiographs of 512 px (`python -m tools.benchmarks.fingerprints`):
different ones differ in at least 102 bits, half of the pairs in more than 244; copies of 128 px, by
JPEG at quality 50, with gamma 0.8 to 1.25, contrast or brightness ±5 %, or all of these, in at most
49, every fourth pixel in at most 56. A code takes 0.34 ms at 1024 px, and 88 bytes in a file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from kernel_lib import storage
from kernel_lib.data.cache import Prepared
from kernel_lib.data.cache_store import resized
from kernel_lib.notebook import bar

# Codes begin with it, and only those of one version compare.
VERSION = 2
GRID = 32
FINE, WIDE = 0.8, 2.0  # deviations of the two blurs, in cells of the grid
FAINT = 5.0  # grey levels; structure weaker than this counts for less
BITS, MOST_DIFFERING = 512, 80
FILE = "fingerprints.json"  # in a cache's folder: the codes of its images
_PREFIX = f"{VERSION}:"
_LENGTH = len(_PREFIX) + -(-BITS // 6)
_BLOCK = 4096  # rows compared at a time: 52 MB of products with 3,205 others


def of(levels: np.ndarray) -> np.ndarray:
    """Return the fingerprint of grey levels 0–255: of unit length, or zeros of a blank picture.

    Shapes: (H, W) uint8 → (1024,) float32. The picture is resized to 32×32 cells; each cell's
    difference from its surroundings is divided by the usual difference around it, so that ribs and
    vessels count as much as the body's outline, which all chests share. It does not hold under
    cropping, turning or inverting.
    """
    cells = resized(levels, GRID).astype(np.float32)  # (32, 32)
    detail = cells - _blur(cells, FINE)
    usual = np.sqrt(_blur(detail * detail, WIDE))
    even = detail / (usual + FAINT)
    even -= even.mean()
    length = float(np.linalg.norm(even))
    if length < 1e-3:  # a blank film resembles nothing, not even another blank one
        return np.zeros(GRID * GRID, np.float32)
    return (even / length).ravel()


def code(levels: np.ndarray) -> str:
    """Return the code of grey levels (H, W) uint8: text that `matches` compares, and files keep.

    A blank picture has a code that equals none.
    """
    fingerprint = of(levels)
    if not fingerprint.any():
        return _PREFIX
    bits = np.packbits(fingerprint @ _directions() >= 0)
    return _PREFIX + base64.b64encode(bits.tobytes()).decode().rstrip("=")


def codes(prepared: Prepared) -> tuple[str, ...]:
    """Return the code of each image of a cache, kept beside it until one of them changes."""
    path = prepared.folder / FILE
    key = f"{VERSION} {prepared.digest()}"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["of"] == key:
            return tuple(kept["codes"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or damaged
    rows = bar(range(len(prepared)), desc="fingerprints", unit="image", leave=False)
    made = tuple(code(prepared.image(i)) for i in rows)
    storage.write_json(path, {"of": key, "codes": made})
    return made


def is_code(text: str) -> bool:
    """Return whether a text is a code of this version; only those compare."""
    return text.startswith(_PREFIX) and len(text) in (len(_PREFIX), _LENGTH)


def shows(text: str) -> bool:
    """Return whether a text is a code of this version, of a picture that is not blank."""
    return is_code(text) and text != _PREFIX


def matches(these: Sequence[str], those: Sequence[str]) -> np.ndarray:
    """Return the pairs of indices whose codes are of the same picture, by the first index.

    All pairs are compared; texts that are no code of this version equal none.
    Shape: (P, 2) int64.
    """
    other = _signs(those)
    pairs = [np.empty((0, 2), np.int64)]
    for start in range(0, len(these), _BLOCK):
        # Of ±1, the product is the bits that agree less those that differ.
        product = _signs(these[start : start + _BLOCK]) @ other.T  # (block, M)
        alike = product >= BITS - 2 * MOST_DIFFERING
        pairs.append(np.argwhere(alike) + np.array([start, 0]))
    return np.concatenate(pairs)


@lru_cache(maxsize=1)
def _directions() -> np.ndarray:
    """Return the 512 random vectors, (1024, 512) float32 of ±1, equal in all NumPy versions."""
    random = hashlib.shake_256(b"pneumothorax").digest(GRID * GRID * BITS // 8)
    bits = np.unpackbits(np.frombuffer(random, np.uint8)).reshape(GRID * GRID, BITS)
    return bits.astype(np.float32) * 2 - 1


def _signs(codes: Sequence[str]) -> np.ndarray:
    """Return codes as (N, 512) float32 of ±1; zeros for those that `shows` nothing."""
    signs = np.zeros((len(codes), BITS), np.float32)
    for row, text in zip(signs, codes, strict=True):
        if shows(text):
            raw = base64.b64decode(text[len(_PREFIX) :] + "=" * (-(_LENGTH - len(_PREFIX)) % 4))
            row[:] = np.unpackbits(np.frombuffer(raw, np.uint8), count=BITS) * 2.0 - 1
    return signs


def _blur(cells: np.ndarray, deviation: float) -> np.ndarray:
    return cv2.GaussianBlur(cells, (0, 0), deviation, borderType=cv2.BORDER_REFLECT)
