"""Votes on runs: against votes on bitmaps, at the edges of runs, and over files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.postprocess import metrics, submission, votes

STACKS = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 1))
)
SPARSE = st.tuples(st.integers(1, 7), st.integers(2, 8), st.integers(2, 8)).flatmap(
    lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 1), fill=st.just(0))
)


def union_of_agreeing_masks(masks: np.ndarray, at_least: int) -> np.ndarray:
    """The union (H, W) of masks (n, H, W) that share a pixel with `at_least - 1` others."""
    united = np.zeros(masks.shape[1:], dtype=np.uint8)
    for at, mask in enumerate(masks):
        agreeing = sum(
            bool((mask & other).any()) for place, other in enumerate(masks) if place != at
        )
        if agreeing >= at_least - 1:
            united |= mask
    return united


@pytest.mark.parametrize(
    ("vote", "of_bitmaps"),
    [
        (votes.at_least, lambda masks, k: masks.sum(axis=0) >= k),
        (votes.union_of_agreeing, union_of_agreeing_masks),
    ],
)
@given(st.one_of(STACKS, SPARSE), st.data())
@settings(max_examples=300)
def test_a_vote_on_runs_equals_that_of_bitmaps(vote, of_bitmaps, masks, data):
    k = data.draw(st.integers(1, len(masks)))
    many = [rle.runs_of(mask) for mask in masks]
    voted = vote(many, k)
    # Equal run for run: what touches is a single run, and no run is empty.
    np.testing.assert_array_equal(voted, rle.runs_of(of_bitmaps(masks, k)))
    assert voted.dtype == np.int64
    assert voted.shape[1:] == (2,)
    for runs, mask in zip(many, masks, strict=True):
        np.testing.assert_array_equal(runs, rle.runs_of(mask), "the masks stay as they were")


def test_a_vote_of_many_large_masks_equals_that_of_bitmaps():
    random = np.random.default_rng(0)
    masks = random.random((140, 60, 50)) < np.linspace(0, 0.9, 50)  # more than an int8 counts
    many = [rle.runs_of(mask) for mask in masks]
    for k in (1, 40, 128, 140):
        np.testing.assert_array_equal(
            votes.at_least(many, k), rle.runs_of(masks.sum(axis=0) >= k), err_msg=str(k)
        )


@pytest.mark.parametrize("vote", [votes.at_least, votes.union_of_agreeing])
@pytest.mark.parametrize("k", [-1, 0, 3])
def test_a_number_that_cannot_agree_is_refused(vote, k):
    with pytest.raises(InputError, match=f"at least {k} of 2 masks .* from 1 to 2"):
        vote([np.array([[0, 5]]), np.empty((0, 2), int)], k)
    with pytest.raises(InputError, match="no mask is given"):
        vote([], k)


@given(hnp.arrays(np.uint8, (2, 5, 4), elements=st.integers(0, 1)))
@settings(max_examples=100)
def test_dice_of_runs_is_that_of_masks(masks):
    pred, true = (rle.runs_of(mask) for mask in masks)
    assert votes.dice(pred, true) == metrics.dice(*masks)
    assert rle.shared_px(pred, true) == np.count_nonzero(masks[0] & masks[1])


def put(path: Path, rows: dict[str, str]) -> Path:
    submission.write(path, list(rows), list(rows.values()))
    return path


def test_files_vote_image_by_image(tmp_path: Path):
    first = put(tmp_path / "1.csv", {"b": "0 6", "a": "-1", "c": "1 2"})
    second = put(tmp_path / "2.csv", {"a": "3 3", "b": "4 5", "c": "1 2"})
    third = put(tmp_path / "3.csv", {"c": "-1", "a": "-1", "b": "20 1"})
    out = tmp_path / "new" / "out.csv"
    result = votes.of_files([first, second, third], out, 2, shape=(5, 5))
    assert result == votes.VoteResult(n_images=3, n_kept=2, n_with_mask=(2, 3, 1))
    assert out.read_text() == "ImageId,EncodedPixels\nb,4 2\na,-1\nc,1 2\n"
    result = votes.of_files([first, second, third], out, 2, union=True, shape=(5, 5))
    assert result.n_kept == 2
    assert out.read_text() == "ImageId,EncodedPixels\nb,0 9\na,-1\nc,1 2\n"


def test_no_file_voted_on_is_written_over_by_whatever_name(tmp_path: Path, monkeypatch):
    first = put(tmp_path / "1.csv", {"a": "0 6"})
    second = put(tmp_path / "2.csv", {"a": "0 3"})
    (tmp_path / "link.csv").symlink_to(second)
    monkeypatch.chdir(tmp_path)
    for out in (second, Path("2.csv"), tmp_path / "x" / ".." / "2.csv", tmp_path / "link.csv"):
        with pytest.raises(InputError, match="one of the submissions voted on"):
            votes.of_files([first, second], out, 1)
    with pytest.raises(InputError, match=r"link\.csv is given twice"):
        votes.of_files([first, second, tmp_path / "link.csv"], tmp_path / "out.csv", 1)
    assert second.read_text() == "ImageId,EncodedPixels\na,0 3\n"
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("a,0 3", r"2\.csv lacks image b, which .*1\.csv has"),
        ("b,0 3\nc,-1\na,-1\nd,-1", r"2\.csv has image c, which .*1\.csv lacks"),
        ("a,0 3\nb,-1\n\na,5 1", r"2\.csv, row 5: image a stands in row 2 already"),
        ("b,-1\na,0 3 5", r"2\.csv, row 3 \(a\): .* odd"),
        ("b,-1\na,20 6", r"2\.csv, row 3 \(a\): .* outside the 5×5 image"),
        ("", r"2\.csv names no image"),
    ],
)
def test_a_file_at_fault_is_named_and_nothing_written(tmp_path: Path, other: str, said: str):
    first = put(tmp_path / "1.csv", {"a": "0 6", "b": "-1"})
    second, out = tmp_path / "2.csv", tmp_path / "out.csv"
    second.write_text(f"ImageId,EncodedPixels\n{other}\n")
    with pytest.raises(InputError, match=said):
        votes.of_files([first, second], out, 1, shape=(5, 5))
    with pytest.raises(InputError, match="a number from 1 to 2"):  # known before any is read
        votes.of_files([first, second], out, 3, shape=(5, 5))
    assert not out.exists()
