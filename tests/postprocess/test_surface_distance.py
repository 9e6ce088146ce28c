"""Distances between boundaries equal brute force, scipy's own and a distance transform."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from scipy.spatial.distance import cdist, directed_hausdorff

from kernel_lib.errors import InputError
from kernel_lib.postprocess.surface_distance import boundary, directed_distances, surface_distance

PAIRS = array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


def edge_of(mask: np.ndarray) -> np.ndarray:
    """(n, 2) boundary pixels, by the erosion with a cross."""
    return np.argwhere(mask & ~ndimage.binary_erosion(mask))


@given(PAIRS)
def test_distances_are_those_of_all_pairs_of_boundary_pixels(pair) -> None:
    one, other = map(edge_of, pair)
    found = surface_distance(*pair)
    if not len(one) or not len(other):
        assert all(map(math.isnan, found))
        return
    between = cdist(one, other)
    there, back = between.min(axis=1), between.min(axis=0)
    assert found.hd95_px == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert found.assd_px == pytest.approx((there.sum() + back.sum()) / (len(one) + len(other)))
    assert surface_distance(*pair[::-1]) == pytest.approx(found)


@given(PAIRS.filter(lambda pair: pair[0].any() and pair[1].any()))
def test_the_largest_distance_is_scipy_s_hausdorff_and_its_distance_transform_s(pair) -> None:
    for distances, (mask, other) in zip(directed_distances(*pair), (pair, pair[::-1]), strict=True):
        edges = edge_of(mask), edge_of(other)
        assert distances.max() == pytest.approx(directed_hausdorff(*edges)[0])
        beyond = np.ones(mask.shape, bool)
        beyond[tuple(edges[1].T)] = False
        transform = ndimage.distance_transform_edt(beyond)
        np.testing.assert_allclose(distances, transform[tuple(edges[0].T)])


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 2))
)
def test_the_boundary_is_the_mask_without_its_erosion(mask) -> None:
    np.testing.assert_array_equal(boundary(mask), edge_of(mask != 0))


def test_edges() -> None:
    empty, full, corner, middle = (np.zeros((9, 12), np.uint8) for _ in range(4))
    full[:] = corner[0, 0] = middle[4, 6] = 1
    for pair in ((empty, empty), (empty, full), (full, empty)):
        assert all(map(math.isnan, surface_distance(*pair)))
    assert surface_distance(full, full) == (0, 0)
    assert surface_distance(corner, middle) == pytest.approx((math.hypot(4, 6),) * 2)
    assert len(boundary(full)) == 2 * 12 + 2 * 7, "at the image's border all beyond is outside"


def test_a_square_that_is_shifted_by_three_pixels() -> None:
    one, other = np.zeros((2, 60, 60), bool)
    one[10:40, 10:40] = other[13:43, 10:40] = True
    found = surface_distance(one, other)
    assert found.hd95_px == 3
    # Of 116 px: the 30 of the top edge are 3 beyond. On the bottom edge 24 are 3 inside, two at
    # each end nearer to a side, the last on it. Of the sides, two px of each are beyond a corner.
    assert found.assd_px == pytest.approx((30 * 3 + 24 * 3 + 2 * (1 + 2) + 2 * (1 + 2)) / 116)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="own size"):
        surface_distance(np.ones((3, 3)), np.ones((3, 4)))
