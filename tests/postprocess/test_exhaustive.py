"""The label threshold of the best rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_lib.errors import InputError
from kernel_lib.postprocess import exhaustive
from kernel_lib.postprocess import search as searching
from kernel_lib.postprocess.histograms import Stacked, statistics
from kernel_lib.postprocess.search import SearchOptions, best_score, search
from kernel_lib.postprocess.triplet import Triplet
from tests.postprocess.samples import FULL, image, small_images, stacked

NO_LABEL = SearchOptions(label=False)


def random_set(n: int, seed: int) -> Stacked:
    """Images of 1024² whose labels, maps and masks agree more or less, and often not."""
    random = np.random.default_rng(seed)
    truth = random.random(n) < 0.4
    hist_true, hist_all = np.zeros((2, n, 256), np.int64)
    for at in range(n):
        levels = random.integers(0, 256, 6)
        if truth[at]:
            np.add.at(hist_true[at], levels, random.integers(1, 3000, 6))
        alarm_px = int(random.choice([300, 1000, 3000]))  # the last as large as a lesion
        np.add.at(hist_all[at], random.integers(0, 256, 6), random.integers(1, alarm_px, 6))
    hist_all += hist_true
    hist_all[:, 0] += FULL - hist_all.sum(axis=1)
    label = np.clip(random.normal(90 + 70 * truth, 40), 0, 255).astype(np.int16)
    return Stacked(hist_all, hist_true, np.full(n, FULL), np.ones(n, dtype=bool), label)


@pytest.mark.parametrize("larger", [1, 40])  # than 1024²: a pixel above a threshold has no area
@pytest.mark.parametrize(("n", "seed", "single"), [(50, 7, False), (30, 1, True), (30, 2, True)])
def test_the_gate_is_what_a_search_under_each_gate_finds(
    n: int, seed: int, single: bool, larger: int
) -> None:
    stats = random_set(n, seed)
    hist_all = stats.hist_all.copy()
    hist_all[::2, 0] += (larger - 1) * FULL
    stats = replace(stats, hist_all=hist_all, n_px=hist_all.sum(axis=1))
    problem = searching._problem(stats)
    gates = np.append(-1, np.unique(stats.label))
    best, no_grid = [], np.empty(0, np.int64)
    for gate in gates:
        scan = exhaustive.scan(problem.passing(gate), no_grid, single=single, tops=range(255))
        best.append(scan.best[scan.valid].max())
    lowest = gates[int(np.argmax(best >= max(best) - n))]
    assert exhaustive.best_gate(problem, single=single) == lowest > -1


def check_best_rule(stats: Stacked) -> None:
    """Compare the best rule found by bounds with the peak of the scan of all rules."""
    problem, no_grid = searching._problem(stats), np.empty(0, np.int64)
    for single in (False, True):
        scan = exhaustive.scan(problem, no_grid, single=single, tops=range(255))
        peak = exhaustive.peak(scan, problem.n_images)
        assert exhaustive.best_rule(problem, single=single) == peak
        options = SearchOptions(single)
        assert best_score(stats, options) == search(stats, options).score


@pytest.mark.parametrize("n_examples", [8, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("labels", [False, True])
def test_the_best_rule_is_the_peak_of_a_scan(labels: bool, n_examples: int) -> None:
    @settings(max_examples=n_examples)
    @given(images=small_images(6, labels), copies=st.integers(1, 4))
    def check(images: list, copies: int) -> None:
        check_best_rule(stacked(images * copies))

    check()


@pytest.mark.parametrize("px", [1, 40])  # of an image, in 1024²
@pytest.mark.parametrize("seed", range(3))
def test_the_best_rule_of_many_levels(seed: int, px: int) -> None:
    stats = random_set(40, seed)
    hist_all = stats.hist_all.copy()
    hist_all[::2, 0] += (px - 1) * FULL
    check_best_rule(replace(stats, hist_all=hist_all, n_px=hist_all.sum(axis=1)))


@pytest.mark.parametrize("kind", ["all", "positive", "empty", "nothing shown", "one", "missed"])
def test_the_best_rule_of_sets_of_one_kind(kind: str) -> None:
    """All ties where nothing is shown, or nothing is better than no mask."""
    stats = random_set(24, 5)
    has_mask = stats.true_px > 0
    rows = {"positive": has_mask, "empty": ~has_mask, "one": np.arange(24) == 3}
    stats = stats.take(rows.get(kind, np.ones(24, dtype=bool)))
    if kind in ("nothing shown", "missed"):  # every map is 0 everywhere, or wherever the truth is
        hist_true, hist_all = np.zeros_like(stats.hist_true), stats.hist_all - stats.hist_true
        hist_true[:, 0] = stats.true_px
        hist_all[:, 0] += stats.true_px
        if kind == "nothing shown":
            hist_all = np.zeros_like(hist_all)
            hist_all[:, 0] = FULL
        stats = replace(stats, hist_all=hist_all, hist_true=hist_true)
    check_best_rule(stats)


@settings(max_examples=5)
@given(images=small_images(6, labels=True), level=st.integers(0, 255))
def test_a_constant_label_changes_nothing(images: list, level: int) -> None:
    bare = search([statistics(prob, mask) for prob, mask, _ in images])
    result = search([statistics(prob, mask, level) for prob, mask, _ in images])
    assert result.label_swept
    assert not bare.label_swept
    assert replace(result, label_swept=False) == bare
    np.testing.assert_array_equal(result.surface, bare.surface)


@settings(max_examples=5)
@given(images=small_images(6, labels=True))
def test_a_perfect_label_leaves_only_the_masks_own_dice_to_lose(images: list) -> None:
    """As good as dropping every image whose truth is empty, and scoring 1 for each."""
    perfect = [(prob, mask, 200 if mask.any() else 100) for prob, mask, _ in images]
    result = search(stacked(perfect))
    positive = [each for each in perfect if each[1].any()]
    best = search(stacked(positive)).score if positive else 0.0
    expected = (best * len(positive) + len(images) - len(positive)) / len(images)
    assert result.score == pytest.approx(expected, abs=1e-9)


def test_the_gate_by_hand() -> None:
    """The map cannot tell alarms from lesions, the label can from level 60 on."""
    lesions = [image({}, {200: 5000}, label) for label in (60, 90)]
    alarms = [image({200: 5000}, {}, label) for label in (20, 40)]
    result = search([*lesions, *alarms])
    assert (result.score, result.chosen_score) == (1.0, 1.0)
    # Of the thresholds 40.5 … 59.5, the lowest; then the largest area, highest top and bottom.
    assert result.triplet == Triplet(199.5 / 255, 5000, 199.5 / 255, 40.5 / 255)
    assert result.chosen.label == 40.5 / 255
    assert search([*lesions, *alarms], NO_LABEL).score == 0.5
    # It may leave out masks where that pays.
    low = [image({}, {200: 5000}, 30), *[image({200: 5000}, {}, 30)] * 3]
    result = search([*low, image({}, {200: 5000}, 80)])
    assert (result.triplet.label, result.score) == (30.5 / 255, 0.8)


def test_no_gate_is_preferred_to_one_that_does_as_well() -> None:
    """Alarms are smaller than lesions: an area does what the label could."""
    lesions = [image({}, {200: 5000}, label) for label in (60, 90)]
    alarms = [image({200: 500}, {}, label) for label in (20, 40)]
    result = search([*lesions, *alarms])
    assert result.triplet == Triplet(199.5 / 255, 5000, 199.5 / 255)
    assert result.label_swept
    # One more alarm, as large as a lesion, needs the lowest gate only.
    result = search([*lesions, *alarms, image({200: 5000}, {}, 20)])
    assert result.triplet == Triplet(199.5 / 255, 5000, 199.5 / 255, 20.5 / 255)


def test_labels_are_swept_where_every_image_has_one() -> None:
    stats = random_set(30, 2)
    result = search(stats)
    assert result.triplet.label is not None
    assert result.to_json()["label_swept"]
    assert result.to_json()["triplet"]["label"] == result.triplet.label
    some = replace(stats, label=np.where(np.arange(30) == 2, -1, stats.label))
    bare = replace(stats, label=np.full(30, -1, np.int16))
    assert search(some) == search(bare) == search(stats, NO_LABEL)
    assert search(stats, SearchOptions(label=True)) == result
    with pytest.raises(InputError, match="1 of 30 images have no label"):
        search(some, SearchOptions(label=True))
