from __future__ import annotations

import json
import struct
import tracemalloc
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kernel_lib import workers
from kernel_lib.artifacts import maps
from kernel_lib.data import pictures, rle
from kernel_lib.errors import InputError
from kernel_lib.postprocess.histograms import statistics

META = {"run": "a", "fold": 0, "lineage": {"images": ["x"]}}


def noise(seed: int, shape: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def some(n: int = 3) -> list[tuple[str, maps.Prediction]]:
    return [(f"1.2.{i}", maps.Prediction(noise(i))) for i in range(n)]


def test_every_level_is_met_exactly():
    levels = np.arange(256)
    prob = (levels / 255).astype(np.float32)
    assert maps.quantise(prob).tolist() == levels.tolist()


def test_a_probability_goes_to_the_nearest_level():
    middle = (np.arange(255) + 0.5) / 255
    assert maps.quantise(middle - 1e-5).tolist() == list(range(255))
    assert maps.quantise(middle + 1e-5).tolist() == list(range(1, 256))
    assert maps.quantise(np.array([0.0, 1.0])).tolist() == [0, 255]


def test_the_mean_of_equal_maps_is_the_map():
    level_map = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for n in (1, 2, 3, 7, 10):
        assert np.array_equal(maps.mean([level_map] * n), level_map)
        assert np.array_equal(maps.mean([level_map] * n, [0.1 + i for i in range(n)]), level_map)


def test_the_mean_is_of_probabilities_in_float_and_weighted():
    one, other = np.full((2, 2), 10, np.uint8), np.full((2, 2), 101, np.uint8)
    assert (maps.mean([one, other]) == np.rint(55.5)).all()
    assert (maps.mean([one, other], [3.0, 1.0]) == 33).all()  # 32.75
    for weights in ((2, 1), np.array([2, 1]), (np.uint8(2), np.uint8(1)), (2.0, 1.0)):
        assert (maps.mean([10 * one, other], weights) == 100).all()  # 100.33
    small = [np.full((4, 4), 200, np.uint8)] * 2
    for weights in (np.array([200, 100], np.uint8), np.array([100, 100], np.int8),
                    np.array([4e4, 4e4], np.float16), (1e308, 1e308)):  # fmt: skip
        assert (maps.mean(small, weights) == 200).all(), "no sum of weights overflows"
    for weights in ((0, 0), (1, -1), (float("nan"), 1), (1, float("inf"))):
        with pytest.raises(ValueError, match="not all numbers above 0"):
            maps.mean(small, weights)
    full = np.full((2, 2), 255, np.uint8)
    assert (maps.mean([full] * 5) == 255).all(), "no overflow of uint8"


def test_maps_of_several_sizes_meet_at_the_largest():
    small, large = noise(1, (16, 16)), noise(2, (32, 32))
    expected = np.rint((maps.at_shape(small, (32, 32)) / 2) + large / 2)
    assert np.abs(maps.mean([small, large]) - expected).max() <= 1
    assert maps.mean([small, large]).shape == (32, 32)


def test_the_image_s_own_shape_is_height_by_width():
    assert maps.at_shape(noise(0), (48, 80)).shape == (48, 80)
    level_map = noise(0)
    assert maps.at_shape(level_map, (32, 32)) is level_map
    assert (maps.at_shape(np.full((32, 32), 77, np.uint8), (100, 50)) == 77).all()


def test_statistics_are_taken_at_the_image_s_own_geometry():
    mask = np.zeros((40, 24), np.uint8)
    mask[3:9, 2:20] = 1
    stats = maps.statistics(noise(0), rle.encode(mask), (40, 24))
    expected = statistics(maps.at_shape(noise(0), (40, 24)), mask)
    assert stats.n_px == 40 * 24
    assert stats.hist_true.sum() == mask.sum()
    assert np.array_equal(stats.hist_true, expected.hist_true)
    assert np.array_equal(stats.hist_all, expected.hist_all)


def test_an_archive_gives_back_what_it_took(tmp_path):
    assert maps.write(tmp_path / "oof.zip", iter(some()), META) == 3
    archive = maps.Maps(tmp_path / "oof.zip")
    assert archive.ids == [image_id for image_id, _ in some()]
    assert (len(archive), archive.meta) == (3, META | {"images": 3})
    assert "1.2.0" in archive
    assert "1.2.9" not in archive
    for image_id, (level_map, *_) in some():
        assert np.array_equal(archive[image_id], level_map)
        assert archive.label(image_id) is None
    with pytest.raises(InputError, match=r"oof.zip holds no map of image 1.2.9"):
        archive["1.2.9"]


def test_labels_come_back_to_the_last_bit_with_maps_and_without(tmp_path):
    labels = {"1.2.0": 1 / 3, "1.2.1": 0.0, "1.2.2": 1.0}
    for name, shown in (("both", some()), ("alone", [(i, maps.Prediction(None)) for i in labels])):
        given = [(i, maps.Prediction(p.levels, labels[i])) for i, p in shown]
        assert maps.write(tmp_path / name, given, META) == 3
        archive = maps.Maps(tmp_path / name)
        assert {i: archive.label(i) for i in archive.ids} == labels
        assert (len(archive), archive.has_maps) == (3, name == "both")
    with pytest.raises(InputError, match=r"alone holds no map of image 1.2.0"):
        archive["1.2.0"]


def test_the_views_disagreement_comes_back_and_changes_no_other_byte(tmp_path):
    apart = {"1.2.0": 1 / 3, "1.2.1": 0.0, "1.2.2": 1.0}
    plain = [(i, p._replace(label=0.5)) for i, p in some()]
    maps.write(tmp_path / "old", plain, META)
    maps.write(tmp_path / "new", [(i, p._replace(disagreement=apart[i])) for i, p in plain], META)
    old, new = (maps.Maps(tmp_path / name) for name in ("old", "new"))
    assert {i: new.disagreement(i) for i in new.ids} == apart
    assert [old.disagreement(i) for i in old.ids] == [None] * 3
    with zipfile.ZipFile(tmp_path / "old") as before, zipfile.ZipFile(tmp_path / "new") as after:
        assert set(after.namelist()) - set(before.namelist()) == {"views.json"}
        assert all(before.read(name) == after.read(name) for name in before.namelist())


@pytest.mark.parametrize("value", [float("nan"), np.float32("nan"), float("inf")])
@pytest.mark.parametrize("drawn", [True, False])
def test_a_label_that_is_no_number_is_not_written(tmp_path, value, drawn):
    given = [(i, maps.Prediction(p.levels if drawn else None, 0.5)) for i, p in some()]
    given[1] = (given[1][0], given[1][1]._replace(label=value))
    words = r"probabilities of 1\.2\.1 .*-p PRECISION float32"
    with pytest.raises(FloatingPointError, match=words):
        maps.write(tmp_path / "oof.zip", given, META)
    assert list(tmp_path.iterdir()) == []


def test_no_table_of_an_archive_holds_what_json_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        maps.write(tmp_path / "oof.zip", some(), META | {"more": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("check", [maps.numbers, maps.quantise])
def test_probabilities_that_are_no_numbers_name_the_images_that_have_them(check):
    prob = np.full((3, 2, 2), 0.5, np.float32)
    check(prob)
    prob[1:, 0, 1] = np.nan
    with pytest.raises(FloatingPointError, match="probabilities of b, c are"):
        check(prob, ["a", "b", "c"])
    with pytest.raises(FloatingPointError, match="probabilities are not"):
        check(prob)


def test_a_label_enters_the_statistics_as_a_level(tmp_path):
    found = maps.statistics(noise(0), "-1", (6, 8), 0.5)
    assert found.label == 128
    assert maps.statistics(noise(0), "-1", (6, 8)).label is None


def test_the_same_maps_make_the_same_bytes(tmp_path):
    for name in "ab":
        maps.write(tmp_path / name, some(), META)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def by_hand(levels: np.ndarray) -> bytes:
    """The stored form of a map, a block after the other."""
    flat = levels.tobytes()
    blocks = [flat[at : at + 16].ljust(16, b"\0") for at in range(0, len(flat), 16)]
    bits = "".join("1" if any(block) else "0" for block in blocks)
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    packed = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    return struct.pack("<II", *levels.shape) + packed + b"".join(b for b in blocks if any(b))


SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70))
LEVELS = st.one_of(st.just(0), st.integers(0, 255))
MAPS = arrays.arrays(np.uint8, SHAPES, elements=LEVELS, fill=st.sampled_from([0, 0, 7, 255]))


def single(shape: tuple[int, int], at: tuple[int, int]) -> np.ndarray:
    level_map = np.zeros(shape, np.uint8)
    level_map[at] = 1
    return level_map


@given(MAPS)
@example(np.zeros((1, 1), np.uint8))
@example(np.full((1, 1), 255, np.uint8))
@example(np.zeros((33, 17), np.uint8))
@example(np.full((64, 64), 255, np.uint8))
@example(single((64, 64), (0, 0)))
@example(single((64, 64), (0, -1)))
@example(single((64, 64), (-1, 0)))
@example(single((33, 17), (-1, -1)))
@example(np.asfortranarray(noise(3, (20, 30))))
@example(noise(3, (40, 60))[::2, ::-3])
def test_any_map_comes_back_bit_for_bit(level_map):
    data = maps.encode(level_map)
    assert data == by_hand(level_map)
    decoded = maps.decode(data)
    assert (decoded.dtype, decoded.shape) == (np.uint8, level_map.shape)
    assert np.array_equal(decoded, level_map)
    assert decoded.flags.writeable


@given(MAPS, st.data())
def test_data_of_any_other_length_are_no_map(level_map, draw):
    data = maps.encode(level_map)
    assert maps.decode(data[: draw.draw(st.integers(0, len(data) - 1))]) is None
    assert maps.decode(data + draw.draw(st.binary(min_size=1, max_size=40))) is None


@given(st.binary(max_size=80), SHAPES)
def test_any_bytes_are_a_map_of_the_stated_size_or_none(content, shape):
    level_map = maps.decode(struct.pack("<II", *shape) + content)
    assert level_map is None or level_map.shape == shape


@pytest.mark.parametrize(
    "wrong", [noise(0).astype(np.float32), noise(0) > 9, noise(0)[0], noise(0)[None], noise(0)[:0]]
)
def test_what_is_no_map_is_not_written(tmp_path, wrong):
    with pytest.raises(ValueError, match="a map is"):
        maps.write(tmp_path / "oof.zip", [("a", maps.Prediction(wrong))], META)
    assert list(tmp_path.iterdir()) == []


def of_pngs(path: Path, images: list[tuple[str, maps.Prediction]]) -> None:
    """Write an archive as versions that stored PNGs did."""
    with zipfile.ZipFile(path, "w") as archive:
        for image_id, (level_map, *_) in images:
            png = cv2.imencode(".png", level_map, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1]
            archive.writestr(f"{image_id}.png", png.tobytes())
        archive.writestr("labels.json", json.dumps(dict.fromkeys((i for i, _ in images), 0.5)))
        archive.writestr("meta.json", json.dumps(META | {"images": len(images)}))


def test_an_archive_of_pngs_is_read_as_before(tmp_path):
    shown = [*some(), ("x.map", maps.Prediction(noise(9, (1, 40))))]
    of_pngs(tmp_path / "oof.zip", shown)
    archive = maps.Maps(tmp_path / "oof.zip")
    assert archive.ids == [image_id for image_id, _ in shown]
    archive.check()
    for image_id, (level_map, *_) in shown:
        assert np.array_equal(archive[image_id], level_map)
        assert archive.label(image_id) == 0.5


@pytest.mark.parametrize("ending", [".png", ".map", ".json"])
def test_an_id_may_end_as_a_member_does(tmp_path, ending):
    maps.write(tmp_path / "oof.zip", [(f"a{ending}", some()[0][1])], META)
    archive = maps.Maps(tmp_path / "oof.zip")
    assert archive.ids == [f"a{ending}"]
    assert np.array_equal(archive[f"a{ending}"], some()[0][1].levels)


def test_an_image_with_a_map_of_each_kind_is_refused(tmp_path):
    of_pngs(tmp_path / "oof.zip", some())
    with zipfile.ZipFile(tmp_path / "oof.zip", "a") as archive:
        archive.writestr("1.2.1.map", maps.encode(noise(1)))
    with pytest.raises(InputError, match=r"oof.zip is damaged"):
        maps.Maps(tmp_path / "oof.zip")


def with_map(path: Path, data: bytes) -> maps.Maps:
    """Write an archive with a member of these bytes, its checksum right."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.map", data)
        archive.writestr("meta.json", json.dumps(META))
    return maps.Maps(path)


WHOLE = maps.encode(noise(0))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        WHOLE[:7],
        WHOLE[:8],
        WHOLE[:12],
        WHOLE[:-1],
        WHOLE[:-16],
        WHOLE + b"\0",
        WHOLE + bytes(16),
        struct.pack("<II", 32, 33) + WHOLE[8:],
        struct.pack("<II", 64, 32) + WHOLE[8:],
        struct.pack("<II", 0, 32) + WHOLE[8:],
        struct.pack("<II", 0, 0),
        WHOLE[:8] + b"\x7f" + WHOLE[9:],  # a bit less than blocks
        struct.pack("<II", 1 << 13, 1 << 13) + WHOLE[8:],
        struct.pack("<II", 1 << 13, (1 << 13) + 1) + WHOLE[8:],
        struct.pack("<II", 2**32 - 1, 2**32 - 1) + WHOLE[8:],
        cv2.imencode(".png", noise(0))[1].tobytes(),
    ],
)
def test_a_map_of_wrong_bytes_is_refused_when_it_is_read(tmp_path, data):
    with pytest.raises(InputError, match=r"oof.zip is damaged"):
        with_map(tmp_path / "oof.zip", data)["a"]


def test_a_small_file_that_states_many_pixels_takes_no_memory_for_them(tmp_path):
    archive = with_map(tmp_path / "oof.zip", struct.pack("<II", 1 << 13, 1 << 13) + WHOLE[8:])
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"oof.zip is damaged"):
            archive["a"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 23  # its 64 Mpx have 4 M bits, as a byte each


def test_a_map_of_the_most_pixels_comes_back_from_its_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 32 * 32)
    maps.write(tmp_path / "oof.zip", some(), META)
    assert np.array_equal(maps.Maps(tmp_path / "oof.zip")["1.2.0"], some()[0][1].levels)
    maps.write(tmp_path / "more.zip", [("a", maps.Prediction(noise(0, (32, 33))))], META)
    with pytest.raises(InputError, match=r"more.zip is damaged"):
        maps.Maps(tmp_path / "more.zip")["a"]


def test_what_breaks_while_writing_leaves_no_archive(tmp_path):
    def broken():
        yield some(1)[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        maps.write(tmp_path / "oof.zip", broken(), META)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_archive_says_which_stage_makes_it(tmp_path):
    with pytest.raises(InputError, match="is missing: the train stage predicts held-out images"):
        maps.Maps(tmp_path / "oof.zip")


@pytest.mark.parametrize("damage", ["cut short", "empty", "text", "without meta"])
def test_a_damaged_archive_is_refused_when_it_is_opened(tmp_path, damage):
    path = tmp_path / "oof.zip"
    maps.write(path, some(), META)
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("no archive")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", b"")
    with pytest.raises(InputError, match=r"oof.zip is damaged"):
        maps.Maps(path)


def test_a_map_with_a_wrong_byte_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "oof.zip"
    maps.write(path, some(), META)
    content = bytearray(path.read_bytes())
    at = content.index(b"1.2.0.map") + 40
    content[at] ^= 0xFF
    path.write_bytes(bytes(content))
    archive = maps.Maps(path)
    for read in (lambda: archive["1.2.0"], archive.check):
        with pytest.raises(InputError, match=r"oof.zip is damaged"):
            read()
    assert np.array_equal(archive["1.2.1"], some()[1][1].levels)


def test_worker_processes_read_one_open_archive_without_disturbing_each_other(tmp_path):
    rng = np.random.default_rng(0)
    levels = {f"image{at}": rng.integers(0, 256, (64, 64), np.uint8) for at in range(400)}
    maps.write(tmp_path / "oof.zip", ((i, maps.Prediction(m)) for i, m in levels.items()), META)
    archive = maps.Maps(tmp_path / "oof.zip")
    for image_id, found in zip(levels, workers.each(archive.__getitem__, [*levels]), strict=True):
        np.testing.assert_array_equal(found, levels[image_id])
