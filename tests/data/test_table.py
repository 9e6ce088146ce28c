"""Layouts recognised by themselves, and the faults of a data folder, each with its word."""

from __future__ import annotations

import gzip
import re
import zipfile
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


def ids(source: table.Source) -> tuple[list[str], list[str]]:
    return ids_of(source.train), ids_of(source.test)


def stages(root: Path, n_labelled: int = 10) -> None:
    """The first stage's images, six for training and four for testing, and their labels."""
    nested(root, "train", STAGE_1[:6])
    nested(root, "test", STAGE_1[6:])
    labels(root, STAGE_1[:n_labelled])


def refused(root, pattern, **how):
    with pytest.raises(InputError, match=pattern):
        table.discover(root, **how)


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
    assert ids(source) == (STAGE_1[:6], STAGE_1[:5:-1])  # the sample's order
    assert source.train["rle"].tolist() == ["-1", "5 3 2 1"] * 3
    assert Path(source.train["path"][1]).name == f"{STAGE_1[1]}.dcm"
    assert source.train["label_at"][1] == f"{root / name} row 3"
    assert set(source.train["mask_path"]) == {""}
    assert (source.labels, source.sample) == (root / name, root / "sample_submission.csv")
    assert (source.unlabelled, source.problems) == ([], [])


@pytest.mark.parametrize("with_samples", [False, True])
def test_second_stage_labels_both_folders_of_the_first(tmp_path, with_samples):
    stages(tmp_path, 6)
    for name in STAGE_2:
        touch(tmp_path / "stage_2_images" / f"{name}.dcm")
    labels(tmp_path, STAGE_1, "stage_2_train.csv", "plain")
    if with_samples:
        sample(tmp_path, STAGE_1[6:], "sample_submission.csv")
        sample(tmp_path, STAGE_2, "stage_2_sample_submission.csv")
    source = table.discover(tmp_path)
    assert ids(source) == (STAGE_1, STAGE_2)
    assert source.labels.name == "stage_2_train.csv"


def test_one_folder_labelled_and_named_by_the_sample(tmp_path):
    for name in STAGE_2:
        touch(tmp_path / "stage_2_images" / f"{name}.dcm")
    labels(tmp_path, STAGE_2, "stage_2_train.csv", "plain")
    sample(tmp_path, STAGE_2)
    source = table.discover(tmp_path)
    assert source.layout == "flat-dicom"
    assert ids(source) == (STAGE_2, STAGE_2)


@pytest.mark.parametrize("with_sample", [False, True])
def test_training_images_without_test_images(tmp_path, with_sample):
    nested(tmp_path, "train", STAGE_1)
    labels(tmp_path, STAGE_1)
    if with_sample:  # of images that are elsewhere
        sample(tmp_path, STAGE_2)
    source = table.discover(tmp_path)
    assert ids(source) == (STAGE_1, [])
    assert (source.sample is None) != with_sample
    assert ["none of which is here" in problem for problem in source.problems] == [
        True
    ] * with_sample


@pytest.mark.parametrize("with_labels", [False, True])
def test_only_test_images_and_a_sample(tmp_path, with_labels):
    for name in STAGE_2:
        touch(tmp_path / "stage_2_images" / f"{name}.dcm")
    sample(tmp_path, STAGE_2)
    if with_labels:  # of images that are elsewhere
        labels(tmp_path, STAGE_1, "stage_2_train.csv")
    source = table.discover(tmp_path)
    assert ids(source) == ([], STAGE_2)
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


FOLDERS = [
    ("png_images", "png_masks"), ("images", "labels"), ("train", "train_masks"),
    ("images", "annotations"), ("images", "segmentations"), ("imagesTr", "labelsTr"),
    ("chest", "chest_mask"), ("x", "x-masks"), ("images", "Masks"), ("img", "ground_truth"),
    ("train", "trainannot"), ("train_images", "train_labels"), ("images/train", "masks/train"),
]  # fmt: skip


@pytest.mark.parametrize(("of_images", "of_masks"), FOLDERS)
@pytest.mark.parametrize("around", ["", "x-ray-images-and-masks", "set_masks/inner"])
def test_folders_of_masks_by_their_names(tmp_path, of_images, of_masks, around):
    for name in STAGE_1:
        touch(tmp_path / around / of_images / f"{name}.png", b"image")
        touch(tmp_path / around / of_masks / f"{name}.png", b"mask")
    source = table.discover(tmp_path)
    assert ids_of(source.train) == STAGE_1
    assert {Path(p).parent for p in source.train["path"]} == {tmp_path / around / of_images}
    assert {Path(p).parent for p in source.train["mask_path"]} == {tmp_path / around / of_masks}
    assert (source.unlabelled, source.problems) == ([], [])


@pytest.mark.parametrize("ending", ["_mask", "-mask", " mask", "_Mask", "_seg", "-label"])
@pytest.mark.parametrize("apart", [False, True])
def test_masks_by_the_end_of_their_names(tmp_path, ending, apart):
    for name in STAGE_2:
        touch(tmp_path / "all" / f"{name}.png", b"image")
        touch(tmp_path / ("masks" if apart else "all") / f"{name}{ending}.png", b"mask")
    source = table.discover(tmp_path)
    assert ids_of(source.train) == STAGE_2
    assert [Path(p).stem for p in source.train["mask_path"]] == [f"{n}{ending}" for n in STAGE_2]


def test_masks_of_nnu_net(tmp_path):
    for part, name in (("Tr", "c1"), ("Tr", "c2"), ("Ts", "c3")):
        touch(tmp_path / f"images{part}" / f"{name}_0000.png")
        touch(tmp_path / f"labels{part}" / f"{name}.png")
    source = table.discover(tmp_path)
    assert ids_of(source.train) == ["c1_0000", "c2_0000"]
    assert ids_of(source.test) == ids_of(source.test_labels) == ["c3_0000"]


@pytest.mark.parametrize("of_masks", ["masks", "labels"])
def test_files_that_share_a_name_are_told_apart_by_their_folders(tmp_path, of_masks):
    for patient in ("p1", "p2"):
        for view in ("frontal", "lateral"):
            touch(tmp_path / "images" / patient / f"{view}.jpg", f"{patient}{view}".encode())
            touch(tmp_path / of_masks / patient / f"{view}_mask.png", b"mask")
    touch(tmp_path / "images" / "p3" / "other.jpg")
    touch(tmp_path / of_masks / "p3" / "other.png")
    train = table.discover(tmp_path).train
    assert ids_of(train) == ["other", "p1/frontal", "p1/lateral", "p2/frontal", "p2/lateral"]
    for row in train.itertuples():
        assert Path(row.path).parts[-2] == Path(row.mask_path).parts[-2]
        assert Path(row.path).stem == Path(row.mask_path).stem.removesuffix("_mask")


def test_a_table_names_files_that_share_a_name_by_their_paths(tmp_path):
    for patient in ("patient1", "patient2"):
        touch(tmp_path / "data" / patient / "study1" / "view1.jpg", patient.encode())
    rows = (
        "CheXpert/data/patient1/study1/view1.jpg,0 3\nCheXpert/data/patient2/study1/view1.jpg,-1\n"
    )
    touch(tmp_path / "train-rle.csv", b"ImageId,EncodedPixels\n" + rows.encode())
    train = table.discover(tmp_path).train
    assert ids_of(train) == ["data/patient1/study1/view1", "data/patient2/study1/view1"]
    assert train["rle"].tolist() == ["0 3", "-1"]
    assert [Path(path).parts[-3] for path in train["path"]] == ["patient1", "patient2"]


def test_names_are_compared_as_nfc_and_without_blanks_around(tmp_path):
    touch(tmp_path / "Jo\u0308rg .png")
    labels(tmp_path, ["J\u00f6rg"])
    assert ids_of(table.discover(tmp_path).train) == ["J\u00f6rg"]


@pytest.mark.parametrize("packing", [".zip", ".gz"])
def test_tables_as_they_were_downloaded(tmp_path, packing):
    stages(tmp_path, 6)
    sample(tmp_path, STAGE_1[6:])
    for path in list(tmp_path.glob("*.csv")):
        if packing == ".zip":
            with zipfile.ZipFile(f"{path}.zip", "w") as archive:
                archive.write(path, path.name)
        else:
            Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    source = table.discover(tmp_path)
    assert ids(source) == (STAGE_1[:6], STAGE_1[6:])
    labels(tmp_path, STAGE_1[:6])  # unpacked beside it
    assert table.discover(tmp_path).labels == tmp_path / "train-rle.csv"
    assert table.discover(tmp_path).problems == []


@pytest.mark.parametrize(
    "name",
    [
        "Train-RLE.csv",
        "train-rle.CSV",
        "train-rle (1).csv",
        "train_rle.csv",
        "Stage_2_Train (2).csv",
    ],
)
def test_a_label_table_is_known_by_its_name_in_other_spellings(tmp_path, name):
    for image in STAGE_2:
        touch(tmp_path / "images" / f"{image}.png", b"image")
        touch(tmp_path / "lung_masks" / f"{image}.png", b"lungs")
    labels(tmp_path, STAGE_2, name)
    source = table.discover(tmp_path)
    assert source.labels == tmp_path / name
    assert source.train["rle"].tolist() == ["-1", "5 3 2 1"] * 2


# --- test images that have labels -----------------------------------------------------------


def drawn(root: Path, part: str, names: list[str], with_masks: bool = True) -> None:
    for name in names:
        touch(root / part / "images" / f"{name}.png", f"{part}{name}".encode())
        if with_masks:
            touch(root / part / "masks" / f"{name}.png", b"mask")


@pytest.mark.parametrize("part", ["test", "val", "valid", "Validation", "testing"])
@pytest.mark.parametrize("around", ["", "set-test", "train_test_val"])
def test_a_labelled_split_is_not_trained_on(tmp_path, part, around):
    drawn(tmp_path / around, "train", STAGE_1[:6])
    drawn(tmp_path / around, part, STAGE_1[6:])
    source = table.discover(tmp_path)
    assert ids(source) == (STAGE_1[:6], STAGE_1[6:])
    assert ids_of(source.test_labels) == STAGE_1[6:]
    assert all("masks" in path for path in source.test_labels["mask_path"])
    (problem,) = source.problems
    assert "4 labelled images" in problem
    assert STAGE_1[6] in problem


def test_of_test_and_validation_images_the_first_are_for_scoring_and_neither_for_training(tmp_path):
    drawn(tmp_path, "train", STAGE_1[:6])
    drawn(tmp_path, "valid", STAGE_1[6:8])
    drawn(tmp_path, "test", STAGE_1[8:])
    source = table.discover(tmp_path)
    assert ids(source) == (STAGE_1[:6], STAGE_1[8:])
    assert "4 labelled images" in source.problems[0]


@pytest.mark.parametrize(
    ("train", "other"),
    [("train_png", "test_png"), ("Train Set", "Test Set"), ("trainset", "valset"), ("train", "dev"),
     ("imagesTr", "imagesVal"), ("train_data", "hold_out"), ("split_train", "split_val")],
)  # fmt: skip
def test_a_split_is_known_in_other_spellings(tmp_path, train, other):
    drawn(tmp_path, train, STAGE_1[:6])
    drawn(tmp_path, other, STAGE_1[6:])
    source = table.discover(tmp_path)
    assert (ids_of(source.train), ids_of(source.test_labels)) == (STAGE_1[:6], STAGE_1[6:])
    assert len(source.problems) == 1


def test_a_folder_beside_train_that_says_no_split_is_noted(tmp_path):
    drawn(tmp_path, "train", STAGE_1[:6])
    drawn(tmp_path, "hospital", STAGE_1[6:])
    source = table.discover(tmp_path)
    assert ids_of(source.train) == STAGE_1
    (problem,) = source.problems
    assert problem.startswith("4 labelled images")
    assert str(tmp_path / "hospital" / "images" / f"{STAGE_1[6]}.png") in problem


def test_a_split_that_the_files_names_say(tmp_path):
    names = [f"{n}_{part}_{n % 2}_" for part in ("test", "train") for n in range(20)]
    for name in names:
        touch(tmp_path / "png_images" / f"{name}.png", name.encode())
        touch(tmp_path / "png_masks" / f"{name}.png", b"mask")
    source = table.discover(tmp_path)
    tests, training = sorted(names[:20]), sorted(names[20:])
    assert (ids_of(source.train), ids_of(source.test_labels)) == (training, tests)
    assert sorted(ids_of(source.test)) == tests
    drawn(tmp_path, "more", ["a", "b"])  # of which the names say nothing
    source = table.discover(tmp_path)
    assert (len(source.train), len(source.test)) == (22, 20)
    assert sum(str(tmp_path / "more" / "images" / "a.png") in one for one in source.problems) == 1
    drawn(tmp_path, "more", ["c"])
    source = table.discover(tmp_path)
    assert (len(source.train), len(source.test)) == (43, 0)
    (problem,) = source.problems
    assert problem.startswith("23 labelled images")


def test_an_id_of_two_splits_is_two_images(tmp_path):
    for part in ("train", "test"):
        drawn(tmp_path, part, ["a"])
    source = table.discover(tmp_path)
    assert ids(source) == (["train/a"], ["test/a"])
    assert Path(source.train["mask_path"][0]).parts[-3] == "train"
    assert Path(source.test_labels["mask_path"][0]).parts[-3] == "test"


def test_the_same_file_in_two_splits_is_a_test_image(tmp_path):
    drawn(tmp_path, "train", ["a"])
    drawn(tmp_path, "test", ["b"], with_masks=False)
    touch(tmp_path / "train" / "images" / "b.png", b"testb")
    touch(tmp_path / "train" / "masks" / "b.png", b"mask")
    source = table.discover(tmp_path)
    assert ids(source) == (["a"], ["b"])
    assert ids_of(source.test_labels) == ["b"]


def test_a_table_that_labels_the_test_folder_too_does_not_bring_it_into_training(tmp_path):
    for n, name in enumerate(STAGE_1):
        touch(tmp_path / ("train" if n < 6 else "test") / f"{name}.png")
    labels(tmp_path, STAGE_1)
    source = table.discover(tmp_path)
    assert ids(source) == (STAGE_1[:6], STAGE_1[6:])
    assert source.test_labels["rle"].tolist() == ["-1", "5 3 2 1"] * 2


def test_labelled_images_that_the_sample_names_are_not_trained_on(tmp_path):
    stages(tmp_path)
    sample(tmp_path, STAGE_1[6:])
    assert ids(table.discover(tmp_path)) == (STAGE_1[:6], STAGE_1[6:])
    given = table.discover(tmp_path, sample=tmp_path / "sample_submission.csv")
    assert (ids_of(given.train), ids_of(given.test_labels)) == (STAGE_1, STAGE_1[6:])


@pytest.mark.parametrize(("test", "val"), [("test", "val"), ("Test", ""), ("holdout", "Valid Set")])
def test_a_column_of_the_label_table_states_the_split(tmp_path, test, val):
    words = ["train"] * 6 + [test] * 2 + [val] * 2
    rows = [f"{name}.png,-1,{word},," for name, word in zip(STAGE_1, words, strict=True)]
    rows += [f"{STAGE_1[6]},-1,train,,"]  # of two words the one that is safe
    touch(tmp_path / "train-rle.csv", "\n".join(["ImageId,EncodedPixels,part,,", *rows]).encode())
    for name in STAGE_1:
        touch(tmp_path / "train" / f"{name}.png", name.encode())
    source = table.discover(tmp_path)
    wanted = STAGE_1[:6] if val else STAGE_1[:6] + STAGE_1[8:]  # blank: as the folder says
    assert ids(source) == (wanted, STAGE_1[6:8])
    assert str(tmp_path / "train-rle.csv") in source.problems[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "filename,split\na.png,train\nb.png,test\nc.png,val"),
        ("test.csv", "id\nb\nc"),
        ("val.csv", "n,path\n0,images/b.png\n1,images/c.png"),
        ("ImageSets/Segmentation/val.txt", "b\nc"),
        ("dataset.json", '{"training": [{"image": "images/a.png"}], "test": ["images/c.png"], '
                         '"validation": [{"image": "images/b.png", "label": "masks/b.png"}]}'),
        ("instances_val2017.json", '{"images": [{"file_name": "b.png"}, {"file_name": "c.png"}]}'),
    ],
)  # fmt: skip
def test_a_split_that_another_file_states_is_noted(tmp_path, name, text):
    drawn(tmp_path, "", ["a", "b", "c", "d"])
    assert table.discover(tmp_path).problems == []
    touch(tmp_path / name, text.encode())
    source = table.discover(tmp_path)
    (problem,) = source.problems
    assert str(tmp_path / name) in problem
    assert "2 training images" in problem
    assert ids_of(source.train) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("splits_final.json", '[{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]'),
        ("test.csv", "id\nx"),
        ("val.txt", "x"),
        ("dataset.json", '{"training": ["a"], "test": ["x"]}'),
        ("dataset.json", "{"),
        ("test.json", "[" * 100_000),
        ("test.csv", 'a,"'),
    ],
)
def test_files_that_hold_no_training_image_out_are_not_noted(tmp_path, name, text):
    drawn(tmp_path, "", ["a", "b"])
    touch(tmp_path / name, text.encode())
    assert table.discover(tmp_path).problems == []


# --- tables by what they hold ---------------------------------------------------------------


@pytest.mark.parametrize("header", ["", "ImageId,EncodedPixels\n"])
@pytest.mark.parametrize("with_sample", [False, True])
@pytest.mark.parametrize("rle", ["0 {}", "-1"])
def test_the_competition_s_own_sample_of_its_labels(tmp_path, header, with_sample, rle):
    for n, name in enumerate(STAGE_1):
        touch(tmp_path / "stage_2_images" / f"{name}.dcm", name.encode())
        if n < 3:
            touch(tmp_path / "sample images" / f"{name}.dcm", name.encode())
    labels(tmp_path, STAGE_1[:7], "stage_2_train.csv")
    if with_sample:
        sample(tmp_path, STAGE_1[7:], "stage_2_sample_submission.csv")
    elif rle == "-1" and header:
        pytest.skip("it is a sample submission by all that it holds")
    rows = [f"{name},{rle.format(n + 1)}\n" for n, name in enumerate(STAGE_1[:3])]
    touch(tmp_path / "sample images" / "train-rle-sample.csv", (header + "".join(rows)).encode())
    source = table.discover(tmp_path)
    assert ids(source) == (STAGE_1[:7], STAGE_1[7:])


def test_a_table_called_sample_with_other_columns_is_not_used(tmp_path):
    nested(tmp_path, "train", STAGE_1)
    labels(tmp_path, STAGE_1)
    touch(tmp_path / "sample_ages.csv", b"patient,age\na,50\n")
    source = table.discover(tmp_path)
    assert (len(source.train), source.sample) == (10, None)
    assert "sample_ages.csv" in source.problems[0]


def test_a_sample_finds_images_by_paths_and_endings(tmp_path):
    nested(tmp_path, "test", STAGE_1)
    sample(tmp_path, [f"dicom-images-test\\{name}.dcm" for name in STAGE_1[::-1]])
    assert ids_of(table.discover(tmp_path).test) == STAGE_1[::-1]


def test_the_clone_s_own_pictures_are_no_data(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "NOT_DATA", {tmp_path / "docs", tmp_path / "demo"})
    for name in ("docs/a.png", "demo/data/b.png"):
        touch(tmp_path / name)
    refused(tmp_path, "no images")
    assert len(folder.survey(tmp_path / "demo").images) == 1  # where it is asked for


def test_what_is_no_data_lies_in_this_clone(project_root):
    assert {project_root / name for name in ("docs", "models", "demo")} <= folder.NOT_DATA


def test_of_formats_dicom_and_of_copies_the_first_is_used(tmp_path):
    for name in STAGE_1:
        for suffix in (".png", ".jpg", ".dcm"):
            touch(tmp_path / suffix[1:] / f"{name}{suffix}", suffix.encode())
        touch(tmp_path / "later" / f"{name}.dcm", b".dcm")
    for name in ("train-rle (1).csv", "train-rle.csv"):
        labels(tmp_path, STAGE_1, name)
    source = table.discover(tmp_path)
    assert {Path(path).parent.name for path in source.train["path"]} == {"dcm"}
    assert source.labels == tmp_path / "train-rle.csv"
    assert "10 images have files of two formats" in source.problems[0]
    assert "of 2 label tables" in source.problems[1]


@pytest.mark.parametrize("name", ["overlays", "lungs"])
def test_pictures_of_another_folder_and_format_do_not_take_an_image_s_place(tmp_path, name):
    for image in STAGE_2:
        touch(tmp_path / "images" / f"{image}.jpg", b"image")
        touch(tmp_path / name / f"{image}.png", b"drawn")
    refused(tmp_path, rf"/images and .*/{name} hold files of the same names")
    labels(tmp_path, STAGE_2)
    refused(tmp_path, rf"4 of 8 training images .* no label .*/{name}/")
    source = table.discover(tmp_path, for_inference=True)
    assert {Path(path).suffix for path in source.train["path"]} == {".jpg"}


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


def test_wrong_data_dir(tmp_path):
    refused(tmp_path / "gone", r"gone does not exist")
    refused(touch(tmp_path / "a.zip"), r"a\.zip is a file: unpack it")
    refused(tmp_path, r"(?s)no images under .*Unpack a\.zip first.*nested DICOM.*make demo")


@pytest.mark.parametrize(
    ("files", "counted"),
    [
        (["images/a.tif", "images/b.tif", "masks/a.tif"], "3 .tif"),
        (["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"], "2 .nii.gz"),
        (["a.jpg", "a.json", "b.jpg", "b.json"], "2 .json"),
        (["images/a.png", "masks/a.npy"], "1 .npy"),
        (["images/a.png", "images/b.png", "masks/a.png", "masks/b.BMP"], "1 .bmp"),
        (["a.png", "README"], "1 without ending"),
    ],
)
def test_files_of_other_kinds_are_counted_where_something_is_missing(tmp_path, files, counted):
    for name in files:
        touch(tmp_path / name, name.encode())
    refused(tmp_path, re.escape(f"Not read: {counted} "))


@pytest.mark.parametrize("short", ["{}", "0{}"])
def test_ids_that_lost_their_zeros_are_named(tmp_path, short):
    for n in range(8, 12):
        touch(tmp_path / f"{n:04d}.png")
    labels(tmp_path, [short.format(n) for n in range(8, 12)])
    refused(tmp_path, rf"{short.format(8)} may be 0008 ")
    labels(tmp_path, ["0010", "0011", *(short.format(n) for n in (8, 9))])
    refused(tmp_path, rf"image {short.format(8)} has a label and no file.* may be 0008 ")
    labels(tmp_path, ["0010", "0011", "7"])
    with pytest.raises(InputError, match="image 7 has a label and no file") as raised:
        table.discover(tmp_path)
    assert "may be" not in str(raised.value)


def test_a_sample_s_ids_that_lost_their_zeros_are_named(tmp_path):
    for n in range(8, 12):
        touch(tmp_path / ("test" if n > 9 else "images") / f"{n:04d}.png", b"%d" % n)
    labels(tmp_path, ["0008", "0009"])
    sample(tmp_path, ["0010", "11"])
    refused(tmp_path, "test image 11 has no file .*11 may be 0011 ")


def test_images_without_any_table(tmp_path):
    for name in STAGE_1:
        touch(tmp_path / f"{name}.png")
    refused(tmp_path, r"(?s)10 images .*neither labels nor a sample.*make demo")
    labels(tmp_path, STAGE_1, "my_labels.csv")
    refused(tmp_path, r"my_labels\.csv looks like labels: name it train-rle\.csv")


@pytest.mark.parametrize("with_masks", [False, True])
def test_labels_that_lie_too_deep_are_named(tmp_path, with_masks):
    drawn(tmp_path, "", ["a"], with_masks)
    touch(tmp_path / "1" / "2" / "3" / "other.csv")
    labels(tmp_path / "1" / "2" / "3", ["a"], "train-rle.csv")
    if with_masks:
        (problem,) = table.discover(tmp_path).problems
        assert str(tmp_path / "1" / "2" / "3" / "train-rle.csv") in problem
    else:
        refused(tmp_path, r"1/2/3/train-rle\.csv lies too deep")


def test_folder_too_large_to_be_data(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "MAX_FOLDERS_WITHOUT_IMAGE", 5)
    for n in range(8):
        (tmp_path / f"home{n}").mkdir()
    refused(tmp_path, "folders in a row without an image")


def test_labels_and_masks_without_an_image(tmp_path):
    nested(tmp_path / "a", "train", STAGE_1[:8])
    labels(tmp_path / "a", STAGE_1)
    pattern = rf"train-rle\.csv row 10: image {STAGE_1[8]} has a label and no file.*2 of 10"
    refused(tmp_path / "a", pattern)
    for name in ("images/a.png", "masks/a.png", "masks/b_mask.png"):
        touch(tmp_path / "b" / name)
    refused(tmp_path / "b", r"b_mask\.png has no image b")


def test_many_unlabelled_images(tmp_path):
    nested(tmp_path, "train", STAGE_1)
    labels(tmp_path, STAGE_1[:9])
    refused(tmp_path, rf"1 of 10 training images .*10%, at most 5%.*{STAGE_1[9]}")


def test_how_to_say_that_unlabelled_images_have_no_pneumothorax(tmp_path):
    for name in "abcd":
        touch(tmp_path / "images" / f"{name}.png", name.encode())
    touch(tmp_path / "masks" / "b.png")
    (tmp_path / "images" / "e.png").symlink_to(tmp_path / "gone")  # a problem
    refused(tmp_path, rf"3 of 4 .* 1 links lead .*{re.escape(str(tmp_path / 'masks' / 'a.png'))}")
    labels(tmp_path, ["b"])
    refused(tmp_path, r"3 of 4 .* 1 links lead .* a,-1 .*train-rle\.csv")


def test_folders_of_the_same_names_are_named_as_they_may_be_masks(tmp_path):
    for name in "xyz":
        for root in "ab":
            touch(tmp_path / root / f"{name}.png", root.encode())
    refused(tmp_path, r"6 images .*/a and .*/b hold files of the same names: .* masks")
    labels(tmp_path, ["x"])
    refused(tmp_path, r"x may be .*a/x\.png or .*b/x\.png")


def test_a_table_of_other_ids_shows_one_of_each_side(tmp_path):
    for name in STAGE_1:
        touch(tmp_path / f"{name}.png")
    labels(tmp_path, STAGE_2)
    with pytest.raises(InputError, match=rf"{STAGE_2[0]}.*{STAGE_1[0]}") as raised:
        table.discover(tmp_path)
    assert "name it" not in str(raised.value)


@pytest.mark.parametrize(
    "pair", [("a.png", "a.PNG"), ("a.png", "a .png"), ("\u00f6.png", "o\u0308.png")]
)
@pytest.mark.parametrize("for_inference", [False, True])
def test_files_of_one_folder_that_even_their_paths_do_not_tell_apart(tmp_path, pair, for_inference):
    for name in ("b.png", *pair):
        touch(tmp_path / "images" / name, name.encode())
    with pytest.raises(InputError) as raised:
        table.discover(tmp_path, for_inference=for_inference)
    assert all(str(tmp_path / "images" / name) in str(raised.value) for name in pair)
    touch(tmp_path / "images" / pair[1], pair[0].encode())  # a copy
    assert len(table.discover(tmp_path, for_inference=True).test) == 2


def test_two_masks_of_an_image_are_refused(tmp_path):
    touch(tmp_path / "images" / "a.png")
    for name in ("a", "a_mask"):
        touch(tmp_path / "masks" / f"{name}.png", b"x" * len(name))
    refused(tmp_path, r"image a has two masks, .*a\.png and .*a_mask\.png: unite")
    touch(tmp_path / "masks" / "a_mask.png", b"x")  # a copy
    touch(tmp_path / "masks" / "a.jpg", b"another format")
    (mask,) = table.discover(tmp_path).train["mask_path"]
    assert mask == str(tmp_path / "masks" / "a.png")
    touch(tmp_path / "lung_masks" / "a.png", b"lungs")  # not to be united
    refused(tmp_path, r"lung_masks/a\.png and .*masks/a\.png: keep the folder")


def with_masks(root: Path, positive: str) -> None:
    for name in "abcd":
        touch(root / "images" / f"{name}.png", name.encode())
        mask = np.zeros((8, 8), np.uint8)
        mask[2:4, 2:4] = 255 * (name in positive)
        touch(root / "lung_masks" / f"{name}.png", cv2.imencode(".png", mask)[1].tobytes())


@pytest.mark.parametrize(
    ("names", "rle", "words"),
    [
        (["a", "b", "c", "x"], "5 3 2 1", ["{}", "3 masks", "train-rle.csv"]),
        ("abcd", "1 x", ["ptx.csv row 3"]),  # which can't be read
    ],
)
def test_a_table_that_looks_like_labels_beside_masks_is_noted(tmp_path, names, rle, words):
    with_masks(tmp_path, "bd")
    labels(tmp_path, names, "ptx.csv", rle=rle)
    (problem,) = table.discover(tmp_path).problems
    assert all(word.format(tmp_path / "ptx.csv") in problem for word in words)


@pytest.mark.parametrize(("positive", "row"), [("abcd", "2"), ("d", "3")])
def test_a_table_that_says_otherwise_than_the_masks_is_refused(tmp_path, positive, row):
    with_masks(tmp_path, positive)
    labels(tmp_path, "abcd", "ptx.csv")
    refused(tmp_path, rf"ptx\.csv row {row} and the mask .*lung_masks/.*train-rle\.csv")
    source = table.discover(tmp_path, for_inference=True)
    assert (len(source.train), source.problems) == (4, [])


@pytest.mark.parametrize("around", ["", "Png"])
def test_masks_of_instances_give_way_to_those_of_classes(tmp_path, around):
    touch(tmp_path / "JPEGImages" / "a.png")
    classes = touch(tmp_path / f"SegmentationClass{around}" / "a.png", b"class")
    instances = touch(tmp_path / f"SegmentationObject{around}" / "a.png", b"instances")
    source = table.discover(tmp_path)
    assert source.train["mask_path"].tolist() == [str(classes)]
    assert str(instances) in source.problems[0]
    classes.unlink()
    source = table.discover(tmp_path)
    assert source.train["mask_path"].tolist() == [str(instances)]
    assert source.problems == []


def test_links_that_lead_nowhere_are_named(tmp_path):
    touch(tmp_path / "images" / "a.png")
    for name in ("b.png", "study"):
        (tmp_path / "images" / name).symlink_to(tmp_path / "gone")
    labels(tmp_path, ["a"])
    (problem,) = table.discover(tmp_path).problems
    assert "2 links" in problem
    assert str(tmp_path / "images" / "b.png") in problem
    labels(tmp_path, ["a", "b"])
    refused(tmp_path, r"image b has a label and no file .*images/b\.png is a link")


def test_a_copy_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def compare(one, other, shallow):
        raise PermissionError(13, "Permission denied", str(other))

    monkeypatch.setattr(folder.filecmp, "cmp", compare)
    for name in ("a", "b"):
        touch(tmp_path / name / "x.png")
    refused(tmp_path, r"b/x\.png can't be read: Permission denied")


def test_sample_of_which_some_images_are_missing(tmp_path):
    nested(tmp_path, "test", STAGE_1[:9])
    sample(tmp_path, STAGE_1)
    refused(tmp_path, rf"sample_submission\.csv row 11: test image {STAGE_1[9]} .*1 of 10")


def test_sample_of_another_competition(tmp_path):
    stages(tmp_path, 6)
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
    assert (source.unlabelled, len(source.problems)) == ([], bool(n_test))
    assert all("300" in problem for problem in source.problems)  # as both are the same images


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
