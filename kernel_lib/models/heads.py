"""What stands between a decoder and its logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

PRIOR = 0.01  # about the share of pixels that lie in a pneumothorax
POSITIVE = 0.22  # share of the competition's images that have one


def rarely(logit: nn.Conv2d | nn.Linear, share: float = PRIOR) -> nn.Conv2d | nn.Linear:
    """A last layer that starts by predicting the prior `share`, not one half (Lin 2017).

    The first epochs are then spent on what a pneumothorax looks like rather than on its rarity.
    """
    nn.init.normal_(logit.weight, std=0.01)
    nn.init.constant_(logit.bias, math.log(share / (1 - share)))
    return logit


def resized(planes: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Features or logits (B, C, h, w) brought bilinearly to (B, C, *size)."""
    if planes.shape[2:] == torch.Size(size):
        return planes
    return F.interpolate(planes, size=size, mode="bilinear", align_corners=False)


class Hypercolumn(nn.Module):
    """Mask logits from all decoder levels at once (Hariharan 2015), at the finest level's size.

    Concatenating upsampled levels and reducing them by a 1×1 convolution is linear in each level
    and acts on each pixel alone, as bilinear upsampling does; so the levels are reduced first,
    then upsampled and summed: the same function, without 496 channels at full size.
    """

    def __init__(self, level_channels: Sequence[int], channels: int = 32) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(
            nn.Conv2d(c, channels, kernel_size=1, bias=False) for c in level_channels
        )
        self.norm = nn.BatchNorm2d(channels)
        self.logit = rarely(nn.Conv2d(channels, 1, kernel_size=1))

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Levels (B, C_i, H_i, W_i), coarse to fine, to (B, 1, H, W) logits."""
        size = levels[-1].shape[2:]
        total = self.reduce[-1](levels[-1])  # (B, channels, H, W)
        for conv, level in zip(self.reduce[:-1], levels[:-1], strict=True):
            total = total + resized(conv(level), size)
        return self.logit(F.relu(self.norm(total)))


class SideMasks(nn.Module):
    """Deep supervision (Lee 2015): mask logits of each level by itself, by a 1×1 convolution.

    They teach and do not predict, so they are computed in training only: prediction does not pay
    for them, and validation's loss has no side term.
    """

    def __init__(self, level_channels: Sequence[int]) -> None:
        super().__init__()
        self.logits = nn.ModuleList(rarely(nn.Conv2d(c, 1, kernel_size=1)) for c in level_channels)

    def forward(
        self, levels: Sequence[torch.Tensor], size: Sequence[int]
    ) -> tuple[torch.Tensor, ...]:
        """Levels (B, C_i, H_i, W_i) to as many (B, 1, *size) logits in that order; () in eval."""
        if not self.training:
            return ()
        return tuple(
            resized(conv(level), size) for conv, level in zip(self.logits, levels, strict=True)
        )


class LabelHead(nn.Module):
    """The logit of "has a pneumothorax": one linear layer on the mean over all pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logit = rarely(nn.Linear(channels, 1), POSITIVE)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) features to (B,) logits."""
        return self.logit(features.mean(dim=(2, 3)))[:, 0]
