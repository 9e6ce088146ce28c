"""Heads, which turn decoder or encoder features into logits, and small parts of decoders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

PIXEL_PRIOR = 0.01  # approximate share of pixels that lie in a pneumothorax
IMAGE_PRIOR = 0.22  # share of the competition's images with a pneumothorax


def init_prior(layer: nn.Conv2d | nn.Linear, prior: float = PIXEL_PRIOR) -> nn.Conv2d | nn.Linear:
    """Initialise a last layer so that it predicts `prior` instead of one half, and return it.

    The first epochs then learn what a pneumothorax looks like rather than its rarity (Lin 2017).
    """
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.constant_(layer.bias, math.log(prior / (1 - prior)))
    return layer


def resize(planes: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize features or logits bilinearly. Shape: (B, C, h, w) → (B, C, *size)."""
    if planes.shape[2:] == torch.Size(size):
        return planes
    return F.interpolate(planes, size=size, mode="bilinear", align_corners=False)


class Hypercolumn(nn.Module):
    """Mask logits from all decoder levels (Hariharan 2015), at the size of the finest level.

    A 1×1 convolution of concatenated, upsampled levels is linear in each level, and so is bilinear
    upsampling. Each level is therefore reduced first, then upsampled and summed: the same function
    without 496 channels at full size.
    """

    def __init__(self, level_channels: Sequence[int], channels: int = 32) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(
            nn.Conv2d(c, channels, kernel_size=1, bias=False) for c in level_channels
        )
        self.norm = nn.BatchNorm2d(channels)
        self.logit = init_prior(nn.Conv2d(channels, 1, kernel_size=1))

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return (B, 1, H, W) logits of levels (B, C_i, H_i, W_i), coarse to fine."""
        size = levels[-1].shape[2:]
        total = self.reduce[-1](levels[-1])  # (B, channels, H, W)
        for conv, level in zip(self.reduce[:-1], levels[:-1], strict=True):
            total = total + resize(conv(level), size)
        return self.logit(F.relu(self.norm(total)))


class SideMasks(nn.Module):
    """Deep supervision (Lee 2015): mask logits of each level, by a 1×1 convolution.

    Computed in training only: prediction does not use them, and the validation loss has no term
    for them.
    """

    def __init__(self, level_channels: Sequence[int]) -> None:
        super().__init__()
        self.logits = nn.ModuleList(
            init_prior(nn.Conv2d(c, 1, kernel_size=1)) for c in level_channels
        )

    def forward(self, levels: Sequence[torch.Tensor], size: Sequence[int]) -> tuple:
        """Return (B, 1, *size) logits for each level (B, C_i, H_i, W_i), in order; () in eval."""
        if not self.training:
            return ()
        pairs = zip(self.logits, levels, strict=True)
        return tuple(resize(conv(level), size) for conv, level in pairs)


class LabelHead(nn.Module):
    """Logit of "has a pneumothorax": a linear layer on the mean over all pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logit = init_prior(nn.Linear(channels, 1), IMAGE_PRIOR)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B,) logits of (B, C, h, w) features."""
        return self.logit(features.mean(dim=(2, 3)))[:, 0]


class GridMean(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products: on a GPU its gradient is deterministic."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean of each cell of a grid. Shape: (B, C, H, W) → (B, C, size, size)."""
        rows, columns = (self._means(pixels, x) for pixels in x.shape[2:])
        pooled = rows @ x @ columns.T
        return pooled.contiguous(memory_format=torch.channels_last)

    def _means(self, pixels: int, x: torch.Tensor) -> torch.Tensor:
        """Return the matrix (size, pixels) of means over cells, which may overlap."""
        cell = torch.arange(self.size, device=x.device)[:, None]
        pixel = torch.arange(pixels, device=x.device)
        inside = (pixel * self.size < (cell + 1) * pixels) & (
            (pixel + 1) * self.size > cell * pixels
        )
        return inside.to(x.dtype) / inside.sum(dim=1, keepdim=True)


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
