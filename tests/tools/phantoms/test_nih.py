"""The NIH-like folder: the competition's images under NIH names, and images that it lacks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from kernel_lib.data import fingerprint, images, labels, nih, table
from kernel_lib.errors import InputError
from tools.phantoms.competition import write_competition
from tools.phantoms.nih import write_nih

SIZE = 64


@pytest.fixture(scope="module")
def competition(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("competition")
    write_competition(folder, 12, 3, size=SIZE, seed=4, positives=0.4, workers=1)
    return folder


def test_training_images_are_there_under_nih_names_with_others_of_their_patients(
    competition, tmp_path
):
    planted = write_nih(tmp_path, competition, 3, n_test=2, n_more=2)
    frame = nih.read(tmp_path).set_index("image_id")
    groups = labels.read_groups(tmp_path / "nih_id.csv")
    train = table.discover(competition).train.set_index("image_id")
    assert groups.keys() == set(train.index)
    names = dict(
        line.removesuffix(".png").split(",")
        for line in (tmp_path / "nih_id.csv").read_text().splitlines()[1:]
    )
    for image_id, name in names.items():
        np.testing.assert_array_equal(
            images.read(frame["path"][name]), images.read(train["path"][image_id])
        )
        assert frame["positive"][name] == (train["rle"][image_id] != "-1")
        assert frame["patient"][name] == groups[image_id]
    # One NIH patient for each of the competition's, as the DICOMs name them.
    own = {i: images.patient_of(path) for i, path in train["path"].items()}
    assert len({(own[i], groups[i]) for i in own}) == len(set(own.values()))
    assert len(set(groups.values())) == len(set(own.values()))
    test = table.discover(competition).test.set_index("image_id")["path"]
    assert len(planted) == 2
    for name, image_id in planted.items():
        np.testing.assert_array_equal(images.read(frame["path"][name]), images.read(test[image_id]))
        assert frame["patient"][name] not in groups.values()
    test_patients = {images.patient_of(test[image_id]) for image_id in planted.values()}
    assert len(frame) == 12 + 2 + 2 * (len(set(own.values())) + len(test_patients)) + 3


def test_chosen_patients_and_another_size(competition, tmp_path):
    planted = write_nih(tmp_path, competition, 0, n_patients=2, n_test=1, n_more=0, size=96)
    frame = nih.read(tmp_path).set_index("image_id")
    groups = labels.read_groups(tmp_path / "nih_id.csv")
    assert len(groups) == 12
    assert len(set(frame["patient"]) & set(groups.values())) == 2
    (name,) = planted
    copy = cv2.imread(frame["path"][name], cv2.IMREAD_UNCHANGED)
    assert copy.shape == (96, 96)
    test = images.read(table.discover(competition).test["path"].iat[0])
    assert len(fingerprint.matches([fingerprint.code(copy)], [fingerprint.code(test)]))


def test_a_folder_that_is_full_or_no_competition_is_refused(competition, tmp_path):
    write_nih(tmp_path / "nih", competition, 0, n_patients=1, n_test=0, n_more=0)
    with pytest.raises(InputError, match=r"already holds a Data_Entry_2017.csv"):
        write_nih(tmp_path / "nih", competition, 0)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "train-rle.csv").write_text("ImageId, EncodedPixels\na, -1\n")
    cv2.imwrite(str(bare / "a.png"), np.zeros((8, 8), np.uint8))
    with pytest.raises(InputError, match="a is no phantom's id"):
        write_nih(tmp_path / "other", bare, 0)
