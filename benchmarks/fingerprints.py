"""Fingerprints of real radiographs: copies of one beside different ones, and the cost.

    python -m benchmarks.fingerprints DATA

DATA is searched for stage2-silver and labelled-17. Each radiograph is copied in every way of
`COPIES`; copy and original are then brought to each of `SIZES`, as `prepare` brings them.
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

SIZES = (1024, 512, 128)
N_NIH, N_TEST = 112_120, 3_205


def jpeg(levels: np.ndarray, quality: int) -> np.ndarray:
    coded = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE)


def toned(levels: np.ndarray, gamma: float = 1, contrast: float = 1, lift: float = 0) -> np.ndarray:
    grey = (np.linspace(0, 1, 256) ** gamma - 0.5) * contrast + 0.5 + lift
    return np.clip(np.rint(255 * grey), 0, 255).astype(np.uint8)[levels]


COPIES = {
    "512 px": lambda x: resized(x, 512),
    "256 px": lambda x: resized(x, 256),
    "128 px": lambda x: resized(x, 128),
    "256 px, nearest pixels": lambda x: x[2::4, 2::4],
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


def originals(data: Path) -> list[np.ndarray]:
    """Real radiographs, each once."""
    files = {images.image_id(p): p for p in sorted((data / "labelled-17" / "images").iterdir())}
    files |= {images.image_id(p): p for p in sorted((data / "stage2-silver").rglob("*.dcm"))}
    return [images.read(path) for path in files.values()]


def at_size(pictures: list[np.ndarray], size: int) -> np.ndarray:
    return np.stack([fingerprint.of(resized(x, size)) for x in pictures])  # (N, D)


def main(data: Path) -> None:
    pictures = originals(data)
    print(f"{len(pictures)} radiographs; threshold {fingerprint.THRESHOLD}")
    for size in SIZES:
        prints = at_size(pictures, size)
        pairs = (prints @ prints.T)[np.triu_indices(len(pictures), 1)]
        levels = ", ".join(f"{q:.2%} {np.quantile(pairs, q):.3f}" for q in (0.5, 0.99, 0.9999))
        print(
            f"\nat {size} px: {len(pairs)} pairs of different ones: {levels}, max {pairs.max():.3f}"
        )
        for name, copy in COPIES.items():
            alike = (prints * at_size([copy(x) for x in pictures], size)).sum(axis=1)
            print(f"  {name}: min {alike.min():.3f}, 1 % {np.quantile(alike, 0.01):.3f}")
    cost(pictures[0], prints.shape[1])


def cost(picture: np.ndarray, width: int) -> None:
    """What a fingerprint, all matches and the decoding before them take."""
    for size in (512, 1024):
        shown = resized(picture, size)
        print(
            f"a fingerprint at {size} px: {milliseconds(lambda x=shown: fingerprint.of(x)):.2f} ms"
        )
    rng = np.random.default_rng(0)
    these, those = (rng.standard_normal((n, width), dtype=np.float32) for n in (N_NIH // 8, N_TEST))
    start = time.perf_counter()
    fingerprint.matches(these, those, threshold=1e9)
    print(f"{N_NIH} × {N_TEST} matched: {8 * (time.perf_counter() - start):.1f} s (8 × an eighth)")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "radiograph.png"
        Image.fromarray(picture).save(path)
        print(f"a PNG of 1024 px read: {milliseconds(lambda: images.read(path)):.1f} ms")


def milliseconds(call: Callable[[], object], n: int = 50) -> float:
    spent = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        spent.append(1e3 * (time.perf_counter() - start))
    return statistics.median(spent)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
