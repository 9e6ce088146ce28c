"""Images for the tests of searches, and the search by brute force that they are checked against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import strategies as st

from kernel_lib.postprocess.histograms import Stacked, Statistics, stack, statistics
from kernel_lib.postprocess.search import SearchOptions, search
from kernel_lib.postprocess.triplet import Triplet, apply_rule

FULL = 1024 * 1024
KEEP_NONE = FULL + 1
HIGHEST = 254.5 / 255
NOTHING = Triplet(HIGHEST, KEEP_NONE, HIGHEST)

Image = tuple[np.ndarray, np.ndarray, int | None]  # map, mask and label


def image(
    outside: dict[int, int], true: dict[int, int] | None = None, label: int | None = None
) -> Statistics:
    """Return a 1024² image from pixels by level, outside its true mask and inside it."""
    hist_true, hist_all = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for level, px in (true or {}).items():
        hist_true[level] += px
    for level, px in outside.items():
        hist_all[level] += px
    hist_all += hist_true
    hist_all[0] += FULL - hist_all.sum()
    return Statistics(hist_all, hist_true, FULL, label=label)


def random_images(n: int, seed: int = 0, positives: float = 0.4) -> list[Statistics]:
    """Return images with lesions of any strength, and false alarms that are smaller and weaker."""
    random = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        px, strength = int(random.integers(500, 20_000)), int(random.integers(20, 250))
        true = {strength: px // 2, strength // 2: px // 4, 0: px // 4}
        alarm = {int(random.integers(1, 120)): int(random.integers(1, 6000))}
        images.append(image(alarm, true if random.random() < positives else None))
    return images


def with_labels(stats: Sequence[Statistics], labels: Sequence[int]) -> list[Statistics]:
    return [replace(each, label=int(label)) for each, label in zip(stats, labels, strict=True)]


@st.composite
def small_images(draw, most: int = 5, labels: bool = False) -> list[Image]:
    """Maps of a few levels and mixed sizes, with masks that often are empty, and labels or None."""
    levels = draw(st.lists(st.integers(0, 255), min_size=1, max_size=3 + (not labels), unique=True))
    known = [None]
    if labels:
        known = draw(st.lists(st.integers(0, 255), min_size=1, max_size=4, unique=True))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images = []
    for _ in range(draw(st.integers(1, most))):
        shape = random.integers(1, 6 if labels else 8, 2)
        prob = random.choice(np.array([0, *levels], np.uint8), shape)
        mask = (prob > random.integers(0, 256)) ^ (random.random(shape) < 0.2)
        mask = (mask & (random.random() < 0.55)).astype(np.uint8)
        images.append((prob, mask, known[random.integers(len(known))]))
    return images


def stacked(images: Sequence[Image]) -> Stacked:
    return stack(statistics(*each) for each in images)


def check_against_brute_force(images: Sequence[Image], single: bool) -> None:
    """Compare the search with the best of all rules that differ, by applying each to each image.

    Between two levels that no pixel has, thresholds make the same masks: the highest stands for
    all, as ties need it. So does the largest area of those that keep the same images.
    """
    used = {int(level) for prob, _, _ in images for level in np.unique(prob) if level}
    thresholds = sorted({(level - 0.5) / 255 for level in used} | {HIGHEST})
    levels = sorted({label for _, _, label in images if label is not None and label < 255})
    areas = {0, KEEP_NONE}
    for prob, _, _ in images:
        areas |= {int((prob > 255 * top).sum()) * FULL // prob.size for top in thresholds}
    score, _, rule = max(
        (_exact_mean(images, rule), (-at, area, top, bottom), rule)
        for at, gate in enumerate([None, *((level + 0.5) / 255 for level in levels)])
        for top in thresholds
        for bottom in thresholds
        if (bottom == top if single else bottom <= top)
        for area in areas
        for rule in [Triplet(top, area, bottom, gate)]
    )
    result = search(stacked(images), SearchOptions(single))
    assert result.score == pytest.approx(float(score), abs=1e-12)
    assert result.triplet.to_json() == pytest.approx(rule.to_json())
    assert result.triplet.min_area_px == rule.min_area_px


def _exact_mean(images: Sequence[Image], rule: Triplet) -> Fraction:
    total = Fraction(0)
    for prob, mask, label in images:
        pred = apply_rule(prob, rule, label)
        both = int(pred.sum()) + int(mask.sum())
        total += Fraction(2 * int((pred & mask).sum()), both) if both else 1
    return total / len(images)
