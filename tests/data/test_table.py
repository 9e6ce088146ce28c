"""Layouts recognised by themselves, and the faults of a data folder, each with its word."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from kernel_lib.data import folder, images, table
from kernel_lib.errors import InputError

STAGE_1 = [f"1.2.276.0.7230010.3.1.4.8323329.{n}.1517875162.2803{n}" for n in range(10, 20)]
STAGE_2 = [f"ID_{n:09x}" for n in range(1, 5)]
HEADERS = {"spaced": "ImageId, EncodedPixels", "plain": "ImageId,EncodedPixels"}


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def nested(root: Path, split: str, ids: list[str]) -> None:
    for name in ids:
        touch(root / f"dicom-images-{split}" / f"study{name}" / f"series{name}" / f"{name}.dcm")


def labels(
    root: Path, ids: list[str], name="train-rle.csv", header="spaced", rle="5 3 2 1"
) -> None:
    rows = [f"{i},{rle if n % 2 else ' -1'}" for n, i in enumerate(ids)]
    touch(root / name, "\n".join([HEADERS[header], *rows, ""]).encode())


def sample(root: Path, ids: list[str], name="sample_submission.csv", header="plain") -> None:
    touch(root / name, "\n".join([HEADERS[header], *[f"{i},-1" for i in ids], ""]).encode())


def ids_of(frame) -> list[str]:
    return frame["image_id"].tolist()


# --- layouts --------------------------------------------------------------------------------


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("name", ["train-rle.csv", "stage_2_train.csv"])
@pytest.mark.parametrize("wrapped", ["", "siim", "siim-test/inner"])
def test_official_first_stage(tmp_path, header, name, wrapped):
    root = tmp_path / wrapped
    nested(root, "train", STAGE_1[:6])
    nested(root, "test", STAGE_1[6:])
    labels(root, STAGE_1[:6], name, header)
    sample(root, STAGE_1[:5:-1])
    source = table.discover(tmp_path)
    assert source.layout == "nested-dicom"
    assert ids_of(source.train) == STAGE_1[:6]
    assert ids_of(source.test) == STAGE_1[:5:-1]  # the sample's order
    assert source.train["rle"].tolist() == ["-1", "5 3 2 1"] * 3
    assert Path(source.train["path"][1]).name == f"{STAGE_1[1]}.dcm"
    assert source.train["label_at"][1] == f"{root / name} row 3"
    assert set(source.train["mask_path"]) == {""}
    assert (source.labels, source.sample) == (root / name, root / "sample_submission.csv")
    assert (source.unlabelled, source.problems) == ([], [])


def test_second_stage_labels_both_folders_of_the_first(tmp_path):
    nested(tmp_path, "train", STAGE_1[:6])
    nested(tmp_path, "test", STAGE_1[6:])
    for name in STAGE_2:
        touch(tmp_path / "stage_2_images" / f"{name}.dcm")
    labels(tmp_path, STAGE_1, "stage_2_train.csv", "plain")
    labels(tmp_path, STAGE_1[:6], "train-rle.csv")
    sample(tmp_path, STAGE_1[6:], "sample_submission.csv")
    sample(tmp_path, STAGE_2, "stage_2_sample_submission.csv")
    source = table.discover(tmp_path)
    assert ids_of(source.train) == STAGE_1
    assert ids_of(source.test) == STAGE_2
    assert source.labels.name == "stage_2_train.csv"


def test_one_folder_labelled_and_named_by_the_sample(tmp_path):
    for name in STAGE_2:
        touch(tmp_path / "stage_2_images" / f"{name}.dcm")
    labels(tmp_path, STAGE_2, "stage_2_train.csv", "plain")
    sample(tmp_path, STAGE_2)
    source = table.discover(tmp_path)
    assert source.layout == "flat-dicom"
    assert ids_of(source.train) == ids_of(source.test) == STAGE_2


def test_only_training_images(tmp_path):
    nested(tmp_path, "train", STAGE_1)
    labels(tmp_path, STAGE_1)
    source = table.discover(tmp_path)
    assert (len(source.train), len(source.test), source.sample) == (10, 0, None)


def test_training_images_beside_a_sample_without_its_images(tmp_path):
    nested(tmp_path, "train", STAGE_1)
    labels(tmp_path, STAGE_1)
    sample(tmp_path, STAGE_2)
    source = table.discover(tmp_path)
    assert (len(source.train), len(source.test)) == (10, 0)
    assert "none of which is here" in source.problems[0]


@pytest.mark.parametrize("with_labels", [False, True])
def test_only_test_images_and_a_sample(tmp_path, with_labels):
    for name in STAGE_2:
        touch(tmp_path / "stage_2_images" / f"{name}.dcm")
    sample(tmp_path, STAGE_2)
    if with_labels:  # of images that are elsewhere
        labels(tmp_path, STAGE_1, "stage_2_train.csv")
    source = table.discover(tmp_path)
    assert (len(source.train), ids_of(source.test)) == (0, STAGE_2)
    assert len(source.problems) == with_labels


@pytest.mark.parametrize("name", ["test", "dicom-images-test", "stage_2_images", "test_images"])
def test_test_folder_without_a_sample(tmp_path, name):
    for image in STAGE_2:
        touch(tmp_path / name / f"{image}.dcm")
    assert ids_of(table.discover(tmp_path).test) == STAGE_2


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".PNG"])
def test_pictures_with_rle(tmp_path, suffix):
    for name in STAGE_1:
        touch(tmp_path / "images" / f"{name}{suffix}")
    labels(tmp_path, STAGE_1)
    source = table.discover(tmp_path)
    assert source.layout == "images+rle"
    assert ids_of(source.train) == STAGE_1


@pytest.mark.parametrize("ending", ["", "_mask"])
@pytest.mark.parametrize("inside", ["", "train"])
def test_pictures_with_masks(tmp_path, ending, inside):
    for name in STAGE_1:
        touch(tmp_path / inside / "images" / f"{name}.jpg")
        touch(tmp_path / inside / "masks" / f"{name}{ending}.png")
    touch(tmp_path / "test" / "images" / "other.jpg")
    source = table.discover(tmp_path)
    assert source.layout == "images+masks"
    assert ids_of(source.train) == STAGE_1
    assert ids_of(source.test) == ["other"]
    assert set(source.train["rle"]) == {""}
    assert [Path(path).name for path in source.train["mask_path"]] == [
        f"{name}{ending}.png" for name in STAGE_1
    ]


def test_dicom_before_png_before_jpeg(tmp_path):
    for name in STAGE_1:
        for suffix in (".png", ".jpg", ".dcm"):
            touch(tmp_path / suffix[1:] / f"{name}{suffix}", suffix.encode())
    labels(tmp_path, STAGE_1)
    source = table.discover(tmp_path)
    assert {Path(path).suffix for path in source.train["path"]} == {".dcm"}
    assert "10 images have files of two formats" in source.problems[0]


def test_same_file_twice_is_one_image(tmp_path):
    for name in STAGE_1:
        touch(tmp_path / "a" / f"{name}.png")
        touch(tmp_path / "b" / f"{name}.png")
    labels(tmp_path, STAGE_1)
    assert {Path(p).parent.name for p in table.discover(tmp_path).train["path"]} == {"a"}


def test_few_unlabelled_images_are_listed(tmp_path):
    many = [f"img{n:03d}" for n in range(100)]
    for name in many:
        touch(tmp_path / "images" / f"{name}.png")
    labels(tmp_path, many[5:])
    source = table.discover(tmp_path)
    assert source.unlabelled == many[:5]
    assert len(source.train) == 95
    assert "5 training images have no label" in source.problems[0]


def test_hidden_folders_are_not_looked_into(tmp_path):
    nested(tmp_path, "train", STAGE_1)
    labels(tmp_path, STAGE_1)
    touch(tmp_path / "__MACOSX" / "._a.png")
    touch(tmp_path / ".ipynb_checkpoints" / "b.png")
    assert table.discover(tmp_path).unlabelled == []


# --- faults ---------------------------------------------------------------------------------


def refused(root, pattern):
    with pytest.raises(InputError, match=pattern):
        table.discover(root)


def test_wrong_data_dir(tmp_path):
    refused(tmp_path / "gone", r"gone does not exist")
    refused(touch(tmp_path / "a.zip"), r"a\.zip is a file: unpack it")
    refused(tmp_path, r"(?s)no images under .*Unpack a\.zip first.*nested DICOM.*make demo")


def test_images_without_any_table(tmp_path):
    for name in STAGE_1:
        touch(tmp_path / f"{name}.png")
    refused(tmp_path, r"(?s)10 images .*neither labels nor a sample.*make demo")
    labels(tmp_path, STAGE_1, "my_labels.csv")
    refused(tmp_path, r"my_labels\.csv looks like labels: name it train-rle\.csv")


def test_folder_too_large_to_be_data(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "MAX_FOLDERS_WITHOUT_IMAGE", 5)
    for n in range(8):
        (tmp_path / f"home{n}").mkdir()
    refused(tmp_path, "folders in a row without an image")


def test_label_without_an_image(tmp_path):
    nested(tmp_path, "train", STAGE_1[:8])
    labels(tmp_path, STAGE_1)
    refused(
        tmp_path, rf"train-rle\.csv row 10: image {STAGE_1[8]} has a label and no file.*2 of 10"
    )


def test_mask_without_an_image(tmp_path):
    touch(tmp_path / "images" / "a.png")
    touch(tmp_path / "masks" / "a.png")
    touch(tmp_path / "masks" / "b_mask.png")
    refused(tmp_path, r"b_mask\.png has no image b")


def test_many_unlabelled_images(tmp_path):
    nested(tmp_path, "train", STAGE_1)
    labels(tmp_path, STAGE_1[:9])
    refused(tmp_path, rf"1 of 10 training images .*10%, at most 5%.*{STAGE_1[9]}")


def test_one_id_two_contents(tmp_path):
    touch(tmp_path / "a" / "x.png", b"one")
    touch(tmp_path / "b" / "x.png", b"two")
    refused(tmp_path, r"image x is there twice, with differing content: .*a/x\.png and .*b/x\.png")


def test_sample_of_which_some_images_are_missing(tmp_path):
    nested(tmp_path, "test", STAGE_1[:9])
    sample(tmp_path, STAGE_1)
    refused(tmp_path, rf"sample_submission\.csv row 11: test image {STAGE_1[9]} .*1 of 10")


def test_sample_of_another_competition(tmp_path):
    nested(tmp_path, "train", STAGE_1[:5])
    nested(tmp_path, "test", STAGE_1[5:])
    labels(tmp_path, STAGE_1[:5])
    sample(tmp_path, STAGE_2)
    refused(tmp_path, "row 2: test image .* another competition")
    touch(tmp_path / "sample_submission.csv", b"id,label\na,1\n")
    refused(tmp_path, r"\['id', 'label'\], not ImageId and EncodedPixels; .*another competition")


# --- real folders ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layout", "n_train", "n_positive", "n_test"),
    [
        ("labelled-dicom", "nested-dicom", 2, 1, 0),
        ("labelled-17", "images+rle", 17, 10, 0),
        ("stage2-silver", "flat-dicom", 300, 100, 300),
    ],
)
def test_real_folders(shared_data, name, layout, n_train, n_positive, n_test):
    source = table.discover(shared_data / name)
    assert source.layout == layout
    assert (len(source.train), len(source.test)) == (n_train, n_test)
    assert (source.train["rle"] != "-1").sum() == n_positive
    assert (source.unlabelled, source.problems) == ([], [])


def test_masks_drawn_from_labels_are_read_as_the_same(tmp_path):
    """A mask image made by cv2 is found and paired; its pixels are the cache's concern."""
    path = tmp_path / "masks" / "a_mask.png"
    path.parent.mkdir()
    cv2.imwrite(str(path), np.eye(8, dtype=np.uint8) * 255)
    touch(tmp_path / "images" / "a.png")
    assert table.discover(tmp_path).train["mask_path"].tolist() == [str(path)]


# --- for inference ----------------------------------------------------------------------------


def dicom(path: Path, **header) -> Path:
    """A DICOM's header, which is all that is read of it here."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset = pydicom.Dataset()
    dataset.file_meta, dataset.preamble = meta, b"\0" * 128
    dataset.PatientID = path.name
    for name, value in header.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path


def test_a_folder_of_images_alone_is_a_test_set_for_inference_only(tmp_path):
    dicom(tmp_path / "a" / "1.2.3", Rows=4, Columns=4)
    dicom(tmp_path / "a" / "DICOMDIR")
    touch(tmp_path / "b.png")
    touch(tmp_path / "notes.txt", b"no image")
    source = table.discover(tmp_path, for_inference=True)
    assert (ids_of(source.test), len(source.train), source.sample) == (["1.2.3", "b"], 0, None)
    refused(tmp_path, "neither labels nor a sample")
    sample(tmp_path, ["b"], "elsewhere.csv")
    source = table.discover(tmp_path, for_inference=True, sample=tmp_path / "elsewhere.csv")
    assert ids_of(source.test) == ["b"]


def test_a_sample_given_wins_over_the_folder_s_own(tmp_path):
    nested(tmp_path, "train", STAGE_1[:8])
    nested(tmp_path, "test", STAGE_1[8:])
    labels(tmp_path, STAGE_1[:2])
    sample(tmp_path, STAGE_1[8:])
    assert ids_of(table.discover(tmp_path, for_inference=True).test) == STAGE_1[8:]
    sample(tmp_path / "other", STAGE_1[7:4:-1])
    given = tmp_path / "other" / "sample_submission.csv"
    source = table.discover(tmp_path, for_inference=True, sample=given)
    assert (ids_of(source.test), source.sample) == (STAGE_1[7:4:-1], given)
    sample(tmp_path / "other", STAGE_2)
    with pytest.raises(InputError, match=r"test image .* has no file .*-p SAMPLE"):
        table.discover(tmp_path, for_inference=True, sample=given)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ({"PixelSpacing": [0.5, 0.25], "ImagerPixelSpacing": [1, 1]}, (0.5, 0.25)),
        ({"ImagerPixelSpacing": [0.2, 0.2]}, (0.2, 0.2)),
        ({"PixelSpacing": [0, 0.2]}, None),
        ({"PixelSpacing": ""}, None),
        ({}, None),
    ],
)
def test_pixel_spacing_as_stated(tmp_path, spacing, expected):
    path = dicom(tmp_path / "x.dcm", Rows=4, Columns=4, **spacing)
    assert images.spacing_of(path) == expected


def test_an_image_is_told_by_its_content(tmp_path):
    bare = tmp_path / "bare"
    dataset = pydicom.dcmread(dicom(tmp_path / "x", Rows=4, Columns=4))
    dataset.StudyDate = "20200101"
    # As of old archives, without a preamble.
    dataset.preamble, dataset.file_meta = None, pydicom.dataset.FileMetaDataset()
    pydicom.dcmwrite(bare, dataset, implicit_vr=True, little_endian=True)
    done, png = cv2.imencode(".png", np.zeros((4, 4), np.uint8))
    assert done
    assert images.is_image(touch(tmp_path / "picture", png.tobytes()))
    assert images.is_image(tmp_path / "x")
    assert images.is_image(bare)
    for name, content in (("text", b"ImageId,EncodedPixels"), ("empty", b""), ("zip", b"PK\3\4")):
        assert not images.is_image(touch(tmp_path / name, content))
    assert not images.is_image(dicom(tmp_path / "report"))
    assert images.spacing_of(tmp_path / "picture") is None
