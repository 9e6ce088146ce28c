from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kernel_lib.models.heads import (
    AttentionGate,
    GridMean,
    Hypercolumn,
    LabelHead,
    SideMasks,
    init_prior,
    resize,
)


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


def test_resizing_keeps_a_constant_and_hands_back_what_has_the_size():
    assert torch.equal(resize(torch.full((1, 2, 2, 3), 0.5), (8, 5)), torch.full((1, 2, 8, 5), 0.5))
    plane = torch.rand(1, 1, 4, 6)
    assert resize(plane, (4, 6)) is resize(plane, plane.shape[2:]) is plane


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


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gate_by_hand() -> AttentionGate:
    """One inner channel: the sum of the skip's four pixels, plus the signal, plus 1; ψ halves."""
    gate = AttentionGate(1, 1)
    for conv, weight, bias in ((gate.skip, 1, None), (gate.gating, 1, 1), (gate.psi, 0.5, -1)):
        nn.init.constant_(conv.weight, weight)
        if bias is not None:
            nn.init.constant_(conv.bias, bias)
    return gate


@pytest.mark.parametrize(
    ("pixels", "signal", "logit"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], 5.0, 0.5 * (10 + 5 + 1) - 1),
        ([[1.0, 1.0], [0.0, 0.0]], -1.0, 0.5 * (2 - 1 + 1) - 1),
        ([[1.0, 2.0], [3.0, 4.0]], -20.0, -1.0),  # the ReLU lets nothing below zero through
    ],
)
def test_exact_values_of_one_pixel_of_the_gating_signal(pixels, signal, logit):
    skip = torch.tensor(pixels).view(1, 1, 2, 2)
    gated = gate_by_hand()(skip, torch.tensor(signal).view(1, 1, 1, 1))
    torch.testing.assert_close(gated, skip * sigmoid(logit))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(0, 1e4),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_coefficients_lie_within_0_and_1_and_weigh_all_channels_alike(seed, scale, shape, channels):
    torch.manual_seed(seed)
    batch, height, width = shape
    gate = AttentionGate(*channels)
    skip = torch.randn(batch, channels[0], 2 * height, 2 * width) * scale
    gating = torch.randn(batch, channels[1], height, width) * scale
    share = gate.coefficients(skip, gating)
    assert share.shape == (batch, 1, 2 * height, 2 * width)
    assert share.min() >= 0
    assert share.max() <= 1 + 1e-6  # bilinear weights sum to one within rounding
    for channel in range(channels[0]):
        torch.testing.assert_close(
            gate(skip, gating)[:, channel], skip[:, channel] * share[:, 0], rtol=0, atol=0
        )


@given(
    size=st.integers(1, 8),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_a_grid_of_means_is_the_library_s_adaptive_pooling(size, shape, dtype):
    x = torch.randn(2, 3, *shape, dtype=dtype, requires_grad=True)
    ours, theirs = GridMean(size)(x), nn.AdaptiveAvgPool2d(size)(x)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(theirs)
    pair = (torch.autograd.grad(y, x, grad)[0] for y in (ours, theirs))
    torch.testing.assert_close(*pair)


def test_a_gate_starts_open():
    torch.manual_seed(0)
    share = AttentionGate(64, 128).coefficients(torch.rand(2, 64, 8, 8), torch.rand(2, 128, 4, 4))
    assert share.min() > 0.8


def test_a_signal_at_one_place_opens_the_skip_there_and_not_elsewhere():
    gate = gate_by_hand()
    nn.init.constant_(gate.psi.bias, -8)
    signal = torch.zeros(1, 1, 8, 8)
    signal[..., 2, 5] = 40
    share = gate.coefficients(torch.zeros(1, 1, 16, 16), signal)[0, 0]
    assert share[4:6, 10:12].min() > 0.5
    assert share[9:].max() < 0.01
    assert share[:, :8].max() < 0.01
