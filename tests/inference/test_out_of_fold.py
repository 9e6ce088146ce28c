"""Held-out images, each predicted by members that never saw it."""

from __future__ import annotations

import numpy as np
import pytest

from kernel_lib import storage
from kernel_lib.artifacts import filenames, fold_run, maps
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.errors import InputError
from kernel_lib.inference.out_of_fold import out_of_fold
from tests.inference.small_runs import gather, level_map, make_run, table
from tests.stages.place import rewrite


def test_held_out_images_are_scored_by_the_weighted_mean_at_their_own_size(tmp_path):
    images = table()
    make_run(tmp_path, "a", images), make_run(tmp_path, "b", images)
    ensemble = Ensemble(
        name="x",
        folds_digest="d",
        members=(Member(run="a", folds=(0, 1)), Member(run="b", folds=(0, 1), weight=3.0)),
    )
    held = out_of_fold(ensemble, [tmp_path], images)
    assert held.past_known
    assert held.table["image_id"].tolist() == ["i0", "i2", "i4", "i1", "i3", "i5"]
    for row, image in enumerate(held.table.itertuples()):
        mixed = maps.mean([level_map(image.image_id, r) for r in "ab"], [1.0, 3.0])
        expected = maps.statistics(mixed, image.rle, (24, 20))
        assert np.array_equal(held.stats.hist_all[row], expected.hist_all)
        assert np.array_equal(held.stats.hist_true[row], expected.hist_true)


def test_the_views_disagreement_is_the_weighted_mean_of_members_that_all_know_it(tmp_path):
    images = table()
    known = {("a", 0): lambda i: int(i[1]) / 10, ("a", 1): lambda i: int(i[1]) / 10,
             ("b", 0): lambda i: 0.5}  # fmt: skip
    make_run(tmp_path, "a", images), make_run(tmp_path, "b", images)
    for (run, fold), of in known.items():
        rewrite(fold_run.fold_folder(tmp_path, run, fold).oof, disagreement=of)
    members = [Member(run="a", folds=(0, 1)), Member(run="b", folds=(0, 1), weight=3.0)]

    def found(*some: Member) -> list[float]:
        ensemble = Ensemble(name="x", folds_digest="d", members=some)
        return out_of_fold(ensemble, [tmp_path], images).view_disagreements().tolist()

    assert found(members[0]) == pytest.approx([0.0, 0.2, 0.4, 0.1, 0.3, 0.5])
    expected = [(i / 10 + 3 * 0.5) / 4 for i in (0, 2, 4)]
    assert found(*members) == pytest.approx([*expected, *[np.nan] * 3], nan_ok=True)


def test_images_that_training_left_out_by_name_are_not_scored(tmp_path):
    make_run(tmp_path, "a", table().iloc[:5]), make_run(tmp_path, "b", table().iloc[:5])
    storage.write_json(tmp_path / filenames.LEFT_OUT, ["i5: it is cut short", "i4: another was"])
    held = out_of_fold(gather([tmp_path], ["a", "b"]), [tmp_path], table())
    assert sorted(held.table["image_id"]) == [f"i{i}" for i in range(5)]


@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"], ["a"]])
@pytest.mark.parametrize("lines", [[], ["i5: it is cut short"], ["i55: it is cut short"]])
def test_a_member_that_lacks_an_image_is_refused_in_any_order(tmp_path, order, lines):
    """Also where it is the only one, unless the image was left out of all training by name."""
    make_run(tmp_path, "a", table().iloc[:5]), make_run(tmp_path, "b", table())
    if order == ["a"]:
        lines = ["i55: it is cut short"]
    storage.write_json(tmp_path / filenames.LEFT_OUT, lines)
    ensemble = gather([tmp_path], order)
    with pytest.raises(InputError, match=r"runs/[ab]/fold1/oof.zip holds no map of image i5"):
        out_of_fold(ensemble, [tmp_path], table())
