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


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ([*TEST.split(), "Test Set", "Test Data"], ["test"]),
        ([*VALIDATION.split(), "Validation Set"], ["validation"]),
        (NEITHER.split(), []),
        (["train-test_val"], ["train", "test", "validation"]),
    ],
    ids=["test", "validation", "neither", "several"],
)
def test_splits_in_names(names, splits):
    assert {name: folder.splits_in(name) for name in names} == dict.fromkeys(names, splits)
