"""Agreement of masks, by hand and against whole masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lib.data import rle
from kernel_lib.postprocess import metrics
from kernel_lib.reporting import agreement

A, B, EMPTY = rle.parse("0 4"), rle.parse("2 4"), rle.parse("-1")  # pixels 0–3, 2–5, none
masks = st.lists(
    st.lists(st.integers(0, 1), min_size=12, max_size=12).map(
        lambda px: np.array(px, np.uint8).reshape(3, 4)
    ),
    min_size=2,
    max_size=5,
)


def three() -> agreement.Agreement:
    """Three members on four images: all see it, two see it, one sees what is not there, none."""
    images = [([A, A, B], A), ([A, EMPTY, B], B), ([EMPTY, B, EMPTY], EMPTY), ([EMPTY] * 3, EMPTY)]
    return agreement.measured(["one", "<b>two</b>", "$three"], images, 40, "its own rule")


def test_dice_of_three_masks_by_hand() -> None:
    assert agreement.compared([A, B, EMPTY], A).tolist() == [
        [1, 0.5, 0],
        [0.5, 1, 0],
        [0, 0, 1],
        [1, 0.5, 0],  # the truth
    ]
    assert agreement.compared([EMPTY, EMPTY], EMPTY).tolist() == [[1, 1]] * 3


@given(masks)
def test_runs_agree_as_masks_do(many: list[np.ndarray]) -> None:
    *members, truth = many
    found = agreement.compared([rle.runs_of(one) for one in members], rle.runs_of(truth))
    expected = [[metrics.dice(one, other) for other in members] for one in many]
    assert found.tolist() == pytest.approx(np.array(expected))


def test_the_sentence_tells_pairs_and_truth() -> None:
    picture = three().matrices()
    # one and two: 1, 0, 0, 1; one and three: 0.5, 0.5, 1, 1; two and three: 0.5, 0, 0, 1.
    # The truth: with one 1, 0.5, 1, 1; with two 1, 0, 0, 1; with three 0.5, 1, 1, 1.
    assert "4 images drawn evenly from 40: each member's mask under its own rule" in (
        picture.sentence
    )
    assert "mean dice of 0.375 to 0.750, the truth with each of them with 0.500 to 0.875" in (
        picture.sentence
    )
    assert "true mask 0.250 to 0.500, and 0.500 to 0.750 with the truth" in picture.sentence
    assert picture.png(dpi=40)
    everything, positive = picture.figure.axes
    numbers = [text.get_text() for text in everything.texts]
    assert [float(number) for number in numbers] == [
        1, 0.5, 0.75,
        0.5, 1, 0.375,
        0.75, 0.375, 1,
        0.875, 0.5, 0.875,
    ]  # fmt: skip
    assert [text.get_text() for text in positive.texts][-3:] == ["0.750", "0.500", "0.750"]
    names = [text.get_text() for text in everything.get_yticklabels()]
    assert names == ["1  one", "2  <b>two</b>", r"3  \$three", "with the truth"]
    assert "<b>" not in picture.to_html()


def test_votes_by_hand() -> None:
    picture = three().votes()
    assert "50.0% have a true mask. A member alone sees one in 50.0%," in picture.sentence
    assert "at least one of 3 in 75.0%, all of them in 25.0%" in picture.sentence
    assert "0% where 0 do, 0% where 1 do, 100% where 2 do, 100% where 3 do" in picture.sentence
    (one,) = picture.figure.axes
    assert [bar.get_height() for bar in one.patches] == [0, 0, 1, 1]
    assert [text.get_text() for text in one.texts] == ["0 of 1", "0 of 1", "1 of 1", "1 of 1"]
    assert picture.png(dpi=40)


def test_of_images_without_a_true_mask_and_of_fewer_than_two_members() -> None:
    found = agreement.measured(["a", "b"], [([A, EMPTY], EMPTY)], 1, "the rule of their mean")
    assert "1 image: each member's mask under the rule of their mean" in found.matrices().sentence
    assert len(found.matrices().figure.axes) == 1
    assert "0.0% have a true mask" in found.votes().sentence
    for few in (
        agreement.measured(["a"], [([A], A)], 1, ""),
        agreement.measured(["a", "b"], [], 0, ""),
    ):
        assert few.matrices() is None
        assert few.votes() is None


def test_many_members_with_long_names_can_be_drawn() -> None:
    names = [f"UNetResNet34_768_v1_augmentflips_seed{seed}_size768" for seed in range(12)]
    names[0] = "UNetResNet34_768_v1_seed3456"
    found = agreement.measured(names, [([A] * 12, A)], 1, "its own rule")
    assert found.matrices().png(dpi=40)
    shown = [text.get_text() for text in found.matrices().figure.axes[0].get_yticklabels()]
    assert len(set(shown)) == 13
    assert shown[:4:3] == ["1  UNetResNet34_768_v1_seed3456", "4  …seed3_size768"]
    found = agreement.measured([names[1], "b"], [([A] * 2, A)], 1, "its own rule")
    shown = [text.get_text() for text in found.matrices().figure.axes[0].get_yticklabels()]
    assert shown[0] == "1  UNetResNet34_76…_seed1_size768"
