"""Masks of test images, combined over folds and members."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.inference import ensemble_maps
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.triplet import apply_rule
from tests.inference.small_runs import (
    RULE,
    SIZE,
    level_map,
    make_test,
)


def masks_of(ensemble: Ensemble, root: Path, images: pd.DataFrame, rule=RULE) -> dict:
    return dict(ensemble_maps.test_masks(ensemble, [root], images, Choice(rule)))


def flat(value: int) -> np.ndarray:
    return np.full((SIZE, SIZE), value, np.uint8)


def three_folds(root: Path, values=(250, 100, 10), **how) -> tuple[Ensemble, pd.DataFrame]:
    for fold, value in enumerate(values):
        make_test(root, "a", fold, {"t0": flat(value), "t1": flat(0)})
    ensemble = Ensemble(
        name="a", folds_digest="d", members=(Member(run="a", folds=(0, 1, 2)),), **how
    )
    return ensemble, pd.DataFrame({"image_id": ["t0", "t1"], "height": 40, "width": [30, 50]})


def test_the_mean_of_all_folds_meets_the_rule_once(tmp_path):
    ensemble, images = three_folds(tmp_path, (250, 130, 10))
    found = masks_of(ensemble, tmp_path, images)  # (250 + 130 + 10) / 3 = 130 > 127.5
    assert [m.shape for m in found.values()] == [(40, 30), (40, 50)]
    assert [int(m.mean() == 1) for m in found.values()] == [1, 0]


@pytest.mark.parametrize(
    ("values", "expected"), [((250, 250, 10), 1), ((250, 100, 10), 0), ((128, 128, 0), 1)]
)
def test_a_vote_needs_more_than_half_of_the_folds(tmp_path, values, expected):
    ensemble, images = three_folds(tmp_path, values, combine="vote")
    found = masks_of(ensemble, tmp_path, images)
    assert (found["t0"] == expected).all()
    assert (found["t1"] == 0).all()


def test_half_of_the_folds_is_not_more_than_half(tmp_path):
    for fold, value in enumerate((255, 0)):
        make_test(tmp_path, "a", fold, {"t0": flat(value)})
    ensemble = Ensemble(
        name="a", folds_digest="d", members=(Member(run="a", folds=(0, 1)),), combine="vote"
    )
    images = pd.DataFrame({"image_id": ["t0"], "height": 20, "width": 20})
    assert not masks_of(ensemble, tmp_path, images)["t0"].any()


def test_weights_count_on_test_images_as_on_held_out_ones(tmp_path):
    for run, value in (("a", 240), ("b", 60)):
        for fold in (0, 1):
            make_test(tmp_path, run, fold, {"t0": flat(value)})
    images = pd.DataFrame({"image_id": ["t0"], "height": 20, "width": 20})
    for weight, expected in ((1.0, 1), (3.0, 0)):  # 150, and 105
        pair = (Member(run="a", folds=(0, 1)), Member(run="b", folds=(0, 1), weight=weight))
        for how in ("mean", "vote"):
            ensemble = Ensemble(name="x", folds_digest="d", members=pair, combine=how)
            assert (masks_of(ensemble, tmp_path, images)["t0"] == expected).all()


def test_many_images_come_in_order(tmp_path):
    names = [f"t{i}" for i in range(50)]
    make_test(tmp_path, "a", 0, {name: level_map(name, "a") for name in names})
    ensemble = Ensemble(name="a", folds_digest="d", members=(Member(run="a", folds=(0,)),))
    images = pd.DataFrame({"image_id": names, "height": SIZE, "width": SIZE})
    found = masks_of(ensemble, tmp_path, images)
    assert list(found) == names
    for name, mask in found.items():
        assert np.array_equal(mask, apply_rule(level_map(name, "a"), RULE))
