"""Curves and shares by counting images, one order after the other; choices by folds alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kernel_lib.postprocess import metrics, referral
from kernel_lib.postprocess.histograms import areas
from kernel_lib.postprocess.metrics import Resampler
from kernel_lib.postprocess.triplet import Triplet
from tests.postprocess.samples import FULL, Image, small_images, stacked

FEW = Resampler(n_bootstrap=60)


@st.composite
def ranked(draw, most: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Dice and uncertainty of some images; often tied."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, most))
    dice = random.choice([0, 0.5, 0.8, 1], n) if draw(st.booleans()) else random.random(n)
    return dice, random.integers(0, draw(st.integers(1, 30)), n) / 7


@given(ranked())
def test_each_point_of_the_curve_is_the_mean_over_the_images_kept(images):
    risk, uncertainty = images
    found, expected = referral.risk_coverage(risk, uncertainty), []
    for k in range(1, len(risk) + 1):
        total = n_taken = 0.0
        for value in sorted(set(uncertainty.tolist())):
            same = [r for r, u in zip(risk, uncertainty, strict=True) if u == value]
            more = min(len(same), k - n_taken)
            total, n_taken = total + more * sum(same) / len(same), n_taken + more
        expected.append(total / k)
    assert found == pytest.approx(expected)
    assert referral.aurc(risk, uncertainty) == pytest.approx(sum(expected) / len(expected))


@given(ranked(most=5))
def test_ties_count_as_the_mean_over_all_their_orders(images):
    risk, uncertainty = images
    orders = [
        np.cumsum(risk[list(order)]) / np.arange(1, len(risk) + 1)
        for order in itertools.permutations(range(len(risk)))
        if (np.diff(uncertainty[list(order)]) >= 0).all()
    ]
    assert referral.risk_coverage(risk, uncertainty) == pytest.approx(np.mean(orders, axis=0))


@given(ranked(), st.integers(0, 99))
def test_the_oracle_is_best_its_reverse_worst_and_the_order_of_rows_nothing(images, seed):
    risk, uncertainty = images
    found = referral.risk_coverage(risk, uncertainty)
    assert (referral.risk_coverage(risk, risk) <= found + 1e-12).all()
    assert (found <= referral.risk_coverage(risk, -risk) + 1e-12).all()
    assert found[-1] == pytest.approx(risk.mean())
    constant = referral.risk_coverage(risk, uncertainty * 0)
    assert constant == pytest.approx([risk.mean()] * len(risk))
    shuffled = np.random.default_rng(seed).permutation(len(risk))
    assert referral.risk_coverage(risk[shuffled], uncertainty[shuffled]) == pytest.approx(found)


def simulated(n: int = 300, seed: int = 0) -> dict[str, np.ndarray]:
    """Dice of images in three parts, two a patient; a good measure of uncertainty, a poor one."""
    random = np.random.default_rng(seed)
    dice, part = random.random(n) ** 0.3, np.arange(n) % 3
    good, poor = 1 - dice + random.normal(0, 0.1, n), random.normal(0, 1, n)
    return {
        "dice": dice, "positive": random.random(n) < 0.3, "part": part,
        "groups": np.arange(n) // 2, "good": good, "poor": poor,
    }  # fmt: skip


def measured(images: dict[str, np.ndarray], **measures: np.ndarray) -> referral.Referral:
    given = {name: np.tile(values, (3, 1)) for name, values in measures.items()}
    return referral.measure(
        images["dice"], images["positive"], given, images["part"], images["groups"], FEW
    )


def test_the_shares_referred_are_those_of_the_curve_and_lie_in_their_interval():
    images = simulated()
    found = measured(images, good=images["good"], poor=images["poor"])
    assert found.chosen == ("good",) * 3
    assert found.aurc_oracle <= found.aurc["good"] < found.aurc["poor"]
    assert found.aurc_chosen == pytest.approx(found.aurc["good"])
    assert found.aurc["good"] < found.aurc_random == pytest.approx(1 - images["dice"].mean())
    for one in found.at:
        n_referred = round(300 * one.share)
        assert one.n_kept == 300 - n_referred
        assert one.dice == pytest.approx(found.dice_chosen[n_referred])
        assert one.oracle == pytest.approx(found.dice_oracle[n_referred])
        assert one.interval.low < one.dice < one.interval.high
        assert one.random == images["dice"].mean() < one.dice < one.oracle
    assert [one.share for one in found.at] == [0.05, 0.1, 0.2, 0.3]
    assert found.dice_chosen[0] == pytest.approx(images["dice"].mean())
    constant = measured(images, same=images["dice"] * 0)
    assert [one.dice for one in constant.at] == pytest.approx([images["dice"].mean()] * 4)
    assert [one.positives for one in constant.at] == pytest.approx([0.05, 0.1, 0.2, 0.3])


def test_referring_positives_first_is_counted():
    images = simulated()
    found = measured(images, positive=images["positive"].astype(float))
    n_positive = images["positive"].sum()
    assert found.at[0].positives == pytest.approx(15 / n_positive)
    assert found.at[0].empty == pytest.approx(1 - (n_positive - 15) / 285)
    assert found.resampled == "patients"
    empty = measured(images | {"positive": images["positive"] & False}, same=images["dice"] * 0)
    assert all(math.isnan(one.positives) for one in empty.at)
    alone = images | {"groups": np.arange(300)}
    assert measured(alone, good=images["good"]).resampled == "images"


def test_the_interval_draws_patients_and_refers_in_each_draw():
    images = simulated(30)
    found, uncertainty = measured(images, good=images["good"]), images["good"]
    scaled = np.empty(30)
    for k in range(3):
        own = images["part"] == k
        other = ~own & ~np.isin(images["groups"], images["groups"][own])
        scaled[own] = referral.share_below(uncertainty[other], uncertainty[own])
    names = np.unique(images["groups"].astype(str))
    random, means = np.random.default_rng(FEW.seed), []
    for _ in range(FEW.n_bootstrap):
        rows = [
            row
            for name in names[random.integers(len(names), size=len(names))]
            for row in np.flatnonzero(images["groups"].astype(str) == name)
        ]
        n_referred = round(0.3 * len(rows))
        curve = referral.risk_coverage(1 - images["dice"][rows], scaled[rows])
        means.append(1 - curve[len(rows) - n_referred - 1])
    assert found.at[-1].interval == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_a_part_is_measured_by_what_is_best_on_the_others_alone():
    images = simulated()
    groups = np.arange(300)
    mixed = np.where(images["part"] == 2, images["poor"], images["good"])
    other = np.where(images["part"] == 2, images["good"], images["poor"])
    given = {"mixed": np.tile(mixed, (3, 1)), "other": np.tile(other, (3, 1))}
    arguments = images["positive"], given, images["part"], groups, FEW
    found = referral.measure(images["dice"], *arguments)
    assert found.chosen[2] == "mixed", "though it says nothing of part 2"
    flipped = np.where(images["part"] == 2, 1 - images["dice"], images["dice"])
    assert referral.measure(flipped, *arguments).chosen[2] == "mixed"


def test_scales_are_brought_together_by_the_other_parts():
    images = simulated()
    factor = np.array([1.0, 50.0, 1e-3])
    given = {"good": np.outer(factor, images["good"])}  # each part knows its own scale only
    arguments = images["part"], np.arange(300), FEW
    found = referral.measure(images["dice"], images["positive"], given, *arguments)
    plain = {"good": np.tile(images["good"], (3, 1))}
    expected = referral.measure(images["dice"], images["positive"], plain, *arguments)
    assert found.dice_chosen == pytest.approx(expected.dice_chosen)


def test_without_other_patients_there_is_no_curve():
    images = simulated(12)
    images["groups"] = np.zeros(12)
    assert measured(images, good=images["good"]) is None


@given(small_images(labels=True), st.data())
def test_the_margin_is_above_zero_exactly_where_the_rule_draws_a_mask(images: list[Image], data):
    stats = stacked(images)
    bottom, top = sorted(data.draw(st.tuples(*[st.integers(0, 255)] * 2)))
    area = data.draw(st.sampled_from([0, 1, FULL // 9, FULL // 2, FULL, FULL + 1]))
    label = data.draw(st.none() | st.floats(0, 1)) if stats.has_labels else None
    rule = Triplet(top / 255, area, bottom / 255, label)
    found = referral.margin(stats, rule)
    assert ((found > 0) == (areas(stats, rule) > 0)).all()
    assert (found != 0).all()
    # Levels are −1 (never has a mask) to 255, thresholds 0.5 to 255.5.
    assert (found >= -256.5 / 255).all()
    assert (found <= 254.5 / 255).all()


def test_an_image_that_never_has_a_mask_has_the_lowest_margin():
    stats = stacked([(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), None)])
    assert referral.margin(stats, Triplet(1.0, FULL + 1, 0.0)) == pytest.approx(-256.5 / 255)


def test_a_margin_is_the_distance_in_probability():
    prob = np.zeros((4, 4), np.uint8)
    prob[0, :2] = 200, 150
    stats = stacked([(prob, prob * 0, 90)])
    two = FULL // 8  # pixels of 1024² that are two of these
    assert referral.margin(stats, Triplet(0.5, two, 0.1)) == pytest.approx((150 - 127.5) / 255)
    assert referral.margin(stats, Triplet(0.7, two, 0.1)) == pytest.approx((150 - 178.5) / 255)
    gated = Triplet(0.5, two, 0.1, label=0.4)  # level 102
    assert referral.margin(stats, gated) == pytest.approx((90 - 102.5) / 255)
    with pytest.raises(ValueError, match="no label"):
        referral.margin(stacked([(prob, prob * 0, None)]), gated)


@given(st.lists(small_images(most=1), min_size=1, max_size=4), st.data())
def test_a_vote_s_margin_is_above_zero_exactly_where_enough_members_draw(members, data):
    stats = [stacked(images) for images in members]
    assume(all(len(one) == 1 for one in stats))
    rules = [Triplet(0.5, 0, data.draw(st.sampled_from([0.1, 0.5]))) for _ in stats]
    k = data.draw(st.integers(1, len(stats)))
    drawn = sum(areas(one, rule)[0] > 0 for one, rule in zip(stats, rules, strict=True))
    assert (referral.vote_margin(stats, rules, k)[0] > 0) == (drawn >= k)


@given(st.integers(2, 5), st.integers(0, 999))
def test_disagreement_is_of_pairs_and_one_where_one_mask_alone_is_empty(n, seed):
    masks = np.random.default_rng(seed).random((3, n, 4, 4)) < 0.3
    masks[0] = False
    masks[1, 1:] = False
    pairs = np.array([[[metrics.dice(a, b) for b in image] for a in image] for image in masks])
    found = referral.disagreement(pairs)
    for image, value in zip(masks, found, strict=True):
        dices = [metrics.dice(a, b) for a, b in itertools.combinations(image, 2)]
        assert value == pytest.approx(1 - np.mean(dices))
    assert found[0] == pytest.approx(0)
    if n == 2 and masks[1, 0].any():
        assert found[1] == 1
