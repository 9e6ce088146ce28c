"""Masks as NIfTI files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kernel_lib.export import packages

CONVENTION = (
    "index (column, row, 0): columns run to the patient's left and rows to the feet (axes LIP), as "
    "frontal radiographs are shown; mm, 1 if no spacing is known"
)


def write(path: Path, mask: np.ndarray, spacing: tuple[float, float] | None) -> None:
    """Write a mask (H, W) 0/1 as a NIfTI image of shape (W, H, 1), uint8, in the coronal plane.

    spacing: between rows and between columns, mm; None: 1. The slice is 1 mm thick.
    Raises: InputError if nibabel is missing.
    """
    nib = packages.nibabel()
    rows, columns = spacing or (1, 1)
    # NIfTI's axes run right, anterior and up: columns go left, rows down, the slice posterior.
    affine = np.array([[-columns, 0, 0, 0], [0, 0, -1, 0], [0, -rows, 0, 0], [0, 0, 0, 1]], float)
    image = nib.Nifti1Image(np.ascontiguousarray(mask.T[..., None]), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
