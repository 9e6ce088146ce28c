"""Masks of a user's own files: the inference stage's, for any name, format and fault."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from kernel_lib.artifacts.decision import Decision
from kernel_lib.data import images, rle
from kernel_lib.data.levels import FLAT
from kernel_lib.errors import InputError
from kernel_lib.kaggle import paths
from kernel_lib.postprocess import calibration, submission
from kernel_lib.stages import predict_files, release
from tests.stages.place import ON_CPU, Place


@pytest.fixture(scope="module")
def radiographs(phantoms, tmp_path_factory) -> Path:
    """Four DICOMs, two of them without an ending and one with a pixel spacing, and no table."""
    folder = tmp_path_factory.mktemp("radiographs")
    for n, path in enumerate(sorted((phantoms / "dicom-images-test").rglob("*.dcm"))):
        shutil.copy(path, folder / (path.name if n % 2 else path.stem))
    spaced = sorted(folder.iterdir())[0]
    dataset = pydicom.dcmread(spaced)
    dataset.PixelSpacing = [0.5, 1]
    dataset.save_as(spaced)
    return folder


@pytest.fixture(scope="module")
def ensemble(untrained) -> Path:
    return untrained / "ensembles" / "tiny"


SIZE = 128  # of the radiographs


def table(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def predict(*inputs: Path, out: Path, **how) -> predict_files.PredictResult:
    return predict_files.run(inputs, out, **(ON_CPU | how))


def test_masks_are_those_of_the_inference_stage(
    untrained, ensemble, radiographs, tmp_path, no_report
):
    shutil.copytree(untrained, tmp_path / "work")
    submitted = Place(tmp_path, radiographs).infer().submission
    out = tmp_path / "out"
    result = predict(radiographs, out=out, ensemble=ensemble)
    n = result.n_with_mask
    assert str(result).splitlines()[-4:-1] == [
        f"{out / 'masks'}: 4 masks as PNG, 0 and 255",
        f"{out / 'overlays'}: 4 radiographs with their masks' contours",
        f"{out / 'predictions.csv'}: 4 images, {n} with a mask, 0 files not read",
    ]
    rows = table(out)
    curve = Decision.load(ensemble).calibration
    expected = submission.read(submitted).set_index("image_id")["rle"]
    assert {row["image_id"]: row["rle"] for row in rows} == expected.to_dict()
    assert 0 < result.n_with_mask == (expected != "-1").sum()
    for row in rows:
        mask = cv2.imread(str(out / "masks" / f"{row['file']}.png"), cv2.IMREAD_UNCHANGED)
        assert (mask.dtype, set(np.unique(mask)) <= {0, 255}) == (np.uint8, True)
        assert np.array_equal(mask // 255, rle.decode(row["rle"], (SIZE, SIZE)))
        overlay = cv2.imread(str(out / "overlays" / f"{row['file']}.jpg"))
        assert overlay.shape == (SIZE, SIZE, 3)
        area = int(mask.astype(bool).sum())
        assert (int(row["area_px"]), float(row["area_px_1024"])) == (area, area * 64)
        assert 0 < float(row["label_probability"]) < 1
        assert 0 < float(row["max_probability"]) <= 1
        prob, bits = float(row["calibrated_probability"]), float(row["uncertainty"])
        assert bits == pytest.approx(float(calibration.entropy(prob)), abs=1e-3)
        if curve.score != "sum_prob":
            column = {"label": "label_probability", "max_prob": "max_probability"}[curve.score]
            assert prob == pytest.approx(float(curve(np.array([float(row[column])]))[0]), abs=0.01)
    spacing = [row["area_mm2"] for row in rows]
    assert float(spacing[0]) == int(rows[0]["area_px"]) * 0.5
    assert spacing[1:] == [""] * 3
    assert sorted(path.name for path in out.iterdir()) == ["masks", "overlays", "predictions.csv"]


def test_what_was_changed_in_images_is_noted(untrained, ensemble, tmp_path, no_report):
    shutil.copytree(untrained, tmp_path / "work")
    folder = tmp_path / "own"
    folder.mkdir()
    levels = np.arange(4096, dtype=np.uint8).reshape(64, 64)
    for name, pixels in (("a", levels), ("b", levels % 16), ("c", levels % 9)):
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
    predicted = predict(folder, out=tmp_path / "out", ensemble=ensemble)
    submitted = Place(tmp_path, folder).infer()
    for result in (predicted, submitted):
        (note,) = result.notes
        assert note.startswith(FLAT)
        assert f"2 of 3 images, {folder / 'b.png'} first" in note
        assert str(result).count(note) == 1


def test_every_format_is_recognised_and_no_name_is_written_over(ensemble, radiographs, tmp_path):
    folder, out = tmp_path / "mixed", tmp_path / "mixed" / "out"
    grey = images.read(sorted(radiographs.iterdir())[0])
    for name in ("a/x.png", "b/x.png", "b/x.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), cv2.resize(grey, (40, 48)))
    shutil.copy(sorted(radiographs.iterdir())[0], folder / "b" / "x")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "b" / "cut.png").write_bytes((folder / "a" / "x.png").read_bytes()[:200])
    for _ in range(2):  # what the first call wrote is no input of the second
        result = predict(folder, out=out, ensemble=ensemble)
        rows = table(out)
        names = ["a/x.png", "b/cut.png", "b/x", "b/x.jpg", "b/x.png"]
        assert [row["file"] for row in rows] == names
        assert [image.image_id for image in result.skipped] == ["b/cut.png"]
        assert "cut.png" in rows[1]["error"]
        assert rows[1]["rle"] == ""
        written = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
        names = [row["file"] for row in rows if not row["error"]]
        masks, overlays = {f"masks/{n}.png" for n in names}, {f"overlays/{n}.jpg" for n in names}
        assert written == {"predictions.csv"} | masks | overlays
    assert (rows[0]["height"], rows[0]["width"]) == ("48", "40")


def test_inputs_of_equal_names_are_told_apart(radiographs, tmp_path):
    for parent in ("one", "two"):
        shutil.copytree(radiographs, tmp_path / parent / "own")
    first = sorted(radiographs.iterdir())[0].name
    both = [tmp_path / "one" / "own", tmp_path / "two" / "own", tmp_path / "one" / "own" / first]
    found = predict_files.find_images(both)
    assert len(found) == 8
    assert [found[f"own/{first}"], found[f"own-2/{first}"]] == [both[0] / first, both[1] / first]


def test_masks_beside_images_are_left_out_with_a_note(radiographs, tmp_path, capsys):
    folder = tmp_path / "mine"
    grey = images.read(sorted(radiographs.iterdir())[0])
    kept = ["a.png", "b_mask.png", "deep/c.png"]
    masks = ["a_mask.png", "deep/c-seg.png", "masks/a.png", "deep/labels/c.png"]
    for name in (*kept, *masks):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), grey)
    assert list(predict_files.find_images([folder])) == kept
    (note,) = capsys.readouterr().out.splitlines()
    assert "4 masks" in note
    assert str(folder / "a_mask.png") in note
    # What is named is meant.
    assert list(predict_files.find_images([folder / "masks"])) == ["a.png"]
    assert list(predict_files.find_images([folder / "a_mask.png"])) == ["a_mask.png"]
    assert not capsys.readouterr().out


def test_files_that_are_no_images_are_counted_by_their_endings(radiographs, tmp_path, capsys):
    for name in ("a.tif", "b.TIF", "c.json", "README"):
        (tmp_path / name).write_text("no image")
    with pytest.raises(InputError, match=r"2 \.tif, .*1 \.json.*PNG"):
        predict_files.find_images([tmp_path])
    shutil.copy(sorted(radiographs.iterdir())[0], tmp_path / "z.dcm")
    capsys.readouterr()
    assert list(predict_files.find_images([tmp_path])) == ["z.dcm"]
    (note,) = capsys.readouterr().out.splitlines()
    for part in ("4 files", "2 .tif", "1 .json", "1 without suffix", "PNG", "README first"):
        assert part in note


def released(untrained: Path, ensemble: Path, path: Path) -> Path:
    """Write the first fold as a released model."""
    fold = untrained / "runs" / "tiny" / "fold0"
    release.run(fold, ensemble, "small", path, last=False, licence="MIT")
    return path


def test_a_released_model_predicts_as_the_network_it_was_made_of(
    untrained, ensemble, radiographs, tmp_path, monkeypatch
):
    models = tmp_path / "models"
    monkeypatch.setattr(paths, "models_dir", lambda: models)
    with pytest.raises(InputError, match=r"no released model is in .*models"):
        predict(radiographs, out=tmp_path / "out")
    released(untrained, ensemble, models / "small.safetensors")
    result = predict(radiographs, out=tmp_path / "out")
    assert "top 0.6000, min area 2000 px of 1024², bottom 0.5000" in result.rules[0]
    assert str(result).splitlines()[-1] == "Research only, not a medical device."

    alone = shutil.copytree(untrained, tmp_path / "work")
    members = alone / "ensembles" / "tiny" / "members.json"
    document = json.loads(members.read_text())
    document["members"][0]["folds"] = [0]
    members.write_text(json.dumps(document))
    rule = members.with_name("thresholds.json")
    rule.write_text(json.dumps(json.loads(rule.read_text()) | {"ensemble": document}))
    predict(radiographs, out=tmp_path / "full", ensemble=members.parent)
    # Half precision may move a pixel whose probability is a threshold, and no more.
    for half, full in zip(table(tmp_path / "out"), table(tmp_path / "full"), strict=True):
        a, b = (rle.decode(row["rle"], (SIZE, SIZE)) for row in (half, full))
        assert np.count_nonzero(a != b) <= 8
        assert abs(float(half["label_probability"]) - float(full["label_probability"])) < 0.002
        assert half["calibrated_probability"] == half["uncertainty"] == "", "it has no curve"
        assert 0 < float(full["calibrated_probability"]) < 1
    (models / "other.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"other, small: give --model NAME"):
        predict(radiographs, out=tmp_path / "out")
    with pytest.raises(InputError, match=r"other.safetensors is no readable model file"):
        predict(radiographs, out=tmp_path / "out", model="other")


def test_a_prediction_stopped_before_its_table_is_made_again(
    ensemble, radiographs, tmp_path, monkeypatch
):
    def stopped(*args, **how):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(csv, "DictWriter", stopped)
        with pytest.raises(KeyboardInterrupt):
            predict(radiographs, out=tmp_path / "out", ensemble=ensemble)
    assert (tmp_path / "out" / "masks").is_dir()
    assert table(tmp_path / "out") == []
    predict(radiographs, out=tmp_path / "out", ensemble=ensemble)
    assert len(table(tmp_path / "out")) == 4


def test_what_an_earlier_version_wrote_may_be_written_over(tmp_path):
    later = ("calibrated_probability", "uncertainty")
    earlier = [name for name in predict_files.COLUMNS if name not in later]
    for names, ours in ((earlier, True), (["file", "image_id", "other"], False), (["rle"], False)):
        (tmp_path / "predictions.csv").write_text(",".join(names) + "\n")
        assert predict_files._is_ours(tmp_path / "predictions.csv") is ours


@pytest.mark.slow
@pytest.mark.parametrize("who", ["ensemble", "model"])
def test_two_processes_write_what_one_writes(untrained, ensemble, radiographs, tmp_path, who):
    small = released(untrained, ensemble, tmp_path / "small.safetensors")
    by = {"ensemble": ensemble} if who == "ensemble" else {"model": str(small)}
    for processes in (1, 2):
        predict(radiographs, out=tmp_path / str(processes), processes=processes, batch_size=1, **by)
    assert table(tmp_path / "2") == table(tmp_path / "1")


def test_what_cannot_be_done_is_refused_before_anything_is_written(
    untrained, ensemble, radiographs, tmp_path
):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.dcm").write_bytes(b"no image")
    ruleless = shutil.copytree(untrained, tmp_path / "work") / "ensembles" / "tiny"
    (ruleless / "thresholds.json").unlink()
    (tmp_path / "file").touch()
    cases = [
        (empty, tmp_path / "out", ensemble, "no DICOM, PNG or JPEG file in .*empty"),
        (tmp_path / "gone", tmp_path / "out", ensemble, "gone does not exist"),
        (tmp_path / "bad", tmp_path / "out", ensemble, r"none of the 1 files can be read.*a\.dcm"),
        (radiographs, tmp_path / "out", empty, "empty is no ensemble's folder"),
        (radiographs, tmp_path / "out", ruleless, r"thresholds\.json is missing: the thresholds"),
        (radiographs, radiographs, ensemble, f"{radiographs} holds .*, and no earlier prediction"),
        (radiographs, tmp_path / "file", ensemble, "file is a file: give a folder"),
        (radiographs, Path("/proc/out"), ensemble, "/proc/out cannot be written"),
    ]
    for given, out, folder, pattern in cases:
        before = sorted(radiographs.iterdir())
        with pytest.raises(InputError, match=pattern) as error:
            predict(given, out=out, ensemble=folder)
        assert "\n" not in str(error.value)
        assert sorted(radiographs.iterdir()) == before
        assert not list(out.glob("*")) or out == radiographs
