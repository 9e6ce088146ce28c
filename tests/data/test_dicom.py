"""Orientations that differ from a frontal radiograph's are named, others are not."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from kernel_lib.data.dicom import orientation_notes, view_notes


def header(**elements) -> Dataset:
    dataset = Dataset()
    dataset.update(elements)
    return dataset


@pytest.mark.parametrize(
    ("elements", "stated"),
    [
        ({}, None),
        ({"PatientOrientation": ""}, None),
        ({"PatientOrientation": ["", ""]}, None),
        ({"PatientOrientation": "L"}, None),
        ({"PatientOrientation": ["L", "F"]}, None),
        ({"PatientOrientation": ["LP", "FR"]}, None),
        ({"PatientOrientation": ["R", "F"]}, "RF"),
        ({"PatientOrientation": ["L", "H"]}, "LH"),
        ({"PatientOrientation": ["F", "R"]}, "FR"),
        ({"PatientOrientation": ["A", "F"]}, "AF"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, None),
        ({"ImageOrientationPatient": [0.9, 0.1, 0, 0, 0.1, -0.9]}, None),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, None),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, 0, -1]}, "RF"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}, "LH"),
        ({"ImageOrientationPatient": [0, 0, -1, 1, 0, 0]}, "FL"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "PF"),
        ({"ImageOrientationPatient": [0, -1, 0, 0, 0, -1]}, "AF"),
    ],
)
def test_orientations_other_than_frontal_are_named(elements, stated):
    notes = orientation_notes(header(**elements))
    wanted = [f"rows run towards {stated[0]} and columns towards {stated[1]}"] if stated else []
    assert [note.split(" by the header")[0] for note in notes] == wanted


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
