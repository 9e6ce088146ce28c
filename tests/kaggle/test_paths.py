"""Paths: found in every form that Kaggle mounts, and failing with advice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_lib.errors import InputError
from kernel_lib.kaggle import paths

COMPETITION = "siim-acr-pneumothorax-segmentation"


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.delenv("KERNEL_LIB_MOUNTS", raising=False)
    folder = tmp_path / "input"
    folder.mkdir()
    return folder


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_a_relative_work_dir_is_taken_from_the_project_also_in_notebooks(
    project_root, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(project_root / "notebooks")
    assert paths.work_dir("somewhere/work") == project_root / "somewhere" / "work"
    assert paths.cache_dir("scratch") == project_root / "scratch"


def test_an_absolute_value_is_kept(tmp_path: Path):
    assert paths.work_dir(str(tmp_path)) == tmp_path
    assert paths.cache_dir(str(tmp_path)) == tmp_path
    assert paths.data_dir(str(tmp_path)) == tmp_path


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
    with pytest.raises(InputError, match=f"{name} is empty"):
        of(value)


def test_without_a_value_work_lies_in_the_project_off_kaggle(project_root, monkeypatch):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    assert paths.work_dir(None) == project_root / "work"


def test_on_kaggle_work_is_the_working_folder_and_the_cache_is_outside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert paths.work_dir(None, working=tmp_path) == tmp_path
    assert not paths.cache_dir(None, working=tmp_path).is_relative_to(tmp_path)


def test_the_variable_without_the_folder_is_not_kaggle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert not paths.on_kaggle(working=tmp_path / "absent")


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert paths.cache_dir(None) == tmp_path / "pneumothorax"


def test_a_wrong_data_dir_is_named_with_its_neighbours_and_the_fix(tmp_path: Path):
    put(tmp_path, "siim/train-rle.csv", "other.txt")
    with pytest.raises(InputError) as caught:
        paths.data_dir(str(tmp_path / "simm"))
    for word in (str(tmp_path / "simm"), "siim", "other.txt", "make demo"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("train-rle.csv", "is a file: give its folder, {folder}$"),
        ("study/series/a.dcm", "is a file: give the folder of all images and labels$"),
        ("siim.zip", "is a file: unpack it and give the folder$"),
        ("siim.tar.GZ", "is a file: unpack it and give the folder$"),
    ],
)
def test_a_file_as_data_dir_names_its_folder_or_is_to_be_unpacked(tmp_path: Path, name, fix):
    put(tmp_path, name)
    for find in (paths.data_dir, paths.nih_dir):
        with pytest.raises(InputError, match=fix.format(folder=tmp_path)):
            find(str(tmp_path / name))


@pytest.mark.parametrize(
    "folder",
    [
        f"competitions/{COMPETITION}",
        "datasets/someone/siim-png",
        "notebooks/someone/siim-copy",
        COMPETITION,
        "siim-png",
    ],
)
@pytest.mark.parametrize("table", ["train-rle.csv", "a/b/stage_2_train.csv"])
def test_data_is_found_in_every_form_of_mount(mounts: Path, folder: str, table: str):
    put(mounts, f"datasets/other/unrelated/{'x/' * 3}train-rle.csv", f"{folder}/{table}")
    assert paths.data_dir(None, mounts) == mounts / folder


def test_the_competition_comes_before_a_copy_unless_it_holds_no_labels(mounts: Path):
    put(mounts, "datasets/a/copy/train-rle.csv", f"competitions/{COMPETITION}/readme.txt")
    assert paths.data_dir(None, mounts) == mounts / "datasets/a/copy"
    put(mounts, f"competitions/{COMPETITION}/train-rle.csv")
    assert paths.data_dir(None, mounts) == mounts / "competitions" / COMPETITION


def test_a_competition_without_labels_is_the_data_where_there_is_no_other(mounts: Path):
    put(mounts, f"{COMPETITION}/dicom-images-test/a/b/1.dcm")
    assert paths.data_dir(None, mounts) == mounts / COMPETITION


def test_a_table_without_images_does_not_come_before_images(mounts: Path):
    put(mounts, "datasets/a/rle/train-rle.csv", "datasets/b/png/x/y/z/a.png")
    with pytest.raises(InputError, match=rf"-p DATA_DIR {mounts}/datasets/b/png"):
        paths.data_dir(None, mounts)
    put(mounts, f"competitions/{COMPETITION}/stage_2_images/a.dcm")
    assert paths.data_dir(None, mounts) == mounts / "competitions" / COMPETITION
    put(mounts, "datasets/b/png/Train-RLE (1).csv")
    assert paths.data_dir(None, mounts) == mounts / "datasets/b/png"


def test_images_with_masks_and_no_table_are_named(mounts: Path):
    put(
        mounts,
        "datasets/a/csv/notes.csv",
        "datasets/b/siim/images/a.PNG",
        "datasets/b/siim/masks/a.png",
    )
    with pytest.raises(InputError, match=rf"-p DATA_DIR {mounts}/datasets/b/siim"):
        paths.data_dir(None, mounts)


def test_no_data_names_the_four_layouts_and_the_demo(mounts: Path):
    put(mounts, "datasets/me/cats/1.jpg")
    with pytest.raises(InputError) as caught:
        paths.data_dir(None, mounts)
    for word in ("nested DICOM", "flat DICOM", "images and RLE", "masks", "make demo", "cats"):
        assert word in str(caught.value)


def test_no_mounts_at_all_is_an_input_error(tmp_path: Path):
    with pytest.raises(InputError, match="make demo"):
        paths.data_dir(None, tmp_path / "absent")


def test_the_environment_moves_the_mounts(mounts: Path, monkeypatch: pytest.MonkeyPatch):
    put(mounts, "siim/train-rle.csv")
    monkeypatch.setenv("KERNEL_LIB_MOUNTS", str(mounts))
    assert paths.data_dir(None) == mounts / "siim"


def test_artefacts_are_found_in_every_form_in_a_fixed_order(mounts: Path, tmp_path: Path):
    put(
        mounts,
        "notebooks/me/train-b/runs/r/fold0/last.pt",
        "notebooks/me/train-a/work/folds.csv",
        "datasets/me/old/x/y/ensembles/e/members.json",
        "flat/runs/r/config.json",
        "datasets/me/images/a/1.png",
        "datasets/me/deep/a/b/c/runs/r/config.json",
    )
    work = tmp_path / "work"
    expected = [
        work,
        mounts / "datasets/me/old/x/y",
        mounts / "notebooks/me/train-a/work",
        mounts / "notebooks/me/train-b",
        mounts / "flat",
    ]
    assert paths.artefact_roots(work, mounts) == expected
    assert paths.artefact_roots(work, tmp_path / "absent") == [work]
    assert paths.artefacts_below(mounts / "notebooks/me") == expected[2:4]


def test_crowds_of_studies_are_not_entered(mounts: Path, tmp_path: Path):
    for study in range(201):
        (mounts / "siim" / "dicom-images-train" / f"{study}" / "series").mkdir(parents=True)
    (mounts / "siim" / "dicom-images-train" / "0" / "runs").mkdir()
    assert paths.artefact_roots(tmp_path, mounts) == [tmp_path]


def test_weights_are_the_given_folder_then_mounted_files(mounts: Path, tmp_path: Path):
    put(
        mounts,
        "datasets/me/encoders/resnet34.pth",
        "resnets/deeper/resnet101.safetensors",
        "notebooks/me/train/runs/r/fold0/last.pt",
        "datasets/me/text/readme.md",
    )
    given = tmp_path / "given"
    given.mkdir()
    mounted = [mounts / "datasets/me/encoders", mounts / "resnets/deeper"]
    assert paths.weights_dirs(None, mounts) == mounted
    assert paths.weights_dirs(str(given), mounts) == [given, *mounted]
    with pytest.raises(InputError, match="WEIGHTS_DIR"):
        paths.weights_dirs(str(tmp_path / "absent"), mounts)


def test_weights_of_kaggle_s_models_are_found_in_both_forms_of_mount(mounts: Path):
    version = "timm/resnet18/pytorch/a1-in1k/1"
    put(mounts, f"models/{version}/model.safetensors", "resnet/pyTorch/34/2/resnet34.bin")
    assert paths.weights_dirs(None, mounts) == [
        mounts / "models" / version,
        mounts / "resnet/pyTorch/34/2",
    ]


def test_weights_lie_anywhere_below_the_given_folder_but_in_a_crowd(tmp_path: Path, mounts: Path):
    snapshot = "models--timm--resnet18.a1_in1k/snapshots/0123"
    put(tmp_path, f"given/{snapshot}/model.safetensors")
    given = tmp_path / "given"
    assert paths.weights_dirs(str(given), mounts) == [given, given / snapshot]
    for study in range(201):
        put(tmp_path, f"given/crowd/{study}/model.safetensors")
    assert paths.weights_dirs(str(given), mounts) == [given, given / snapshot]


def test_paths_need_only_the_standard_library(project_root: Path):
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
    put(mounts, f"competitions/{COMPETITION}/train-rle.csv", f"{mounted}/{inner}{name}")
    assert paths.nih_dir(None, mounts) == mounts / mounted


def test_nih_s_folder_is_taken_as_given_or_asked_for(mounts):
    put(mounts, "pictures/images_001/images/00000001_000.png")
    assert paths.nih_dir(str(mounts / "pictures"), mounts) == mounts / "pictures"
    with pytest.raises(InputError, match=r"NIH_DIR is not set, and .*pictures.*-p NIH_DIR FOLDER"):
        paths.nih_dir(None, mounts)
    with pytest.raises(InputError, match=r"NIH_DIR .*gone does not exist"):
        paths.nih_dir(str(mounts / "gone"), mounts)
