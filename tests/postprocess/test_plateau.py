from __future__ import annotations

import numpy as np
import pytest

from kernel_lib.postprocess import plateau
from kernel_lib.postprocess.histograms import per_image_dice, stack
from kernel_lib.postprocess.plateau import Chooser
from kernel_lib.postprocess.search import SearchOptions, search
from kernel_lib.postprocess.triplet import Triplet
from tests.postprocess.samples import FULL, KEEP_NONE, NOTHING, image, random_images


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
    stats = stack(random_images(25, 0, 0.5))
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


@pytest.mark.parametrize("n", [1, 2, 10, 60])
@pytest.mark.parametrize("single", [False, True])
def test_chosen_lies_on_the_plateau(n: int, single: bool) -> None:
    result = search(random_images(n, n, 0.4), SearchOptions(single))
    for name, (low, high) in list(result.plateau.items())[1:]:
        for rule in (result.chosen, result.triplet):
            assert low <= getattr(rule, name) <= high
    assert result.chosen_score >= result.score - result.plateau["within"] - 1e-8
    assert 0 <= result.chosen_score <= result.score <= 1
    assert result.chosen.top == result.chosen.bottom or not single


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
@pytest.mark.parametrize(
    ("stats", "score"),
    [
        ([image({level: 5000}, {}) for level in (50, 150, 250)], 1.0),
        # Lesions lie elsewhere than the map says: every mask kept costs.
        ([image({200: 9000}, {0: 9000})] * 3 + [image({200: 9000}, {})] * 7, 0.7),
        ([image({}, {0: 500})] * 3, 0.0),
        ([image({}, {0: 900}, label) for label in range(40)], 0.0),
        ([image({200: 900}, {}, label) for label in (3, 90, 200)], 1.0),
    ],
    ids=["empty truth", "ignorant maps", "black maps", "black with labels", "empty with labels"],
)
def test_nothing_is_predicted_where_no_mask_can_gain(
    stats: list, score: float, single: bool
) -> None:
    result = search(stats, SearchOptions(single))
    assert (result.triplet, result.chosen) == (NOTHING, NOTHING)
    assert (result.score, result.chosen_score) == (score, score)


def test_the_grid_reaches_from_one_pixel_to_none_kept() -> None:
    grid = plateau.area_grid()
    assert (grid[0], grid[-2], grid[-1]) == (1, FULL, KEEP_NONE)
    assert (np.diff(grid) > 0).all()
    assert (grid[1:] / grid[:-1]).max() <= 2
