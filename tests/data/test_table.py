"""Layouts are recognised by themselves; the faults of a data folder are named."""

from __future__ import annotations

import gzip
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from kernel_lib.data import folder, images
from kernel_lib.data.table import Source, discover
from kernel_lib.errors import InputError

STAGE_1 = [f"1.2.276.0.7230010.3.1.4.8323329.{n}.1517875162.2803{n}" for n in range(10, 20)]
STAGE_2 = [f"ID_{n:09x}" for n in range(1, 5)]
HEADERS = {"spaced": "ImageId, EncodedPixels", "plain": "ImageId,EncodedPixels"}
SAMPLE = "sample_submission.csv"


def touch(path: Path, content: bytes | str = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def files(folder: Path, names: Iterable[str], ending: str = ".png") -> None:
    """Files of these names, each of another content."""
    for name in names:
        touch(folder / f"{name}{ending}", f"{folder}/{name}{ending}")


def with_masks(root: Path, part: str, names: Iterable[str]) -> None:
    files(root / part / "images", names)
    files(root / part / "masks", names)


def nested(root: Path, split: str, ids: list[str]) -> None:
    for name in ids:
        touch(root / f"dicom-images-{split}" / f"study{name}" / f"series{name}" / f"{name}.dcm")


def labels(root: Path, ids: Iterable[str], name="train-rle.csv", header="spaced", rle="5 3 2 1"):
    rows = [f"{i},{rle if n % 2 else ' -1'}" for n, i in enumerate(ids)]
    touch(root / name, "\n".join([HEADERS[header], *rows, ""]))


def sample(root: Path, ids: list[str], name=SAMPLE, header="plain") -> None:
    touch(root / name, "\n".join([HEADERS[header], *[f"{i},-1" for i in ids], ""]))


def ids_of(frame) -> list[str]:
    return frame["image_id"].tolist()


def ids(source: Source) -> tuple[list[str], list[str]]:
    return ids_of(source.train), ids_of(source.test)


def stages(root: Path, n_labelled: int = 10) -> None:
    """The first stage's images, six for training and four for testing, and their labels."""
    nested(root, "train", STAGE_1[:6])
    nested(root, "test", STAGE_1[6:])
    labels(root, STAGE_1[:n_labelled])


def refused(root, pattern, **how) -> str:
    with pytest.raises(InputError, match=pattern or None) as error:
        discover(root, **how)
    return str(error.value)


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
    source = discover(tmp_path)
    assert source.layout == "nested-dicom"
    assert ids(source) == (STAGE_1[:6], STAGE_1[:5:-1])  # the sample's order
    assert source.train["rle"].tolist() == ["-1", "5 3 2 1"] * 3
    assert Path(source.train["path"][1]).name == f"{STAGE_1[1]}.dcm"
    assert source.train["label_at"][1] == f"{root / name} row 3"
    assert set(source.train["mask_path"]) == {""}
    assert (source.labels, source.sample) == (root / name, root / SAMPLE)
    assert (source.unlabelled, source.problems) == ([], [])


FIRST = {"dicom-images-train": STAGE_1[:6], "dicom-images-test": STAGE_1[6:]}
SECOND = {"stage_2_images": STAGE_2}


@pytest.mark.parametrize(
    ("folders", "labelled", "samples", "train", "test", "n_problems"),
    [
        (FIRST | SECOND, STAGE_1, {}, STAGE_1, STAGE_2, 0),
        (FIRST | SECOND, STAGE_1, {SAMPLE: STAGE_1[6:], f"stage_2_{SAMPLE}": STAGE_2},
         STAGE_1, STAGE_2, 0),
        (SECOND, STAGE_2, {SAMPLE: STAGE_2}, STAGE_2, STAGE_2, 1),
        ({"dicom-images-train": STAGE_1}, STAGE_1, {}, STAGE_1, [], 0),
        ({"dicom-images-train": STAGE_1}, STAGE_1, {SAMPLE: STAGE_2}, STAGE_1, [], 1),
        (SECOND, [], {SAMPLE: STAGE_2}, [], STAGE_2, 0),
        (SECOND, STAGE_1, {SAMPLE: STAGE_2}, [], STAGE_2, 1),  # labels of images elsewhere
        *(({name: STAGE_2}, [], {}, [], STAGE_2, 0)
          for name in ("test", "dicom-images-test", "stage_2_images", "test_images")),
        ({"train": STAGE_1[:6], "test": STAGE_1[6:]}, STAGE_1, {}, STAGE_1[:6], STAGE_1[6:], 1),
        (FIRST, STAGE_1, {SAMPLE: STAGE_1[6:]}, STAGE_1[:6], STAGE_1[6:], 1),
    ],
)  # fmt: skip
def test_images_for_training_and_for_testing(
    tmp_path, folders, labelled, samples, train, test, n_problems
):
    for name, inside in folders.items():
        files(tmp_path / name, inside, ".dcm")
    if labelled:
        labels(tmp_path, labelled, "stage_2_train.csv", "plain")
    for name, listed in samples.items():
        sample(tmp_path, listed, name)
    source = discover(tmp_path)
    assert ids(source) == (train, test)
    assert ids_of(source.test_labels) == [name for name in test if name in labelled]
    assert (source.layout, len(source.problems)) == ("flat-dicom", n_problems)
    assert (source.sample is None) == (not samples)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".PNG"])
def test_pictures_with_rle(tmp_path, suffix):
    files(tmp_path / "images", STAGE_1, suffix)
    labels(tmp_path, STAGE_1)
    source = discover(tmp_path)
    assert (source.layout, ids_of(source.train)) == ("images+rle", STAGE_1)


FOLDERS = [
    ("png_images", "png_masks"), ("images", "labels"), ("train", "train_masks"),
    ("images", "annotations"), ("images", "segmentations"), ("imagesTr", "labelsTr"),
    ("chest", "chest_mask"), ("x", "x-masks"), ("images", "Masks"), ("img", "ground_truth"),
    ("train", "trainannot"), ("train_images", "train_labels"), ("images/train", "masks/train"),
    ("train/images", "train/masks"),
]  # fmt: skip


@pytest.mark.parametrize(("of_images", "of_masks"), FOLDERS)
@pytest.mark.parametrize("around", ["", "x-ray-images-and-masks", "set_masks/inner"])
def test_folders_of_masks_by_their_names(tmp_path, of_images, of_masks, around):
    files(tmp_path / around / of_images, STAGE_1)
    files(tmp_path / around / of_masks, STAGE_1)
    source = discover(tmp_path)
    assert (source.layout, ids_of(source.train)) == ("images+masks", STAGE_1)
    assert {Path(p).parent for p in source.train["path"]} == {tmp_path / around / of_images}
    assert {Path(p).parent for p in source.train["mask_path"]} == {tmp_path / around / of_masks}
    assert set(source.train["rle"]) == {""}
    assert (source.unlabelled, source.problems) == ([], [])


@pytest.mark.parametrize("ending", ["_mask", "-mask", " mask", "_Mask", "_seg", "-label"])
@pytest.mark.parametrize("apart", [False, True])
def test_masks_by_the_end_of_their_names(tmp_path, ending, apart):
    files(tmp_path / "all", STAGE_2, ".jpg")
    files(tmp_path / ("masks" if apart else "all"), [f"{name}{ending}" for name in STAGE_2])
    files(tmp_path / "test" / "images", ["other"], ".jpg")
    source = discover(tmp_path)
    assert ids(source) == (STAGE_2, ["other"])
    assert [Path(p).stem for p in source.train["mask_path"]] == [f"{n}{ending}" for n in STAGE_2]


def test_masks_of_nnu_net(tmp_path):
    for part, name in (("Tr", "c1"), ("Tr", "c2"), ("Ts", "c3")):
        touch(tmp_path / f"images{part}" / f"{name}_0000.png")
        touch(tmp_path / f"labels{part}" / f"{name}.png")
    source = discover(tmp_path)
    assert ids_of(source.train) == ["c1_0000", "c2_0000"]
    assert ids_of(source.test) == ids_of(source.test_labels) == ["c3_0000"]


@pytest.mark.parametrize("of_masks", ["masks", "labels"])
def test_files_that_share_a_name_are_distinguished_by_their_folders(tmp_path, of_masks):
    for patient in ("p1", "p2"):
        files(tmp_path / "images" / patient, ["frontal", "lateral"], ".jpg")
        files(tmp_path / of_masks / patient, ["frontal_mask", "lateral_mask"])
    touch(tmp_path / "images" / "p3" / "other.jpg")
    touch(tmp_path / of_masks / "p3" / "other.png")
    train = discover(tmp_path).train
    assert ids_of(train) == ["other", "p1/frontal", "p1/lateral", "p2/frontal", "p2/lateral"]
    for row in train.itertuples():
        assert Path(row.path).parts[-2] == Path(row.mask_path).parts[-2]
        assert Path(row.path).stem == Path(row.mask_path).stem.removesuffix("_mask")


def test_a_table_names_files_that_share_a_name_by_their_paths(tmp_path):
    names = [f"data/patient{n}/study1/view1" for n in (1, 2)]
    files(tmp_path, names, ".jpg")
    rows = [f"CheXpert/{name}.jpg,{rle}" for name, rle in zip(names, ("0 3", "-1"), strict=True)]
    touch(tmp_path / "train-rle.csv", "\n".join(["ImageId,EncodedPixels", *rows]))
    train = discover(tmp_path).train
    assert ids_of(train) == names
    assert train["rle"].tolist() == ["0 3", "-1"]
    assert [Path(path).parts[-3] for path in train["path"]] == ["patient1", "patient2"]


def test_names_are_compared_as_nfc_and_without_blanks_around(tmp_path):
    touch(tmp_path / "Jo\u0308rg .png")
    labels(tmp_path, ["J\u00f6rg"])
    assert ids_of(discover(tmp_path).train) == ["J\u00f6rg"]


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
    assert ids(discover(tmp_path)) == (STAGE_1[:6], STAGE_1[6:])
    labels(tmp_path, STAGE_1[:6])  # unpacked beside it
    source = discover(tmp_path)
    assert (source.labels, source.problems) == (tmp_path / "train-rle.csv", [])


@pytest.mark.parametrize(
    "name",
    ["Train-RLE.csv", "train-rle.CSV", "train-rle (1).csv", "train_rle.csv",
     "Stage_2_Train (2).csv"],
)  # fmt: skip
def test_a_label_table_is_known_by_its_name_in_other_spellings(tmp_path, name):
    files(tmp_path / "images", STAGE_2)
    files(tmp_path / "lung_masks", STAGE_2)
    labels(tmp_path, STAGE_2, name)
    source = discover(tmp_path)
    assert source.labels == tmp_path / name
    assert source.train["rle"].tolist() == ["-1", "5 3 2 1"] * 2


# --- splits ---------------------------------------------------------------------------------

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


@pytest.mark.parametrize(
    ("train", "other"),
    [*(("train", name) for name in ("test", "val", "valid", "Validation", "testing", "dev")),
     ("train_png", "test_png"), ("Train Set", "Test Set"), ("trainset", "valset"),
     ("imagesTr", "imagesVal"), ("train_data", "hold_out"), ("split_train", "split_val")],
)  # fmt: skip
@pytest.mark.parametrize("around", ["", "set-test", "train_test_val"])
def test_a_labelled_split_is_not_trained_on(tmp_path, train, other, around):
    with_masks(tmp_path / around, train, STAGE_1[:6])
    with_masks(tmp_path / around, other, STAGE_1[6:])
    source = discover(tmp_path)
    assert ids(source) == (STAGE_1[:6], STAGE_1[6:])
    assert ids_of(source.test_labels) == STAGE_1[6:]
    assert all("masks" in path for path in source.test_labels["mask_path"])
    (problem,) = source.problems
    assert "4 labelled images" in problem
    assert STAGE_1[6] in problem


def test_of_test_and_validation_images_the_first_are_for_scoring_and_neither_for_training(tmp_path):
    for part, names in (("train", STAGE_1[:6]), ("valid", STAGE_1[6:8]), ("test", STAGE_1[8:])):
        with_masks(tmp_path, part, names)
    source = discover(tmp_path)
    assert ids(source) == (STAGE_1[:6], STAGE_1[8:])
    assert "4 labelled images" in source.problems[0]


def test_a_folder_beside_train_that_states_no_split_is_noted(tmp_path):
    with_masks(tmp_path, "train", STAGE_1[:6])
    with_masks(tmp_path, "hospital", STAGE_1[6:])
    source = discover(tmp_path)
    assert ids_of(source.train) == STAGE_1
    (problem,) = source.problems
    assert problem.startswith("4 labelled images")
    assert str(tmp_path / "hospital" / "images" / f"{STAGE_1[6]}.png") in problem


def test_a_split_in_the_files_names(tmp_path):
    names = [f"{n}_{part}_{n % 2}_" for part in ("test", "train") for n in range(20)]
    files(tmp_path / "png_images", names)
    files(tmp_path / "png_masks", names)
    source = discover(tmp_path)
    tests, training = sorted(names[:20]), sorted(names[20:])
    assert (ids_of(source.train), ids_of(source.test_labels)) == (training, tests)
    assert sorted(ids_of(source.test)) == tests
    with_masks(tmp_path, "more", ["a", "b"])  # whose names state no split
    source = discover(tmp_path)
    assert (len(source.train), len(source.test)) == (22, 20)
    assert sum(str(tmp_path / "more" / "images" / "a.png") in p for p in source.problems) == 1
    with_masks(tmp_path, "more", ["c"])
    source = discover(tmp_path)
    assert (len(source.train), len(source.test)) == (43, 0)
    (problem,) = source.problems
    assert problem.startswith("23 labelled images")


def test_an_id_of_two_splits_is_two_images_unless_they_are_the_same_file(tmp_path):
    for part in ("train", "test"):
        with_masks(tmp_path, part, ["a"])
    source = discover(tmp_path)
    assert ids(source) == (["train/a"], ["test/a"])
    assert Path(source.train["mask_path"][0]).parts[-3] == "train"
    assert Path(source.test_labels["mask_path"][0]).parts[-3] == "test"
    touch(tmp_path / "test" / "images" / "b.png")  # of which train has a copy, and the mask
    touch(tmp_path / "train" / "images" / "b.png")
    touch(tmp_path / "train" / "masks" / "b.png")
    source = discover(tmp_path)
    assert sorted(ids_of(source.test)) == sorted(ids_of(source.test_labels)) == ["b", "test/a"]
    assert ids_of(source.train) == ["train/a"]


def test_a_sample_that_is_given_takes_no_image_from_training(tmp_path):
    stages(tmp_path)
    sample(tmp_path, STAGE_1[6:])
    given = discover(tmp_path, sample=tmp_path / SAMPLE)
    assert (ids_of(given.train), ids_of(given.test_labels)) == (STAGE_1, STAGE_1[6:])


@pytest.mark.parametrize(("test", "val"), [("test", "val"), ("Test", ""), ("holdout", "Valid Set")])
def test_a_column_of_the_label_table_states_the_split(tmp_path, test, val):
    words = ["train"] * 6 + [test] * 2 + [val] * 2
    rows = [f"{name}.png,-1,{word},," for name, word in zip(STAGE_1, words, strict=True)]
    rows += [f"{STAGE_1[6]},-1,train,,"]  # of two words the one that holds it out
    touch(tmp_path / "train-rle.csv", "\n".join(["ImageId,EncodedPixels,part,,", *rows]))
    files(tmp_path / "train", STAGE_1)
    source = discover(tmp_path)
    wanted = STAGE_1[:6] if val else STAGE_1[:6] + STAGE_1[8:]  # blank: as the folder says
    assert ids(source) == (wanted, STAGE_1[6:8])
    assert str(tmp_path / "train-rle.csv") in source.problems[0]


@pytest.mark.parametrize(
    ("name", "text", "is_noted"),
    [
        ("metadata.csv", "filename,split\na.png,train\nb.png,test\nc.png,val", True),
        ("test.csv", "id\nb\nc", True),
        ("val.csv", "n,path\n0,images/b.png\n1,images/c.png", True),
        ("ImageSets/Segmentation/val.txt", "b\nc", True),
        ("dataset.json", '{"training": [{"image": "images/a.png"}], "test": ["images/c.png"], '
                         '"validation": [{"image": "images/b.png", "label": "x/b.png"}]}', True),
        ("instances_val2017.json",
         '{"images": [{"file_name": "b.png"}, {"file_name": "c.png"}]}', True),
        ("splits_final.json",
         '[{"train": ["a", "b"], "val": ["c", "d"]}, {"train": ["c"], "val": ["a", "b"]}]', False),
        ("test.csv", "id\nx", False),
        ("val.txt", "x", False),
        ("dataset.json", '{"training": ["a"], "test": ["x"]}', False),
        ("dataset.json", "{", False),
        ("test.json", "[" * 100_000, False),
        ("test.csv", 'a,"', False),
    ],
)  # fmt: skip
def test_another_file_that_holds_training_images_out_is_noted(tmp_path, name, text, is_noted):
    with_masks(tmp_path, "", "abcd")
    touch(tmp_path / name, text)
    source = discover(tmp_path)
    assert ids_of(source.train) == ["a", "b", "c", "d"]
    assert len(source.problems) == is_noted
    for problem in source.problems:
        assert str(tmp_path / name) in problem
        assert "2 training images" in problem


# --- tables by what they hold ---------------------------------------------------------------


@pytest.mark.parametrize("header", ["", "ImageId,EncodedPixels\n"])
@pytest.mark.parametrize("with_sample", [False, True])
@pytest.mark.parametrize("rle", ["0 {}", "-1"])
def test_the_competition_s_own_sample_of_its_labels(tmp_path, header, with_sample, rle):
    if rle == "-1" and header and not with_sample:
        pytest.skip("it is a sample submission by all that it holds")
    for name in STAGE_1:
        touch(tmp_path / "stage_2_images" / f"{name}.dcm", name)
    for name in STAGE_1[:3]:
        touch(tmp_path / "sample images" / f"{name}.dcm", name)
    labels(tmp_path, STAGE_1[:7], "stage_2_train.csv")
    if with_sample:
        sample(tmp_path, STAGE_1[7:], "stage_2_sample_submission.csv")
    rows = [f"{name},{rle.format(n + 1)}\n" for n, name in enumerate(STAGE_1[:3])]
    touch(tmp_path / "sample images" / "train-rle-sample.csv", header + "".join(rows))
    assert ids(discover(tmp_path)) == (STAGE_1[:7], STAGE_1[7:])


def test_a_table_called_sample_with_other_columns_is_not_used(tmp_path):
    nested(tmp_path, "train", STAGE_1)
    labels(tmp_path, STAGE_1)
    touch(tmp_path / "sample_ages.csv", "patient,age\na,50\n")
    source = discover(tmp_path)
    assert (len(source.train), source.sample) == (10, None)
    assert "sample_ages.csv" in source.problems[0]


def test_a_sample_finds_images_by_paths_and_endings(tmp_path):
    nested(tmp_path, "test", STAGE_1)
    sample(tmp_path, [f"dicom-images-test\\{name}.dcm" for name in STAGE_1[::-1]])
    assert ids_of(discover(tmp_path).test) == STAGE_1[::-1]


def test_the_clone_s_own_pictures_are_no_data(tmp_path, monkeypatch, project_root):
    assert {project_root / name for name in ("docs", "models", "demo")} <= folder.NOT_DATA
    monkeypatch.setattr(folder, "NOT_DATA", {tmp_path / "docs", tmp_path / "demo"})
    files(tmp_path, ["docs/a", "demo/data/b"])
    refused(tmp_path, "no images")
    assert len(folder.survey(tmp_path / "demo").images) == 1  # where the user names it


def test_of_formats_dicom_and_of_copies_the_first_is_used(tmp_path):
    for name in STAGE_1:
        for suffix in (".png", ".jpg", ".dcm"):
            touch(tmp_path / suffix[1:] / f"{name}{suffix}", suffix)
        touch(tmp_path / "later" / f"{name}.dcm", ".dcm")
    for name in ("train-rle (1).csv", "train-rle.csv"):
        labels(tmp_path, STAGE_1, name)
    source = discover(tmp_path)
    assert {Path(path).parent.name for path in source.train["path"]} == {"dcm"}
    assert source.labels == tmp_path / "train-rle.csv"
    assert "10 images" in source.problems[0]
    assert "2 label tables" in source.problems[1]


@pytest.mark.parametrize("name", ["overlays", "lungs"])
def test_pictures_of_another_folder_and_format_do_not_take_an_image_s_place(tmp_path, name):
    files(tmp_path / "images", STAGE_2, ".jpg")
    files(tmp_path / name, STAGE_2)
    refused(tmp_path, rf"/images and .*/{name} hold files of the same names")
    labels(tmp_path, STAGE_2)
    refused(tmp_path, rf"4 of 8 training images .* no label .*/{name}/")
    source = discover(tmp_path, for_inference=True)
    assert {Path(path).suffix for path in source.train["path"]} == {".jpg"}


def test_few_unlabelled_images_are_listed_and_hidden_folders_are_not_searched(tmp_path):
    many = [f"img{n:03d}" for n in range(100)]
    files(tmp_path / "images", many)
    labels(tmp_path, many[5:])
    touch(tmp_path / "__MACOSX" / "._a.png")
    touch(tmp_path / ".ipynb_checkpoints" / "b.png")
    source = discover(tmp_path)
    assert source.unlabelled == many[:5]
    assert len(source.train) == 95
    assert "5 training images" in source.problems[0]


# --- faults ---------------------------------------------------------------------------------


def test_wrong_data_dir(tmp_path, monkeypatch):
    refused(tmp_path / "gone", r"gone does not exist")
    refused(touch(tmp_path / "a.zip"), r"a\.zip is a file: unpack it")
    refused(tmp_path, r"(?s)no images under .*Unpack a\.zip first.*nested DICOM.*make demo")
    monkeypatch.setattr(folder, "MAX_FOLDERS_WITHOUT_IMAGE", 5)
    for n in range(8):
        (tmp_path / f"home{n}").mkdir()
    refused(tmp_path, "folders in a row without an image")


@pytest.mark.parametrize(
    ("names", "counted"),
    [
        (["images/a.tif", "images/b.tif", "masks/a.tif"], "3 .tif"),
        (["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"], "2 .nii.gz"),
        (["a.jpg", "a.json", "b.jpg", "b.json"], "2 .json"),
        (["images/a.png", "masks/a.npy"], "1 .npy"),
        (["images/a.png", "images/b.png", "masks/a.png", "masks/b.BMP"], "1 .bmp"),
        (["a.png", "README"], "1 without suffix"),
    ],
)
def test_files_of_other_kinds_are_counted_where_something_is_missing(tmp_path, names, counted):
    files(tmp_path, names, "")
    refused(tmp_path, re.escape(f"Not read: {counted} "))


@pytest.mark.parametrize("short", ["{}", "0{}"])
def test_ids_that_lost_their_zeros_are_named(tmp_path, short):
    files(tmp_path / "images", ["0008", "0009", "0010", "0011"])
    labels(tmp_path, [short.format(n) for n in range(8, 12)])
    refused(tmp_path, rf"{short.format(8)} may be 0008,")
    labels(tmp_path, ["0010", "0011", *(short.format(n) for n in (8, 9))])
    refused(tmp_path, rf"image {short.format(8)} has a label and no file.* may be 0008,")
    labels(tmp_path, ["0010", "0011", "7"])
    assert "may be" not in refused(tmp_path, "image 7 has a label and no file")
    labels(tmp_path, ["0008", "0009"])
    sample(tmp_path, ["0010", "11"])
    refused(tmp_path, "test image 11 has no file .*11 may be 0011,")


def test_images_without_a_table_of_theirs(tmp_path):
    files(tmp_path, STAGE_1)
    refused(tmp_path, r"(?s)10 images .*neither labels nor a sample.*make demo")
    labels(tmp_path, STAGE_1, "my_labels.csv")
    refused(tmp_path, r"my_labels\.csv looks like labels: name it train-rle\.csv")
    (tmp_path / "my_labels.csv").unlink()
    labels(tmp_path, STAGE_2)  # an id of each side is named
    assert "name it" not in refused(tmp_path, rf"{STAGE_2[0]}.*{STAGE_1[0]}")


def test_labels_that_lie_too_deep_are_named(tmp_path):
    files(tmp_path / "images", ["a"])
    touch(tmp_path / "1" / "2" / "3" / "other.csv")
    labels(tmp_path / "1" / "2" / "3", ["a"])
    refused(tmp_path, r"1/2/3/train-rle\.csv is too many")
    files(tmp_path / "masks", ["a"])
    (problem,) = discover(tmp_path).problems
    assert str(tmp_path / "1" / "2" / "3" / "train-rle.csv") in problem


def test_labels_and_masks_without_an_image(tmp_path):
    nested(tmp_path / "a", "train", STAGE_1[:8])
    labels(tmp_path / "a", STAGE_1)
    pattern = rf"train-rle\.csv row 10: image {STAGE_1[8]} has a label and no file.*2 of 10"
    refused(tmp_path / "a", pattern)
    files(tmp_path / "b", ["images/a", "masks/a", "masks/b_mask"])
    refused(tmp_path / "b", r"b_mask\.png has no image b")


def test_unlabelled_images_are_refused_with_how_to_say_that_they_have_no_pneumothorax(tmp_path):
    files(tmp_path / "images", "abcd")
    touch(tmp_path / "masks" / "b.png")
    (tmp_path / "images" / "e.png").symlink_to(tmp_path / "gone")  # a problem
    refused(tmp_path, rf"3 of 4 .* 1 broken links .*{re.escape(str(tmp_path / 'masks' / 'a.png'))}")
    labels(tmp_path, ["b"])
    refused(
        tmp_path, r"3 of 4 .*75%, at most 5%.*/a\.png.* 1 broken links .* a,-1 .*train-rle\.csv"
    )


def test_folders_of_the_same_names_are_named_as_they_may_be_masks(tmp_path):
    for part in "ab":
        files(tmp_path / part, "xyz")
    refused(tmp_path, r"6 images .*/a and .*/b hold files of the same names: .* masks")
    labels(tmp_path, ["x"])
    refused(tmp_path, r"x may be .*a/x\.png or .*b/x\.png")


@pytest.mark.parametrize(
    "pair", [("a.png", "a.PNG"), ("a.png", "a .png"), ("\u00f6.png", "o\u0308.png")]
)
@pytest.mark.parametrize("for_inference", [False, True])
def test_files_of_one_folder_that_even_their_paths_do_not_distinguish(
    tmp_path, pair, for_inference
):
    files(tmp_path / "images", ["b.png", *pair], "")
    message = refused(tmp_path, "", for_inference=for_inference)
    assert all(str(tmp_path / "images" / name) in message for name in pair)
    first, second = (tmp_path / "images" / name for name in pair)
    second.write_bytes(first.read_bytes())
    assert len(discover(tmp_path, for_inference=True).test) == 2


def test_two_masks_of_an_image_are_refused(tmp_path):
    touch(tmp_path / "images" / "a.png")
    files(tmp_path / "masks", ["a", "a_mask"])
    refused(tmp_path, r"image a has two masks, .*a\.png and .*a_mask\.png: ")
    mask = touch(tmp_path / "masks" / "a.png", b"x")
    touch(tmp_path / "masks" / "a_mask.png", b"x")  # a copy
    touch(tmp_path / "masks" / "a.jpg", b"another format")
    assert discover(tmp_path).train["mask_path"].tolist() == [str(mask)]
    touch(tmp_path / "lung_masks" / "a.png", b"lungs")  # not to be united
    refused(tmp_path, r"lung_masks/a\.png and .*masks/a\.png: keep the folder")


def with_lungs(root: Path, positive: str) -> None:
    for name in "abcd":
        touch(root / "images" / f"{name}.png", name)
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
    with_lungs(tmp_path, "bd")
    labels(tmp_path, names, "ptx.csv", rle=rle)
    (problem,) = discover(tmp_path).problems
    assert all(word.format(tmp_path / "ptx.csv") in problem for word in words)


@pytest.mark.parametrize(("positive", "row"), [("abcd", "2"), ("d", "3")])
def test_a_table_that_says_otherwise_than_the_masks_is_refused(tmp_path, positive, row):
    with_lungs(tmp_path, positive)
    labels(tmp_path, "abcd", "ptx.csv")
    refused(tmp_path, rf"ptx\.csv row {row} and the mask .*lung_masks/.*train-rle\.csv")
    source = discover(tmp_path, for_inference=True)
    assert (len(source.train), source.problems) == (4, [])


@pytest.mark.parametrize("around", ["", "Png"])
def test_masks_of_instances_give_way_to_those_of_classes(tmp_path, around):
    touch(tmp_path / "JPEGImages" / "a.png")
    classes = touch(tmp_path / f"SegmentationClass{around}" / "a.png", b"class")
    instances = touch(tmp_path / f"SegmentationObject{around}" / "a.png", b"instances")
    source = discover(tmp_path)
    assert source.train["mask_path"].tolist() == [str(classes)]
    assert str(instances) in source.problems[0]
    classes.unlink()
    source = discover(tmp_path)
    assert (source.train["mask_path"].tolist(), source.problems) == ([str(instances)], [])


def test_links_that_lead_nowhere_are_named(tmp_path):
    touch(tmp_path / "images" / "a.png")
    for name in ("b.png", "study"):
        (tmp_path / "images" / name).symlink_to(tmp_path / "gone")
    labels(tmp_path, ["a"])
    (problem,) = discover(tmp_path).problems
    assert "2 broken links" in problem
    assert str(tmp_path / "images" / "b.png") in problem
    labels(tmp_path, ["a", "b"])
    refused(tmp_path, r"image b has a label and no file .*images/b\.png is a broken")


def test_a_copy_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def compare(first, other, shallow):
        raise PermissionError(13, "Permission denied", str(other))

    monkeypatch.setattr(folder.filecmp, "cmp", compare)
    files(tmp_path, ["a/x", "b/x"])
    refused(tmp_path, r"b/x\.png can't be read: Permission denied")


def test_a_sample_of_other_images(tmp_path):
    stages(tmp_path, 6)
    sample(tmp_path, [*STAGE_1[6:], "x"])
    refused(tmp_path, r"sample_submission\.csv row 6: test image x .*1 of 5")
    sample(tmp_path, STAGE_2)
    refused(tmp_path, "row 2: test image .* another competition")
    touch(tmp_path / SAMPLE, "id,label\na,1\n")
    refused(tmp_path, r"\['id', 'label'\], not ImageId and EncodedPixels; .*another competition")


@pytest.mark.parametrize(
    ("name", "layout", "n_train", "n_positive", "n_test"),
    [
        ("labelled-dicom", "nested-dicom", 2, 1, 0),
        ("labelled-17", "images+rle", 17, 10, 0),
        ("stage2-silver", "flat-dicom", 300, 100, 300),
    ],
)
def test_real_folders(shared_data, name, layout, n_train, n_positive, n_test):
    source = discover(shared_data / name)
    assert source.layout == layout
    assert (len(source.train), len(source.test)) == (n_train, n_test)
    assert (source.train["rle"] != "-1").sum() == n_positive
    assert (source.unlabelled, len(source.problems)) == ([], bool(n_test))
    assert all("300" in problem for problem in source.problems)  # as both are the same images


# --- for inference ----------------------------------------------------------------------------


def dicom(path: Path, **header) -> Path:
    """A DICOM's header, which is all that is read of it here."""
    dataset = pydicom.Dataset()
    dataset.file_meta, dataset.preamble = pydicom.dataset.FileMetaDataset(), b"\0" * 128
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.PatientID = path.name
    dataset.update(header)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path


def test_a_folder_of_images_alone_is_a_test_set_for_inference_only(tmp_path):
    dicom(tmp_path / "a" / "1.2.3", Rows=4, Columns=4)
    dicom(tmp_path / "a" / "DICOMDIR")
    touch(tmp_path / "b.png")
    touch(tmp_path / "notes.txt", b"no image")
    source = discover(tmp_path, for_inference=True)
    assert (ids_of(source.test), len(source.train), source.sample) == (["1.2.3", "b"], 0, None)
    refused(tmp_path, "neither labels nor a sample")
    sample(tmp_path, ["b"], "elsewhere.csv")
    source = discover(tmp_path, for_inference=True, sample=tmp_path / "elsewhere.csv")
    assert ids_of(source.test) == ["b"]


def test_a_sample_given_wins_over_the_folder_s_own(tmp_path):
    stages(tmp_path, 2)
    sample(tmp_path, STAGE_1[6:])
    assert ids_of(discover(tmp_path, for_inference=True).test) == STAGE_1[6:]
    sample(tmp_path / "other", STAGE_1[7:4:-1])
    given = tmp_path / "other" / SAMPLE
    source = discover(tmp_path, for_inference=True, sample=given)
    assert (ids_of(source.test), source.sample) == (STAGE_1[7:4:-1], given)
    sample(tmp_path / "other", STAGE_2)
    refused(tmp_path, "test image .* has no file .*-p SAMPLE", for_inference=True, sample=given)


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


def test_an_image_is_known_by_its_content(tmp_path):
    dataset = pydicom.dcmread(dicom(tmp_path / "x", Rows=4, Columns=4))
    dataset.StudyDate = "20200101"
    # As of old archives, without a preamble.
    dataset.preamble, dataset.file_meta = None, pydicom.dataset.FileMetaDataset()
    pydicom.dcmwrite(tmp_path / "bare", dataset, implicit_vr=True, little_endian=True)
    touch(tmp_path / "picture", cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes())
    assert all(images.is_image(tmp_path / name) for name in ("picture", "x", "bare"))
    for name, content in (("text", b"ImageId,EncodedPixels"), ("empty", b""), ("zip", b"PK\3\4")):
        assert not images.is_image(touch(tmp_path / name, content))
    assert not images.is_image(dicom(tmp_path / "report"))
    assert images.spacing_of(tmp_path / "picture") is None
