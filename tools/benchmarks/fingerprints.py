"""Fingerprints of real radiographs: copies of one beside different ones, and the cost.

    python -m tools.benchmarks.fingerprints DATA

DATA is stage2-512. Each of the first `N_COPIED` radiographs is copied in every way of `COPIES`;
copies and originals are then brought to each of `SIZES`, as `prepare` brings them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from kernel_lib.data import fingerprint, images
from kernel_lib.data.cache_store import resized

SIZES = (512, 128)
N_COPIED = 400
N_NIH, N_TEST = 112_120, 3_205


def jpeg(levels: np.ndarray, quality: int) -> np.ndarray:
    coded = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE)


def toned(levels: np.ndarray, gamma: float = 1, contrast: float = 1, lift: float = 0) -> np.ndarray:
    grey = (np.linspace(0, 1, 256) ** gamma - 0.5) * contrast + 0.5 + lift
    return np.clip(np.rint(255 * grey), 0, 255).astype(np.uint8)[levels]


COPIES = {
    "itself": lambda x: x,
    "256 px": lambda x: resized(x, 256),
    "128 px": lambda x: resized(x, 128),
    "every fourth pixel": lambda x: x[2::4, 2::4],
    "JPEG 95": lambda x: jpeg(x, 95),
    "JPEG 75": lambda x: jpeg(x, 75),
    "JPEG 50": lambda x: jpeg(x, 50),
    "256 px, JPEG 50": lambda x: jpeg(resized(x, 256), 50),
    "gamma 0.8": lambda x: toned(x, gamma=0.8),
    "gamma 1.25": lambda x: toned(x, gamma=1.25),
    "contrast +5 %": lambda x: toned(x, contrast=1.05),
    "contrast -5 %": lambda x: toned(x, contrast=0.95),
    "brightness +5 %": lambda x: toned(x, lift=0.05),
    "brightness -5 %": lambda x: toned(x, lift=-0.05),
    "all: gamma 1.2, contrast and brightness +5 %, 256 px, JPEG 50": lambda x: jpeg(
        resized(toned(x, 1.2, 1.05, 0.05), 256), 50
    ),
}


def signs(pictures: list[np.ndarray], size: int) -> np.ndarray:
    """Return the codes of pictures at one size, (N, 512) of ±1."""
    return fingerprint._signs([fingerprint.code(resized(x, size)) for x in pictures])


def differing(product: np.ndarray) -> np.ndarray:
    """Return bits that differ, from products of ±1."""
    return (fingerprint.BITS - product) / 2


def main(data: Path) -> None:
    pictures = [images.read(path) for path in sorted((data / "images").iterdir())]
    print(
        f"{len(pictures)} radiographs; the same where at most {fingerprint.MOST_DIFFERING} differ"
    )
    at_size = {size: signs(pictures, size) for size in SIZES}
    for size, codes in at_size.items():
        pairs = differing((codes @ codes.T)[np.triu_indices(len(codes), 1)])
        levels = ", ".join(f"{q:.4%} {np.quantile(pairs, q):.0f}" for q in (0.5, 1e-4, 1e-6))
        print(f"{size} px: {len(pairs)} pairs of different ones: {levels}, min {pairs.min():.0f}")
    for name, copy in COPIES.items():
        copied = [copy(x) for x in pictures[:N_COPIED]]
        n_bits = [
            differing((signs(copied, size) * codes[:N_COPIED]).sum(axis=1)).max()
            for size in SIZES
            for codes in at_size.values()
        ]
        print(f"  {name}: max {max(n_bits):.0f}")
    cost(pictures[0])


def cost(picture: np.ndarray) -> None:
    """Print the time of a code, of all matches and of the decoding before them."""
    for size in (512, 1024):
        shown = resized(picture, size)
        print(f"a code at {size} px: {milliseconds(lambda x=shown: fingerprint.code(x)):.2f} ms")
    text = fingerprint.code(picture)
    start = time.perf_counter()
    fingerprint.matches([text] * (N_NIH // 8), [text[:2]] * N_TEST)
    print(f"{N_NIH} × {N_TEST} matched: {8 * (time.perf_counter() - start):.1f} s (8 × an eighth)")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "radiograph.png"
        Image.fromarray(picture).save(path)
        print(
            f"a PNG of {picture.shape[1]} px read: {milliseconds(lambda: images.read(path)):.1f} ms"
        )


def milliseconds(call: Callable[[], object], n: int = 50) -> float:
    spent = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        spent.append(1e3 * (time.perf_counter() - start))
    return statistics.median(spent)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
