from __future__ import annotations

import numpy as np
import pytest

from kernel_lib.postprocess import plateau
from kernel_lib.postprocess.histograms import Statistics, per_image_dice, stack
from kernel_lib.postprocess.plateau import Chooser
from kernel_lib.postprocess.search import SearchOptions, search
from kernel_lib.postprocess.triplet import Triplet
from tests.postprocess.samples import FULL, KEEP_NONE, NOTHING, image


def random_set(n: int, positives: float, seed: int) -> list[Statistics]:
    """Images whose lesions are mostly found, with false alarms that are smaller and weaker."""
    random = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        has_mask = random.random() < positives
        strength, px = random.integers(60, 250), int(random.integers(2000, 20000))
        true = {int(level): px // 5 for level in np.linspace(10, strength, 5)} if has_mask else {}
        alarm = random.integers(5, 150)
        images.append(image({int(alarm): int(random.integers(1, 3000)), 3: 9000}, true))
    return images


def naive_neighbourhoods(stats: list, chooser: Chooser, rules: list[Triplet]) -> list[float]:
    """Mean score of each rule's neighbours, one rule after the other."""
    grid, means = plateau.area_grid(), []
    for rule in rules:
        top, bottom = round(255 * rule.top - 0.5), round(255 * rule.bottom - 0.5)
        scores = [
            np.mean(per_image_dice(stats, Triplet((t + 0.5) / 255, int(a), (b + 0.5) / 255)))
            for a in grid
            if rule.min_area_px / chooser.area_factor <= a <= rule.min_area_px * chooser.area_factor
            for t in range(max(0, top - chooser.levels), min(254, top + chooser.levels) + 1)
            for b in range(max(0, bottom - chooser.levels), bottom + chooser.levels + 1)
            if b <= t
        ]
        means.append(float(np.mean(scores)))
    return means


def test_chosen_has_the_best_neighbours() -> None:
    stats = stack(random_set(25, 0.5, 0))
    chooser = Chooser(levels=2, area_factor=1.3, standard_errors=100.0)  # all rules qualify
    result = search(stats, SearchOptions(chooser=chooser))
    random = np.random.default_rng(1)
    grid = plateau.area_grid()
    others = []
    for _ in range(25):
        bottom, top = np.sort(random.integers(0, 255, 2))
        area = int(random.choice(grid))
        others.append(Triplet((top + 0.5) / 255, area, (bottom + 0.5) / 255))
    for shift in range(-2, 3):  # and some close by
        top = result.chosen.top + shift / 255
        if result.chosen.bottom <= top < 1:
            others.append(Triplet(top, result.chosen.min_area_px, result.chosen.bottom))
    chosen, *rest = naive_neighbourhoods(stats, chooser, [result.chosen, *others])
    assert chosen >= max(rest) - 1e-8


def test_chosen_lies_on_the_plateau() -> None:
    stats = random_set(60, 0.3, 2)
    result = search(stats)
    low, high = result.plateau["top"]
    assert low <= result.chosen.top <= high
    assert low <= result.triplet.top <= high
    low, high = result.plateau["min_area_px"]
    assert low <= result.chosen.min_area_px <= high
    assert result.chosen_score >= result.score - result.plateau["within"] - 1e-8


def test_a_lone_spike_is_not_chosen() -> None:
    """A rule of exactly one level and area scores a little more than a wide plateau does."""
    positive = [image({}, {level: 8000}) for level in (120, 130, 140, 150)] * 10
    spike = image({40: 1}, {})  # empty; kept by a bottom under 40 and an area of 1
    empty = [image({20: 3000}, {})] * 40
    result = search([*positive, *empty, spike])
    assert result.score == result.chosen_score == 1.0
    assert 500 < result.chosen.min_area_px <= 8000
    assert 20 < 255 * result.chosen.bottom < 120


@pytest.mark.parametrize("single", [False, True])
def test_only_empty_truth_chooses_to_predict_nothing(single: bool) -> None:
    stats = [image({level: 5000}, {}) for level in (50, 150, 250)]
    result = search(stats, SearchOptions(single))
    assert (result.triplet, result.chosen) == (NOTHING, NOTHING)
    assert (result.score, result.chosen_score) == (1.0, 1.0)


def test_maps_that_know_nothing_choose_to_predict_nothing() -> None:
    """Lesions lie elsewhere than the map says: every mask kept costs."""
    positive = [image({200: 9000}, {0: 9000})] * 3
    result = search([*positive, *[image({200: 9000}, {})] * 7])
    assert result.score == result.chosen_score == 0.7
    assert result.triplet.min_area_px == result.chosen.min_area_px == KEEP_NONE


@pytest.mark.parametrize("n", [1, 2, 10])
@pytest.mark.parametrize("single", [False, True])
def test_a_handful_of_images_is_enough_to_choose(n: int, single: bool) -> None:
    result = search(random_set(n, 0.5, n), SearchOptions(single))
    assert 0 <= result.chosen_score <= result.score <= 1
    assert result.chosen.top == result.chosen.bottom or not single


def test_all_black_maps_of_images_with_masks() -> None:
    result = search([image({}, {0: 500})] * 3)
    assert result.score == result.chosen_score == 0.0
    assert result.chosen.min_area_px == KEEP_NONE


def test_the_grid_reaches_from_one_pixel_to_none_kept() -> None:
    grid = plateau.area_grid()
    assert (grid[0], grid[-2], grid[-1]) == (1, FULL, KEEP_NONE)
    assert (np.diff(grid) > 0).all()
    assert (grid[1:] / grid[:-1]).max() <= 2
