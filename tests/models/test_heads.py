from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kernel_lib.models.heads import Hypercolumn, LabelHead, SideMasks, init_prior, resize


def test_it_equals_the_concatenated_hypercolumn():
    """Upsample, concatenate, 1×1 convolution: what the head's shorter way has to come to."""
    torch.manual_seed(0)
    channels = (6, 4, 3)
    head = Hypercolumn(channels, channels=5).eval()
    levels = [torch.randn(2, c, 4 * 2**k, 4 * 2**k) for k, c in enumerate(channels)]
    full = [
        F.interpolate(level, size=(16, 16), mode="bilinear", align_corners=False)
        for level in levels
    ]
    weight = torch.cat([conv.weight for conv in head.reduce], dim=1)  # (5, 13, 1, 1)
    expected = head.logit(F.relu(head.norm(F.conv2d(torch.cat(full, dim=1), weight))))
    with torch.inference_mode():
        logits = head(levels)
    assert logits.shape == (2, 1, 16, 16)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_every_level_gets_a_gradient():
    torch.manual_seed(0)
    head = Hypercolumn((2, 2, 2), channels=4)
    levels = [torch.randn(2, 2, s, s, requires_grad=True) for s in (4, 8, 16)]
    head(levels).square().mean().backward()
    assert all(level.grad.abs().sum() > 0 for level in levels)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 1, 1), nn.Linear(3, 1)], ids=["conv", "linear"])
@given(share=st.floats(0.001, 0.999))
def test_a_last_layer_starts_at_the_prior(layer, share):
    assert init_prior(layer, share) is layer
    assert torch.sigmoid(layer.bias).item() == pytest.approx(share, rel=1e-4)
    assert layer.weight.abs().max() < 0.1


def test_a_constant_plane_stays_that_at_any_size():
    assert torch.equal(resize(torch.full((1, 2, 2, 3), 0.5), (8, 5)), torch.full((1, 2, 8, 5), 0.5))


def test_a_plane_of_the_right_size_is_handed_back():
    plane = torch.rand(1, 1, 4, 6)
    assert resize(plane, (4, 6)) is plane
    assert resize(plane, plane.shape[2:]) is plane


def test_a_label_is_one_linear_layer_on_the_mean_over_pixels():
    head = LabelHead(2)
    nn.init.zeros_(head.logit.bias)
    head.logit.weight.data = torch.tensor([[2.0, -1.0]])
    features = torch.tensor([[[[1.0, 3.0]], [[5.0, 7.0]]], [[[0.0, 0.0]], [[-2.0, 0.0]]]])
    assert head(features).tolist() == [2 * 2.0 - 6.0, 1.0]  # means (2, 6) and (0, -1)


def test_a_side_mask_is_its_level_s_1x1_convolution_brought_to_full_size():
    sides = SideMasks((3, 2))
    levels = [torch.randn(2, 3, 2, 4), torch.randn(2, 2, 4, 8)]
    masks = sides(levels, (8, 16))
    assert [side.shape for side in masks] == [(2, 1, 8, 16)] * 2
    for side, level, conv in zip(masks, levels, sides.logits, strict=True):
        small = (level * conv.weight[0, :, 0, 0].view(1, -1, 1, 1)).sum(1, keepdim=True) + conv.bias
        full = F.interpolate(small, size=(8, 16), mode="bilinear", align_corners=False)
        torch.testing.assert_close(side, full)


def test_side_masks_are_not_computed_for_prediction():
    sides = SideMasks((3,)).eval()
    assert sides([torch.full((1, 3, 2, 2), torch.nan)], (4, 4)) == ()
