"""Paths: found in every form that Kaggle mounts, and failing with advice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_lib.errors import InputError
from kernel_lib.kaggle import paths

SIIM = "siim-acr-pneumothorax-segmentation"


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    folder = tmp_path / "input"
    folder.mkdir()
    monkeypatch.setenv("KERNEL_LIB_MOUNTS", str(folder))
    return folder


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def refusal(of, value: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        of(value)
    return str(caught.value)


def test_a_relative_path_starts_from_the_project_and_an_absolute_one_is_kept(
    project_root, tmp_path, monkeypatch
):
    monkeypatch.chdir(project_root / "notebooks")
    assert paths.work_dir("somewhere/work") == project_root / "somewhere" / "work"
    assert paths.cache_dir("scratch") == project_root / "scratch"
    for of in (paths.work_dir, paths.cache_dir, paths.data_dir):
        assert of(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("DATA_DIR", paths.data_dir),
        ("WORK_DIR", paths.work_dir),
        ("CACHE_DIR", paths.cache_dir),
        ("NIH_DIR", paths.nih_dir),
        ("WEIGHTS_DIR", paths.weights_dirs),
        ("the path", paths.from_root),
    ],
)
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_path_is_not_the_project(name, of, value):
    assert f"{name} is empty" in refusal(of, value)


def test_without_a_value_folders_lie_in_the_project_or_where_kaggle_keeps_them(
    project_root, mounts, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(paths, "WORKING", tmp_path / "working")
    for kind in ("", "Batch"):  # the variable without the folder is not Kaggle
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", kind)
        assert paths.work_dir(None) == project_root / "work"
        assert paths.cache_dir(None) == tmp_path / "pneumothorax"
    paths.WORKING.mkdir()
    assert paths.work_dir(None) == paths.WORKING
    assert not paths.cache_dir(None).is_relative_to(paths.WORKING)


def test_a_wrong_data_dir_is_named_with_its_neighbours_and_the_fix(tmp_path):
    put(tmp_path, "siim/train-rle.csv", "other.txt")
    text = refusal(paths.data_dir, str(tmp_path / "simm"))
    for word in (str(tmp_path / "simm"), "siim", "other.txt", "make demo"):
        assert word in text


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("train-rle.csv", "is a file: give its folder, {folder}"),
        ("study/series/a.dcm", "is a file: give the folder of all images and labels"),
        ("siim.zip", "is a file: unpack it and give the folder"),
        ("siim.tar.GZ", "is a file: unpack it and give the folder"),
    ],
)
def test_a_file_as_data_dir_names_its_folder_or_is_to_be_unpacked(tmp_path, name, fix):
    put(tmp_path, name)
    for of in (paths.data_dir, paths.nih_dir):
        assert refusal(of, str(tmp_path / name)).endswith(fix.format(folder=tmp_path))


@pytest.mark.parametrize(
    "folder",
    [
        f"competitions/{SIIM}",
        "datasets/someone/siim-png",
        "notebooks/someone/siim-copy",
        SIIM,
        "siim-png",
    ],
)
@pytest.mark.parametrize("table", ["train-rle.csv", "a/b/stage_2_train.csv"])
def test_data_is_found_in_every_form_of_mount(mounts, folder, table):
    put(mounts, f"datasets/other/unrelated/{'x/' * 3}train-rle.csv", f"{folder}/{table}")
    assert paths.data_dir(None) == mounts / folder


def test_the_competition_comes_before_a_copy_unless_it_holds_no_labels(mounts):
    put(mounts, "datasets/a/copy/train-rle.csv", f"competitions/{SIIM}/readme.txt")
    assert paths.data_dir(None) == mounts / "datasets/a/copy"
    put(mounts, f"competitions/{SIIM}/train-rle.csv")
    assert paths.data_dir(None) == mounts / "competitions" / SIIM


def test_a_competition_without_labels_is_the_data_where_there_is_no_other(mounts):
    put(mounts, f"{SIIM}/dicom-images-test/a/b/1.dcm")
    assert paths.data_dir(None) == mounts / SIIM


def test_a_table_without_images_does_not_come_before_images(mounts):
    put(mounts, "datasets/a/rle/train-rle.csv", "datasets/b/png/x/y/z/a.png")
    assert f"-p DATA_DIR {mounts}/datasets/b/png" in refusal(paths.data_dir)
    put(mounts, f"competitions/{SIIM}/stage_2_images/a.dcm")
    assert paths.data_dir(None) == mounts / "competitions" / SIIM
    put(mounts, "datasets/b/png/Train-RLE (1).csv")
    assert paths.data_dir(None) == mounts / "datasets/b/png"


def test_images_with_masks_and_no_table_are_named(mounts):
    below = "datasets/b/siim"
    put(mounts, "datasets/a/csv/notes.csv", f"{below}/images/a.PNG", f"{below}/masks/a.png")
    assert f"-p DATA_DIR {mounts}/{below}" in refusal(paths.data_dir)


def test_no_data_names_the_four_layouts_and_the_demo(mounts):
    put(mounts, "datasets/me/cats/1.jpg")
    text = refusal(paths.data_dir)
    for word in ("nested DICOM", "flat DICOM", "images and RLE", "masks", "make demo", "cats"):
        assert word in text


def test_no_mounts_at_all_is_an_input_error(mounts):
    mounts.rmdir()
    assert "make demo" in refusal(paths.data_dir)
    assert paths.artefact_roots(mounts) == [mounts]


def test_artefacts_are_found_in_every_form_in_a_fixed_order(mounts, tmp_path):
    put(
        mounts,
        "notebooks/me/train-b/runs/r/fold0/last.pt",
        "notebooks/me/train-a/work/folds.csv",
        "datasets/me/old/x/y/ensembles/e/members.json",
        "flat/runs/r/config.json",
        "datasets/me/images/a/1.png",
        "datasets/me/deep/a/b/c/runs/r/config.json",
    )
    in_order = ("datasets/me/old/x/y", "notebooks/me/train-a/work", "notebooks/me/train-b", "flat")
    expected = [tmp_path / "work", *(mounts / folder for folder in in_order)]
    assert paths.artefact_roots(tmp_path / "work") == expected
    assert paths.artefacts_below(mounts / "notebooks/me") == expected[2:4]


def test_crowds_of_studies_are_not_entered(mounts, tmp_path):
    for study in range(201):
        (mounts / "siim" / "dicom-images-train" / f"{study}" / "series").mkdir(parents=True)
    (mounts / "siim" / "dicom-images-train" / "0" / "runs").mkdir()
    assert paths.artefact_roots(tmp_path) == [tmp_path]


def test_weights_are_the_given_folder_then_mounted_files(mounts, tmp_path):
    version = "timm/resnet18/pytorch/a1-in1k/1"  # Kaggle's Models, in both forms of mount
    put(
        mounts,
        "datasets/me/encoders/resnet34.pth",
        "resnets/deeper/resnet101.safetensors",
        "notebooks/me/train/runs/r/fold0/last.pt",
        "datasets/me/text/readme.md",
        f"models/{version}/model.safetensors",
        "resnet/pyTorch/34/2/resnet34.bin",
    )
    in_order = (
        "datasets/me/encoders",
        f"models/{version}",
        "resnet/pyTorch/34/2",
        "resnets/deeper",
    )
    mounted = [mounts / folder for folder in in_order]
    given = tmp_path / "given"
    given.mkdir()
    assert paths.weights_dirs(None) == mounted
    assert paths.weights_dirs(str(given)) == [given, *mounted]
    assert "WEIGHTS_DIR" in refusal(paths.weights_dirs, str(tmp_path / "absent"))


def test_weights_lie_anywhere_below_the_given_folder_but_in_a_crowd(tmp_path, mounts):
    snapshot = "models--timm--resnet18.a1_in1k/snapshots/0123"
    put(tmp_path, f"given/{snapshot}/model.safetensors")
    given = tmp_path / "given"
    assert paths.weights_dirs(str(given)) == [given, given / snapshot]
    for study in range(201):
        put(tmp_path, f"given/crowd/{study}/model.safetensors")
    assert paths.weights_dirs(str(given)) == [given, given / snapshot]


def test_paths_need_only_the_standard_library(project_root):
    """The command line starts, and says what is wrong, without torch or pandas."""
    heavy = "{'torch', 'pandas', 'numpy'}"
    code = f"import sys, kernel_lib.kaggle.paths; print({heavy} & set(sys.modules))"
    env = os.environ | {"PYTHONPATH": str(project_root)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"])
@pytest.mark.parametrize(
    ("mounted", "inner"), [("datasets/nih-chest-xrays/data", ""), ("nih", "archive/labels/")]
)
def test_nih_s_folder_is_found_by_its_table(mounts, mounted, inner, name):
    put(mounts, f"competitions/{SIIM}/train-rle.csv", f"{mounted}/{inner}{name}")
    assert paths.nih_dir(None) == mounts / mounted


def test_nih_s_folder_is_taken_as_given_or_asked_for(mounts):
    put(mounts, "pictures/images_001/images/00000001_000.png")
    assert paths.nih_dir(str(mounts / "pictures")) == mounts / "pictures"
    text = refusal(paths.nih_dir)
    assert all(word in text for word in ("NIH_DIR is not set", "pictures", "-p NIH_DIR FOLDER"))
    assert "gone does not exist" in refusal(paths.nih_dir, str(mounts / "gone"))
