"""Heads: layers that turn decoder or encoder features into logits."""

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
