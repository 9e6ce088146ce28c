"""Out-of-fold tables and statistics come back as they were saved, or are refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kernel_lib.artifacts.decision import Searched
from kernel_lib.artifacts.oof import (
    OofStatistics,
    load_distances,
    load_per_image,
    save_distances,
    save_per_image,
)
from kernel_lib.errors import InputError
from kernel_lib.postprocess.histograms import Stacked, stack, statistics

N = 4
TABLE = pd.DataFrame(
    {
        "image_id": ["NA", "b", "c", "d"], "fold": [0, 1, 0, 1], "part": [0, 1, 0, 1],
        "true_area_px": [3.0, 0.0, 2.5, 0.0], "area_px": [0.0, 1.0, 2.0, 0.0],
        "dice": [0.0, 0.0, 0.9, 1.0],
    }
)  # fmt: skip


def decision(n_images: int = N, folds=(0, 1), parts=(0, 1), searches=1) -> SimpleNamespace:
    """What of a decision both files are held against."""
    kept = SimpleNamespace(n_images=n_images, rules=[SimpleNamespace(fold=p) for p in parts])
    return SimpleNamespace(
        ensemble=SimpleNamespace(folds=folds),
        scores=SimpleNamespace(kept=kept),
        searches={str(i): Searched(single=False, label_swept=i > 0) for i in range(searches)},
    )


def seen(labelled: bool) -> Stacked:
    rng = np.random.default_rng(0)
    prob = rng.integers(0, 256, (N, 8, 8), dtype=np.uint8)
    return stack([statistics(p, p > 200, 7 if labelled else None) for p in prob])


def test_the_table_comes_back_by_the_names_of_figures(tmp_path):
    save_per_image(tmp_path, TABLE)
    back = load_per_image(tmp_path, decision(), TABLE)
    names = {"true_area_px": "truth_px", "area_px": "predicted_px"}
    pd.testing.assert_frame_equal(back, TABLE.rename(columns=names), check_dtype=False)


def test_scores_of_images_come_back_where_there_are_some(tmp_path):
    more = {
        "group": ["NA", "007", "c", "d"], "sum_prob": [1.5, 2, 3, 4], "max_prob": [0.5] * 4,
        "label": [0.1, np.nan, 0.2, 0.3], "view_disagreement": [0, np.nan, 1, 0.5], "ignored": 1,
    }  # fmt: skip
    save_per_image(tmp_path, TABLE.assign(**more))
    back = load_per_image(tmp_path, decision(), TABLE)
    expected = pd.DataFrame(more).drop(columns="ignored")
    pd.testing.assert_frame_equal(back[list(expected)], expected, check_dtype=False)
    assert "ignored" not in back


def test_distances_come_back_and_none_are_known_of_earlier_folders(tmp_path):
    save_per_image(tmp_path, TABLE)
    per_image = load_per_image(tmp_path, decision(), TABLE)
    assert load_distances(tmp_path, per_image) is None
    kept = pd.DataFrame({"image_id": ["c"], "hd95_px": [1.5], "assd_px": [1 / 3]})
    save_distances(tmp_path, kept)
    pd.testing.assert_frame_equal(load_distances(tmp_path, per_image), kept)
    save_distances(tmp_path, kept.assign(image_id="b"))
    with pytest.raises(InputError, match=r"oof_distances\.csv is damaged"):
        load_distances(tmp_path, per_image)
    save_distances(tmp_path, kept[:0])
    nothing = load_distances(tmp_path, per_image[per_image["truth_px"] == 0])
    assert nothing.empty


@pytest.mark.parametrize("name", TABLE.columns)
def test_a_table_that_lacks_a_column_is_refused(tmp_path, name):
    save_per_image(tmp_path, TABLE.drop(columns=name))
    with pytest.raises(InputError, match=rf"oof\.csv is damaged \(it lacks {name}\)"):
        load_per_image(tmp_path, decision(), TABLE)


@pytest.mark.parametrize(
    "other", [{"n_images": 5}, {"folds": (0,)}, {"parts": (1,)}], ids=["size", "folds", "parts"]
)
def test_the_table_of_another_decision_is_refused(tmp_path, other):
    save_per_image(tmp_path, TABLE)
    with pytest.raises(InputError, match=r"oof\.csv is damaged"):
        load_per_image(tmp_path, decision(**other), TABLE)


def test_the_statistics_come_back_for_each_search(tmp_path):
    searched = (seen(labelled=False), seen(labelled=True))
    OofStatistics(tuple(TABLE["image_id"]), searched).save(tmp_path)
    back = OofStatistics.load(tmp_path, decision(searches=2))
    assert back.image_ids == tuple(TABLE["image_id"])
    for mine, other in zip(searched, back.searched, strict=True):
        assert np.array_equal(mine.hist_all, other.hist_all)
        assert np.array_equal(mine.hist_true, other.hist_true)
        assert mine.has_labels == other.has_labels


def test_statistics_of_fewer_searches_are_refused(tmp_path):
    OofStatistics(tuple(TABLE["image_id"]), (seen(labelled=False),)).save(tmp_path)
    with pytest.raises(InputError, match=r"oof_statistics\.npz is damaged"):
        OofStatistics.load(tmp_path, decision(searches=2))
