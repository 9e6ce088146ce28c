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
from tests.inference.small_runs import RULE, SIZE, level_map, make_test


def masks_of(ensemble: Ensemble, root: Path, images: pd.DataFrame) -> dict[str, np.ndarray]:
    return dict(ensemble_maps.test_masks(ensemble, [root], images, Choice(RULE)))


def flat(value: int) -> np.ndarray:
    return np.full((SIZE, SIZE), value, np.uint8)


@pytest.mark.parametrize(
    ("combine", "values", "expected"),
    [
        ("mean", (250, 130, 10), 1),  # 390 / 3 = 130 > 127.5, once for all folds
        ("mean", (250, 100, 10), 0),
        ("vote", (250, 250, 10), 1),
        ("vote", (250, 130, 10), 1),
        ("vote", (250, 100, 100), 0),  # although their mean is higher
        ("vote", (128, 128, 0), 1),
        ("vote", (255, 0), 0),  # half of the folds is not more than half
    ],
)
def test_folds_are_averaged_or_voted_on(tmp_path, combine, values, expected):
    for fold, value in enumerate(values):
        make_test(tmp_path, "a", fold, {"t0": flat(value), "t1": flat(0)})
    member = Member(run="a", folds=tuple(range(len(values))))
    ensemble = Ensemble(name="a", folds_digest="d", members=(member,), combine=combine)
    images = pd.DataFrame({"image_id": ["t0", "t1"], "height": 40, "width": [30, 50]})
    masks = masks_of(ensemble, tmp_path, images)
    assert [mask.shape for mask in masks.values()] == [(40, 30), (40, 50)]
    assert (masks["t0"] == expected).all()
    assert not masks["t1"].any()


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
    masks = masks_of(ensemble, tmp_path, images)
    assert list(masks) == names
    for name, mask in masks.items():
        assert np.array_equal(mask, apply_rule(level_map(name, "a"), RULE))
