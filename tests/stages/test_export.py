"""Masks exported for other programs: the ensemble's own, of every kind, and what is refused."""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from click.testing import CliRunner

from kernel_build import sources
from kernel_lib.__main__ import main
from kernel_lib.artifacts import folds_file
from kernel_lib.artifacts.maps import Maps
from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.postprocess import submission
from kernel_lib.stages import export, predict_files
from kernel_lib.stages import report as report_stage
from kernel_lib.stages.table import STAGES
from tests.stages.place import ON_CPU, RUN, Place, rewrite

hd = pytest.importorskip("highdicom")
nib = pytest.importorskip("nibabel")
RULE = "rule: top 0.6000, min area 2000 px of 1024², bottom 0.5000"
ALL = "seg,png,nifti,secondary-capture"


@pytest.fixture(scope="module")
def ensemble(phantom_run, phantoms, tmp_path_factory) -> Path:
    """An ensemble whose maps are near the truth, and a submission of known masks."""
    place = Place(phantom_run, phantoms).copy(tmp_path_factory.mktemp("export"))
    truth = folds_file.load(place.root / "work" / "folds.csv").set_index("image_id")
    shift = np.random.default_rng(0).integers(120, 250, len(truth))
    heights = dict(zip(truth.index, shift, strict=True))

    def levels(image_id: str) -> np.ndarray:
        row = truth.loc[image_id]
        mask = rle.decode(row["rle"], (int(row["height"]), int(row["width"])))
        soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 3) * heights[image_id]
        return cv2.resize(soft, (64, 64)).astype(np.uint8)

    for fold in (0, 1):
        for archive in (place.fold(fold).oof, place.fold(fold).oof_last):
            rewrite(archive, levels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_stage, "write", lambda *args, **how: None)
        folder = place.search().folder
    ids = submission.read(phantoms / "sample_submission.csv")["image_id"].tolist()
    masks = []
    for n in range(len(ids)):
        mask = np.zeros((128, 128), np.uint8)
        mask[10 + n : 40, 70:90] = n > 0
        masks.append(rle.encode(mask))
    submission.write(folder / "submission.csv", ids, masks)
    return folder


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "export.csv").open(encoding="utf-8", newline="") as file:
        return {row["image_id"]: row for row in csv.DictReader(file)}


def masks_in(out: Path, row: dict[str, str]) -> dict[str, np.ndarray]:
    """Return the mask (H, W) 0/1 in each file of an image by its kind; captures have none."""
    masks = {}
    for name in row["written"].split():
        kind, path = name.split("/")[0], out / name
        if kind == "png":
            masks[kind] = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 255
        elif kind == "nifti":
            masks[kind] = np.asarray(nib.load(path).dataobj)[..., 0].T
        elif kind == "seg":
            read = hd.seg.segread(path)
            masks[kind] = read.get_pixels_by_source_instance([row["refers_to"]])[0, ..., 0]
    return masks


def test_held_out_masks_are_those_that_were_scored(ensemble, phantoms, tmp_path):
    result = export.run(ensemble, tmp_path, to=ALL, data_dir=phantoms)
    rows, scored = table(tmp_path), pd.read_csv(ensemble / "oof.csv").set_index("image_id")
    assert set(rows) == set(scored.index)
    assert len(rows) == result.n_images == 24
    assert 0 < result.n_with_mask == (scored["area_px"] > 0).sum() < 24
    assert result.written == dict.fromkeys(ALL.split(","), 24)
    own = {pydicom.dcmread(path).SOPInstanceUID for path in phantoms.rglob("*.dcm")}
    for image_id, row in rows.items():
        masks = masks_in(tmp_path, row)
        assert set(masks) == {"seg", "png", "nifti"}
        assert all(np.array_equal(mask, masks["png"]) for mask in masks.values())
        assert masks["png"].shape == (128, 128)
        assert float(row["area_px_1024"]) == scored.loc[image_id, "area_px"]
        assert int(row["area_px"]) == masks["png"].sum()
        assert row["refers_to"] in own
        assert "rule: " in row["rule"]
    rules = pd.Series({i: row["rule"] for i, row in rows.items()}).groupby(scored["part"])
    assert (rules.nunique() == 1).all()
    shown = pydicom.dcmread(tmp_path / "secondary-capture" / f"{image_id}.dcm").pixel_array
    assert shown.shape == (128, 128, 3)
    text = str(result)
    assert f"{tmp_path / 'seg'}: 24 files" in text
    assert "LIP" in text
    assert f"24 images, {result.n_with_mask} with a mask" in text


def test_fractional_segmentations_hold_the_map(ensemble, phantoms, tmp_path):
    export.run(ensemble, tmp_path, to="seg", data_dir=phantoms, fractional=True)
    archive = Maps(ensemble.parents[1] / "runs" / RUN / "fold1" / "oof.zip")
    for image_id in archive.ids:
        made = pydicom.dcmread(tmp_path / "seg" / f"{image_id}.dcm")
        full = cv2.resize(archive[image_id], (128, 128), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(made.pixel_array, full)


def test_test_masks_are_those_submitted(ensemble, phantoms, tmp_path):
    how = {"to": "png,seg", "data_dir": phantoms, "test": True, "plane": False}
    result = export.run(ensemble, tmp_path, **how)
    assert export.PLANE not in str(result)
    submitted = submission.by_image(ensemble / "submission.csv")
    rows = table(tmp_path)
    assert set(rows) == set(submitted.index)
    assert (result.n_images, result.n_with_mask) == (4, 3)
    for image_id, row in rows.items():
        masks = masks_in(tmp_path, row)
        assert set(masks) == {"png", "seg"}
        made = pydicom.dcmread(tmp_path / "seg" / f"{image_id}.dcm")
        assert "PixelMeasuresSequence" not in made.SharedFunctionalGroupsSequence[0]
        for mask in masks.values():
            assert np.array_equal(mask, rle.decode(submitted[image_id], (128, 128)))


@pytest.fixture(scope="module")
def predicted(untrained, phantoms, tmp_path_factory) -> tuple[Path, Path]:
    """A prediction's folder, and the files that were predicted: DICOM, PNG and a damaged one."""
    place = tmp_path_factory.mktemp("predicted")
    folder, out = place / "radiographs", place / "out"
    folder.mkdir()
    for n, path in enumerate(sorted((phantoms / "dicom-images-test").rglob("*.dcm"))):
        dataset = pydicom.dcmread(path)
        if n == 0:
            dataset.SOPInstanceUID = "ID_0"
        if n == 1:
            dataset.PixelSpacing = [0.5, 0.25]
        dataset.save_as(folder / f"{'abcd'[n]}.dcm")
    grey = pydicom.dcmread(folder / "a.dcm").pixel_array
    cv2.imwrite(str(folder / "e.png"), grey[:100])
    cv2.imwrite(str(folder / "a.png"), grey[:, ::-1])
    (folder / "f.png").write_bytes((folder / "e.png").read_bytes()[:200])
    how = {"ensemble": untrained / "ensembles" / "tiny"} | ON_CPU
    assert predict_files.run([folder], out, **how).n_with_mask > 2
    return out, folder


def test_what_predict_wrote_is_exported_with_what_is_lacking_named(predicted, tmp_path):
    predictions, folder = predicted
    result = export.run(predictions, tmp_path, to=ALL, data_dir=folder)
    with (predictions / "predictions.csv").open(encoding="utf-8", newline="") as file:
        stated = list(csv.DictReader(file))
    with (tmp_path / "export.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, of in zip(rows, stated, strict=True):
        if of["error"]:
            assert (row["written"], of["error"] in row["notes"]) == ("", True)
            continue
        expected = rle.decode(of["rle"], (int(of["height"]), int(of["width"])))
        masks = masks_in(tmp_path, row)
        assert {"png", "nifti"} <= set(masks)
        assert all(np.array_equal(mask, expected) for mask in masks.values())
        assert (row["area_px"], row["area_mm2"]) == (of["area_px"], of["area_mm2"])
        assert (
            row["rule"]
            == of["rule"]
            == "rule: top 0.6000, min area 2000 px of 1024², bottom 0.5000"
        )
        assert (row["refers_to"] == "") == of["file"].endswith(".png")
        assert (export.NO_DICOM in row["notes"]) == of["file"].endswith(".png")
    by_file = dict(zip([of["file"] for of in stated], rows, strict=True))
    assert by_file["b.dcm"]["written"].split() == [
        "seg/b.dcm", "png/b.png", "nifti/b.nii.gz", "secondary-capture/b.dcm",
    ]  # fmt: skip
    assert "png/a.png.png" in by_file["a.png"]["written"]  # a.dcm has that name too
    for row, sides in ((by_file["b.dcm"], [0.5, 0.25]), (by_file["c.dcm"], [1, 1])):
        seg = pydicom.dcmread(tmp_path / row["written"].split()[0])
        measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert measures.PixelSpacing == sides
    assert export.PLANE in str(result)
    zooms = nib.load(tmp_path / "nifti" / "b.nii.gz").header.get_zooms()
    assert zooms == (0.25, 0.5, 1)
    assert export.NO_SPACING in by_file["c.dcm"]["notes"]
    assert export.NO_SPACING not in by_file["b.dcm"]["notes"]
    derived = by_file["a.dcm"]
    assert derived["refers_to"].startswith("2.25.")
    copied = pydicom.dcmread(tmp_path / "radiographs" / "a.dcm.dcm")
    assert copied.SOPInstanceUID == derived["refers_to"]
    own = pydicom.dcmread(folder / "a.dcm")
    assert np.array_equal(copied.pixel_array, own.pixel_array)
    assert result.written["radiographs"] == 1
    assert "SOPInstanceUID" in str(result)


def test_an_unreadable_radiograph_is_named_and_the_rest_goes_on(predicted, tmp_path):
    predictions, folder = predicted
    copied = shutil.copytree(folder, tmp_path / "radiographs")
    (copied / "b.dcm").write_bytes(b"no image")
    (copied / "c.dcm").unlink()
    larger = pydicom.dcmread(copied / "d.dcm")
    larger.Rows, larger.Columns = 64, 256
    larger.save_as(copied / "d.dcm")
    out = tmp_path / "out"
    result = export.run(predictions, out, to=ALL, data_dir=copied)
    rows = table(out)
    for image_id, fault in (("b", "b.dcm"), ("c", export.NO_DICOM), ("d", "its mask 128×128")):
        kinds = {name.split("/")[0] for name in rows[image_id]["written"].split()}
        assert kinds == {"png", "nifti"}
        assert fault in rows[image_id]["notes"]
        assert fault in str(result)
    assert result.written["seg"] == 1


def test_another_export_replaces_the_earlier_one(ensemble, phantoms, tmp_path):
    export.run(ensemble, tmp_path, to="seg,png", data_dir=phantoms, test=True)
    export.run(ensemble, tmp_path, to="nifti")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.csv", "nifti"]
    assert len(table(tmp_path)) == len(list((tmp_path / "nifti").iterdir())) == 24


def test_an_export_stopped_before_its_table_is_made_again(predicted, tmp_path, monkeypatch):
    def stopped(*args, **how):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(csv, "DictWriter", stopped)
        with pytest.raises(KeyboardInterrupt):
            export.run(predicted[0], tmp_path / "out")
    assert table(tmp_path / "out") == {}
    export.run(predicted[0], tmp_path / "out")
    assert table(tmp_path / "out")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"to": "seg"}, "--to seg refers to the radiographs' DICOM files.*--data DIR"),
        ({"to": "png,secondary-capture"}, "--to secondary-capture refers to .*--data DIR"),
        ({"to": "pgn"}, "--to pgn is not a kind; nearest: png"),
        ({"to": " , "}, "names no kind"),
        ({"to": "png", "test": True}, "--data DIR"),
        ({"to": "png", "fractional": True}, "--fractional is of DICOM segmentations"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(ensemble, tmp_path, how, says):
    with pytest.raises(InputError, match=says):
        export.run(ensemble, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_radiographs_of_others_are_refused(ensemble, phantoms, predicted, tmp_path):
    predictions, radiographs = predicted
    (tmp_path / "none").mkdir()
    for folder, data, test, says in (
        (ensemble, radiographs, False, "holds none of the 24 images"),
        (ensemble, radiographs, True, "holds none of the 4 test images"),
        (predictions, tmp_path / "none", False, r"holds none of the 7 files.*a\.dcm first"),
    ):
        with pytest.raises(InputError, match=says):
            export.run(folder, tmp_path / "out", to="seg", data_dir=data, test=test)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in radiographs.glob("*.png"):
        shutil.copy(path, pictures)
    with pytest.raises(InputError, match="no DICOM file of these images, to which --to seg refers"):
        export.run(predictions, tmp_path / "out", to="seg", data_dir=pictures)
    with pytest.raises(InputError, match="--test is of an ensemble"):
        export.run(predictions, tmp_path / "out", test=True)
    with pytest.raises(InputError, match="--fractional needs probability maps"):
        export.run(predictions, tmp_path / "out", to="seg", data_dir=radiographs, fractional=True)


@pytest.mark.parametrize("lost", ["thresholds.json", "submission.csv"])
def test_results_that_are_missing_are_named(ensemble, phantoms, tmp_path, lost):
    folder = shutil.copytree(ensemble.parents[1], tmp_path / "work") / "ensembles" / ensemble.name
    (folder / lost).unlink()
    with pytest.raises(InputError, match=rf"{lost} is missing"):
        export.run(folder, tmp_path / "out", data_dir=phantoms, test=True)
    with pytest.raises(InputError, match="no ensemble's folder but a run's"):
        export.run(folder.parents[1] / "runs" / RUN / "fold0", tmp_path / "out")


HEADER = ",".join(predict_files.COLUMNS) + "\n"


@pytest.mark.parametrize("content", ["", "file,image_id\na.png,a\n", "\xff", HEADER + "a.png,a\n"])
def test_a_damaged_prediction_is_refused(tmp_path, content):
    (tmp_path / "predictions.csv").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"predictions\.csv .*run predict again"):
        export.run(tmp_path, tmp_path / "out")


def test_a_package_that_is_not_installed_is_named(ensemble, phantoms, tmp_path, monkeypatch):
    for kind, package in (("seg", "highdicom"), ("nifti", "nibabel")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(InputError, match=rf"{package} is not installed.*\.\[export\]"):
            export.run(ensemble, tmp_path / "out", to=f"png,{kind}", data_dir=phantoms)
    export.run(ensemble, tmp_path / "out", to="png")


def test_a_folder_of_other_files_is_not_written_to(ensemble, tmp_path):
    for name in ("notes.txt", "png/mine.png"):
        out = tmp_path / name.replace("/", "-")
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
        with pytest.raises(InputError, match=f"holds {name.split('/')[0]}, and no earlier export"):
            export.run(ensemble, out)
        assert (out / name).read_text() == "mine"
    with pytest.raises(InputError, match="is a file"):
        export.run(ensemble, tmp_path / "notes.txt" / "notes.txt")


def test_the_command_line(ensemble, phantoms, tmp_path):
    out = tmp_path / "out"
    arguments = ["export", ensemble, "--data", phantoms, "-o", out, "--to", "png,seg", "--test"]
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert "4 images, 3 with a mask" in done.output
    wrong = CliRunner().invoke(main, ["export", str(ensemble), "-o", str(out), "--to", "dicom"])
    assert wrong.exit_code == 1
    assert "--to dicom is not a kind" in wrong.output


def test_no_kernel_carries_it():
    for stage in STAGES:
        assert {"export", "stages/export.py", "stages/export_results.py"} <= set(
            sources.left_out(stage)
        )
