"""What names of folders and files say of their images."""

from __future__ import annotations

import pytest

from kernel_lib.data import folder

TEST = (
    "test TEST testing tests test1 test_set testset test-set TestSet test_data TestData test_png "
    "test-png test_jpg test_dicom test_imgs testImages testimages Test_Images images_test imagesTs "
    "test_512 test2017 test_split test_external public_test stage_1_test_images stage_2_images "
    "dicom-images-test holdout hold_out unseen xtest X_test Test_Input 3_test_1_"
)
VALIDATION = (
    "val VAL valid validation val_set valset val_data val_png val-512 valid_imgs val2017 val_split "
    "split_val images_val imagesVal images_validation Validation_set eval evaluation dev"
)
NEITHER = (
    "latest contest images masks value values interval protest attest greatest pneumothorax stest "
    "retrieval valve approval external evaluate invalid device patient1 study1 internal detest"
)


@pytest.mark.parametrize("name", [*TEST.split(), "Test Set", "Test Data"])
def test_names_of_test_images(name):
    assert folder.splits_in(name) == ["test"]


@pytest.mark.parametrize("name", [*VALIDATION.split(), "Validation Set"])
def test_names_of_validation_images(name):
    assert folder.splits_in(name) == ["validation"]


@pytest.mark.parametrize("name", NEITHER.split())
def test_names_that_say_no_split(name):
    assert folder.splits_in(name) == []


def test_a_name_of_several_splits():
    assert folder.splits_in("train-test_val") == ["train", "test", "validation"]
