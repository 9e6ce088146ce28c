"""Orientations that differ from a frontal radiograph's are named, others are not."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from kernel_lib.data.dicom_orientation import orientation_notes, view_notes


def header(**elements) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


@pytest.mark.parametrize(
    "dataset",
    [
        header(),
        header(PatientOrientation=""),
        header(PatientOrientation=["", ""]),
        header(PatientOrientation="L"),
        header(PatientOrientation=["L", "F"]),
        header(PatientOrientation=["LP", "FR"]),
        header(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
        header(ImageOrientationPatient=[0.9, 0.1, 0, 0, 0.1, -0.9]),
        header(ImageOrientationPatient=[0, 0, 0, 0, 0, 0]),
    ],
)
def test_frontal_or_unknown(dataset):
    assert orientation_notes(dataset) == []


@pytest.mark.parametrize(
    ("dataset", "row", "column"),
    [
        (header(PatientOrientation=["R", "F"]), "R", "F"),
        (header(PatientOrientation=["L", "H"]), "L", "H"),
        (header(PatientOrientation=["F", "R"]), "F", "R"),
        (header(PatientOrientation=["A", "F"]), "A", "F"),
        (header(ImageOrientationPatient=[-1, 0, 0, 0, 0, -1]), "R", "F"),
        (header(ImageOrientationPatient=[1, 0, 0, 0, 0, 1]), "L", "H"),
        (header(ImageOrientationPatient=[0, 0, -1, 1, 0, 0]), "F", "L"),
        (header(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "P", "F"),
        (header(ImageOrientationPatient=[0, -1, 0, 0, 0, -1]), "A", "F"),
    ],
)
def test_others_are_named(dataset, row, column):
    (note,) = orientation_notes(dataset)
    assert f" {row} " in note
    assert f" {column} " in note


@pytest.mark.parametrize(
    ("elements", "tags"),
    [
        ({}, []),
        ({"ViewPosition": "PA", "BodyPartExamined": "CHEST"}, []),
        ({"ViewPosition": "", "BodyPartExamined": "THORAX PORTABLE"}, []),
        ({"ViewPosition": "LLD"}, []),  # lying on a side, still frontal
        ({"ViewPosition": "LL"}, ["ViewPosition"]),
        ({"ViewPosition": "RL"}, ["ViewPosition"]),
        ({"ViewPosition": "lateral "}, ["ViewPosition"]),
        ({"BodyPartExamined": "FOOT"}, ["BodyPartExamined"]),
        ({"ViewPosition": "LL", "BodyPartExamined": "SKULL"}, ["ViewPosition", "BodyPartExamined"]),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_lateral_views_and_other_parts_are_named(elements, tags):
    notes = view_notes(header(**elements))
    assert [note.split()[0] for note in notes] == tags
