from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernel_lib.models.networks import Logits
from kernel_lib.postprocess import metrics
from kernel_lib.training.hardness import FALSE_ALARM_PX, hardness_of


def hardness(predicted, truth) -> float:
    """Hardness of one image from its mask at p > 0.5 and its true mask, each (H, W)."""
    logits = torch.where(torch.as_tensor(predicted) > 0, 0.1, -0.1)[None, None]
    values = hardness_of(Logits(mask=logits), torch.as_tensor(truth)[None, None], torch.zeros(1))
    assert values.shape == (1,)
    assert values.dtype == torch.float32
    return float(values)


def rectangle(height: int, width: int, size: int = 32) -> np.ndarray:
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[:height, :width] = 1
    return mask


EMPTY = rectangle(0, 0)


def test_by_hand():
    assert hardness(EMPTY, EMPTY) == 0
    assert hardness(EMPTY, rectangle(4, 4)) == 1  # a false negative
    assert hardness(rectangle(4, 4), rectangle(4, 4)) == 0
    assert hardness(rectangle(4, 8), rectangle(4, 4)) == pytest.approx(1 / 3)  # dice 2·16 / 48
    assert hardness(rectangle(4, 4)[::-1].copy(), rectangle(4, 4)) == 1  # elsewhere


def test_a_false_alarm_counts_by_its_area_at_1024():
    # A pixel of 512² is four of 1024².
    half = rectangle(1, FALSE_ALARM_PX // 8, size=512)
    empty = np.zeros_like(half)
    assert hardness(half, empty) == pytest.approx(0.5)
    assert hardness(half | half[::-1], empty) == 1.0
    assert hardness(rectangle(9, 9), EMPTY) == 1.0  # and never more
    assert hardness(rectangle(1, 1), EMPTY) == 1.0  # at 32² a pixel is more than that already


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_with_a_mask_it_is_one_minus_the_score(seed, dense_prediction, dense_truth):
    generator = np.random.default_rng(seed)
    predicted = generator.random((8, 8)) < dense_prediction
    truth = generator.random((8, 8)) < dense_truth
    truth[0, 0] = True
    expected = 1 - metrics.dice(predicted, truth)
    assert hardness(predicted, truth) == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_images_of_a_batch_do_not_meet(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((5, 1, 16, 16), generator=generator).to(dtype)
    masks = (torch.rand((5, 1, 16, 16), generator=generator) > 0.7).to(torch.uint8)
    masks[::2] = 0
    labels = masks.flatten(1).any(dim=1).float()
    together = hardness_of(Logits(mask=logits), masks, labels)
    single = [
        hardness_of(Logits(mask=logits[i : i + 1]), masks[i : i + 1], labels[i : i + 1])
        for i in range(5)
    ]
    assert torch.equal(together, torch.cat(single))
    assert ((together >= 0) & (together <= 1)).all()


def test_a_classifier_is_as_wrong_as_its_probability():
    label = torch.tensor([0.0, 30.0, 30.0, np.log(3.0)], requires_grad=True)
    classifier = SimpleNamespace(mask=None, label=label)
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0])
    values = hardness_of(classifier, torch.zeros((4, 1, 2, 2)), labels)
    torch.testing.assert_close(values, torch.tensor([0.5, 0.0, 1.0, 0.75]))
    assert not values.requires_grad  # it takes no part in the training
