from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_lib.errors import InputError
from kernel_lib.postprocess import metrics
from kernel_lib.postprocess import search as th
from kernel_lib.postprocess.histograms import (
    Stacked,
    areas,
    areas_above,
    kept,
    per_image_dice,
    stack,
    statistics,
)
from kernel_lib.postprocess.triplet import Triplet, apply_rule

KEEP_NONE = 1024 * 1024 + 1
HIGHEST = 254.5 / 255


@st.composite
def images(draw, most: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Small maps of a few levels and of mixed sizes, with masks that often are empty."""
    levels = draw(st.lists(st.integers(0, 255), min_size=1, max_size=4, unique=True))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(draw(st.integers(1, most))):
        shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
        prob = random.choice(np.array([0, *levels], np.uint8), shape)
        mask = (prob > random.integers(0, 256)) ^ (random.random(shape) < 0.2)
        drawn.append((prob, (mask & (random.random() < 0.6)).astype(np.uint8)))
    return drawn


def exact_mean(drawn: list, rule: Triplet) -> Fraction:
    total = Fraction(0)
    for prob, mask in drawn:
        pred = apply_rule(prob, rule)
        both = int(pred.sum()) + int(mask.sum())
        total += Fraction(2 * int((pred & mask).sum()), both) if both else 1
    return total / len(drawn)


def brute_force(drawn: list, single: bool) -> tuple[Fraction, Triplet]:
    """Best of every rule that differs from others in some image, by applying each to each.

    Between two levels that no pixel has, thresholds make the same masks: the highest stands for
    all, as ties ask for it. So does the largest area among those that keep the same images.
    """
    used = {int(level) for prob, _ in drawn for level in np.unique(prob) if level}
    thresholds = sorted({(level - 0.5) / 255 for level in used} | {HIGHEST})
    counts = {0, KEEP_NONE}
    for prob, _ in drawn:
        for top in thresholds:
            area = int((prob > 255 * top).sum()) * 1024 * 1024 // prob.size
            counts |= {area, area + 1}
    best = None
    for top in thresholds:
        for bottom in [top] if single else [one for one in thresholds if one <= top]:
            for area in counts:
                rule = Triplet(top, area, bottom)
                key = (exact_mean(drawn, rule), area, top, bottom)
                best = max(best, key) if best else key
    return best[0], Triplet(best[2], best[1], best[3])


def stacked(drawn: list) -> Stacked:
    return stack([statistics(prob, mask) for prob, mask in drawn])


def check_against_brute_force(drawn: list, single: bool) -> None:
    score, rule = brute_force(drawn, single)
    found = th.search([statistics(*one) for one in drawn], single=single)
    assert found.score == pytest.approx(float(score), abs=1e-12)
    assert (found.triplet.min_area_px, found.triplet.top, found.triplet.bottom) == (
        min(rule.min_area_px, KEEP_NONE),
        pytest.approx(rule.top),
        pytest.approx(rule.bottom),
    )


@settings(max_examples=15)
@given(drawn=images(), single=st.booleans())
def test_search_finds_what_trying_every_rule_finds(drawn: list, single: bool) -> None:
    check_against_brute_force(drawn, single)


@pytest.mark.slow
@settings(max_examples=200)
@given(drawn=images(), single=st.booleans())
def test_search_finds_what_trying_every_rule_finds_at_length(drawn: list, single: bool) -> None:
    check_against_brute_force(drawn, single)


@settings(max_examples=8)
@given(drawn=images(), single=st.booleans())
def test_the_best_score_alone_is_that_of_the_search(drawn: list, single: bool) -> None:
    stats = stacked(drawn)
    assert th.best_score(stats, single=single) == th.search(stats, single=single).score


@settings(max_examples=8)
@given(drawn=images(), single=st.booleans(), data=st.data())
def test_scores_are_those_of_the_masks_and_do_not_depend_on_order(
    drawn: list, single: bool, data: st.DataObject
) -> None:
    found = th.search(stacked(drawn), single=single)
    for rule, score in ((found.triplet, found.score), (found.chosen, found.chosen_score)):
        dice = [metrics.dice(apply_rule(prob, rule), mask) for prob, mask in drawn]
        assert score == metrics.mean_dice(dice)
        assert rule.top == rule.bottom or not single
    assert found.chosen_score <= found.score + 1e-12
    shuffled = th.search(stacked(data.draw(st.permutations(drawn))), single=single)
    assert shuffled == found
    np.testing.assert_array_equal(shuffled.surface, found.surface)


@settings(max_examples=6)
@given(drawn=images(), seed=st.integers(0, 1000))
def test_surface_is_the_best_over_areas_of_any_pair_of_levels(drawn: list, seed: int) -> None:
    stats = stacked(drawn)
    found = th.search(stats)
    assert np.isnan(found.surface[np.triu_indices(255, 1)]).all()
    assert np.nanmax(found.surface) == pytest.approx(found.score, abs=1e-12)
    # More rules cannot score less.
    assert th.search(stats, single=True).score <= found.score + 1e-12
    random = np.random.default_rng(seed)
    for top in random.integers(0, 255, 5):
        bottom = int(random.integers(0, top + 1))
        counts = areas_above(stats, (top + 0.5) / 255) * 1024 * 1024 // stats.n_px
        rules = [
            Triplet((top + 0.5) / 255, int(area), (bottom + 0.5) / 255)
            for area in [0, KEEP_NONE, *counts]
        ]
        best = max(metrics.mean_dice(per_image_dice(stats, rule)) for rule in rules)
        assert found.surface[top, bottom] == pytest.approx(best, abs=1e-12)
        at = Triplet(
            (top + 0.5) / 255, int(found.surface_area_px[top, bottom]), (bottom + 0.5) / 255
        )
        reached = metrics.mean_dice(per_image_dice(stats, at))
        assert reached == pytest.approx(best, abs=1e-12)


@settings(max_examples=60)
@given(
    drawn=images(most=3),
    thresholds=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    area=st.integers(0, KEEP_NONE),
)
def test_histograms_tell_what_apply_does(drawn: list, thresholds: tuple, area: int) -> None:
    rule = Triplet(max(thresholds), area, min(thresholds))
    stats = stacked(drawn)
    masks = [apply_rule(prob, rule) for prob, _ in drawn]
    assert areas(stats, rule).tolist() == [int(mask.sum()) for mask in masks]
    dice = [metrics.dice(pred, mask) for pred, (_, mask) in zip(masks, drawn, strict=True)]
    assert per_image_dice(stats, rule).tolist() == dice
    for prob, mask in zip((prob for prob, _ in drawn), masks, strict=True):
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1}
        assert not mask[prob <= 255 * rule.bottom].any()


def test_equal_fractions_tie_although_their_roundings_differ() -> None:
    """2/3 + 2/3 + 2/3 against 1 + 1 + 0: the rule of larger area has to win, whichever it is."""
    two_thirds = (np.array([[200, 100]], np.uint8), np.array([[1, 0]], np.uint8))
    found = th.search([statistics(*two_thirds)] * 3)
    assert found.score == 1.0
    assert found.triplet == Triplet(199.5 / 255, 1024 * 1024 // 2, 199.5 / 255)
    wide = (np.full((1, 4), 90, np.uint8), np.array([[1, 1, 0, 0]], np.uint8))  # dice 2/3
    empty = (np.full((1, 4), 90, np.uint8), np.zeros((1, 4), np.uint8))
    # Keeping all scores 2/3 · 3 = 2 of 5, as keeping none does with its two empty images.
    found = th.search([statistics(*one) for one in (wide, wide, wide, empty, empty)])
    assert found.score == pytest.approx(0.4)
    assert found.triplet.min_area_px == KEEP_NONE


def test_area_is_stated_for_1024_and_scaled_exactly() -> None:
    prob = np.zeros((300, 100), np.uint8)
    prob.flat[:3] = 200
    enough = 3 * 1024 * 1024 // prob.size
    assert apply_rule(prob, Triplet(0.5, enough, 0.5)).sum() == 3
    assert apply_rule(prob, Triplet(0.5, enough + 1, 0.5)).sum() == 0
    full = np.zeros((1024, 1024), np.uint8)
    full.flat[:100] = 200
    assert kept([statistics(full, None)], Triplet(0.5, 100, 0.2)).tolist() == [True]
    assert kept([statistics(full, None)], Triplet(0.5, 101, 0.2)).tolist() == [False]


def test_a_pixel_must_lie_above_a_threshold() -> None:
    prob = np.array([[0, 1, 127, 128, 254, 255]], np.uint8)
    assert apply_rule(prob, Triplet(0.5, 0, 0.5)).tolist() == [[0, 0, 0, 1, 1, 1]]
    assert apply_rule(prob, Triplet(0, 0, 0)).tolist() == [[0, 1, 1, 1, 1, 1]]
    assert apply_rule(prob, Triplet(1, 0, 1)).tolist() == [[0, 0, 0, 0, 0, 0]]
    assert apply_rule(prob, Triplet(254.5 / 255, 0, 253.5 / 255)).tolist() == [[0, 0, 0, 0, 1, 1]]


def test_a_mask_is_kept_by_its_top_and_cut_at_its_bottom() -> None:
    prob = np.array([[10, 100, 200]], np.uint8)
    third = 1024 * 1024 // 3
    assert apply_rule(prob, Triplet(0.7, third, 0.3)).tolist() == [[0, 1, 1]]
    assert apply_rule(prob, Triplet(0.7, third + 1, 0.3)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((1.2, 0, 0.5), "top is 1.2"),
        ((0.5, 0, -0.1), "bottom is -0.1"),
        ((float("nan"), 0, 0.5), "top is nan"),
        (("high", 0, 0.5), "top is 'high'"),
        ((0.3, 0, 0.5), "above top"),
        ((0.5, -1, 0.5), "min_area_px is -1"),
        ((0.5, 10.5, 0.5), "min_area_px is 10.5"),
        ((0.5, True, 0.5), "min_area_px is True"),
    ],
)
def test_a_rule_out_of_bounds_is_refused(values: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Triplet(*values)


def test_a_rule_goes_through_json() -> None:
    rule = Triplet(np.float32(0.75), np.int64(2000), 0.3)
    assert Triplet.from_json(json.loads(json.dumps(rule.to_json()))) == rule
    for wrong in ({"top": 0.5}, {**rule.to_json(), "area": 3}, [1, 2, 3], None):
        with pytest.raises(InputError, match="exactly"):
            Triplet.from_json(wrong)


def test_statistics_refuses_what_it_would_count_wrongly() -> None:
    prob, mask = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    with pytest.raises(InputError, match="float32"):
        statistics(prob.astype(np.float32), mask)
    with pytest.raises(InputError, match="own size"):
        statistics(prob, mask[:2])
    with pytest.raises(InputError, match="uint8"):
        apply_rule(prob[None], Triplet(0.5, 0, 0.5))
    with pytest.raises(InputError, match="no image"):
        th.search([])
    with pytest.raises(InputError, match="image 1 of 2 has no truth"):
        th.search([statistics(prob, mask), statistics(prob, None)])


def test_statistics_takes_any_mask_and_any_memory_order() -> None:
    random = np.random.default_rng(3)
    prob = random.integers(0, 256, (40, 30)).astype(np.uint8)
    mask = random.integers(0, 2, (40, 30))
    expected = np.bincount(prob[mask == 1], minlength=256)
    for same in (mask, mask == 1, mask * 255.0, np.asfortranarray(mask.astype(np.uint8))):
        stats = statistics(np.asfortranarray(prob), same)
        np.testing.assert_array_equal(stats.hist_true, expected)
        np.testing.assert_array_equal(stats.hist_all, np.bincount(prob.ravel(), minlength=256))
        assert stats.n_px == 1200


def test_very_large_images_are_counted_exactly() -> None:
    prob = np.zeros((4097, 4097), np.uint8)  # 16,785,409 px, more than float32 counts
    prob[0, :3] = 9
    stats = statistics(prob, prob)
    assert stats.hist_all[0] == prob.size - 3
    assert stats.hist_true[9] == 3


def test_search_goes_through_json_but_for_its_surfaces() -> None:
    found = th.search([statistics(np.full((2, 2), 9, np.uint8), np.ones((2, 2)))])
    assert json.dumps(found.to_json(), allow_nan=False) == (
        '{"triplet": {"top": 0.03333333333333333, "min_area_px": 1048576, '
        '"bottom": 0.03333333333333333}, "score": 1.0, '
        '"chosen": {"top": 0.00196078431372549, "min_area_px": 524288, '
        '"bottom": 0.00196078431372549}, "chosen_score": 1.0, '
        '"plateau": {"within": 0.001, "top": [0.00196078431372549, 0.9980392156862745], '
        '"bottom": [0.00196078431372549, 0.03333333333333333], "min_area_px": [1, 1048576]}, '
        '"chooser": {"levels": 8, "area_factor": 2.0, "standard_errors": 0.5, "within": 0.001}, '
        '"n_images": 1, "single": false, "label_swept": false}'
    )


def test_thresholds_start_without_torch() -> None:
    names = ("search", "nested_cv", "submission", "metrics")
    code = "import sys\n" + "".join(f"import kernel_lib.postprocess.{one}\n" for one in names)
    code += "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
