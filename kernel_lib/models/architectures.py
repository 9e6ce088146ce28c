"""The networks: each an encoder with a decoder of segmentation-models-pytorch and our heads.

To add one, write a subclass of `Network` and add it to `NETWORKS`. What other modules need before
a network is built are class attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import nn

from kernel_lib.config import Experiment
from kernel_lib.models.base import Logits, Network
from kernel_lib.models.heads import (
    AttentionGate,
    GridMean,
    Hypercolumn,
    LabelHead,
    SideMasks,
    init_prior,
    resize,
)


class UNet(Network):
    """U-Net (Ronneberger 2015) with scSE (Roy 2018) in the decoder and a hypercolumn head.

    With fewer than five decoder levels it stops below full size and upsamples its logits: cheaper,
    and coarser at the edges. The label is predicted from the centre block (without one from the
    deepest features), side masks from every decoder level.
    """

    gated: ClassVar[bool] = False  # whether attention weights the skips

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        channels, encoder_channels = experiment.decoder_channels, self.encoder.out_channels
        self.decoder = self._decoder(channels, experiment.centre_block)
        self.head = Hypercolumn(channels)
        # Optional parts last, so that a seed gives the others the same weights without them.
        self.gates = self._gates(channels) if self.gated else nn.ModuleDict()
        self.sides = SideMasks(channels) if experiment.side_weight > 0 else None
        self.label = LabelHead(encoder_channels[-1]) if experiment.label_weight > 0 else None

    def forward(self, levels: torch.Tensor) -> Logits:
        size = levels.shape[2:]
        features = self.encoder(self.input(levels))  # H, H/2, … H/32
        centre = self.decoder.center(features[-1])  # (B, C, H/32, W/32)
        outputs = self._decode(centre, features)
        return Logits(
            mask=resize(self.head(outputs), size),
            label=self.label(centre) if self.label is not None else None,
            sides=self.sides(outputs, size) if self.sides is not None else (),
        )

    def _decoder(self, channels: Sequence[int], centre_block: bool) -> nn.Module:
        decoder = UnetDecoder(
            encoder_channels=self.encoder.out_channels,
            decoder_channels=channels,
            n_blocks=len(channels),
            attention_type="scse",
            add_center_block=centre_block,
        )
        if len(channels) == len(self.encoder.out_channels) - 1:
            # Attention on the skip, which the level at full size lacks: it would get no gradient.
            decoder.blocks[-1].attention1 = nn.Identity()
        return decoder

    def _decode(self, x: torch.Tensor, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the outputs of all decoder levels, H/16 to H; smp's returns only the last."""
        features = features[::-1]  # coarse to fine
        skips = [*features[1:-1], None]
        outputs = []
        for i, block in enumerate(self.decoder.blocks):
            skip = skips[i]
            if str(i) in self.gates:
                skip = self.gates[str(i)](skip, x)
            x = block(x, *features[i + 1].shape[2:], skip_connection=skip)
            outputs.append(x)
        return outputs

    def _gates(self, decoder_channels: Sequence[int]) -> nn.ModuleDict:
        """Return a gate for every decoder level with a skip, by the level's number, coarsest 0."""
        skips = self.encoder.out_channels[-2:0:-1]  # H/16 to H/2
        coarser = (self.encoder.out_channels[-1], *decoder_channels[:-1])
        return nn.ModuleDict(
            {
                str(i): AttentionGate(skip, below)
                for i, (skip, below) in enumerate(zip(skips, coarser, strict=False))
                if skip > 0  # some encoders have no features at half size
            }
        )


class AttentionUNet(UNet):
    """Attention U-Net (Oktay 2018): `UNet` with a gate on each skip.

    The gating signal is the output of the next coarser level, for the coarsest the centre block.
    A seed gives the other layers the same weights as in the plain U-Net.
    """

    gated = True


class UNetPlusPlus(UNet):
    """U-Net++ (Zhou 2018): a node between encoder and decoder for each level and depth.

    No attention, as in the paper. The decoder's levels are the last node of each row, so label,
    side masks, hypercolumn and fewer than five levels work as in `UNet`. The paper's side masks,
    from the nodes of the finest row, are not possible without features at half size.
    """

    def _decoder(self, channels: Sequence[int], centre_block: bool) -> nn.Module:
        # smp's last block has no skip; if the last level has one, build and remove another block.
        full = len(channels) == len(self.encoder.out_channels) - 1
        widths = channels if full else (*channels, channels[-1])
        decoder = UnetPlusPlusDecoder(
            encoder_channels=self.encoder.out_channels,
            decoder_channels=widths,
            n_blocks=len(widths),
            center=centre_block,
        )
        if not full:
            decoder.blocks[f"x_0_{len(channels)}"] = nn.Identity()
        if self.encoder.out_channels[1] == 0:  # some encoders have no features at half size
            for name in {"x_1_3", "x_2_3", "x_3_3"} & set(decoder.blocks):
                del decoder.blocks[name]  # they would have no channels
        return decoder

    def _decode(self, x: torch.Tensor, features: list[torch.Tensor]) -> list[torch.Tensor]:
        levels = [x, *features[-2:0:-1]]  # H/32 to H/2
        nodes, outputs = [], []
        for row in range(len(self.head.reduce)):
            coarser, nodes = nodes, levels[row + 1 : row + 2]  # the skip; none at full size
            inner = row if nodes and nodes[0].shape[1] else 0  # nodes between skip and decoder
            for depth in range(inner, -1, -1):
                below = levels[row] if depth == row else coarser[depth]
                block = self.decoder.blocks[f"x_{depth}_{row}"]
                nodes = [block(below, torch.cat(nodes, dim=1) if nodes else None), *nodes]
            outputs.append(nodes[0])
        return outputs


def _head(decoder: nn.Module, channels: int) -> nn.Module:
    """Return a mask head that upsamples from H/4, W/4; initialise it and its decoder."""
    head = SegmentationHead(channels, 1, kernel_size=1, upsampling=4)
    initialize_decoder(decoder)
    initialize_head(head)
    init_prior(head[0])
    return head


class DeepLabV3Plus(Network):
    """DeepLabV3+ (Chen 2018), output stride 16, or 32 for an encoder that cannot be dilated.

    ASPP and decoder have the width of the first of `decoder_channels`; the paper uses 256. The
    label is predicted from the output of the ASPP, the input of the mask's decoder, like the centre
    block of the U-Net. Side masks are predicted at stride 16, from the last encoder stage but one
    (as the auxiliary loss of Zhao 2017) and from the output of the ASPP. There is none at stride 4:
    the mask itself is one 1×1 convolution of the decoder's fused features, and the encoder's
    features there are edges.
    """

    min_batch = 2  # the ASPP pools the image to one pixel, and applies batch norm to it
    output_stride = 16

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        stride, width = self.encoder.output_stride, experiment.decoder_channels[0]
        rates = {16: (12, 24, 36), 32: (6, 12, 18)}[stride]  # the same receptive field in pixels
        self.decoder = DeepLabV3PlusDecoder(
            encoder_channels=self.encoder.out_channels,
            encoder_depth=5,
            out_channels=width,
            atrous_rates=rates,
            output_stride=16,
            aspp_separable=True,
            aspp_dropout=0.5,
        )
        self.decoder.up.scale_factor = float(stride // 4)
        self.head = _head(self.decoder, width)
        side_channels = (self.encoder.out_channels[-2], width)
        self.sides = SideMasks(side_channels) if experiment.side_weight > 0 else None
        self.label = LabelHead(width) if experiment.label_weight > 0 else None
        if stride > 16:
            self.note = (
                f"note: {experiment.encoder} cannot be dilated, so DeepLabV3Plus takes its "
                f"deepest features at stride {stride} instead of 16"
            )

    def forward(self, levels: torch.Tensor) -> Logits:
        size = levels.shape[2:]
        features = self.encoder(self.input(levels))  # H, H/2, … H/16, H/16 (H/32 undilated)
        aspp = self.decoder.aspp(features[-1])  # (B, C, H/16, W/16), or at stride 32
        return Logits(
            mask=self.head(self._decode(aspp, features)),
            label=self.label(aspp) if self.label is not None else None,
            sides=self.sides((features[-2], aspp), size) if self.sides is not None else (),
        )

    def _decode(self, aspp: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
        """Return the fused features (B, C, H/4, W/4), as smp's decoder; it returns no ASPP."""
        early = self.decoder.block1(features[2])  # (B, 48, H/4, W/4)
        return self.decoder.block2(torch.cat([self.decoder.up(aspp), early], dim=1))


class UPerNet(Network):
    """UPerNet (Xiao 2018): a feature pyramid below a pyramid pooling module.

    Its width is the first of `decoder_channels`. The label is predicted from the output of the
    pooling module, side masks from the levels of the pyramid.
    """

    min_batch = 2  # the pooling module pools the image to one pixel, and applies batch norm to it

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        width, encoder_channels = experiment.decoder_channels[0], self.encoder.out_channels
        self.decoder = UPerNetDecoder(encoder_channels=encoder_channels, decoder_channels=width)
        for block in self.decoder.psp.blocks:
            block[0] = GridMean(block[0].output_size)
        self.head = _head(self.decoder, width)
        sides = (width,) * (len(encoder_channels) - 2)  # H/32 to H/4
        self.sides = SideMasks(sides) if experiment.side_weight > 0 else None
        self.label = LabelHead(width) if experiment.label_weight > 0 else None

    def forward(self, levels: torch.Tensor) -> Logits:
        size = levels.shape[2:]
        features = self.encoder(self.input(levels))[2:]  # H/4 to H/32
        pairs = zip(self.decoder.feature_norms, features, strict=True)
        features = [norm(feature) for norm, feature in pairs]
        pooled = self.decoder.psp(features[-1])  # (B, C, H/32, W/32)
        outputs = self._decode(pooled, features)
        return Logits(
            mask=self.head(self._fuse(outputs)),
            label=self.label(pooled) if self.label is not None else None,
            sides=self.sides(outputs, size) if self.sides is not None else (),
        )

    def _decode(self, pooled: torch.Tensor, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the pyramid's levels (B, C, …), H/32 to H/4; smp's does not return them."""
        levels = [pooled]
        for lateral, feature in zip(self.decoder.fpn_lateral_blocks, features[-2::-1], strict=True):
            levels.append(lateral(levels[-1], feature))
        pairs = zip(self.decoder.fpn_conv_blocks, levels[1:], strict=True)
        return [pooled, *(conv(level) for conv, level in pairs)]

    def _fuse(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Return the levels fused, (B, C, H/4, W/4)."""
        resized = [resize(level, outputs[-1].shape[2:]) for level in reversed(outputs)]
        return self.decoder.fusion_block(torch.cat(resized, dim=1))


class SegFormer(Network):
    """SegFormer (Xie 2021): a linear layer for each of four encoder levels, fused by another.

    Its width is the first of `decoder_channels`; the paper uses 256 with MiT-B0 and -B1, 768 with
    larger ones. The label is predicted from the encoder's deepest features. There are no side
    masks: the decoder has one level only, that of the mask.
    """

    has_sides = False

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        width, encoder_channels = experiment.decoder_channels[0], self.encoder.out_channels
        self.decoder = SegformerDecoder(
            # The paper's encoder has no features at half size, and its decoder uses none.
            encoder_channels=[encoder_channels[0], 0, *encoder_channels[2:]],
            segmentation_channels=width,
        )
        self.head = _head(self.decoder, width)
        self.label = LabelHead(encoder_channels[-1]) if experiment.label_weight > 0 else None

    def forward(self, levels: torch.Tensor) -> Logits:
        features = self.encoder(self.input(levels))  # H, H/2, … H/32
        fused = self.decoder([features[0], features[1][:, :0], *features[2:]])  # (B, C, H/4, W/4)
        return Logits(
            mask=self.head(fused),
            label=self.label(features[-1]) if self.label is not None else None,
        )


class Classifier(Network):
    """An encoder and a label head on its deepest features: "has a pneumothorax", and no mask.

    The parameters of its encoder have the same names as in other networks, so they can start one.
    """

    has_mask = has_sides = False

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.label = LabelHead(self.encoder.out_channels[-1])

    def forward(self, levels: torch.Tensor) -> Logits:
        deepest = self.encoder(self.input(levels))[-1]  # (B, C, H/32, W/32)
        return Logits(mask=None, label=self.label(deepest))


NETWORKS: dict[str, type[Network]] = {
    "UNet": UNet,
    "AttentionUNet": AttentionUNet,
    "UNetPlusPlus": UNetPlusPlus,
    "DeepLabV3Plus": DeepLabV3Plus,
    "UPerNet": UPerNet,
    "SegFormer": SegFormer,
    "Classifier": Classifier,
}
