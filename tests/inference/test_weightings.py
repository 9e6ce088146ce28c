"""Histograms of many weightings at once, against each mean map by itself."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_lib.artifacts import maps
from kernel_lib.data import rle
from kernel_lib.inference import weightings
from kernel_lib.inference.weightings import Packed, Shape, Store, Weights, histograms, pack

KINDS = ("pixels", "border", "blobs", "noise", "low", "zero", "full", "corners")
TRUTHS = ("empty", "full", "border", "block", "noise")


def level_map(kind: str, shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Return a map (h, w) uint8; all but a few pixels are 0 in most kinds."""
    levels = np.zeros(shape, np.uint8)
    if kind == "pixels":
        levels.ravel()[random.integers(0, levels.size, 3)] = random.integers(1, 256, 3)
    elif kind == "border":
        levels[[0, -1]] = random.integers(0, 256, shape[1])
        levels[:, [0, -1]] = random.integers(0, 256, (shape[0], 1))
    elif kind == "corners":
        levels[[[0], [-1]], [0, -1]] = random.integers(1, 256, (2, 2))
    elif kind == "blobs":
        for _ in range(3):
            top, left = (int(random.integers(0, side)) for side in shape)
            blob = levels[top : top + 1 + shape[0] // 6, left : left + 1 + shape[1] // 6]
            blob[:] = random.integers(0, 256, blob.shape)
    elif kind in ("noise", "low"):
        levels[:] = random.integers(0, 256 if kind == "noise" else 40, shape)
    elif kind == "full":
        levels[:] = 255
    return levels


def truth_of(kind: str, shape: Shape, random: np.random.Generator) -> rle.Runs:
    mask = np.zeros(shape, np.uint8)
    if kind == "full":
        mask[:] = 1
    elif kind == "border":
        mask[[0, -1]] = mask[:, [0, -1]] = 1
    elif kind == "block":
        mask[shape[0] // 4 : shape[0] // 2, shape[1] // 3 :] = 1
    elif kind == "noise":
        mask[:] = random.random(shape) < 0.3
    return rle.runs_of(mask)


def expected(
    levels: Sequence[np.ndarray], weights: Weights, truth: rle.Runs, shape: Shape
) -> np.ndarray:
    """Return the counts (2, 256) of the mean map by the functions that define them."""
    used = [at for at, weight in enumerate(weights) if weight]
    mean = maps.mean([levels[at] for at in used], [weights[at] for at in used])
    stats = maps.statistics(mean, rle.to_string(truth), shape)
    return np.stack([stats.hist_all, stats.hist_true])


def check(
    levels: Sequence[np.ndarray],
    shape: Shape,
    many: Sequence[Weights],
    truth: rle.Runs,
) -> None:
    found = histograms(pack(levels, shape), many, truth)
    assert found.shape == (len(many), 2, 256)
    for weights, counts in zip(many, found, strict=True):
        np.testing.assert_array_equal(counts, expected(levels, weights, truth, shape))


def weights_of(n: int) -> st.SearchStrategy[Weights]:
    """Draw a weight per member, some of them above 0: whole, also in all above 128, or real."""
    whole = st.one_of(st.integers(0, 3), st.sampled_from([0, 1, 30, 64, 128, 200]))
    real = st.sampled_from([0.0, 0.1, 0.7, 1.0, 1.5, 1 / 3, 250.25])
    return st.one_of(*(st.tuples(*[each] * n).filter(any) for each in (whole, real)))


@st.composite
def images(draw) -> tuple[list[np.ndarray], Shape, list[Weights], rle.Runs]:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    side = st.sampled_from([1, 3, 8, 12, 15, 16, 20, 24, 32, 40, 48])
    sizes = draw(st.lists(st.tuples(side, side), min_size=1, max_size=3))
    if draw(st.booleans()):  # all square, as networks' maps are
        sizes = [(h, h) for h, _ in sizes]
    shape = draw(
        st.one_of(
            st.sampled_from([(h * k, w * k) for h, w in sizes for k in (1, 2, 4)]),
            st.sampled_from([(h * k * 4 // 3, w * k) for h, w in sizes for k in (1, 2)]),
            st.tuples(side, side),
        )
    )
    n = draw(st.integers(1, 4))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=n, max_size=n))
    levels = [level_map(k, sizes[at % len(sizes)], random) for at, k in enumerate(kinds)]
    many = draw(st.lists(weights_of(n), min_size=1, max_size=6))
    truth = truth_of(draw(st.sampled_from(TRUTHS)), shape, random)
    return levels, shape, many, truth


@settings(max_examples=400)
@given(images())
def test_counts_are_those_of_each_mean_map_by_itself(image) -> None:
    check(*image)


SIZES = {
    "256": ([256] * 3, (1024, 1024)),
    "320": ([320] * 2, (1024, 1024)),
    "384": ([384] * 2, (1024, 1024)),
    "512": ([512] * 3, (1024, 1024)),
    "640": ([640] * 2, (1024, 1024)),
    "768": ([768] * 2, (1024, 1024)),
    "1024": ([1024] * 2, (1024, 1024)),
    "not resized": ([512] * 3, (512, 512)),
    "whole only": ([250] * 2, (1024, 1024)),
    "not square": ([512] * 2, (700, 640)),
    "one side resized": ([512] * 2, (512, 1024)),
    "smaller": ([1024] * 2, (512, 512)),
    "mixed": ([256, 512, 1024, 640], (1024, 1024)),
    "mixed, small": ([384, 250, 384], (768, 768)),
}


@pytest.mark.parametrize("name", SIZES)
def test_counts_of_the_sizes_of_networks(name: str) -> None:
    sides, shape = SIZES[name]
    random = np.random.default_rng(len(name))
    kinds = ("blobs", "border", "corners", "pixels")
    levels = [
        np.maximum(level_map("blobs", (side, side), random), level_map(kind, (side, side), random))
        for side, kind in zip(sides, kinds, strict=False)
    ]
    n = len(sides)
    each = [tuple(int(m == at) for m in range(n)) for at in range(n)]
    smaller = tuple(int(side < max(sides)) or int(len(set(sides)) == 1) for side in sides)
    many = [*each, smaller, (1,) * n, tuple(range(1, n + 1)), (0.7,) * (n - 1) + (1.1,)]
    check(levels, shape, many, truth_of("block", shape, random))


def test_a_network_s_map_is_cut_into_bands_and_dense_noise_is_counted_too() -> None:
    random = np.random.default_rng(0)
    sparse = level_map("corners", (512, 512), random)
    packed = pack([sparse], (1024, 1024))
    of_bands = packed.by_size[512, 512].levels
    assert of_bands.size < sparse.size / 100, "else nothing is won"
    noise = [level_map("noise", (512, 512), random) for _ in range(2)]
    check(noise, (1024, 1024), [(1, 0), (1, 1)], truth_of("noise", (1024, 1024), random))


def test_many_weightings_of_a_draw_are_computed_some_at_a_time(monkeypatch) -> None:
    random = np.random.default_rng(2)
    levels = [level_map("blobs", (48, 48), random) for _ in range(5)]
    many = [tuple(int(w) for w in random.integers(1, 7, 5)) for _ in range(40)]
    truth = truth_of("block", (96, 96), random)
    packed = pack(levels, (96, 96))
    together = histograms(packed, many, truth)
    for at_once_px in (1, packed.by_size[48, 48].levels[0].size * 3):
        monkeypatch.setattr(weightings, "_AT_ONCE_PX", at_once_px)
        np.testing.assert_array_equal(histograms(packed, many, truth), together)
    check(levels, (96, 96), many, truth)


@pytest.mark.parametrize("weights", [(1, 1), (2, 2), (3, 1), (1, 5), (30, 30), (64, 64), (65, 65)])
def test_means_halfway_between_two_levels_are_rounded_as_maps_are(weights: Weights) -> None:
    first, second = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    check([first, second], (256, 256), [weights, weights[::-1], (1, 0)], rle.NO_RUNS)


@pytest.mark.parametrize("weights", [(0, 0), (-1, 2), (-1.5, 2), (float("nan"), 1)])
def test_weights_that_make_no_mean_are_refused(weights: Weights) -> None:
    packed = pack([np.full((8, 8), 9, np.uint8)] * 2, (16, 16))
    with pytest.raises(ValueError, match=r"."):
        histograms(packed, [weights], rle.NO_RUNS)


@pytest.fixture
def grids_forgotten() -> Iterator[None]:
    weightings._grid.cache_clear()
    yield
    weightings._grid.cache_clear()


@pytest.mark.usefixtures("grids_forgotten")
def test_a_map_is_not_cut_where_its_parts_are_resized_differently(monkeypatch) -> None:
    """Another build of OpenCV may resize small images by other code than large ones."""
    random = np.random.default_rng(3)
    levels = [level_map("blobs", (32, 32), random), level_map("border", (32, 32), random)]
    assert not weightings._grid((32, 32), (64, 64)).is_whole
    weightings._grid.cache_clear()
    resize = cv2.resize

    def differs(image: np.ndarray, size: tuple[int, int], **how) -> np.ndarray:
        resized = resize(image, size, **how)
        if image.shape != (32, 32):
            resized[resized == 200] = 201
        return resized

    monkeypatch.setattr(cv2, "resize", differs)
    check(levels, (64, 64), [(1, 0), (1, 1), (2, 1)], truth_of("block", (64, 64), random))
    assert weightings._grid((32, 32), (64, 64)).is_whole


# The store of packed maps.


def packed_images(n: int) -> list[Packed]:
    random = np.random.default_rng(5)
    return [pack([level_map("noise", (32, 32), random)] * 2, (64, 64)) for _ in range(n)]


def assert_same(some: Packed, others: Packed) -> None:
    assert (some.shape, some.sizes) == (others.shape, others.sizes)
    many = [(1, 0), (2, 3)]
    found, again = (histograms(packed, many, rle.NO_RUNS) for packed in (some, others))
    np.testing.assert_array_equal(found, again)


def test_a_store_keeps_images_once_it_is_open_and_leaves_nothing_on_the_disk(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images, store = packed_images(3), Store()
    store.put(0, images[0])
    assert not store.is_open
    assert store.get(0) is None
    store.open()
    assert store.is_open
    for at, packed in enumerate(images):
        store.put(at, packed)
    store.open()  # again: nothing is lost
    for at in (2, 0, 1, 0):
        assert_same(store.get(at), images[at])
    assert store.get(3) is None
    assert list(tmp_path.iterdir()) == [], "not even while it is used"
    store.close()
    assert not store.is_open
    assert store.get(0) is None


def test_what_goes_beyond_a_store_s_size_is_not_kept(monkeypatch) -> None:
    images, store = packed_images(3), Store()
    sizes = [len(packed.to_bytes()) for packed in images]
    monkeypatch.setattr(weightings, "STORE_BYTES", sum(sizes[:2]))
    store.open()
    for at, packed in enumerate(images):
        store.put(at, packed)
    assert_same(store.get(0), images[0])
    assert_same(store.get(1), images[1])
    assert store.get(2) is None
    store.close()


def test_what_a_full_disk_has_no_room_for_is_not_kept() -> None:
    """The images before and after it are."""
    images, store = packed_images(4), Store()
    ends = np.cumsum([len(packed.to_bytes()) for packed in images]).tolist()
    store.open()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    store.put(0, images[0])
    try:  # files of this process can grow to the middle of the next image
        resource.setrlimit(resource.RLIMIT_FSIZE, (sum(ends[:2]) // 2, hard))
        store.put(1, images[1])
        store.put(2, images[2])
        assert_same(store.get(0), images[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.get(1) is None
    assert store.get(2) is None
    store.put(3, images[3])
    assert_same(store.get(3), images[3])
    assert_same(store.get(0), images[0])
    store.close()
