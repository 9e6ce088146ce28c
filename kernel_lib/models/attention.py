"""What a decoder lets through of a skip connection."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

OPEN = 3.0  # sigmoid(3) = 0.95


class AttentionGate(nn.Module):
    """An additive attention gate on a skip (Oktay 2018): each of its pixels times a share in 0–1.

    The share is α = σ(ψ · ReLU(W_x x + W_g g)), computed on the grid of the gating signal g, which
    is half the skip's, and brought bilinearly to the skip's. As in the paper it starts open, so
    that training begins as a plain U-Net. The 1×1 convolution that its authors' code puts behind
    the gate is left out: the decoder's next convolution does that, and a gate that is wholly open
    is then exactly the plain skip.
    """

    def __init__(self, skip_channels: int, gating_channels: int) -> None:
        super().__init__()
        channels = max(skip_channels // 2, 1)
        self.skip = nn.Conv2d(skip_channels, channels, kernel_size=2, stride=2, bias=False)
        self.gating = nn.Conv2d(gating_channels, channels, kernel_size=1)
        self.psi = nn.Conv2d(channels, 1, kernel_size=1)
        nn.init.constant_(self.psi.bias, OPEN)

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        """Skip (B, C, H, W) and gating signal (B, G, H/2, W/2) to the gated skip (B, C, H, W)."""
        return skip * self.coefficients(skip, gating)

    def coefficients(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        """What share of each pixel passes, 0–1.

        Shape: (B, C, H, W), (B, G, H/2, W/2) → (B, 1, H, W).
        """
        heard = F.relu(self.skip(skip) + self.gating(gating))  # (B, C/2, H/2, W/2)
        share = torch.sigmoid(self.psi(heard))
        return F.interpolate(share, size=skip.shape[2:], mode="bilinear", align_corners=False)
