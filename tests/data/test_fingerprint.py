"""Fingerprints: copies of a radiograph are known again, other radiographs are not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_lib.data import fingerprint, images
from kernel_lib.data.phantom import cases, draw_case

N_REAL = 40


def jpeg(levels: np.ndarray, quality: int) -> np.ndarray:
    coded = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE)


def smaller(levels: np.ndarray, by: int) -> np.ndarray:
    return cv2.resize(levels, None, fx=1 / by, fy=1 / by, interpolation=cv2.INTER_AREA)


def toned(levels: np.ndarray, gamma: float = 1, contrast: float = 1, lift: float = 0) -> np.ndarray:
    grey = (np.linspace(0, 1, 256) ** gamma - 0.5) * contrast + 0.5 + lift
    return np.clip(np.rint(255 * grey), 0, 255).astype(np.uint8)[levels]


COPIES = {
    "itself": lambda x: x.copy(),
    "half": lambda x: smaller(x, 2),
    "quarter": lambda x: smaller(x, 4),
    "jpeg": lambda x: jpeg(x, 50),
    "small jpeg": lambda x: jpeg(smaller(x, 2), 75),
    "brighter": lambda x: toned(x, lift=0.05),
    "more contrast": lambda x: toned(x, contrast=1.05),
    "less contrast": lambda x: toned(x, contrast=0.95),
    "gamma up": lambda x: toned(x, gamma=1.25),
    "gamma down": lambda x: toned(x, gamma=0.8),
}


@pytest.fixture(scope="module")
def phantoms() -> list[np.ndarray]:
    return [draw_case(c, size=256, difficulty=0.5).image for c in cases(16, seed=3)]


@pytest.fixture(scope="module")
def radiographs(shared_data) -> list[np.ndarray]:
    files = sorted((shared_data / "stage2-silver").rglob("*.dcm"))[:N_REAL]
    if len(files) < N_REAL:
        pytest.skip("no stage2-silver")
    return [images.read(path) for path in files]


def prints(pictures: list[np.ndarray]) -> np.ndarray:
    return np.stack([fingerprint.of(x) for x in pictures])


def diagonal(n: int) -> list[list[int]]:
    return [[i, i] for i in range(n)]


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_phantoms_match_their_originals_and_nothing_else(phantoms, name):
    copies = prints([COPIES[name](x) for x in phantoms])
    found = fingerprint.matches(copies, prints(phantoms))
    assert found.tolist() == diagonal(len(phantoms))


def test_copies_of_radiographs_match_with_margin_on_both_sides(radiographs):
    original = prints(radiographs)
    others = ~np.eye(len(original), dtype=bool)
    assert (original @ original.T)[others].max() < fingerprint.THRESHOLD - 0.2
    for name, copy in COPIES.items():
        alike = prints([copy(x) for x in radiographs]) @ original.T
        assert alike[~others].min() > fingerprint.THRESHOLD + 0.15, name
        assert alike[others].max() < fingerprint.THRESHOLD - 0.2, name


def test_another_picture_of_the_same_patient_is_another_image():
    of_patient = {}
    for case in cases(40, seed=3):
        of_patient.setdefault(case.patient, []).append(case)
    pair = next(found for found in of_patient.values() if len(found) > 1)[:2]
    a, b = prints([draw_case(c, size=256, difficulty=0.5).image for c in pair])
    assert a @ b < fingerprint.THRESHOLD


def test_a_fingerprint_is_of_unit_length_and_the_same_from_any_size(phantoms):
    for shape in ((256, 256), (64, 64), (300, 200), (20, 20)):
        one = fingerprint.of(cv2.resize(phantoms[0], shape[::-1]))
        assert one.shape == (1024,)
        assert one.dtype == np.float32
        assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_film_matches_nothing_not_even_another(level):
    blank = fingerprint.of(np.full((256, 256), level, np.uint8))
    assert not blank.any()
    assert len(fingerprint.matches(blank[None], blank[None])) == 0


def test_a_turned_a_flipped_and_an_inverted_picture_do_not_match(phantoms):
    original = fingerprint.of(phantoms[0])
    for changed in (phantoms[0][:, ::-1], phantoms[0].T, 255 - phantoms[0]):
        assert fingerprint.of(np.ascontiguousarray(changed)) @ original < fingerprint.THRESHOLD


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 9), m=st.integers(0, 5), seed=st.integers(0, 999), block=st.integers(1, 4),
    threshold=st.integers(-9, 9),
)  # fmt: skip
def test_matches_in_blocks_are_those_of_every_pair(n, m, seed, block, threshold):
    rng = np.random.default_rng(seed)
    these, those = (rng.integers(-3, 4, (k, 6)).astype(np.float32) for k in (n, m))
    wanted = [[i, j] for i in range(n) for j in range(m) if float(these[i] @ those[j]) >= threshold]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "_BLOCK", block)
        found = fingerprint.matches(these, those, threshold)
    assert found.dtype == np.int64
    assert found.shape == (len(wanted), 2)
    assert found.tolist() == wanted
