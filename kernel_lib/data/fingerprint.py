"""A radiograph known again by its pixels, whatever its file is called.

The measure is the correlation of two fingerprints: 1 for the same pixels, about 0 for strangers.
Measured on 317 real radiographs, each copied in 15 ways, brought to 1024, 512 and 128 px
(`python -m benchmarks.fingerprints DATA`):

  50,086 pairs of different radiographs     half below 0.07, 99.99 % below 0.47, all below 0.52
  copies of 512, 256 or 128 px              0.98 and more
  JPEG at quality 95, 75, 50                0.99 and more
  gamma 0.8 or 1.25                         0.98 and more
  contrast or brightness ±5 %               0.98 and more
  all of these together, or nearest pixels  0.96 and more

Of NIH's 112,120 images and 3,205 test images 3.6e8 pairs can be made, far more than were measured.
Of different ones, Fisher's z passes 0.51 in 1e-4 of the pairs and falls tenfold every 0.1 above it;
carried on so, one pair of strangers in 1e10 reaches `THRESHOLD` (z = 1.10).
"""

from __future__ import annotations

import cv2
import numpy as np

from kernel_lib.data.cache_store import resized

# Another recipe is another fingerprint: what was matched with an older number is matched anew.
VERSION = 1
GRID = 32
FINE, WIDE = 0.8, 2.0  # deviations of the two blurs, in cells of the grid
FAINT = 5.0  # grey levels; structure weaker than this counts for less
THRESHOLD = 0.8
_BLOCK = 4096  # rows matched at a time: 52 MB of correlations with 3,205 others


def of(levels: np.ndarray) -> np.ndarray:
    """The fingerprint of grey levels 0–255: of unit length, or all zeros where nothing is seen.

    Shapes: (H, W) uint8 → (1024,) float32. The picture is brought to 32×32 cells; each cell's
    difference from its surroundings is divided by the usual difference around it, so that ribs and
    vessels count as much as the body's outline, which all chests share. It holds under resizing,
    JPEG, and changes of brightness, contrast and gamma; not under cropping, turning or inverting.
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


def matches(these: np.ndarray, those: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Pairs of indices whose correlation is at least `threshold`, ordered by the first index.

    Shapes: (N, D) and (M, D) float32 → (P, 2) int64. All pairs are compared, in blocks of rows.
    """
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(these), _BLOCK):
        alike = these[start : start + _BLOCK] @ those.T >= threshold  # (block, M)
        found.append(np.argwhere(alike) + np.array([start, 0]))
    return np.concatenate(found)


def _blur(cells: np.ndarray, deviation: float) -> np.ndarray:
    return cv2.GaussianBlur(cells, (0, 0), deviation, borderType=cv2.BORDER_REFLECT)
