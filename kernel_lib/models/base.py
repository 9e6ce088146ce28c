"""Base class of the networks: from a grey radiograph to logits."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import nn

from kernel_lib.config import Experiment
from kernel_lib.models import encoders


class Logits(NamedTuple):
    """Output of every network; losses and prediction depend only on this."""

    mask: torch.Tensor | None  # (B, 1, H, W) logits; None for a network without a mask
    label: torch.Tensor | None = None  # (B,) logits of "has a pneumothorax"
    sides: tuple[torch.Tensor, ...] = ()  # (B, 1, H, W) logits, coarse to fine; only in training


class GreyInput(nn.Module):
    """Normalisation of grey levels for an ImageNet encoder.

    (B, 1, H, W) uint8 levels become (B, 3, H, W) float: scaled to 0–1, repeated to three channels,
    normalised by the mean and standard deviation of the encoder's ImageNet weights. Both are
    buffers, so a checkpoint keeps the statistics it was trained with.
    """

    def __init__(self, encoder: str) -> None:
        super().__init__()
        mean, std = encoders.input_statistics(encoder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        return (levels.float() - self.mean) / self.std  # broadcast to (B, 3, H, W)


class Network(nn.Module):
    """Base class: normalisation, encoder, and the properties that other modules need.

    `forward` takes (B, 1, H, W) uint8 levels, H and W multiples of 32, and returns `Logits`.
    """

    has_mask: ClassVar[bool] = True  # whether it predicts masks
    has_sides: ClassVar[bool] = True  # whether its decoder has levels for side masks
    min_batch: ClassVar[int] = 1  # images that batch norm needs in a batch, above 32 px
    output_stride: ClassVar[int] = 32  # of its encoder
    note: str | None = None  # printed before training

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.input = GreyInput(experiment.encoder)
        self.encoder = encoders.build(
            experiment.encoder, experiment.size, self.output_stride, experiment.drop_path
        )
