"""Subgroups hold the images that they name, and doubtful differences are named."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from kernel_lib.postprocess import subgroups
from kernel_lib.postprocess.metrics import Resampler, wilson
from kernel_lib.postprocess.score_definitions import Score

FULL = 1024**2


def images(rows: list[tuple[int, int, int]], n_px: int = FULL) -> pd.DataFrame:
    """The table of images given as (shared, predicted, truth) px."""
    ids = [f"i{k}" for k in range(len(rows))]
    counts = pd.DataFrame(rows, columns=["shared_px", "predicted_px", "truth_px"])
    return counts.assign(
        image_id=ids, group=ids, n_px=n_px, hd95_px=math.nan, assd_px=math.nan,
        probability=[0.9 if truth else 0.2 for *_, truth in rows], mm_per_px=math.nan,
    )  # fmt: skip


def by_name(found: list[subgroups.Subgroup], by: str) -> dict[str, subgroups.Subgroup]:
    return {part.name: part for part in found if part.by == by}


def scores_of(part: subgroups.Subgroup) -> dict[str, Score]:
    return {score.name: score for score in part.scores}


def test_sizes_are_of_1024_and_hold_positives_alone() -> None:
    areas = [1, 1999, 2000, 6999, 7000, 27999, 28000, FULL, 0]
    found = by_name(subgroups.subgroups(images([(0, 0, a) for a in areas])), subgroups.SIZE)
    names = ["under 2,000", "2,000 to under 7,000", "7,000 to under 28,000", "28,000 and more"]
    assert {name: part.n_images for name, part in found.items()} == dict.fromkeys(names, 2)
    smaller = images([(0, 0, 500), (0, 0, 499)], n_px=512**2)
    found = by_name(subgroups.subgroups(smaller), subgroups.SIZE)
    assert {name: part.n_images for name, part in found.items()} == {
        "under 2,000": 1, "2,000 to under 7,000": 1,
    }  # fmt: skip
    larger = images([(0, 0, 1)], n_px=4096**2)
    assert [part.name for part in subgroups.subgroups(larger)] == ["under 2,000"]


def test_traits_divide_all_images_whose_trait_is_known() -> None:
    rows = [(10, 10, 10), (0, 5, 0), (0, 0, 0), (0, 0, 10), (0, 0, 0), (5, 10, 10)]
    traits = pd.DataFrame(
        {"view": ["PA", "PA", "AP", "AP", "", "PA"], "age": [17, 18, 59.0, 60, math.nan, 90]},
        index=["i0", "i1", "i2", "i3", "i4", "not here"],
    )
    found = subgroups.subgroups(images(rows), traits)
    views = by_name(found, "view")
    assert {name: (p.n_images, p.n_positive) for name, p in views.items()} == {
        "AP": (2, 1), "PA": (2, 1),
    }  # fmt: skip
    assert {name: p.n_images for name, p in by_name(found, "age").items()} == {
        "under 18": 1, "18 to under 40": 1, "40 to under 60": 1, "60 and more": 1,
    }  # fmt: skip
    found = scores_of(views["PA"])
    assert [found[name].value for name in found] == [0.5, 1.0, 1.0, 0.0, 1.0]
    assert [found[name].n_images for name in found] == [2, 1, 1, 1, 2]
    assert found["sensitivity"].interval == wilson(1, 1)
    assert [scores_of(views["AP"])[name].value for name in found] == [0.5, 0.0, 0.0, 1.0, 1.0]


def test_a_difference_within_an_interval_is_warned_of_and_a_clear_one_is_not() -> None:
    right, wrong = (10, 10, 10), (0, 0, 10)
    clear = images([right] * 200 + [wrong] * 200)
    traits = pd.DataFrame({"sex": ["F"] * 200 + ["M"] * 200}, index=clear["image_id"])
    assert subgroups.warnings(subgroups.subgroups(clear, traits)) == []
    alike = images(([right] * 5 + [wrong] * 5) * 2)
    traits = pd.DataFrame({"sex": ["F"] * 10 + ["M"] * 9 + [""]}, index=alike["image_id"])
    (warning,) = subgroups.warnings(subgroups.subgroups(alike, traits))
    assert warning.startswith("sex: ")
    for name in ("dice", "dice of positives", "sensitivity"):
        assert f" {name} (0.0" in warning
    assert "specificity" not in warning, "nobody is without a mask"
    pair = images([(4, 10, 10), (8, 10, 10)])
    traits = pd.DataFrame({"sex": ["F", "M"]}, index=pair["image_id"])
    (warning,) = subgroups.warnings(subgroups.subgroups(pair, traits))
    assert " dice (" in warning, "an interval of one image has no width"


def test_the_table_has_each_n_and_interval() -> None:
    part = subgroups.subgroups(images([(10, 10, 10), (0, 0, 10)]))
    (row,) = subgroups.as_table(part).to_dict("records")
    assert row["dice of positives"] == "0.500 (0.000–1.000), n\u00a02"
    assert (row["images"], row["with a mask"], row["AUC"]) == (2, 2, "–")


def test_patients_and_spacings_of_traits_are_taken_where_they_are_known() -> None:
    table = images([(0, 0, 1)] * 3)
    traits = pd.DataFrame({"patient": ["p", "p"], "mm_per_px": [0.1, math.nan]}, index=["i0", "i1"])
    found = subgroups.with_traits(table, traits)
    assert found["group"].tolist() == ["p", "p", "i2"]
    np.testing.assert_array_equal(found["mm_per_px"], [0.1, math.nan, math.nan])
    assert subgroups.with_traits(table, None) is table


def test_intervals_are_drawn_over_patients() -> None:
    rows = images([(10, 10, 10), (0, 0, 10)] * 10)
    patients = rows.assign(group=[f"p{k % 2}" for k in range(20)])
    apart, together = (
        scores_of(subgroups.subgroups(t, None, Resampler(100))[0])["dice"].interval
        for t in (rows, patients)
    )
    assert together == (0.0, 1.0)
    assert apart != pytest.approx(together)
