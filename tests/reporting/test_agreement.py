"""Agreement of masks, by hand and against masks of pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lib.data import rle
from kernel_lib.postprocess import metrics
from kernel_lib.reporting import agreement

A, B, EMPTY = rle.parse("0 4"), rle.parse("2 4"), rle.parse("-1")  # pixels 0–3, 2–5, none
masks_of_an_image = st.lists(
    st.lists(st.integers(0, 1), min_size=12, max_size=12).map(
        lambda px: np.array(px, np.uint8).reshape(3, 4)
    ),
    min_size=2,
    max_size=5,
)


@pytest.fixture
def three() -> agreement.Agreement:
    """Three members on four images: true positives of all, of two; a false positive; none."""
    images = [([A, A, B], A), ([A, EMPTY, B], B), ([EMPTY, B, EMPTY], EMPTY), ([EMPTY] * 3, EMPTY)]
    return agreement.measure(["one", "<b>two</b>", "$three"], images, 40, "its own rule")


def row_names(measured: agreement.Agreement) -> list[str]:
    return [text.get_text() for text in measured.matrices().figure.axes[0].get_yticklabels()]


def test_dice_of_three_masks_by_hand() -> None:
    assert agreement.pairwise_dice([A, B, EMPTY], A).tolist() == [
        [1, 0.5, 0],
        [0.5, 1, 0],
        [0, 0, 1],
        [1, 0.5, 0],  # the ground truth
    ]
    assert agreement.pairwise_dice([EMPTY, EMPTY], EMPTY).tolist() == [[1, 1]] * 3


@given(masks_of_an_image)
def test_dice_of_runs_is_dice_of_masks(masks: list[np.ndarray]) -> None:
    *members, truth = masks
    pairs = agreement.pairwise_dice([rle.runs_of(mask) for mask in members], rle.runs_of(truth))
    expected = [[metrics.dice(mask, other) for other in members] for mask in masks]
    assert pairs.tolist() == pytest.approx(np.array(expected))


def test_matrices_by_hand(three) -> None:
    picture = three.matrices()
    # Pairs: 1, 0, 0, 1; 0.5, 0.5, 1, 1; 0.5, 0, 0, 1. With the truth: first member 1, 0.5, 1, 1;
    # second 1, 0, 0, 1; third 0.5, 1, 1, 1.
    for text in (
        "4 images sampled evenly from 40: the mask of each member under its own rule",
        "0.375 to 0.750 between two members and 0.500 to 0.875 between",
        "on positive images 0.250 to 0.500 and 0.500 to 0.750",
    ):
        assert text in picture.sentence
    assert picture.png(dpi=40)
    everything, positive = picture.figure.axes
    assert [float(text.get_text()) for text in everything.texts] == [
        1, 0.5, 0.75,
        0.5, 1, 0.375,
        0.75, 0.375, 1,
        0.875, 0.5, 0.875,
    ]  # fmt: skip
    assert [text.get_text() for text in positive.texts][-3:] == ["0.750", "0.500", "0.750"]
    assert row_names(three) == ["1  one", "2  <b>two</b>", r"3  \$three", "ground truth"]
    assert "<b>" not in picture.to_html()


def test_votes_by_hand(three) -> None:
    picture = three.votes()
    for text in (
        "50.0% are positive. A single member predicts a mask in 50.0%,",
        "at least one of 3 in 75.0%, all of them in 25.0%",
        "0% where 0 do, 0% where 1 do, 100% where 2 do, 100% where 3 do",
    ):
        assert text in picture.sentence
    (axes,) = picture.figure.axes
    assert [bar.get_height() for bar in axes.patches] == [0, 0, 1, 1]
    assert [text.get_text() for text in axes.texts] == ["0 of 1", "0 of 1", "1 of 1", "1 of 1"]
    assert picture.png(dpi=40)


def test_without_positive_images_and_with_fewer_than_two_members() -> None:
    measured = agreement.measure(["a", "b"], [([A, EMPTY], EMPTY)], 1, "the rule of their mean")
    assert measured.matrices().sentence.startswith("1 image: ")
    assert len(measured.matrices().figure.axes) == 1
    assert "0.0% are positive" in measured.votes().sentence
    for names, images in ((["a"], [([A], A)]), (["a", "b"], [])):
        measured = agreement.measure(names, images, len(images), "")
        assert measured.matrices() is measured.votes() is None


def test_many_members_with_long_names_can_be_drawn() -> None:
    names = [f"UNetResNet34_768_v1_augmentflips_seed{seed}_size768" for seed in range(12)]
    names[0] = "UNetResNet34_768_v1_seed3456"
    measured = agreement.measure(names, [([A] * 12, A)], 1, "its own rule")
    assert measured.matrices().png(dpi=40)
    shown = row_names(measured)
    assert len(set(shown)) == 13
    assert shown[:4:3] == ["1  UNetResNet34_768_v1_seed3456", "4  …seed3_size768"]
    measured = agreement.measure([names[1], "b"], [([A] * 2, A)], 1, "its own rule")
    assert row_names(measured)[0] == "1  UNetResNet34_76…_seed1_size768"
