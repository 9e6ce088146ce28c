"""Speed of RLE encoding and decoding, beside pycocotools and the competition's own functions.

    python -m tools.benchmarks.rle

The masks are ragged blobs of 1024 × 1024 with areas much as in the competition (there: median
8,630 px). What is compared: from a C-contiguous mask to the RLE, and back to a C-contiguous mask.
pycocotools is a development tool here, not a requirement (`pip install pycocotools`); without it
its figures are left out. The competition's two functions are rewritten here: one looks at every
pixel in Python, the other fills a flat array run by run and leaves the mask transposed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from kernel_lib.data import rle
from tools.benchmarks.rounds import Timed, figure, timed

SIDE = 1024
N_MASKS = 200
N_SLOW = 3  # masks for what takes a third of a second each


def blob(rng: np.random.Generator) -> np.ndarray:
    """Return a mask (1024, 1024): smooth noise within an ellipse, its area log-normal."""
    area_px = float(np.clip(np.exp(rng.normal(np.log(4_900), 1.1)), 55, 100_000))
    long = np.sqrt(area_px * rng.uniform(1.5, 6) / np.pi) * 1.4
    axes = (round(area_px / np.pi / long * 2) + 1, round(long) + 1)
    centre = tuple(int(c) for c in rng.integers(200, SIDE - 200, size=2))
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    cv2.ellipse(mask, centre, axes, float(rng.uniform(-30, 30)), 0, 360, 1, thickness=-1)
    noise = cv2.resize(rng.random((96, 96), dtype=np.float32), (SIDE, SIDE))
    return mask & (noise > 0.35)


def pixel_by_pixel(mask: np.ndarray) -> str:
    """Return the RLE of the competition's encoder, which loses a run at the last pixel."""
    height, width = mask.shape
    numbers, at, start, end = [], 0, -1, 0
    for column in range(width):
        for row in range(height):
            if mask[row][column]:
                start = at if start < 0 else start
            elif start >= 0:
                numbers += [start - end, at - start]
                start, end = -1, at
            at += 1
    return " ".join(map(str, numbers)) or rle.EMPTY


def run_by_run(text: str, contiguous: bool) -> np.ndarray:
    """Return the mask of the competition's decoder, or its values in the order of rows."""
    flat, at = np.zeros(SIDE * SIDE, np.uint8), 0
    numbers = np.array([int(number) for number in text.split()])
    for gap, length in zip(numbers[0::2], numbers[1::2], strict=True):
        at += gap
        flat[at : at + length] = 1
        at += length
    mask = flat.reshape(SIDE, SIDE).T
    return np.ascontiguousarray(mask) if contiguous else mask


def each(call: Callable, arguments: list) -> Callable[[], None]:
    """Return a function that calls another with every argument."""

    def work() -> None:
        for argument in arguments:
            call(argument)

    return work


def others(masks: list[np.ndarray]) -> dict[str, Callable[[], None]]:
    """Return the functions of pycocotools, where it is installed."""
    try:
        from pycocotools import mask as coco
    except ImportError:
        print("pycocotools is not installed: nothing of it to compare with")
        return {}
    coded = [coco.encode(np.asfortranarray(mask)) for mask in masks]
    return {
        "coco encode": each(lambda mask: coco.encode(np.asfortranarray(mask)), masks),
        "coco decode": each(lambda code: np.ascontiguousarray(coco.decode(code)), coded),
        "coco decode, in columns": each(coco.decode, coded),
    }


def main() -> None:
    rng = np.random.default_rng(0)
    masks = [blob(rng) for _ in range(N_MASKS)]
    texts = [rle.encode(mask) for mask in masks]
    assert all(np.array_equal(rle.decode(t), m) for t, m in zip(texts, masks, strict=True))
    assert all(np.array_equal(run_by_run(t, True), m) for t, m in zip(texts, masks, strict=True))
    assert [pixel_by_pixel(mask) for mask in masks[:N_SLOW]] == texts[:N_SLOW]
    areas = sorted(int(mask.sum()) for mask in masks)
    runs = [len(rle.parse(text)) for text in texts]
    print(
        f"{N_MASKS} masks of {SIDE}×{SIDE}, area median {statistics.median(areas):,.0f} px, "
        f"up to {areas[-1]:,} px; {statistics.median(runs):.0f} runs in the median"
    )
    works = {
        "encode": each(rle.encode, masks),
        "decode": each(rle.decode, texts),
        "encode, empty": each(rle.encode, [np.zeros_like(masks[0])] * N_MASKS),
        "run by run": each(partial(run_by_run, contiguous=True), texts),
        "run by run, transposed": each(partial(run_by_run, contiguous=False), texts),
        "pixel by pixel": each(pixel_by_pixel, masks[:N_SLOW]),
    }
    show(timed(works | others(masks)))


def show(took: Timed) -> None:
    def ms(name: str) -> float:
        return 1e3 * took.seconds(name) / (N_SLOW if name == "pixel by pixel" else N_MASKS)

    print(f"encode of an empty mask {ms('encode, empty'):.3f} ms")
    against = [
        ("encode", "pixel by pixel", "the competition's mask2rle", "100 ×"),
        ("decode", "run by run", "the competition's rle2mask, with its transpose", "5 ×"),
        ("decode", "run by run, transposed", "the same, left transposed", "none"),
        ("encode", "coco encode", "pycocotools with its transposing copy", "2 ×"),
        ("decode", "coco decode", "pycocotools to a C-contiguous mask", "2 ×"),
        ("decode", "coco decode, in columns", "pycocotools, left in column order", "none"),
    ]
    for ours, other, words, bar in against:
        if other in took:
            times = ms(other) / ms(ours)
            figure(f"RLE {ours} at {SIDE}²", f"{ms(ours):.3f} ms", f"{words} {ms(other):.3f} ms",
                   f"{times:.1f} × faster", bar)  # fmt: skip


if __name__ == "__main__":
    main()
