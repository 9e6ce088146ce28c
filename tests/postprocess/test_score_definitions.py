"""Every definition of the score, against scikit-learn, by hand, and where masks are empty."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kernel_lib.data import rle
from kernel_lib.postprocess import score_definitions
from kernel_lib.postprocess.metrics import Resampler, dice
from kernel_lib.postprocess.surface_distance import surface_distance

FEW = Resampler(n_bootstrap=20)
SHAPE = (6, 7)
# Blocks, many of them empty, so that all of the four cases of an image occur.
MASK = st.tuples(*[st.integers(0, side) for side in (*SHAPE, *SHAPE)]).map(
    lambda ends: block(*ends)
)
SETS = st.lists(st.tuples(MASK, MASK), min_size=1, max_size=8)


def block(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def table(pairs: list[tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
    """The table of images given as (predicted, truth)."""
    return score_definitions.measure_images(
        (f"i{k}", rle.runs_of(predicted), rle.runs_of(truth), truth.shape)
        for k, (predicted, truth) in enumerate(pairs)
    )


def values(images: pd.DataFrame) -> dict[str, float]:
    return {score.name: score.value for score in score_definitions.scores(images, FEW)}


@settings(max_examples=60)
@given(SETS)
def test_scores_equal_scikit_learn_s(pairs) -> None:
    from_sklearn = pytest.importorskip("sklearn.metrics")
    found = values(table(pairs))
    positives = [pair for pair in pairs if pair[1].any()]
    for name, measure in (("dice", from_sklearn.f1_score), ("IoU", from_sklearn.jaccard_score)):
        of_images = [measure(t.ravel(), p.ravel(), zero_division=1.0) for p, t in pairs]
        assert found[f"{name}, per image"] == pytest.approx(np.mean(of_images))
        if positives:
            of_positives = [measure(t.ravel(), p.ravel()) for p, t in positives]
            assert found[f"{name}, positives"] == pytest.approx(np.mean(of_positives))
        mean = {"dice": "mDice", "IoU": "mIoU"}[name]
        for pooled, masks in ((f"{name}, pooled", pairs), (f"{mean}, pooled", pairs),
                              (f"{mean}, positives, pooled", positives)):  # fmt: skip
            if not masks or not any(p.any() or t.any() for p, t in masks):
                assert math.isnan(found[pooled])
                continue
            if all(p.all() and t.all() for p, t in masks) and pooled.startswith("m"):
                assert math.isnan(found[pooled]), "no pixel of background"
                continue
            predicted, truth = (
                np.concatenate([m.ravel() for m in s]) for s in zip(*masks, strict=True)
            )
            how = {"average": "macro", "labels": [0, 1]} if pooled.startswith("m") else {}
            expected = measure(truth, predicted, **how)
            assert found[pooled] == pytest.approx(expected), pooled


@settings(max_examples=60)
@given(SETS)
def test_detection_equals_scikit_learn_s(pairs) -> None:
    from_sklearn = pytest.importorskip("sklearn.metrics")
    predicted, truth = (np.array([m.any() for m in side]) for side in zip(*pairs, strict=True))
    found = values(table(pairs))
    nothing = {"zero_division": math.nan}
    expected = {
        "sensitivity": from_sklearn.recall_score(truth, predicted, **nothing),
        "specificity": from_sklearn.recall_score(truth, predicted, pos_label=0, **nothing),
        "PPV": from_sklearn.precision_score(truth, predicted, **nothing),
        "NPV": from_sklearn.precision_score(truth, predicted, pos_label=0, **nothing),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, nan_ok=True), name


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_the_auc_equals_scikit_learn_s(given_images) -> None:
    from_sklearn = pytest.importorskip("sklearn.metrics")
    levels, truth = map(np.array, zip(*given_images, strict=True))
    images = table([(block(0, 0, 1, 1), block(0, 0, t, t)) for t in truth.astype(int)])
    assert "AUC" not in values(images), "no probability is known"
    found = values(images.assign(probability=levels / 5))["AUC"]
    if len(set(truth)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(from_sklearn.roc_auc_score(truth, levels))


def test_by_hand() -> None:
    """Shared 2 of 4 and 4; a false positive of 3 px; both empty; a miss of 5 px; of 42 each."""
    pairs = [
        (block(0, 0, 1, 4), block(0, 2, 1, 4)),
        (block(0, 0, 3, 1), block(0, 0, 0, 0)),
        (block(0, 0, 0, 0), block(0, 0, 0, 0)),
        (block(0, 0, 0, 0), block(0, 0, 1, 5)),
    ]
    images = table(pairs).assign(probability=[0.9, 0.8, 0.1, math.nan], mm_per_px=[0.5] + [1.0] * 3)
    found = values(images)
    expected = {
        "dice, per image": (0.5 + 0 + 1 + 0) / 4,
        "dice, positives": (0.5 + 0) / 2,
        "dice, pooled": 2 * 2 / (7 + 9),
        "mDice, pooled": (4 / 16 + 2 * 154 / (161 + 159)) / 2,
        "mDice, positives, pooled": (4 / 13 + 2 * 73 / (80 + 75)) / 2,
        "IoU, per image": (1 / 3 + 0 + 1 + 0) / 4,
        "IoU, positives": (1 / 3 + 0) / 2,
        "IoU, pooled": 2 / 14,
        "mIoU, pooled": (2 / 14 + 154 / 166) / 2,
        "mIoU, positives, pooled": (2 / 11 + 73 / 82) / 2,
        "sensitivity": 1 / 2,
        "specificity": 1 / 2,
        "PPV": 1 / 2,
        "NPV": 1 / 2,
        "AUC": 1.0,
        "HD95, px": np.percentile([2, 1, 0, 0], 95),
        "HD95, mm": np.percentile([2, 1, 0, 0], 95) / 2,
        "ASSD, px": 3 / 4,
        "ASSD, mm": 3 / 8,
    }
    assert found == pytest.approx(expected)
    counted = {s.name: s.n_images for s in score_definitions.scores(images, FEW)}
    names = ("dice, per image", "dice, positives", "AUC", "HD95, px")
    assert [counted[name] for name in names] == [4, 2, 3, 1]


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        (block(0, 0, 0, 0), block(0, 0, 0, 0), (1.0, math.nan, math.nan)),
        (block(0, 0, 1, 1), block(0, 0, 0, 0), (0.0, math.nan, 0.0)),
        (block(0, 0, 0, 0), block(5, 6, 1, 1), (0.0, 0.0, 0.0)),
        (block(5, 6, 1, 1), block(5, 6, 1, 1), (1.0, 1.0, 1.0)),
        (block(0, 0, 6, 7), block(0, 0, 6, 7), (1.0, 1.0, 1.0)),
        (block(0, 0, 6, 7), block(0, 0, 3, 7), (2 / 3, 2 / 3, 2 / 3)),
    ],
    ids=["both empty", "no truth", "nothing predicted", "one pixel", "all pixels", "half"],
)
def test_one_image_at_its_edges(predicted, truth, expected) -> None:
    found = values(table([(predicted, truth)]))
    names = ("dice, per image", "dice, positives", "dice, pooled")
    assert [found[name] for name in names] == pytest.approx(list(expected), nan_ok=True)
    assert ("HD95, px" in found) == (predicted.any() and truth.any())


@given(arrays(bool, SHAPE), arrays(bool, SHAPE))
def test_a_row_of_the_table_holds_the_image_s_counts_and_distances(predicted, truth) -> None:
    images = table([(predicted, truth)])
    row = images.iloc[0]
    counts = [(predicted & truth).sum(), predicted.sum(), truth.sum(), truth.size]
    assert row[score_definitions.COUNTS].tolist() == counts
    expected = surface_distance(predicted, truth)
    assert row[score_definitions.DISTANCES].tolist() == pytest.approx(list(expected), nan_ok=True)
    assert score_definitions.per_image(images)[0] == dice(predicted, truth)


def test_images_of_a_patient_are_drawn_together_in_every_interval() -> None:
    random = np.random.default_rng(0)
    pairs = [(block(0, 0, *random.integers(0, 6, 2)), block(0, 0, *random.integers(0, 6, 2)))
             for _ in range(40)]  # fmt: skip
    images = table(pairs * 4).assign(probability=np.tile(random.random(40), 4))
    patients = images.assign(group=[f"p{k % 40}" for k in range(160)])
    resampler = Resampler(n_bootstrap=200)
    apart, together = (score_definitions.scores(t, resampler) for t in (images, patients))
    for one, other in zip(apart, together, strict=True):
        widths = [score.interval.high - score.interval.low for score in (one, other)]
        if one.name in ("sensitivity", "specificity", "PPV", "NPV"):
            assert widths[0] == widths[1], "Wilson's takes images as independent"
        else:
            assert widths[1] / widths[0] == pytest.approx(2, rel=0.35), one.name
        assert one.interval.low <= one.value <= one.interval.high


def test_the_table_shown_has_a_row_for_each_score_and_nan_for_what_is_not_defined() -> None:
    images = table([(block(0, 0, 0, 0), block(0, 0, 0, 0))])
    shown = score_definitions.as_table(score_definitions.scores(images, FEW)).set_index("score")
    numbers = ["value", "95 % from", "to", "images"]
    assert shown.loc["dice, per image", numbers].tolist() == [1, 1, 1, 1]
    nothing = [math.nan] * 3 + [0]
    np.testing.assert_array_equal(shown.loc["dice, positives", numbers].tolist(), nothing)
    assert (shown["formula"] != "").all()
