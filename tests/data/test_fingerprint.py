"""Fingerprints: copies of a radiograph are known again, other radiographs are not."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pandas as pd
import pytest

from kernel_lib.data import cache, fingerprint, images
from tools.phantoms.competition import cases, draw_case

N_REAL = 40
DRAWN = "2:QJjSkgeFQF5c6sYUep5mcxZJu3LduAT6wWyCEStoUDqLuPk+RVFBG67fIlrZAi76/a3NWglpohF81m/k25df3Q"


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


def codes(pictures: list[np.ndarray]) -> list[str]:
    return [fingerprint.code(x) for x in pictures]


def differing(these: list[str], those: list[str]) -> np.ndarray:
    """Bits that differ, (N, M), counted from the text."""

    def bits(code: str) -> np.ndarray:
        text = code.split(":")[1]
        return np.unpackbits(np.frombuffer(base64.b64decode(text + "=="), np.uint8))

    return np.array([[int((bits(a) != bits(b)).sum()) for b in those] for a in these])


def diagonal(n: int) -> list[list[int]]:
    return [[i, i] for i in range(n)]


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_phantoms_match_their_originals_and_nothing_else(phantoms, name):
    copies = codes([COPIES[name](x) for x in phantoms])
    result = fingerprint.matches(copies, codes(phantoms))
    assert result.tolist() == diagonal(len(phantoms))


def test_copies_of_radiographs_match_with_margin_on_both_sides(radiographs):
    original = codes(radiographs)
    others = ~np.eye(len(original), dtype=bool)
    assert differing(original, original)[others].min() > fingerprint.MOST_DIFFERING + 20
    for name, copy in COPIES.items():
        alike = differing(codes([copy(x) for x in radiographs]), original)
        assert alike[~others].max() < fingerprint.MOST_DIFFERING - 20, name
        assert alike[others].min() > fingerprint.MOST_DIFFERING + 20, name


def test_another_picture_of_the_same_patient_is_another_image():
    of_patient = {}
    for case in cases(40, seed=3):
        of_patient.setdefault(case.patient, []).append(case)
    pair = next(result for result in of_patient.values() if len(result) > 1)[:2]
    a, b = codes([draw_case(c, size=256, difficulty=0.5).image for c in pair])
    assert len(fingerprint.matches([a], [b])) == 0


def test_a_fingerprint_is_of_unit_length_and_the_same_from_any_size(phantoms):
    for shape in ((256, 256), (64, 64), (300, 200), (20, 20)):
        result = fingerprint.of(cv2.resize(phantoms[0], shape[::-1]))
        assert result.shape == (1024,)
        assert result.dtype == np.float32
        assert np.linalg.norm(result) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_film_matches_nothing_not_even_another(level):
    blank = fingerprint.code(np.full((256, 256), level, np.uint8))
    assert fingerprint.is_code(blank)
    assert len(fingerprint.matches([blank], [blank])) == 0


def test_a_turned_a_flipped_and_an_inverted_picture_do_not_match(phantoms):
    changed = (phantoms[0][:, ::-1], phantoms[0].T, 255 - phantoms[0])
    result = codes(list(map(np.ascontiguousarray, changed)))
    assert len(fingerprint.matches(result, codes(phantoms[:1]))) == 0


def test_a_code_is_that_of_every_version_of_numpy_and_every_machine():
    rows, columns = np.mgrid[:64, :64]
    picture = ((rows * 7 + columns * columns) % 256).astype(np.uint8)
    assert (
        differing([fingerprint.code(picture)], [DRAWN]) < 9
    )  # a sum near 0 may end on either side


@pytest.mark.parametrize("text", ["", "1:" + "A" * 86, "2:AAAA"])
def test_what_is_no_code_of_this_version_matches_nothing(text):
    assert len(fingerprint.matches([text], [text])) == 0
    assert not fingerprint.is_code(text)


def flipped(code: str, n: int) -> str:
    """The code with its first n bits turned over."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(code[2:] + "=="), np.uint8))
    bits[:n] ^= 1
    return "2:" + base64.b64encode(np.packbits(bits).tobytes()).decode().rstrip("=")


def test_as_many_bits_as_are_said_may_differ_and_no_more(phantoms):
    (code,) = codes(phantoms[:1])
    at, beyond = (flipped(code, fingerprint.MOST_DIFFERING + more) for more in (0, 1))
    assert fingerprint.matches([code], [beyond, at]).tolist() == [[0, 1]]


@pytest.mark.parametrize("block", [1, 3, 100])
def test_matches_in_blocks_are_those_of_every_pair(phantoms, block, monkeypatch):
    those = codes(phantoms[:5])
    these = [those[k] for k in (4, 0, 0, 2)] + codes(phantoms[6:8])
    monkeypatch.setattr(fingerprint, "_BLOCK", block)
    result = fingerprint.matches(these, those)
    assert result.dtype == np.int64
    assert result.tolist() == [[0, 4], [1, 0], [2, 0], [3, 2]]
    assert fingerprint.matches([], those).shape == fingerprint.matches(these, []).shape == (0, 2)


def test_codes_of_a_cache_are_kept_until_an_image_changes(phantoms, tmp_path, monkeypatch):
    rows = []
    for i, image in enumerate(phantoms[:3]):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        rows.append((f"i{i}", str(tmp_path / f"{i}.png")))
    frame = pd.DataFrame(rows, columns=["image_id", "path"])

    def result() -> tuple[str, ...]:
        where = (tmp_path, 128, tmp_path / "cache", "test")
        return fingerprint.codes(cache.prepare(frame, *where, workers=1))

    first = result()
    assert fingerprint.matches(first, codes(phantoms[:3])).tolist() == diagonal(3)
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "code", None)
        assert result() == first
    next(tmp_path.glob("cache/**/fingerprints.json")).write_text("{")
    assert result() == first
    cv2.imwrite(str(tmp_path / "1.png"), phantoms[3])
    assert fingerprint.matches(result(), codes(phantoms[:4])).tolist() == [[0, 0], [1, 3], [2, 2]]
