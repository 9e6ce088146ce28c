"""Phantoms: they follow from the seed, look like the real table in number, and read as DICOM."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from kernel_lib.data import rle
from kernel_lib.errors import InputError
from tools.phantoms.competition import (
    AREA_MEDIAN_PX,
    AREA_RANGE_PX,
    TEST_TRUTH,
    Case,
    cases,
    draw_case,
    generate,
    write_competition,
)

SIZE = 256
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("phantoms")
    write_competition(path, 40, 12, size=SIZE, seed=11, positives=0.5)
    return path


def rows_of(path: Path) -> tuple[str, dict[str, list[str]]]:
    header, *lines = path.read_text().splitlines()
    rows: dict[str, list[str]] = defaultdict(list)
    for image_id, value in csv.reader(lines):
        rows[image_id].append(value)
    return header, rows


def case(area_px: float, number: int = 0, patient: int = 3) -> Case:
    return Case("1.2.3", patient, number, area_px, seed=5)


def test_the_same_seed_gives_the_same_pixels() -> None:
    first = list(generate(6, 128, seed=4, positives=0.5))
    again = list(generate(6, 128, seed=4, positives=0.5))
    other = list(generate(6, 128, seed=5, positives=0.5))
    for (case_a, a), (case_b, b) in zip(first, again, strict=True):
        assert case_a == case_b
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.mask, b.mask)
    for (_, a), (_, b) in zip(first, other, strict=True):
        assert not np.array_equal(a.image, b.image)


@pytest.mark.parametrize("n", [1, 9, 350, 2000])
@pytest.mark.parametrize("positives", [0.0, 0.22, 1.0])
def test_the_share_of_positives_is_exact(n: int, positives: float) -> None:
    drawn = cases(n, positives=positives)
    assert len(drawn) == n
    assert sum(case.area_px > 0 for case in drawn) == round(positives * n)
    assert len({case.image_id for case in drawn}) == n


def test_areas_are_spread_as_the_real_ones_are() -> None:
    areas = np.array([case.area_px for case in cases(12_000, seed=2) if case.area_px])
    low, median, high = np.quantile(areas, [0.05, 0.5, 0.95])
    assert median == pytest.approx(AREA_MEDIAN_PX, rel=0.1)
    assert low == pytest.approx(1_363, rel=0.25)
    assert high == pytest.approx(45_772, rel=0.25)
    assert areas.min() >= AREA_RANGE_PX[0]
    assert areas.max() <= AREA_RANGE_PX[1]


def test_patients_have_several_images_and_some_both_kinds() -> None:
    drawn = cases(12_000, seed=2)
    counts = Counter(case.patient for case in drawn)
    assert 0.25 < np.mean([n > 1 for n in counts.values()]) < 0.4  # real: 1,952 of 6,171
    assert 1.6 < len(drawn) / len(counts) < 2.3  # real: 1.95
    kinds = defaultdict(set)
    for case in drawn:
        kinds[case.patient].add(case.area_px > 0)
    assert sum(len(kind) == 2 for kind in kinds.values()) > 200


@pytest.mark.parametrize("area_px", [55, 1_400, 8_600, 46_000])
@pytest.mark.parametrize("size", [128, 256, 512])
def test_the_mask_has_the_area_asked_for(area_px: float, size: int) -> None:
    phantom = draw_case(case(area_px), size=size, difficulty=0.5)
    wanted = max(1, round(area_px * (size / 1024) ** 2))
    assert phantom.image.shape == phantom.mask.shape == (size, size)
    assert phantom.image.dtype == phantom.mask.dtype == np.uint8
    # Two pockets may share the rounding, or overlap by little.
    assert int(phantom.mask.sum()) == pytest.approx(wanted, rel=0.02, abs=1)


def test_more_air_than_a_lung_holds_is_cut_and_without_air_there_is_no_mask() -> None:
    phantom = draw_case(case(1e6), size=128, difficulty=0.5)
    assert 0 < phantom.mask.mean() < 0.35
    phantom = draw_case(case(0), size=128, difficulty=0.5)
    assert not phantom.mask.any()
    assert phantom.parts == ()


def test_the_mask_is_the_union_of_parts_that_may_overlap() -> None:
    several = overlapping = 0
    for one, phantom in generate(60, 128, seed=8, positives=1.0):
        union = np.bitwise_or.reduce(phantom.parts)
        np.testing.assert_array_equal(union, phantom.mask)
        assert all(part.any() for part in phantom.parts), one
        several += len(phantom.parts) > 1
        overlapping += sum(int(part.sum()) for part in phantom.parts) > int(phantom.mask.sum())
    assert several >= 10  # real: 624 of 2,669
    assert overlapping >= 3


def test_a_patient_is_recognised_in_another_projection() -> None:
    first, same, other = (
        draw_case(case(0, number=number, patient=patient), size=64, difficulty=0.2).image
        for number, patient in ((0, 3), (1, 3), (1, 4))
    )
    assert not np.array_equal(first, same)
    assert not np.array_equal(same, other)


def test_air_is_darker_and_smoother_than_the_lung_it_took_and_less_so_when_difficult() -> None:
    darker = []
    for difficulty in (0.1, 1.0):
        with_air = draw_case(case(30_000, patient=21), size=SIZE, difficulty=difficulty)
        without = draw_case(case(0, patient=21), size=SIZE, difficulty=difficulty)
        inside = cv2.erode(with_air.mask, np.ones((5, 5), np.uint8)) > 0
        difference = without.image[inside].astype(float) - with_air.image[inside]
        darker.append(difference.mean())
    assert darker[0] > 10
    assert darker[0] > 2 * darker[1]


def test_files_are_nested_jpeg_baseline_dicoms(folder: Path) -> None:
    for split, n in (("train", 40), ("test", 12)):
        files = sorted((folder / f"dicom-images-{split}").glob("*/*/*.dcm"))
        assert len(files) == n
        for path in files[:5]:
            data = pydicom.dcmread(path)
            assert data.file_meta.TransferSyntaxUID == JPEG_BASELINE
            assert path.stem == data.SOPInstanceUID
            assert path.parent.name == data.SeriesInstanceUID
            assert path.parent.parent.name == data.StudyInstanceUID
            assert path.stem.startswith("1.2.276.")
            assert data.PatientID
            assert data.pixel_array.shape == (SIZE, SIZE)
            assert data.pixel_array.dtype == np.uint8


def test_the_file_shows_what_was_drawn(folder: Path) -> None:
    drawn = cases(40, seed=11, positives=0.5)[0]
    path = next(folder.glob(f"dicom-images-train/*/*/{drawn.image_id}.dcm"))
    image = draw_case(drawn, size=SIZE, difficulty=0.5).image.astype(int)
    assert np.abs(pydicom.dcmread(path).pixel_array - image).mean() < 4  # JPEG loses a little


def test_labels_are_written_as_in_the_real_table(folder: Path) -> None:
    header, rows = rows_of(folder / "train-rle.csv")
    assert header == "ImageId, EncodedPixels"
    assert all(value.startswith(" ") for values in rows.values() for value in values)
    drawn = {case.image_id: case for case in cases(40, seed=11, positives=0.5)}
    assert rows.keys() == drawn.keys()
    assert sum(values == [" -1"] for values in rows.values()) == 20
    assert any(len(values) > 1 for values in rows.values())
    for image_id in [name for name, values in rows.items() if len(values) > 1][:3]:
        mask = draw_case(drawn[image_id], size=SIZE, difficulty=0.5).mask
        decoded = [rle.decode(value.strip(), (SIZE, SIZE)) for value in rows[image_id]]
        np.testing.assert_array_equal(np.bitwise_or.reduce(decoded), mask)


def test_sample_and_truth_name_the_test_images(folder: Path) -> None:
    files = {path.stem for path in (folder / "dicom-images-test").rglob("*.dcm")}
    header, sample = rows_of(folder / "sample_submission.csv")
    assert header == "ImageId,EncodedPixels"
    assert sample.keys() == files
    assert all(values == ["-1"] for values in sample.values())
    _, truth = rows_of(folder / TEST_TRUTH)
    assert truth.keys() == files
    assert sum(values != ["-1"] for values in truth.values()) == 6


def test_no_patient_is_in_both_train_and_test(folder: Path) -> None:
    patients = [
        {
            pydicom.dcmread(path, stop_before_pixels=True).PatientID
            for path in (folder / f"dicom-images-{split}").rglob("*.dcm")
        }
        for split in ("train", "test")
    ]
    assert all(patients)
    assert not patients[0] & patients[1]


def test_one_process_writes_the_same_as_two(folder: Path, tmp_path: Path) -> None:
    write_competition(tmp_path, 40, 12, size=SIZE, seed=11, positives=0.5, workers=1)
    for name in ("train-rle.csv", TEST_TRUTH, "sample_submission.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    path = next(folder.glob("dicom-images-test/*/*/*.dcm")).relative_to(folder)
    assert (tmp_path / path).read_bytes() == (folder / path).read_bytes()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"size": 32}, "size 32"),
        ({"size": 64, "difficulty": 1.2}, "difficulty 1.2"),
        ({"size": 64, "positives": -0.1}, "positives -0.1"),
    ],
)
def test_settings_out_of_bounds_are_refused(tmp_path: Path, settings: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        write_competition(tmp_path, 2, 1, **settings)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="already holds"):
        write_competition(folder, 1, 1, size=64)
