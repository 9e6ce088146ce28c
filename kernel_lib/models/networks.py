"""The networks: a grey radiograph in, logits out. `NETWORKS` is where a new one is named."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn
from torch.nn import functional as F

from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.models.heads import Hypercolumn, rarely

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Logits(NamedTuple):
    """What every network returns; losses and prediction know no other form."""

    mask: torch.Tensor | None  # (B, 1, H, W) logits; None from a classifier
    label: torch.Tensor | None = None  # (B,) logits of "has a pneumothorax"
    # each (B, 1, H, W) logits, coarse to fine, brought bilinearly to full size
    sides: tuple[torch.Tensor, ...] = ()


class GreyInput(nn.Module):
    """Pixels as they lie in the cache to what an ImageNet encoder expects.

    (B, 1, H, W) uint8 levels to (B, 3, H, W): scaled to 0–1, the one channel repeated to three,
    each with ImageNet's own mean and standard deviation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) * 255)

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        return (levels.float() - self.mean) / self.std  # broadcast to (B, 3, H, W)


class UNet(nn.Module):
    """U-Net (Ronneberger 2015) with scSE (Roy 2018) in the decoder and a hypercolumn head.

    With fewer than five decoder levels it stops that much below full size, and its logits are
    upsampled: cheaper, and coarser at the edges.
    """

    def __init__(self, row: Experiment) -> None:
        super().__init__()
        self.input = GreyInput()
        self.encoder = get_encoder(row.encoder, in_channels=3, depth=5, weights=None)
        self.decoder = UnetDecoder(
            encoder_channels=self.encoder.out_channels,
            decoder_channels=row.decoder_channels,
            n_blocks=len(row.decoder_channels),
            attention_type="scse",
            add_center_block=True,
        )
        if len(row.decoder_channels) == len(self.encoder.out_channels) - 1:
            # It looks at what a skip brings; full size has none, so it would never learn.
            self.decoder.blocks[-1].attention1 = nn.Identity()
        self.head = Hypercolumn(row.decoder_channels)

    def forward(self, levels: torch.Tensor) -> Logits:
        """(B, 1, H, W) uint8 levels to logits; H and W are multiples of 32."""
        features = self.encoder(self.input(levels))  # H, H/2, … H/32
        logits = self.head(self._decode(features))  # (B, 1, H, W) / 2 a missing level
        if logits.shape[2:] != levels.shape[2:]:
            logits = F.interpolate(
                logits, size=levels.shape[2:], mode="bilinear", align_corners=False
            )
        return Logits(mask=logits)

    def _decode(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Outputs of all decoder levels, H/16 to H; the library's decoder returns only the last."""
        features = features[::-1]  # coarse to fine
        skips = [*features[1:-1], None]
        x = self.decoder.center(features[0])
        outputs = []
        for block, skip, target in zip(self.decoder.blocks, skips, features[1:], strict=False):
            x = block(x, *target.shape[2:], skip_connection=skip)
            outputs.append(x)
        return outputs


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ (Chen 2018), output stride 16."""

    def __init__(self, row: Experiment) -> None:
        super().__init__()
        net = smp.DeepLabV3Plus(encoder_name=row.encoder, encoder_weights=None, classes=1)
        self.input = GreyInput()
        self.encoder = net.encoder
        self.decoder = net.decoder
        self.head = net.segmentation_head
        rarely(self.head[0])

    def forward(self, levels: torch.Tensor) -> Logits:
        """(B, 1, H, W) uint8 levels to logits; B is at least 2 in training (pooled batch norm)."""
        features = self.encoder(self.input(levels))
        return Logits(mask=self.head(self.decoder(features)))


NETWORKS: dict[str, Callable[[Experiment], nn.Module]] = {
    "UNet": UNet,
    "DeepLabV3Plus": DeepLabV3Plus,
}


def check(row: Experiment) -> None:
    """InputError for a network or encoder that does not exist, with the nearest names."""
    if row.network not in NETWORKS:
        raise InputError(f"network {row.network!r} is none of {', '.join(NETWORKS)}")
    if row.network == "DeepLabV3Plus" and row.batch_size == 1 and not row.freeze_batch_norm:
        raise InputError(
            "BATCH_SIZE 1 gives DeepLabV3+'s pooled batch norm one value a channel: take 2 and "
            "more, with ACCUMULATE, or -p FREEZE_BATCH_NORM True"
        )
    known = smp.encoders.get_encoder_names()
    timms = row.encoder.startswith("tu-") and timm.is_model(row.encoder.removeprefix("tu-"))
    if row.encoder not in known and not timms:
        near = difflib.get_close_matches(row.encoder, known, n=3, cutoff=0.3)
        raise InputError(f"ENCODER {row.encoder!r} is unknown; nearest: {', '.join(near)}")


def build(row: Experiment) -> nn.Module:
    """The row's network with fresh random weights, in channels_last.

    Raises InputError for an unknown network or encoder, with the nearest names.
    """
    check(row)
    return NETWORKS[row.network](row).to(memory_format=torch.channels_last)


def parameter_groups(model: nn.Module, row: Experiment) -> list[dict]:
    """Encoder and the rest, the encoder at `encoder_lr_factor` times the rate of the row."""
    encoder = list(model.encoder.parameters())
    own = {id(p) for p in encoder}
    rest = [p for p in model.parameters() if id(p) not in own]
    return [
        {"params": encoder, "lr_factor": row.encoder_lr_factor},
        {"params": rest, "lr_factor": 1.0},
    ]


def batch_norms(model: nn.Module) -> Iterator[nn.modules.batchnorm._BatchNorm]:
    """All batch normalisations, for freezing them."""
    return (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
