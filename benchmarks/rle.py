"""Speed of RLE encoding and decoding, beside pycocotools, on drawn masks of 1024 × 1024.

    python -m benchmarks.rle

The masks are ragged blobs with areas much as in the competition (there: median 8,630 px). What is
compared: from a C-contiguous mask to the RLE, and back to a C-contiguous mask. pycocotools is a
development tool here, not a requirement (`pip install pycocotools`); without it only our own
figures are printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np

from kernel_lib.data import rle

SIDE = 1024
N_MASKS = 200
REPEATS = 5


def blob(rng: np.random.Generator) -> np.ndarray:
    """A mask (1024, 1024): smooth noise within an ellipse, its area log-normal."""
    area_px = float(np.clip(np.exp(rng.normal(np.log(4_900), 1.1)), 55, 100_000))
    long = np.sqrt(area_px * rng.uniform(1.5, 6) / np.pi) * 1.4
    axes = (round(area_px / np.pi / long * 2) + 1, round(long) + 1)
    centre = tuple(int(c) for c in rng.integers(200, SIDE - 200, size=2))
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    cv2.ellipse(mask, centre, axes, float(rng.uniform(-30, 30)), 0, 360, 1, thickness=-1)
    noise = cv2.resize(rng.random((96, 96), dtype=np.float32), (SIDE, SIDE))
    return mask & (noise > 0.35)


def milliseconds(call: Callable, arguments: list) -> float:
    """Mean time of one call in ms, the least of several rounds."""
    rounds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for argument in arguments:
            call(argument)
        rounds.append((time.perf_counter() - start) / len(arguments))
    return 1000 * min(rounds)


def main() -> None:
    rng = np.random.default_rng(0)
    masks = [blob(rng) for _ in range(N_MASKS)]
    texts = [rle.encode(mask) for mask in masks]
    assert all(np.array_equal(rle.decode(t), m) for t, m in zip(texts, masks, strict=True))
    areas = sorted(int(mask.sum()) for mask in masks)
    runs = [len(rle.parse(text)) for text in texts]
    print(
        f"{N_MASKS} masks of {SIDE}×{SIDE}, area median {statistics.median(areas):,.0f} px, "
        f"up to {areas[-1]:,} px; {statistics.median(runs):.0f} runs in the median"
    )
    encode = milliseconds(rle.encode, masks)
    decode = milliseconds(rle.decode, texts)
    print(f"encode      {encode:6.3f} ms   (mask → string)")
    print(f"decode      {decode:6.3f} ms   (string → mask)")
    print(f"encode of an empty mask {milliseconds(rle.encode, [np.zeros_like(masks[0])]):6.3f} ms")
    try:
        from pycocotools import mask as coco
    except ImportError:
        print("pycocotools is not installed: nothing to compare with")
        return
    coded = [coco.encode(np.asfortranarray(mask)) for mask in masks]
    coco_encode = milliseconds(lambda mask: coco.encode(np.asfortranarray(mask)), masks)
    coco_decode = milliseconds(lambda code: np.ascontiguousarray(coco.decode(code)), coded)
    coco_fortran = milliseconds(coco.decode, coded)
    print(f"pycocotools {coco_encode:6.3f} ms   encode, with its transposing copy")
    print(f"pycocotools {coco_decode:6.3f} ms   decode, to a C-contiguous mask")
    print(f"pycocotools {coco_fortran:6.3f} ms   decode, left in column order")
    print(f"ours is faster: encode {coco_encode / encode:.1f}×, decode {coco_decode / decode:.1f}×")


if __name__ == "__main__":
    main()
