"""Attention gate on the skip connections of a decoder."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

OPEN_BIAS = 3.0  # sigmoid(3) = 0.95


class AttentionGate(nn.Module):
    """Additive attention gate (Oktay 2018): multiplies each pixel of a skip by a weight in 0–1.

    The weight is α = σ(ψ · ReLU(W_x x + W_g g)), computed on the grid of the gating signal g (half
    the size of the skip) and upsampled bilinearly. As in the paper the gate starts open, so that
    training begins as a plain U-Net. The authors' 1×1 convolution behind the gate is left out: the
    next convolution of the decoder does the same, and an open gate is exactly the plain skip.
    """

    def __init__(self, skip_channels: int, gating_channels: int) -> None:
        super().__init__()
        channels = max(skip_channels // 2, 1)
        self.skip = nn.Conv2d(skip_channels, channels, kernel_size=2, stride=2, bias=False)
        self.gating = nn.Conv2d(gating_channels, channels, kernel_size=1)
        self.psi = nn.Conv2d(channels, 1, kernel_size=1)
        nn.init.constant_(self.psi.bias, OPEN_BIAS)

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        """Return the gated skip (B, C, H, W) of a skip (B, C, H, W) and signal (B, G, H/2, W/2)."""
        return skip * self.coefficients(skip, gating)

    def coefficients(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        """Return the weight of each pixel, 0–1. Shapes as `forward` → (B, 1, H, W)."""
        hidden = F.relu(self.skip(skip) + self.gating(gating))  # (B, C/2, H/2, W/2)
        weight = torch.sigmoid(self.psi(hidden))
        return F.interpolate(weight, size=skip.shape[2:], mode="bilinear", align_corners=False)
