from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_lib.errors import InputError
from kernel_lib.postprocess import exhaustive, label_threshold, metrics, plateau
from kernel_lib.postprocess import search as th
from kernel_lib.postprocess.histograms import Stacked, Statistics, stack, statistics
from kernel_lib.postprocess.triplet import Triplet, apply_rule

KEEP_NONE = 1024 * 1024 + 1
HIGHEST = 254.5 / 255


@st.composite
def labelled(draw, most: int = 6) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Small maps of a few levels and mixed sizes, with masks that often are empty, and labels."""
    levels = draw(st.lists(st.integers(1, 255), min_size=1, max_size=3, unique=True))
    labels = draw(st.lists(st.integers(0, 255), min_size=1, max_size=4, unique=True))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    drawn = []
    for _ in range(draw(st.integers(1, most))):
        shape = random.integers(1, 6, 2)
        prob = random.choice(np.array([0, *levels], np.uint8), shape)
        mask = (prob > random.integers(0, 256)) ^ (random.random(shape) < 0.2)
        mask = (mask & (random.random() < 0.5)).astype(np.uint8)
        drawn.append((prob, mask, int(random.choice(labels))))
    return drawn


def stacked(drawn: list) -> Stacked:
    return stack([statistics(*one) for one in drawn])


def brute_force(drawn: list, single: bool) -> tuple[Fraction, Triplet]:
    """Best of every rule that differs from others in some image, by applying each to each."""
    used = {int(level) for prob, _, _ in drawn for level in np.unique(prob) if level}
    thresholds = sorted({(level - 0.5) / 255 for level in used} | {HIGHEST})
    levels = sorted({label for _, _, label in drawn if label < 255})
    gates = [None, *((level + 0.5) / 255 for level in levels)]
    areas = {0, KEEP_NONE}
    for prob, _, _ in drawn:
        counts = [int((prob > 255 * top).sum()) * 1024 * 1024 // prob.size for top in thresholds]
        areas |= set(counts)
    best = None
    for at, gate in enumerate(gates):
        for top in thresholds:
            for bottom in [top] if single else [one for one in thresholds if one <= top]:
                for area in areas:
                    rule = Triplet(top, area, bottom, gate)
                    key = (exact_mean(drawn, rule), -at, area, top, bottom, rule)
                    best = max(best, key, key=lambda one: one[:5]) if best else key
    return best[0], best[-1]


def exact_mean(drawn: list, rule: Triplet) -> Fraction:
    total = Fraction(0)
    for prob, mask, label in drawn:
        pred = apply_rule(prob, rule, label)
        both = int(pred.sum()) + int(mask.sum())
        total += Fraction(2 * int((pred & mask).sum()), both) if both else 1
    return total / len(drawn)


def check_against_brute_force(drawn: list, single: bool) -> None:
    score, rule = brute_force(drawn, single)
    found = th.search(stacked(drawn), single=single)
    assert found.score == pytest.approx(float(score), abs=1e-12)
    assert found.triplet.min_area_px == rule.min_area_px
    assert found.triplet.top == pytest.approx(rule.top)
    assert found.triplet.bottom == pytest.approx(rule.bottom)
    assert found.triplet.label == (None if rule.label is None else pytest.approx(rule.label))


@settings(max_examples=15)
@given(drawn=labelled(most=4), single=st.booleans())
def test_search_finds_what_trying_every_gate_and_rule_finds(drawn: list, single: bool) -> None:
    check_against_brute_force(drawn, single)


@pytest.mark.slow
@settings(max_examples=200)
@given(drawn=labelled(), single=st.booleans())
def test_search_finds_what_trying_every_gate_finds_at_length(drawn: list, single: bool) -> None:
    check_against_brute_force(drawn, single)


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
    hist_all[:, 0] += 1024 * 1024 - hist_all.sum(axis=1)
    label = np.clip(random.normal(90 + 70 * truth, 40), 0, 255).astype(np.int16)
    return Stacked(hist_all, hist_true, np.full(n, 1024 * 1024), np.ones(n, dtype=bool), label)


@pytest.mark.parametrize(("n", "seed", "single"), [(60, 7, False), (40, 1, True), (30, 2, True)])
def test_the_sweep_finds_what_a_search_under_each_gate_finds(
    n: int, seed: int, single: bool
) -> None:
    stats = random_set(n, seed)
    problem = th._problem(stats)
    gates = np.append(-1, np.unique(stats.label))
    best = []
    for gate in gates:
        scan = exhaustive.scan(
            problem.passing(gate), plateau.area_grid()[:1], single=single, tops=range(255)
        )
        best.append(scan.best[scan.valid].max())
    lowest = gates[int(np.argmax(best >= max(best) - n))]
    assert label_threshold.best_gate(problem, single=single) == lowest > -1


@settings(max_examples=6)
@given(drawn=labelled(), single=st.booleans(), data=st.data())
def test_a_sweep_scores_its_masks_never_less_than_no_label_in_any_order(
    drawn: list, single: bool, data: st.DataObject
) -> None:
    found = th.search(stacked(drawn), single=single)
    assert found.label_swept
    assert found.score >= th.search(stacked(drawn), single=single, label=False).score - 1e-12
    assert found.chosen.label == found.triplet.label
    for rule, score in ((found.triplet, found.score), (found.chosen, found.chosen_score)):
        dice = [metrics.dice(apply_rule(prob, rule, label), mask) for prob, mask, label in drawn]
        assert score == metrics.mean_dice(dice)
    shuffled = th.search(stacked(data.draw(st.permutations(drawn))), single=single)
    assert shuffled == found
    np.testing.assert_array_equal(shuffled.surface, found.surface)


@settings(max_examples=5)
@given(drawn=labelled(), level=st.integers(0, 255))
def test_a_constant_label_changes_nothing(drawn: list, level: int) -> None:
    bare = th.search([statistics(prob, mask) for prob, mask, _ in drawn])
    found = th.search([statistics(prob, mask, level) for prob, mask, _ in drawn])
    assert found.label_swept
    assert not bare.label_swept
    assert replace(found, label_swept=False) == bare
    np.testing.assert_array_equal(found.surface, bare.surface)


@settings(max_examples=5)
@given(drawn=labelled())
def test_a_perfect_label_leaves_only_the_masks_own_dice_to_lose(drawn: list) -> None:
    """As good as dropping every image whose truth is empty, and scoring 1 for each."""
    perfect = [(prob, mask, 200 if mask.any() else 100) for prob, mask, _ in drawn]
    found = th.search(stacked(perfect))
    positive = [one for one in perfect if one[1].any()]
    best = th.search(stacked(positive)).score if positive else 0.0
    expected = (best * len(positive) + len(drawn) - len(positive)) / len(drawn)
    assert found.score == pytest.approx(expected, abs=1e-9)


def image(alarm: dict[int, int], true: dict[int, int], label: int) -> Statistics:
    hist_true = np.zeros(256, np.int64)
    hist_true[list(true)] = list(true.values())
    hist_all = hist_true.copy()
    for level, px in alarm.items():
        hist_all[level] += px
    hist_all[0] += 1024 * 1024 - hist_all.sum()
    return Statistics(hist_all, hist_true, 1024 * 1024, label=label)


def test_the_gate_by_hand() -> None:
    """The map cannot tell alarms from lesions, the label can from level 60 on."""
    lesions = [image({}, {200: 5000}, label) for label in (60, 90)]
    alarms = [image({200: 5000}, {}, label) for label in (20, 40)]
    found = th.search([*lesions, *alarms])
    assert (found.score, found.chosen_score) == (1.0, 1.0)
    # Of the thresholds 40.5 … 59.5, the lowest; then the largest area, highest top and bottom.
    assert found.triplet == Triplet(199.5 / 255, 5000, 199.5 / 255, 40.5 / 255)
    assert found.chosen.label == 40.5 / 255
    assert th.search([*lesions, *alarms], label=False).score == 0.5


def test_no_gate_is_preferred_to_one_that_does_as_well() -> None:
    """Alarms are smaller than lesions: an area does what the label could."""
    lesions = [image({}, {200: 5000}, label) for label in (60, 90)]
    alarms = [image({200: 500}, {}, label) for label in (20, 40)]
    found = th.search([*lesions, *alarms])
    assert found.triplet == Triplet(199.5 / 255, 5000, 199.5 / 255)
    assert found.label_swept
    # One more alarm, as large as a lesion, needs the lowest gate only.
    found = th.search([*lesions, *alarms, image({200: 5000}, {}, 20)])
    assert found.triplet == Triplet(199.5 / 255, 5000, 199.5 / 255, 20.5 / 255)


def test_a_gate_may_leave_out_masks_where_that_pays() -> None:
    low = [image({}, {200: 5000}, 30), *[image({200: 5000}, {}, 30)] * 3]
    found = th.search([*low, image({}, {200: 5000}, 80)])
    assert found.triplet.label == 30.5 / 255
    assert found.score == 0.8


def test_nothing_to_find_needs_no_gate() -> None:
    nothing = Triplet(HIGHEST, KEEP_NONE, HIGHEST)
    empty = [image({200: 900}, {}, label) for label in (3, 90, 200)]
    assert th.search(empty).triplet == nothing
    black = [image({}, {0: 900}, label) for label in range(40)]
    assert th.search(black).triplet == nothing


def test_labels_are_swept_where_every_image_has_one() -> None:
    stats = random_set(30, 2)
    found = th.search(stats)
    assert found.triplet.label is not None
    assert found.to_json()["label_swept"]
    assert found.to_json()["triplet"]["label"] == found.triplet.label
    some = replace(stats, label=np.where(np.arange(30) == 2, -1, stats.label))
    bare = replace(stats, label=np.full(30, -1, np.int16))
    assert th.search(some) == th.search(bare) == th.search(stats, label=False)
    assert th.search(stats, label=True) == found
    with pytest.raises(InputError, match="1 of 30 images have no label"):
        th.search(some, label=True)
