"""Images that were trained on, known by id or by pixels: at training, and among test images."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from kernel_lib.artifacts import filenames
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import TrainParameters
from kernel_lib.data import fingerprint, table
from kernel_lib.errors import InputError
from kernel_lib.stages import leaks, preparation

SIZE = 64


def picture(k: int) -> np.ndarray:
    """A picture of soft spots, another one for each k."""
    drawn = np.random.default_rng(k).integers(0, 256, (16, 16)).astype(np.uint8)
    return cv2.resize(drawn, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def code(k: int) -> str:
    return fingerprint.code(picture(k))


def source_of(root: Path, train: dict[str, int], test: dict[str, int]) -> table.Source:
    """Pictures by name, as a data folder holds them; test images are JPEG."""
    for part, some, ending in (("train", train, "png"), ("test", test, "jpg")):
        (root / part).mkdir(parents=True)
        for name, k in some.items():
            cv2.imwrite(str(root / part / f"{name}.{ending}"), picture(k))
    rows = [(i, str(root / "train" / f"{i}.png"), "-1", "", i) for i in train]
    tests = [(i, str(root / "test" / f"{i}.jpg")) for i in test]
    return table.Source(
        root,
        "by hand",
        pd.DataFrame(rows, columns=["image_id", "path", "rle", "mask_path", "label_at"]),
        pd.DataFrame(tests, columns=["image_id", "path"]),
    )


def prepared(tmp_path: Path, train: dict[str, int], test: dict[str, int]):
    source = source_of(tmp_path / "data", train, test)
    given = TrainParameters(cache_dir=str(tmp_path / "cache"), workers=1, masks_are="right")
    test = leaks.test_images(source, SIZE, given)
    return preparation.prepare_training(source, given, SIZE, tmp_path, test)


def test_training_images_that_are_test_images_by_id_or_pixels_are_left_out(tmp_path, capsys):
    train, test = {"a": 1, "b": 2, "c": 3, "d": 4}, {"x": 2, "y": 9, "d": 8}
    found = prepared(tmp_path, train, test)
    assert found.table["image_id"].tolist() == ["a", "c"]
    assert fingerprint.matches(fingerprint.codes(found), [code(1), code(3)]).tolist() == [
        [0, 0], [1, 1]
    ]  # fmt: skip
    lines = json.loads((tmp_path / filenames.LEFT_OUT).read_text())
    assert [line.split(": ")[0] for line in lines] == ["b", "d"]
    assert "x" in lines[0]
    assert "2 of 4 training images" in capsys.readouterr().out


def test_where_all_training_images_are_test_images_all_stay_with_a_warning(tmp_path, capsys):
    assert len(prepared(tmp_path, {"b": 2}, {"x": 2})) == 1
    assert "b: it is the test image x" in capsys.readouterr().out
    assert json.loads((tmp_path / filenames.LEFT_OUT).read_text()) == []


def test_without_copies_all_are_kept(tmp_path, capsys):
    assert len(prepared(tmp_path, {"a": 1, "b": 2}, {"x": 8})) == 2
    assert len(prepared(tmp_path / "none", {"a": 1, "b": 2}, {})) == 2
    assert "test images" not in capsys.readouterr().out


def test_folds_with_images_that_are_not_here_nor_left_out_by_name_are_refused(tmp_path):
    parameters = TrainParameters(n_folds=2)
    names = {"a": 1, "b": 2, "c": 3}
    preparation.settle_folds(prepared(tmp_path, names, {}), parameters, [tmp_path])
    fewer = prepared(tmp_path / "less", {"a": 1, "c": 3}, {})
    with pytest.raises(InputError, match="1 images that DATA_DIR lacks, b first"):
        preparation.settle_folds(fewer, parameters, [tmp_path])
    (tmp_path / filenames.LEFT_OUT).write_text('["b: it is cut short"]')
    assert len(preparation.settle_folds(fewer, parameters, [tmp_path])) == 3


def test_copies_in_different_folds_are_named(capsys):
    truth = pd.DataFrame({"image_id": list("abcd"), "fold": [0, 1, 0, 1]})
    leaks.note_copies_across_folds(truth, [code(1), code(2), code(1), code(3)])
    assert capsys.readouterr().out == ""  # a and c are of one fold
    leaks.note_copies_across_folds(truth, [code(1), code(2), code(3), code(1)])
    assert "a in fold 0, d in fold 1" in capsys.readouterr().out


def test_test_images_that_a_member_was_trained_on_are_told_by_id_or_pixels():
    members = [
        Lineage(images=("a", "b"), fingerprints=(code(1), code(2))),
        Lineage(images=("x", "a"), fingerprints=("", code(1))),  # of x nothing but its id is known
    ]
    found = leaks.seen_by(leaks.ImageSet("xyz", [code(7), code(2), code(8)]), members)
    assert [line.split(", by")[0] for line in found] == [
        "x is the training image x", "y is the training image b"
    ]  # fmt: skip
    assert leaks.seen_by(leaks.ImageSet("z", [code(8)]), members) == []


@pytest.mark.parametrize(
    ("chosen_on", "expected"), [((), ()), (("a",), ("a",)), (("elsewhere",), None), (None, None)]
)
def test_whether_foreign_images_selected_an_epoch_by_labels_of_these_is_not_known(
    chosen_on, expected
):
    truth = pd.DataFrame({"image_id": ["a", "b"], "group": ["", ""]})
    parent = Lineage(images=("c",), fingerprints=(code(3),), chosen_on=chosen_on)
    assert leaks.mapped(parent, truth, [code(1), code(2)], "parent").chosen_on == expected


def test_an_image_that_is_the_one_here_says_nothing_of_its_copies_and_another_picture_does():
    truth = pd.DataFrame({"image_id": ["a", "copy", "b"], "group": ["", "", ""]})
    codes = [code(1), code(1), code(2)]
    resized = fingerprint.code(cv2.resize(picture(1), (48, 48), interpolation=cv2.INTER_AREA))
    assert resized != code(1)  # as of a parent at another size
    parent = Lineage(images=("a",), fingerprints=(resized,), chosen_on=("a",))
    found = leaks.mapped(parent, truth, codes, "parent")
    assert (found.images, found.chosen_on) == (("a",), ("a",))
    both = Lineage(images=("a", "a"), fingerprints=(resized, code(2)), chosen_on=("a",))
    found = leaks.mapped(both, truth, codes, "parent")
    assert (set(found.images), found.chosen_on) == ({"a", "b"}, None)
