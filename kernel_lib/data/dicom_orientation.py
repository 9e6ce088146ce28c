"""The view that a DICOM header states, and which way its rows and columns run."""

from __future__ import annotations

from collections.abc import Sequence

import pydicom

FRONTAL = ("L", "F")  # rows towards the patient's left, columns towards the feet
AXES = ("LR", "PA", "HF")  # of ImageOrientationPatient, positive and negative
LATERAL = ("LL", "RL", "LAT", "LATERAL")
NO_CHEST = (
    "ABDOMEN", "ANKLE", "ARM", "BREAST", "CSPINE", "ELBOW", "EXTREMITY", "FEMUR", "FINGER", "FOOT",
    "FOREARM", "HAND", "HEAD", "HIP", "HUMERUS", "JAW", "KNEE", "LEG", "LSPINE", "NECK", "PELVIS",
    "SHOULDER", "SKULL", "TOE", "WRIST",
)  # fmt: skip


def view_notes(dataset: pydicom.Dataset) -> list[str]:
    """Return a note where the header states a lateral view, or another part than the chest."""
    return [
        f"{tag} is {stated} by the header: not a frontal chest radiograph, read anyway"
        for tag, others in (("ViewPosition", LATERAL), ("BodyPartExamined", NO_CHEST))
        if (stated := str(dataset.get(tag) or "").strip().upper()) in others
    ]


def orientation_notes(dataset: pydicom.Dataset) -> list[str]:
    """Return a note where the header states another orientation than frontal radiographs have.

    Source: DICOM PS3.3 C.7.6.1.1.1 (PatientOrientation) and C.7.6.2.1.1.
    """
    stated = _stated(dataset)
    if stated in (None, FRONTAL):
        return []
    return [
        f"rows run towards {stated[0]} and columns towards {stated[1]} by the header, where "
        "frontal radiographs have L and F: left as stored"
    ]


def _stated(dataset: pydicom.Dataset) -> tuple[str, str] | None:
    """Return the letters of rows and columns; None where nothing usable is stated."""
    letters = dataset.get("PatientOrientation") or ""
    if not isinstance(letters, str) and len(letters) == 2 and all(letters):
        return letters[0][0].upper(), letters[1][0].upper()
    cosines = dataset.get("ImageOrientationPatient") or ""
    if isinstance(cosines, str) or len(cosines) != 6:
        return None
    row, column = list(map(float, cosines[:3])), list(map(float, cosines[3:]))
    return (_main(row), _main(column)) if any(row) and any(column) else None


def _main(direction: Sequence[float]) -> str:
    """Return the letter of the axis nearest to a direction (x, y, z)."""
    axis = max(range(3), key=lambda i: abs(direction[i]))
    return AXES[axis][direction[axis] < 0]
