"""Segmentations and secondary captures: valid, equal to their mask, and of their radiograph."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import uid

from kernel_lib.data import images
from kernel_lib.errors import InputError
from kernel_lib.export import dicom_files
from kernel_lib.export.dicom_files import Reference

hd = pytest.importorskip("highdicom")
SIZE = 128
RULE = "rule: top 0.5, min area 10 px of 1024²"
MASK = np.zeros((SIZE, SIZE), np.uint8)
MASK[5:40, 90:100] = 1
MASK[60:64, 3] = 1
BAD_AGE = pydicom.dataelem.DataElement("PatientAge", "AS", "46", already_converted=True)


def faults(path: Path) -> list[str]:
    """Return the errors of dciodvfy."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("no dciodvfy: Debian's package dicom3tools has it")
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]


@pytest.fixture
def radiograph(phantoms, tmp_path) -> Callable[..., Path]:
    """`radiograph(**elements)` writes a phantom with these elements, None to remove one."""

    def write(**elements) -> Path:
        dataset = pydicom.dcmread(sorted((phantoms / "dicom-images-test").rglob("*.dcm"))[0])
        for keyword, value in elements.items():
            if value is None:
                del dataset[keyword]
            elif isinstance(value, pydicom.DataElement):
                dataset[keyword] = value
            else:
                setattr(dataset, keyword, value)
        path = tmp_path / "radiograph.dcm"
        dataset.save_as(path)
        return path

    return write


def segmentation(
    path: Path, pixels: np.ndarray = MASK, plane: tuple[float, float] | None = None
) -> tuple[Path, list[str]]:
    reference, target = Reference.read(path), path.with_name("seg.dcm")
    return target, dicom_files.write_segmentation(target, reference, pixels, "net", RULE, plane)


def capture(path: Path, mask: np.ndarray = MASK) -> Path:
    reference, target = Reference.read(path), path.with_name("capture.dcm")
    pixels = images.read(path)
    dicom_files.write_secondary_capture(target, reference, pixels, mask, "net", RULE)
    return target


def pixels_read(seg: Path) -> np.ndarray:
    """The pixels (H, W) as a reader finds them, by the radiograph's UID."""
    read = hd.seg.segread(seg)
    ((_, _, referred),) = read.get_source_image_uids()
    return read.get_pixels_by_source_instance([referred])[0, ..., 0]


@pytest.mark.parametrize("plane", [None, (0.5, 0.25)])
@pytest.mark.parametrize("mask", [MASK, MASK * 0, MASK * 0 + 1], ids=["some", "none", "all"])
def test_a_mask_is_read_back_bit_for_bit(radiograph, mask, plane):
    path = radiograph()
    seg, notes = segmentation(path, mask, plane)
    assert np.array_equal(pixels_read(seg), mask)
    assert (faults(seg), notes) == ([], [])
    own, made = pydicom.dcmread(path), pydicom.dcmread(seg)
    ((study, series, referred),) = hd.seg.segread(seg).get_source_image_uids()
    assert (study, referred) == (own.StudyInstanceUID, own.SOPInstanceUID)
    assert series == own.SeriesInstanceUID != made.SeriesInstanceUID
    assert (made.StudyInstanceUID, made.PatientID) == (own.StudyInstanceUID, own.PatientID)
    (segment,) = made.SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Pneumothorax"
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, segment.SegmentAlgorithmName) == ("net", "net")
    for text in (made.SeriesDescription, made.ContentDescription, segment.SegmentDescription):
        assert "not for clinical use" in text
    assert RULE in segment.SegmentDescription
    assert RULE in algorithm.AlgorithmParameters
    shared = made.SharedFunctionalGroupsSequence[0]
    assert ("PlaneOrientationSequence" in shared) == (plane is not None)
    if plane is not None:
        assert shared.PixelMeasuresSequence[0].PixelSpacing == list(plane)
    assert "FrameOfReferenceUID" not in made


def test_a_map_is_read_back_in_its_levels(radiograph):
    levels = np.arange(SIZE * SIZE, dtype=np.int64).reshape(SIZE, SIZE) * 7 % 256
    seg, _ = segmentation(radiograph(), levels / np.float32(255))
    made = pydicom.dcmread(seg)
    assert np.array_equal(made.pixel_array, levels)
    assert (made.SegmentationType, made.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    assert made.MaximumFractionalValue == 255
    assert faults(seg) == []


@pytest.mark.parametrize(
    ("elements", "noted"),
    [
        ({"PixelSpacing": [0.143, 0.2]}, "PixelSpacing"),
        ({"ImagerPixelSpacing": [0.143, 0.2]}, None),
        ({"PixelSpacing": [0.1, 0.1], "FrameOfReferenceUID": "1.2.3"}, None),
        ({"SOPClassUID": uid.ComputedRadiographyImageStorage, "PixelSpacing": [1, 1]}, "Pixel"),
        ({"SOPClassUID": uid.DigitalXRayImageStorageForPresentation}, None),
        ({"PixelSpacing": [0, 0]}, None),
        ({"PixelSpacing": 0.5}, None),
        ({"PixelSpacing": ""}, None),
        ({"BodyPartExamined": "HAND", "Laterality": "L"}, None),
        ({"BodyPartExamined": None}, None),
        ({"PatientID": None, "PatientName": None, "Modality": None}, None),
        ({"PatientOrientation": ["L", "F"], "BurnedInAnnotation": "YES"}, None),
    ],
)
def test_radiographs_of_any_kind_are_referred_to(radiograph, elements, noted):
    path = radiograph(**elements)
    before = path.read_bytes()
    seg, notes = segmentation(path)
    assert np.array_equal(pixels_read(seg), MASK)
    assert len(notes) == (noted is not None)
    assert all(noted in note for note in notes)
    shown = pydicom.dcmread(capture(path))
    assert (faults(seg), faults(path.with_name("capture.dcm"))) == ([], [])
    own = pydicom.dcmread(path)
    for keyword in ("Laterality", "BurnedInAnnotation", "LossyImageCompressionMethod"):
        assert shown.get(keyword) == own.get(keyword)
    spacing = elements.get("PixelSpacing")
    assert shown.get("PixelSpacing") == (
        spacing if np.size(spacing) == 2 and all(spacing) else None
    )
    assert path.read_bytes() == before


def test_ids_that_are_no_uids_are_replaced_the_same_way_each_time(radiograph):
    elements = {"SOPInstanceUID": "ID_0a1", "StudyInstanceUID": "", "SeriesInstanceUID": ""}
    path = radiograph(**elements, PatientAge=BAD_AGE)
    reference, again = Reference.read(path), Reference.read(path)
    ids = [str(reference.dataset[keyword].value) for keyword in dicom_files.UIDS]
    assert len(set(ids)) == 3
    assert all(one.startswith("2.25.") and uid.UID(one).is_valid for one in ids)
    assert ids == [str(again.dataset[keyword].value) for keyword in dicom_files.UIDS]
    assert reference.is_derived
    assert all(name in reference.notes[0] for name in dicom_files.UIDS)
    assert "PatientAge" in reference.notes[1]
    seg, _ = segmentation(path)
    assert np.array_equal(pixels_read(seg), MASK)
    assert (faults(seg), faults(capture(path))) == ([], [])
    first, same, other, placed = (
        pydicom.dcmread(segmentation(path, mask, plane)[0]).SOPInstanceUID
        for mask, plane in ((MASK, None), (MASK, None), (MASK[::-1], None), (MASK, (1, 1)))
    )
    assert first == same
    assert len({first, other, placed}) == 3
    other = Reference.read(radiograph(**elements | {"SOPInstanceUID": "ID_0a2"}))
    assert str(other.dataset.StudyInstanceUID) not in ids


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (None, "Doe^John"),
        ("ISO_IR 100", "Müller^Zoë"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ],
)
def test_names_and_rules_are_read_in_any_character_set(radiograph, charset, name):
    elements = {} if charset is None else {"SpecificCharacterSet": charset}
    path = radiograph(**elements, PatientName=name)
    for made in (segmentation(path)[0], capture(path)):
        read = pydicom.dcmread(made)
        assert read.PatientName == name
        assert faults(made) == []
    assert RULE in read.DerivationDescription


def test_valid_ids_stay(radiograph):
    path = radiograph()
    reference = Reference.read(path)
    own = pydicom.dcmread(path)
    assert reference.notes == ()
    assert not reference.is_derived
    assert all(
        reference.dataset[keyword].value == own[keyword].value for keyword in dicom_files.UIDS
    )


def test_a_capture_is_the_radiograph_with_the_contour(radiograph):
    path = radiograph()
    grey = images.read(path)
    made = pydicom.dcmread(capture(path))
    picture = made.pixel_array
    assert (picture.shape, made.PhotometricInterpretation) == ((SIZE, SIZE, 3), "RGB")
    drawn = (picture != grey[..., None]).any(axis=2)
    inner = cv2.erode(MASK, np.ones((3, 3), np.uint8))
    upper = np.s_[: SIZE * 3 // 4]  # below stands the text
    assert np.array_equal(drawn[upper], (MASK - inner).astype(bool)[upper])
    assert drawn[SIZE * 3 // 4 :].any()
    assert tuple(picture[5, 95]) == (0x4F, 0xC3, 0xF7)
    assert made.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert "not for clinical use" in made.DerivationDescription
    assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == Reference.read(path).uid
    assert "BurnedInAnnotation" not in made  # which is of names and dates, and not known
    empty = pydicom.dcmread(capture(path, MASK * 0)).pixel_array
    assert not (empty != grey[..., None]).any(axis=2)[upper].any()


def test_a_mask_of_another_size_is_refused(radiograph):
    path = radiograph()
    for make in (segmentation, capture):
        with pytest.raises(InputError, match=r"128×128, its mask 64×64"):
            make(path, MASK[:64, :64])


def test_a_header_that_does_not_do_is_refused_by_what_it_lacks(radiograph):
    with pytest.raises(InputError, match="SOPClassUID"):
        segmentation(radiograph(SOPClassUID=None))


def test_a_damaged_header_is_written_of_or_refused(radiograph):
    path = radiograph(PatientAge=BAD_AGE, PixelSpacing=[0.1, 0.1])
    intact, rng, written = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(150):
        damaged = bytearray(intact)
        for at in rng.integers(132, 900, 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            seg, _ = segmentation(path)
        except InputError:
            continue
        assert np.array_equal(pydicom.dcmread(seg).pixel_array, MASK)
        written += 1
    assert 0 < written < 150


def test_without_the_packages_the_extra_is_named(radiograph, monkeypatch):
    path = radiograph()
    monkeypatch.setitem(sys.modules, "highdicom", None)
    for make in (segmentation, capture):
        with pytest.raises(
            InputError, match=r"highdicom is not installed.*pip install \.\[export\]"
        ):
            make(path)
