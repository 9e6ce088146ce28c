"""Speed of a vote of nine submissions on runs, beside the same vote on bitmaps.

    python -m tools.benchmarks.votes

Nine submissions' masks of one image are a ragged blob as `benchmarks.rle` draws it, shifted,
widened or narrowed and frayed by each; a few miss it, and some add a blob of their own. Both ways
go from nine RLE strings to one, at least four agreeing: ours parses, sweeps and encodes; the
bitmap vote decodes nine masks, sums, compares and encodes with the same fast RLE code. Every image
has masks here; the competition's images mostly have none, which costs next to nothing.
"""

from __future__ import annotations

import statistics

import cv2
import numpy as np

from kernel_lib.data import rle
from kernel_lib.postprocess import votes
from tools.benchmarks.rle import SIDE, blob, each
from tools.benchmarks.rounds import figure, timed

SHAPE = (SIDE, SIDE)
N_IMAGES = 60
N_SUBMISSIONS = 9
K = 4
LIMIT_MS = 2.0


def variant(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Return another model's mask (1024, 1024) of the same image."""
    if rng.random() < 0.1:
        return np.zeros_like(mask)
    move = np.float32([[1, 0, rng.normal(0, 4)], [0, 1, rng.normal(0, 4)]])
    soft = cv2.GaussianBlur(cv2.warpAffine(mask * np.float32(1), move, SHAPE), (0, 0), 4)
    noise = cv2.resize(rng.random((128, 128), dtype=np.float32), SHAPE)
    mask = (soft + 0.5 * (noise - 0.5) * (soft > 0.02) > rng.uniform(0.3, 0.7)).astype(np.uint8)
    return mask | blob(rng) if rng.random() < 0.1 else mask


def submissions(rng: np.random.Generator) -> list[str]:
    """Return RLEs of one image, one a submission."""
    mask = blob(rng)
    return [rle.encode(variant(rng, mask)) for _ in range(N_SUBMISSIONS)]


def on_runs(texts: list[str]) -> str:
    return rle.to_string(votes.at_least([rle.parse(text, SHAPE) for text in texts], K))


def union_on_runs(texts: list[str]) -> str:
    return rle.to_string(votes.union_of_agreeing([rle.parse(text, SHAPE) for text in texts], K))


def on_bitmaps(texts: list[str]) -> str:
    count = np.zeros(SHAPE, dtype=np.uint8)
    for text in texts:
        count += rle.decode(text, SHAPE)
    return rle.encode(count >= K)


def main() -> None:
    rng = np.random.default_rng(0)
    cv2.setNumThreads(1)
    images = [submissions(rng) for _ in range(N_IMAGES)]
    voted = [on_runs(texts) for texts in images]
    assert voted == [on_bitmaps(texts) for texts in images]
    runs = [len(rle.parse(text)) for texts in images for text in texts]
    areas = [rle.area(rle.parse(text)) for text in voted]
    print(
        f"{N_IMAGES} images of {SIDE}×{SIDE}, {N_SUBMISSIONS} submissions, at least {K}: "
        f"{statistics.median(runs):.0f} runs a mask in the median, up to {max(runs):,}; voted area "
        f"median {statistics.median(areas):,.0f} px; {sum(a == 0 for a in areas)} voted empty"
    )
    works = {
        "ours": each(on_runs, images),
        "parse": each(lambda texts: [rle.parse(text, SHAPE) for text in texts], images),
        "empty": each(on_runs, [[rle.EMPTY] * N_SUBMISSIONS] * N_IMAGES),
        "union": each(union_on_runs, images),
        "bitmaps": each(on_bitmaps, images),
    }
    took = timed(works)
    ms = {name: 1e3 * took.seconds(name) / N_IMAGES for name in works}
    print(f"of a vote on runs parsing {ms['parse']:.3f} ms; all nine empty {ms['empty']:.3f} ms")
    for name, words in (("ours", "a vote"), ("union", "a union of agreeing masks")):
        times = took.times_faster(name, "bitmaps")
        figure(f"{words} of nine submissions", f"{ms[name]:.2f} ms an image",
               f"a vote on bitmaps {ms['bitmaps']:.2f} ms", f"{times:.1f} × faster",
               f"{LIMIT_MS:g} ms")  # fmt: skip


if __name__ == "__main__":
    main()
