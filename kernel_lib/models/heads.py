"""What stands between a decoder and its logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

PRIOR = 0.01  # about the share of pixels that lie in a pneumothorax


def rarely(logit: nn.Conv2d) -> nn.Conv2d:
    """A last convolution that starts by predicting the prior, not one half (Lin 2017).

    The first epochs are then spent on what a pneumothorax looks like rather than on its rarity.
    """
    nn.init.normal_(logit.weight, std=0.01)
    nn.init.constant_(logit.bias, math.log(PRIOR / (1 - PRIOR)))
    return logit


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
        height, width = levels[-1].shape[2:]
        total = self.reduce[-1](levels[-1])  # (B, channels, H, W)
        for conv, level in zip(self.reduce[:-1], levels[:-1], strict=True):
            total = total + F.interpolate(
                conv(level), size=(height, width), mode="bilinear", align_corners=False
            )
        return self.logit(F.relu(self.norm(total)))
