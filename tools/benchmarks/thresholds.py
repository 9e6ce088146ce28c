"""How long the threshold search takes, from stored maps to the rule.

    python -m tools.benchmarks.thresholds [--images 10675] [--maps 400]

Five parts, in one process on at most two threads: the histograms from stored 512² maps
(measured on some, scaled to all), the search over synthetic histograms, the same with a label's
threshold swept, for labels that tell more or less, the best score alone, which ensemble selection
asks for, and the loop over grid points that public solutions use, rewritten here (measured on a
few, scaled). Writes nothing.
"""

from __future__ import annotations

import argparse
import resource
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np

from kernel_lib.artifacts import maps
from kernel_lib.data import rle
from kernel_lib.postprocess import search as th
from kernel_lib.postprocess.histograms import Stacked, gate_by_sum, statistics
from kernel_lib.postprocess.metrics import auc
from tools.benchmarks.rounds import Timed, figure, timed

SIDE, STORED, THREADS = 1024, 512, 2
POSITIVES = 0.22
LOG_AREA = (9.06, 1.1)  # of true masks: median 8,630 px, as in the competition's labels
LIMITS = {"search": 20.0, "histograms": 60.0, "memory_gb": 3.0, "sweep": 60.0}
# Logits of images with a mask lie so much above the others', in standard deviations.
LABELS = {"AUC 0.98": 3.0, "AUC 0.92": 2.0, "AUC 0.76": 1.0, "AUC 0.50": 0.0}
LABELLED = "a label, AUC 0.92"  # whose best score is timed
# Grid points of two public searches, a coarse one over triplets and one over (threshold, area).
GRIDS = {8: "none", 60: "10 ×"}
POINTS = ((0.75, 2000, 0.3), (0.5, 1000, 0.3), (0.21, 6000, 0.21))
LOOPED = 30  # maps
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=10_675)
    parser.add_argument("--maps", type=int, default=400)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    n = arguments.images
    stats = synthetic_histograms(n, np.random.default_rng(0))
    searched = time_search(stats)
    swept = time_sweep(stats)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    labelled = labels_of(stats)[LABELLED]
    took = timed(
        {
            "search": lambda: th.search(stats),
            "score": lambda: th.best_score(stats),
            "gated search": lambda: th.search(labelled),
            "gated score": lambda: th.best_score(labelled),
            "histograms": histograms(arguments.maps),
            "loop": grid_points(min(arguments.maps, LOOPED)),
        },
        ROUNDS,
    )
    print(f"\n{n:,} images, {THREADS} threads")
    for single, seconds in searched.items():
        name = "one threshold, one area" if single else "every triplet"
        say(f"search over {name}", seconds, LIMITS["search"])
    for name, seconds in swept.items():
        say(f"and every threshold of {name}", seconds, LIMITS["sweep"])
        print(f"{'':44s}{seconds / searched[False]:8.2f} × the search without a label")
    print(f"peak memory of the search   {memory:8.2f} GB  (limit {LIMITS['memory_gb']:.0f} GB)")
    show(took, n, arguments.maps)


def show(took: Timed, n: int, n_maps: int) -> None:
    """Print the figures, against the loop on one thread, extrapolated from few images."""
    made, searched = took.seconds("histograms") / n_maps * n, took.seconds("search")
    per_point = took.seconds("loop") / (min(n_maps, LOOPED) * len(POINTS))
    say(f"histograms, from {n_maps} maps", made, LIMITS["histograms"])
    for name, of in {
        "": "every triplet",
        "gated ": "every triplet and threshold of a label",
    }.items():
        figure(
            f"the best score over {of}", f"{took.seconds(f'{name}score'):.2f} s",
            f"a search with its plateau {took.seconds(f'{name}search'):.2f} s",
            f"{took.times_faster(f'{name}score', f'{name}search'):.1f} × faster",
        )  # fmt: skip
    print(f"loop: {per_point * 1e3:.1f} ms an image and point")
    for points, bar in GRIDS.items():
        loop = per_point * points * n
        figure(
            f"histograms and every triplet of {n:,} images", f"{made:.1f} and {searched:.1f} s",
            f"a loop over {points} points {loop / 60:.1f} min, extrapolated",
            f"{loop / (made + searched):.0f} × faster", bar,
        )  # fmt: skip


def say(name: str, seconds: float, limit: float) -> None:
    print(f"{name:44s}{seconds:8.2f} s  {limit / seconds:5.1f} × under its limit of {limit:.0f} s")


def time_search(stats: Stacked) -> dict[bool, float]:
    """Return seconds of the search over images without labels, by `single`."""
    seconds = {}
    for single in (False, True):
        start = time.perf_counter()
        result = th.search(stats, th.SearchOptions(single=single))
        seconds[single] = time.perf_counter() - start
        print(f"peak {result.score:.6f} {result.triplet}")
        print(f"choice {result.chosen_score:.6f} {result.chosen}")
    return seconds


def time_sweep(stats: Stacked) -> dict[str, float]:
    """Return seconds of the search over triplets and label thresholds, by what kind of label."""
    seconds, has_mask = {}, stats.true_px > 0
    for name, images in labels_of(stats).items():
        start = time.perf_counter()
        result = th.search(images)
        seconds[name] = time.perf_counter() - start
        print(f"{name}: AUC {auc(images.label, has_mask):.3f}, peak {result.score:.6f}", end=" ")
        print(result.triplet)
    return seconds


def labels_of(stats: Stacked) -> dict[str, Stacked]:
    """Return the images with labels, by what kind of label."""
    random, has_mask = np.random.default_rng(3), stats.true_px > 0
    labelled = {"the map's own sum": gate_by_sum(stats)}
    for name, apart in LABELS.items():
        logits = 1.6 * (random.normal(size=len(stats)) + apart * has_mask - 1)
        levels = np.rint(255 / (1 + np.exp(-logits))).astype(np.int16)
        labelled[f"a label, {name}"] = replace(stats, label=levels)
    return labelled


def synthetic_histograms(n: int, random: np.random.Generator) -> Stacked:
    """Return histograms of 1024² maps: lesions of varied certainty, and weaker false positives."""
    probability = np.clip(np.arange(256) / 255, 0.002, 0.998)
    logits, per_level = np.log(probability / (1 - probability)), 1 / probability

    def spread(px: int, centre: float) -> np.ndarray:
        weights = np.exp(-0.5 * ((logits - centre) / 1.7) ** 2) * per_level / (1 - probability)
        return random.multinomial(px, weights / weights.sum())

    hist_all, hist_true = np.zeros((2, n, 256), np.int64)
    for at in range(n):
        if random.random() < POSITIVES:
            px = int(np.clip(np.exp(random.normal(*LOG_AREA)), 55, 161_421))
            centre = min(random.normal(0.6 + 0.5 * (np.log(px) - 9), 1.6), 1.5)
            hist_true[at] = spread(px, centre)
            hist_all[at] = hist_true[at] + spread(int(px * random.lognormal(-0.7, 0.5)), centre - 2)
        else:
            px = int(min(np.exp(random.normal(6.8, 1.2)), 300_000))
            hist_all[at] = spread(px, min(random.normal(-1.5, 1.6), 1.5))
        hist_all[at, 0] += SIDE * SIDE - hist_all[at].sum()
    return Stacked(hist_all, hist_true, np.full(n, SIDE * SIDE), np.ones(n, bool))


def synthetic_map(random: np.random.Generator) -> tuple[bytes, str]:
    """Return a smooth 512² map as stored, and its truth at 1024² as RLE."""
    noise = cv2.GaussianBlur(random.normal(size=(STORED, STORED)).astype(np.float32), (0, 0), 12)
    logits = 25 * noise - 6
    truth = np.zeros((SIDE, SIDE), np.uint8)
    if random.random() < POSITIVES:
        centre = tuple(random.integers(150, SIDE - 150, 2).tolist())
        axes = tuple(random.integers(20, 120, 2).tolist())
        cv2.ellipse(truth, centre, axes, float(random.integers(180)), 0, 360, 1, -1)
        blurred = cv2.GaussianBlur(cv2.resize(truth, (STORED, STORED)) * 1.0, (0, 0), 6)
        logits += 9 * blurred.astype(np.float32)
    prob = np.round(255 / (1 + np.exp(-logits))).astype(np.uint8)
    return zlib.compress(maps.encode(prob)), rle.encode(truth)


def full_map(data: bytes) -> np.ndarray:
    """Return the stored map at the image's own size, as every stage makes it."""
    return maps.at_shape(maps.decode(zlib.decompress(data)), (SIDE, SIDE))


def histograms(n: int) -> Callable[[], None]:
    """Return a function that makes histograms of n stored maps and RLEs."""
    random = np.random.default_rng(1)
    stored = [synthetic_map(random) for _ in range(n)]
    print(f"maps: {np.mean([len(data) for data, _ in stored]) / 1e3:.0f} kB on average")

    def work() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda pair: statistics(full_map(pair[0]), rle.decode(pair[1])), stored))

    return work


def grid_points(n: int) -> Callable[[], None]:
    """Return a function that thresholds and scores each of n maps in memory at each point."""
    random = np.random.default_rng(2)
    stored = [synthetic_map(random) for _ in range(n)]
    shown = [(full_map(data) / np.float32(255), rle.decode(text)) for data, text in stored]

    def work() -> None:
        for prob, truth in shown:
            for top, min_area_px, bottom in POINTS:
                mask = prob > bottom
                if (prob > top).sum() < min_area_px:
                    mask = np.zeros_like(mask)
                both = mask.sum() + truth.sum()
                _ = 2 * (mask * truth).sum() / both if both else 1.0

    return work


if __name__ == "__main__":
    main()
