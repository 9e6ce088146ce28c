from __future__ import annotations

import numpy as np
import pytest

from kernel_lib.errors import InputError
from kernel_lib.postprocess import cv_splits


def test_an_image_without_a_patient_is_its_own_group() -> None:
    names = cv_splits.checked_groups(
        ["a", "b", "c", "d"], [0] * 4, ["p", "", None, float("nan")], 4
    )
    assert names.tolist() == ["p", "b", "c", "d"]
    assert cv_splits.checked_groups(["a", "b"], [0, 1], None, 2).tolist() == ["a", "b"]


def test_lengths_and_ids_are_checked() -> None:
    with pytest.raises(InputError, match="1 folds for 2 images"):
        cv_splits.checked_groups(["a", "b"], [0], None, 2)
    with pytest.raises(InputError, match="image a stands there twice"):
        cv_splits.checked_groups(["a", "b", "a"], [0] * 3, None, 3)


def test_several_folds_are_taken_as_they_are() -> None:
    outer, method = cv_splits.outer_folds(
        np.array([3, 1, 3]), np.array(["a", "b", "c"]), np.zeros(3)
    )
    assert outer.tolist() == [3, 1, 3]
    assert "2 folds" in method


def test_one_fold_is_dealt_by_patient_and_area() -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 200, 500).astype(str)
    area = np.where(random.random(500) < 0.22, random.integers(100, 50_000, 500), 0)
    outer, method = cv_splits.outer_folds(np.full(500, 2), groups, area)
    assert "one fold" in method
    assert "5 patient-wise parts" in method
    for name in np.unique(groups):
        assert len(np.unique(outer[groups == name])) == 1
    totals = np.bincount(outer, area)
    assert totals.max() < 1.5 * totals.min()
    positives = np.bincount(outer[area > 0])
    assert positives.max() < 1.6 * positives.min()
    order = random.permutation(500)  # the order of the images makes no difference
    again, _ = cv_splits.outer_folds(np.full(500, 2), groups[order], area[order])
    np.testing.assert_array_equal(again, outer[order])


def test_fewer_patients_than_splits() -> None:
    outer, method = cv_splits.outer_folds(np.zeros(3, int), np.array(["a", "a", "b"]), np.zeros(3))
    assert sorted(set(outer.tolist())) == [0, 1]
    assert "2 patient-wise parts" in method
