"""Submissions scored by the labels of a data folder's test or training images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.postprocess import submission
from kernel_lib.stages import scores

SHAPES = {"a": (16, 24), "b": (24, 16), "c": (8, 8), "t": (8, 8)}


def drawn(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)


def mask(name: str) -> np.ndarray:
    """(H, W) 0/1: the left half of every image but c."""
    found = np.zeros(SHAPES[name], np.uint8)
    found[:, : SHAPES[name][1] // 2] = name != "c"
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Images a, b and c for testing, t for training, with masks; and a submission half right."""
    for name in SHAPES:
        folder = tmp_path / "data" / ("train" if name == "t" else "test")
        drawn(folder / "images" / f"{name}.png", np.full(SHAPES[name], 90, np.uint8))
        drawn(folder / "masks" / f"{name}.png", mask(name) * 255)
    rles = [rle.encode(mask("a")), "-1", "-1", rle.encode(mask("t"))]
    submission.write(tmp_path / "submission.csv", ["a.png", "b.png", "c.png", "t.png"], rles)
    return tmp_path


def test_the_labels_of_the_test_images_count_each_at_its_size(place, capsys):
    found = scores.of_split(place / "submission.csv", place / "data", "test")
    assert (found.n_images, found.n_nonempty, found.n_only_submission) == (3, 2, 1)
    assert found.dice == pytest.approx(2 / 3)
    assert found.dice_nonempty == 0.5
    assert "3 labelled images" in capsys.readouterr().out
    found = scores.of_split(place / "submission.csv", place / "data", "train")
    assert (found.n_images, found.dice) == (1, 1.0)


def test_the_labels_of_a_table_count_too(place):
    for folder in (place / "data").rglob("masks"):
        folder.rename(folder.with_name(".gone"))
    names = list(SHAPES)
    submission.write(place / "data" / "train-rle.csv", names, [rle.encode(mask(n)) for n in names])
    found = scores.of_split(place / "submission.csv", place / "data", "test")
    assert (found.n_images, found.dice) == (3, pytest.approx(2 / 3))


def test_what_cannot_be_scored_is_named(place):
    drawn(place / "data" / "test" / "masks" / "a.png", mask("c") * 255)
    with pytest.raises(InputError, match=r"a\.png is .*resize"):
        scores.of_split(place / "submission.csv", place / "data", "test")
    drawn(place / "other" / "images" / "t.png", mask("t"))
    drawn(place / "other" / "masks" / "t.png", mask("t"))
    with pytest.raises(InputError, match="no test image has a label"):
        scores.of_split(place / "submission.csv", place / "other", "test")


def test_labels_that_look_inverted_are_refused_or_read_as_the_user_says(place):
    for name in ("a", "b", "c"):
        drawn(place / "data" / "test" / "masks" / f"{name}.png", (1 - mask(name)) * 255)
    wanted = place / "submission.csv", place / "data", "test"
    with pytest.raises(InputError, match=r"c\.png covers 100% .*--masks-are inverted"):
        scores.of_split(*wanted)
    assert scores.of_split(*wanted, "inverted").dice == pytest.approx(2 / 3)
    assert scores.of_split(*wanted, "right").n_nonempty == 3


def test_a_table_that_looks_inverted_is_refused_too(place):
    for folder in (place / "data").rglob("masks"):
        folder.rename(folder.with_name(".gone"))
    small = np.arange(64).reshape(8, 8) <= 9
    for name in ("a", "b", "c"):
        drawn(place / "data" / "test" / "images" / f"{name}.png", np.full((8, 8), 90, np.uint8))
    submission.write(place / "data" / "train-rle.csv", list(SHAPES), [rle.encode(~small)] * 4)
    submission.write(place / "submission.csv", list(SHAPES), [rle.encode(small), "-1", "-1", "-1"])
    wanted = place / "submission.csv", place / "data", "test"
    with pytest.raises(InputError, match=r"train-rle\.csv: 3 of 3 masks .*--masks-are inverted"):
        scores.of_split(*wanted)
    assert scores.of_split(*wanted, "inverted").dice == pytest.approx(1 / 3)
