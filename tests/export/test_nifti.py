"""NIfTI files: which axis is which, and how large a pixel is."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from kernel_lib.errors import InputError
from kernel_lib.export import nifti

nib = pytest.importorskip("nibabel")


@pytest.mark.parametrize("spacing", [(0.5, 0.25), None])
def test_columns_run_to_the_left_and_rows_to_the_feet(tmp_path, spacing):
    mask = np.zeros((4, 6), np.uint8)
    mask[1, 2:5] = 1  # row 1, from column 2 on
    nifti.write(tmp_path / "mask.nii.gz", mask, spacing)
    read = nib.load(tmp_path / "mask.nii.gz")
    pixels = np.asarray(read.dataobj)
    assert (pixels.shape, pixels.dtype) == ((6, 4, 1), np.uint8)
    assert np.array_equal(np.argwhere(pixels), [[2, 1, 0], [3, 1, 0], [4, 1, 0]])
    assert nib.aff2axcodes(read.affine) == ("L", "I", "P")
    rows, columns = spacing or (1, 1)
    assert read.header.get_zooms() == (columns, rows, 1)
    assert read.header.get_xyzt_units()[0] == "mm"
    # In patient space (right, forward, up): column 2 lies to the left, row 1 below.
    assert np.allclose(read.affine @ [2, 1, 0, 1], [-2 * columns, 0, -rows, 1])


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(InputError, match=r"nibabel is not installed.*pip install \.\[export\]"):
        nifti.write(tmp_path / "mask.nii.gz", np.zeros((4, 6), np.uint8), None)
