"""NIH images beside folds: no patient of fold k and no test image trains fold k's classifier."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from kernel_lib.config import TrainParameters
from kernel_lib.data import cache_store, fingerprint, folds, images, labels, nih, table
from kernel_lib.errors import InputError
from kernel_lib.stages import nih as stage
from tools.phantoms.nih import write_nih

SIZE = 64
N_FOLDS = 3
N_TEST, N_OTHER = 4, 8


@pytest.fixture(scope="module")
def written(phantoms, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """NIH images at 96 px that hold all of the phantoms', and the test image of each copy."""
    folder = tmp_path_factory.mktemp("written") / "nih"
    return folder, write_nih(folder, phantoms, N_OTHER, size=96)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def prepare(written, source, cache):
    """Prepare the NIH images of a training."""

    def prepared(frame: pd.DataFrame, work: Path, images=source, **options) -> stage.NihImages:
        folders = {"nih_dir": str(written[0]), "cache_dir": str(cache)}
        given = folders | {k: str(v) for k, v in options.items()}
        parameters = TrainParameters(n_folds=N_FOLDS, workers=1, **given)
        return stage.prepare(parameters, SIZE, work, frame, images)

    return prepared


@pytest.fixture(scope="module")
def source(phantoms) -> table.Source:
    return table.discover(phantoms)


def drawn(source: table.Source, groups: dict[str, str] | None = None) -> pd.DataFrame:
    """folds.csv of the competition, with these patients."""
    frame = source.train[["image_id", "rle"]].assign(height=128, width=128)
    frame["area_px"] = (frame["rle"] != "-1").astype(int)
    frame["group"] = [(groups or {}).get(image_id, "") for image_id in frame["image_id"]]
    frame["fold"] = folds.draw(frame, N_FOLDS)
    return frame


@pytest.fixture(scope="module")
def by_table(written, source) -> pd.DataFrame:
    return drawn(source, labels.read_groups(written[0] / "nih_id.csv"))


def test_no_image_of_a_fold_s_patients_trains_its_classifier(prepare, source, by_table, tmp_path):
    found = prepare(by_table, tmp_path)
    assert found.past_known
    original = {
        image_id: fingerprint.code(images.read(path))
        for image_id, path in source.train[["image_id", "path"]].itertuples(index=False)
    }
    for fold in range(N_FOLDS):
        held = by_table[by_table["fold"] == fold]
        rows = found.truth[found.truth["fold"] != fold]
        assert set(rows["group"]).isdisjoint(held["group"])
        # And by the pixels, which no table can get wrong.
        seen = [found.fingerprints[i] for i in rows.index]
        those = [original[image_id] for image_id in held["image_id"]]
        assert len(fingerprint.matches(seen, those)) == 0
        mine = found.truth[found.truth["fold"] == fold]
        assert set(mine["group"]) == set(held["group"])
        assert len(mine) > len(held)  # images of its patients that the competition lacks
    assert (found.truth["fold"] == -1).sum() == N_OTHER


def test_no_copy_of_a_test_image_trains_in_any_nor_another_of_its_patient(
    prepare, written, source, by_table, tmp_path
):
    found, (folder, planted) = prepare(by_table, tmp_path), written
    listed = nih.read(folder).set_index("image_id")["patient"]
    assert len(planted) == N_TEST
    patients = {listed[name] for name in planted}
    assert set(found.truth["group"]).isdisjoint(patients)
    of_them = set(listed.index[listed.isin(patients)])
    assert len(of_them) > N_TEST
    assert {image.image_id for image in found.excluded} == of_them
    assert json.loads((tmp_path / stage.NIH_LEFT_OUT).read_text()) == [
        str(image) for image in found.excluded
    ]
    test = [fingerprint.code(images.read(path)) for path in source.test["path"]]
    assert len(fingerprint.matches(found.fingerprints, test)) == 0
    name = min(planted)
    reason = next(image.reason for image in found.excluded if image.image_id == name)
    assert "has the pixels of the test image 1.2.276.0.7230010.3.1.4." in reason


def test_truth_is_by_the_rows_of_what_was_decoded(prepare, written, by_table, tmp_path):
    found = prepare(by_table, tmp_path)
    truth = found.truth
    assert list(truth.columns) == [
        "image_id", "fold", "group", "rle", "height", "width", "area_px", "positive",
    ]  # fmt: skip
    assert truth["image_id"].tolist() == found.prepared.table["image_id"].tolist()
    assert len(found.prepared) == len(truth)
    assert truth.index.tolist() == list(range(len(truth)))
    listed = nih.read(written[0]).set_index("image_id")
    for i in range(0, len(truth), 5):
        row = truth.iloc[i]
        shown = images.read(listed["path"][row["image_id"]])
        shown = cv2.resize(shown, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(found.prepared.image(i), shown)
        assert not found.prepared.mask(i).any()
        assert row["positive"] == listed["positive"][row["image_id"]]
        assert row["group"] == listed["patient"][row["image_id"]]
        assert (row["rle"], row["area_px"], row["height"], row["width"]) == ("-1", 0, 96, 96)
    assert truth["positive"].dtype == bool
    assert 0 < truth["positive"].sum() < len(truth)


def test_without_a_table_the_past_is_unknown_and_patients_are_drawn_into_folds(
    prepare, source, by_table, tmp_path, capsys
):
    dicom = {row.image_id: images.patient_of(row.path) for row in source.train.itertuples()}
    for groups in ({}, dicom):  # a DICOM's own patient is no NIH patient
        found = prepare(drawn(source, groups), tmp_path)
        assert not found.past_known
        assert "no score that descends from them is honest. -p GROUPS" in capsys.readouterr().out
        assert set(found.truth["fold"]) == set(range(N_FOLDS))
        assert found.truth.groupby("group")["fold"].nunique().max() == 1
    again = prepare(drawn(source), tmp_path)
    pd.testing.assert_frame_equal(again.truth, found.truth)
    known = prepare(by_table, tmp_path)
    assert known.excluded == found.excluded  # test images are left out either way


def test_one_image_without_a_patient_makes_the_past_unknown(prepare, written, source, tmp_path):
    groups = labels.read_groups(written[0] / "nih_id.csv")
    del groups[max(groups)]
    frame = drawn(source, groups)
    found = prepare(frame, tmp_path)
    assert not found.past_known
    fold = dict(zip(frame["group"], frame["fold"], strict=True))
    assert found.truth["fold"].tolist() == [fold.get(p, -1) for p in found.truth["group"]]


def test_a_copy_under_another_id_in_another_coding_is_caught(
    prepare, phantoms, source, by_table, tmp_path
):
    mine = tmp_path / "nih"
    write_nih(mine, phantoms, 2, n_test=0, size=96)
    levels = cv2.resize(images.read(source.test["path"].iat[2]), (256, 256))
    levels = cv2.imdecode(cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 0)
    # As an RGBA file of a patient who has another, innocent image.
    patient = nih.read(mine)["patient"].max()
    copy = f"{patient}_077.png"
    cv2.imwrite(str(mine / copy), cv2.cvtColor(levels, cv2.COLOR_GRAY2BGRA))
    with open(mine / "Data_Entry_2017.csv", "a") as csv:
        csv.write(f"{copy},Hernia,77,{int(patient)},50,F,PA,2500,2048,0.17,0.17,\n")
    found = prepare(by_table, tmp_path / "work", nih_dir=mine)
    assert f"{patient}_077" not in set(found.truth["image_id"])
    assert patient not in set(found.truth["group"])
    image_id = source.test["image_id"].iat[2]
    assert list(map(str, found.excluded)) == [
        f"{name}: its patient's {patient}_077 has the pixels of the test image {image_id}"
        for name in (f"{patient}_000", f"{patient}_077")
    ]


def test_a_second_call_decodes_and_compares_nothing_and_a_changed_file_is_seen(
    prepare, phantoms, source, by_table, tmp_path, monkeypatch
):
    mine, cache_dir = tmp_path / "nih", tmp_path / "cache"
    write_nih(mine, phantoms, 3, n_patients=4, n_test=0, n_more=0, size=SIZE)
    options = {"nih_dir": mine, "cache_dir": cache_dir}
    first = prepare(by_table, tmp_path / "work", **options)
    assert first.excluded == []
    with monkeypatch.context() as patch:
        patch.setattr(cache_store, "fill", None)
        patch.setattr(fingerprint, "code", None)
        second = prepare(by_table, tmp_path / "work", **options)
    pd.testing.assert_frame_equal(first.truth, second.truth)
    # A file that becomes a copy of a test image afterwards.
    last = nih.read(mine).iloc[-1]
    cv2.imwrite(last["path"], images.read(source.test["path"].iat[0]))
    third = prepare(by_table, tmp_path / "work", **options)
    assert last["patient"] in {image.image_id.split("_")[0] for image in third.excluded}
    assert last["patient"] not in set(third.truth["group"])


def test_missing_and_unreadable_images_are_listed(prepare, phantoms, by_table, tmp_path):
    mine = tmp_path / "nih"
    write_nih(mine, phantoms, N_OTHER, n_test=0, size=SIZE)
    paths = nih.read(mine)["path"]
    Path(paths.iat[-1]).unlink()
    Path(paths.iat[-2]).write_bytes(b"\x89PNG\r\n\x1a\n")
    options = {"nih_dir": mine, "cache_dir": tmp_path / "cache"}
    with pytest.raises(InputError, match="ON_BAD_FILE"):
        prepare(by_table, tmp_path / "work", **options)
    found = prepare(by_table, tmp_path / "work", on_bad_file="skip", **options)
    assert len(found.excluded) == 2
    assert "no file under" in found.excluded[0].reason
    assert "is cut short or damaged" in found.excluded[1].reason
    assert len(found.truth) == len(found.prepared) == len(paths) - 2


def test_without_test_images_a_note_says_what_cannot_be_done(
    prepare, source, by_table, tmp_path, capsys
):
    without = table.Source(source.root, source.layout, source.train, source.test.iloc[:0])
    found = prepare(by_table, tmp_path, without)
    assert "holds no test images, so NIH's copies" in capsys.readouterr().out
    assert found.excluded == []


def test_a_broken_test_image_is_named_and_matches_nothing(
    prepare, source, by_table, tmp_path, capsys
):
    (tmp_path / "broken.dcm").write_bytes(b"nothing")
    rows = pd.DataFrame({"image_id": ["broken"], "path": [str(tmp_path / "broken.dcm")]})
    other = table.Source(source.root, source.layout, source.train, rows)
    found = prepare(by_table, tmp_path, other, cache_dir=tmp_path / "cache")
    assert "broken: " in capsys.readouterr().out
    assert found.excluded == []


def test_no_folder_is_an_error_with_the_fix(source, by_table, tmp_path, monkeypatch):
    monkeypatch.setenv("KERNEL_LIB_MOUNTS", str(tmp_path))
    with pytest.raises(InputError, match="-p NIH_DIR FOLDER"):
        stage.prepare(TrainParameters(), SIZE, tmp_path, by_table, source)
