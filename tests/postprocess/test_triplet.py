"""The rule: its bounds, its words, its JSON, and the masks that it makes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.errors import InputError
from kernel_lib.postprocess import triplet
from kernel_lib.postprocess.histograms import areas, gate_by_sum, kept, per_image_dice, statistics
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.triplet import Triplet, apply_rule
from kernel_lib.stages import scores
from tests.postprocess.samples import FULL, NOTHING


@pytest.mark.parametrize(
    ("rule", "keeps_none"),
    [(NOTHING, True), (Triplet(0.5, FULL, 0.5), False), (Triplet(0.5, 0, 0.5), False)],
)
def test_a_rule_s_description(rule, keeps_none):
    assert rule.keeps_none == keeps_none
    assert ("predicts nothing" in str(rule)) == keeps_none
    assert str(rule.min_area_px) in str(rule)
    assert "label" not in str(rule)
    assert str(Triplet(0.5, 10, 0.25, 0.125)).startswith("label 0.1250, top 0.5000")


def test_each_member_s_rule_that_predicts_nothing_is_named():
    members = (Member(run="a", folds=(0,)), Member(run="b", folds=(0,)))
    both = Ensemble(name="x", members=members, combine="member_vote", folds_digest="")
    choice = Choice(rules=(Triplet(0.5, 10, 0.5), NOTHING), at_least=1)
    first, second, vote = scores.rule_lines(both, choice)
    assert "predicts nothing" not in first
    assert "predicts nothing" in second
    assert "at least 1 of 2" in vote


@pytest.mark.parametrize("area", [-1, 0.5, 10.5, "x", None, True, np.bool_(True), 10**30])
def test_an_area_that_no_image_can_have_is_refused(area):
    with pytest.raises(InputError, match="min_area_px"):
        Triplet(0.5, area, 0.5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((1.2, 0, 0.5), "top is 1.2"),
        ((0.5, 0, -0.1), "bottom is -0.1"),
        ((float("nan"), 0, 0.5), "top is nan"),
        (("high", 0, 0.5), "top is 'high'"),
        ((0.3, 0, 0.5), "above top"),
        *(((0.5, 10, 0.2, wrong), "label is") for wrong in (-0.1, 1.5, "high", float("nan"))),
    ],
)
def test_a_threshold_out_of_bounds_is_refused(values: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Triplet(*values)


def test_a_rule_goes_through_json() -> None:
    bare = {"top": 0.75, "min_area_px": 2000, "bottom": 0.3}
    rule = Triplet(np.float32(0.75), np.int64(2000), 0.3)
    assert json.loads(json.dumps(rule.to_json())) == bare
    assert Triplet.from_json(bare) == rule
    labelled = Triplet(0.75, 2000, 0.3, label=np.float32(0.5))
    assert labelled.to_json() == bare | {"label": 0.5}
    assert Triplet.from_json(labelled.to_json()) == labelled
    for wrong in ({"top": 0.5}, {**bare, "area": 3}, [1, 2, 3], None):
        with pytest.raises(InputError, match="a Triplet cannot be read"):
            Triplet.from_json(wrong)


def test_area_is_stated_for_1024_and_scaled_exactly() -> None:
    prob = np.zeros((300, 100), np.uint8)
    prob.flat[:3] = 200
    enough = 3 * FULL // prob.size
    for area, is_kept in ((enough, True), (enough + 1, False)):
        rule = Triplet(0.5, area, 0.5)
        assert apply_rule(prob, rule).sum() == 3 * is_kept
        assert kept([statistics(prob, None)], rule).tolist() == [is_kept]


@pytest.mark.parametrize(
    ("rule", "mask"),
    [
        (Triplet(0.5, 0, 0.5), [0, 0, 0, 1, 1, 1]),  # a pixel must lie above a threshold
        (Triplet(0, 0, 0), [0, 1, 1, 1, 1, 1]),
        (Triplet(1, 0, 1), [0, 0, 0, 0, 0, 0]),
        (Triplet(254.5 / 255, 0, 253.5 / 255), [0, 0, 0, 0, 1, 1]),
        # Kept by its top, cut at its bottom.
        (Triplet(0.7, FULL // 3, 0.3), [0, 0, 1, 1, 1, 1]),
        (Triplet(0.7, FULL // 3 + 1, 0.3), [0, 0, 0, 0, 0, 0]),
    ],
)
def test_masks_by_hand(rule: Triplet, mask: list[int]) -> None:
    assert apply_rule(np.array([[0, 1, 127, 128, 254, 255]], np.uint8), rule).tolist() == [mask]


@pytest.mark.parametrize("wrong", [-1, 256, 0.5, "high", True])
def test_what_is_no_level_is_refused(wrong: object) -> None:
    with pytest.raises(InputError, match="level of 0–255"):
        statistics(np.zeros((2, 2), np.uint8), None, wrong)


def test_a_mask_needs_a_label_above_the_threshold() -> None:
    prob = np.array([[200, 0]], np.uint8)
    rule = Triplet(0.5, 0, 0.5, label=0.4)  # 0.4 is level 102
    masks = [apply_rule(prob, rule, label).tolist() for label in (0, 102, 103, 255)]
    assert masks == [[[0, 0]], [[0, 0]], [[1, 0]], [[1, 0]]]
    assert apply_rule(prob, Triplet(0.5, 0, 0.5), 0).tolist() == [[1, 0]]
    assert apply_rule(prob, Triplet(0.5, 0, 0.5, label=0), 0).tolist() == [[0, 0]]
    assert triplet.passes_gate(np.array([-1, 3]), None).tolist() == [True, True]
    assert triplet.passes_gate(np.array([0, 3, 4]), 3.5 / 255).tolist() == [False, False, True]


def test_a_rule_with_a_label_refuses_an_image_without() -> None:
    prob, rule = np.zeros((2, 2), np.uint8), Triplet(0.5, 0, 0.5, label=0.4)
    with pytest.raises(InputError, match="label head"):
        apply_rule(prob, rule)
    stats = [statistics(prob, prob, 3), statistics(prob, prob)]
    for under in (kept, areas, per_image_dice):
        with pytest.raises(InputError, match="image 1 of 2 has no label"):
            under(stats, rule)


@pytest.mark.parametrize(
    ("levels", "n_px", "expected"),
    [
        ({}, FULL, 0),
        ({255: FULL}, FULL, 255),
        ({255: 1023}, FULL, 128),  # log2(1024) = 10 of 20
        ({51: 5 * 1023}, FULL, 128),  # five pixels of a fifth are one
        ({255: 1}, FULL, 13),  # log2(2) = 1 of 20: 12.75
        ({255: 1}, FULL // 1024, 128),  # a pixel of 32² is 1,024 of 1024²
        ({255: 4 * FULL}, 4 * FULL, 255),
    ],
)
def test_the_level_of_a_sum(levels: dict[int, int], n_px: int, expected: int) -> None:
    hist = np.zeros(256, np.int64)
    for level, px in levels.items():
        hist[level] = px
    assert triplet.sum_level(hist, n_px) == expected


def test_images_labelled_by_their_sum_are_what_one_map_gives() -> None:
    random = np.random.default_rng(0)
    maps = [(random.random((20, 30)) * peak).astype(np.uint8) for peak in (1, 20, 255)]
    stats = gate_by_sum([statistics(prob, prob) for prob in maps])
    assert stats.has_labels
    for prob, level in zip(maps, stats.label, strict=True):
        assert triplet.sum_level(np.bincount(prob.ravel(), minlength=256), prob.size) == level
        assert level == round(255 * np.log2(1 + prob.sum() / 255 * FULL / 600) / 20)
    assert (np.diff(stats.label) > 0).all()
