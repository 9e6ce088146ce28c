from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kernel_lib.models.attention import AttentionGate


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
