"""Networks by name: a grey radiograph in, logits out. A new network is a class and a line here.

A network is a `Network` with an encoder of `encoders.build` as its attribute `encoder`. What other
modules must know of it before it is built are class attributes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import nn

from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.models import encoders
from kernel_lib.models.heads import (
    AttentionGate,
    Hypercolumn,
    LabelHead,
    SideMasks,
    init_prior,
    resize,
)
from kernel_lib.registry import lookup

ASPP_CHANNELS = 256


class Logits(NamedTuple):
    """Output of every network, and the only form that losses and prediction know."""

    mask: torch.Tensor | None  # (B, 1, H, W) logits; None of a network without a mask
    label: torch.Tensor | None = None  # (B,) logits of "has a pneumothorax"
    sides: tuple[torch.Tensor, ...] = ()  # (B, 1, H, W) each, coarse to fine; only in training


class GreyInput(nn.Module):
    """Normalisation of grey levels for an ImageNet encoder.

    (B, 1, H, W) uint8 levels to (B, 3, H, W): scaled to 0–1, repeated to three channels, normalised
    by the mean and standard deviation of the encoder's ImageNet weights. Both are buffers, so a
    checkpoint keeps the statistics it was trained with.
    """

    def __init__(self, encoder: str) -> None:
        super().__init__()
        mean, std = encoders.input_statistics(encoder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        return (levels.float() - self.mean) / self.std  # broadcast to (B, 3, H, W)


class Network(nn.Module):
    """Base class: the input, the encoder, and the properties that other modules ask for.

    `forward` takes (B, 1, H, W) uint8 levels, H and W multiples of 32, and returns `Logits`.
    """

    has_mask: ClassVar[bool] = True  # whether it draws masks
    min_batch: ClassVar[int] = 1  # images that a training batch needs where no feature is one pixel
    output_stride: ClassVar[int] = 32  # of its encoder
    note: str | None = None  # printed before training

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.input = GreyInput(experiment.encoder)
        self.encoder = encoders.build(experiment.encoder, experiment.size, self.output_stride)


class UNet(Network):
    """U-Net (Ronneberger 2015) with scSE (Roy 2018) in the decoder and a hypercolumn head.

    With fewer than five decoder levels it stops that much below full size and upsamples its logits:
    cheaper, and coarser at the edges. The label is read from the centre block (without one from the
    deepest features), side masks from every decoder level.
    """

    gated: ClassVar[bool] = False  # whether attention weights the skips

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        channels, encoder_channels = experiment.decoder_channels, self.encoder.out_channels
        self.decoder = UnetDecoder(
            encoder_channels=encoder_channels,
            decoder_channels=channels,
            n_blocks=len(channels),
            attention_type="scse",
            add_center_block=experiment.centre_block,
        )
        if len(channels) == len(encoder_channels) - 1:
            # Attention on the skip, which the level at full size lacks: it would never learn.
            self.decoder.blocks[-1].attention1 = nn.Identity()
        self.head = Hypercolumn(channels)
        # Optional parts last, so that a seed draws the same weights for the others without them.
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

    def _decode(self, x: torch.Tensor, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the outputs of all decoder levels, H/16 to H; smp's decoder returns the last."""
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
    A seed draws the same weights for the other layers as for the plain U-Net.
    """

    gated = True


class DeepLabV3Plus(Network):
    """DeepLabV3+ (Chen 2018), output stride 16, or 32 for an encoder that cannot be dilated.

    The label is read from the output of the ASPP, the input of the mask's decoder, like the centre
    block of the U-Net. Side masks are read at stride 16, from the encoder stage before the last (as
    the auxiliary loss of Zhao 2017) and from the output of the ASPP. At stride 4 there is nothing
    to supervise: the mask itself is one 1×1 convolution of the decoder's fused features, and the
    encoder's are edges.
    """

    min_batch = 2  # the ASPP pools the image to one pixel, and normalises it
    output_stride = 16

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        stride = self.encoder.output_stride
        rates = {16: (12, 24, 36), 32: (6, 12, 18)}[stride]  # the same reach in pixels
        self.decoder = DeepLabV3PlusDecoder(
            encoder_channels=self.encoder.out_channels,
            encoder_depth=5,
            out_channels=ASPP_CHANNELS,
            atrous_rates=rates,
            output_stride=16,
            aspp_separable=True,
            aspp_dropout=0.5,
        )
        self.decoder.up.scale_factor = float(stride // 4)
        self.head = SegmentationHead(ASPP_CHANNELS, 1, kernel_size=1, upsampling=4)
        initialize_decoder(self.decoder)
        initialize_head(self.head)
        init_prior(self.head[0])
        side_channels = (self.encoder.out_channels[-2], ASPP_CHANNELS)
        self.sides = SideMasks(side_channels) if experiment.side_weight > 0 else None
        self.label = LabelHead(ASPP_CHANNELS) if experiment.label_weight > 0 else None
        if stride > 16:
            self.note = (
                f"note: {experiment.encoder} cannot be dilated, so that DeepLabV3Plus takes its "
                f"deepest features at stride {stride} instead of 16"
            )

    def forward(self, levels: torch.Tensor) -> Logits:
        size = levels.shape[2:]
        features = self.encoder(self.input(levels))  # H, H/2, … H/16, H/16 (H/32 undilated)
        aspp = self.decoder.aspp(features[-1])  # (B, 256, H/16, W/16), or at stride 32
        return Logits(
            mask=self.head(self._decode(aspp, features)),
            label=self.label(aspp) if self.label is not None else None,
            sides=self.sides((features[-2], aspp), size) if self.sides is not None else (),
        )

    def _decode(self, aspp: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
        """Return the fused features (B, 256, H/4, W/4), as smp's decoder; it hides its ASPP."""
        early = self.decoder.block1(features[2])  # (B, 48, H/4, W/4)
        return self.decoder.block2(torch.cat([self.decoder.up(aspp), early], dim=1))


class Classifier(Network):
    """An encoder and a label head on its deepest features: "has a pneumothorax", and no mask.

    Its encoder has the names of the other networks' encoders, so it can start one of them.
    """

    has_mask = False

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.label = LabelHead(self.encoder.out_channels[-1])

    def forward(self, levels: torch.Tensor) -> Logits:
        deepest = self.encoder(self.input(levels))[-1]  # (B, C, H/32, W/32)
        return Logits(mask=None, label=self.label(deepest))


NETWORKS: dict[str, type[Network]] = {
    "UNet": UNet,
    "AttentionUNet": AttentionUNet,
    "DeepLabV3Plus": DeepLabV3Plus,
    "Classifier": Classifier,
}


def network_class(name: str) -> type[Network]:
    """Return the network of that name; InputError with the known names if there is none."""
    return lookup("network", name, NETWORKS)


def check(experiment: Experiment) -> None:
    """Raise InputError for a network, encoder, head or batch size that cannot be trained."""
    name = experiment.network
    if not network_class(name).has_mask:
        if experiment.label_weight == 0:
            raise InputError(
                f"label_weight 0 leaves a {name} nothing to learn: give its experiment one above "
                "0, say 1"
            )
        if experiment.side_weight > 0:
            raise InputError(
                f"side_weight {experiment.side_weight:g} asks a {name} for masks, and it has none: "
                "give its experiment 0, or take another network"
            )
    if experiment.batch_size < min_batch(experiment):
        raise InputError(
            f"BATCH_SIZE {experiment.batch_size} gives a batch norm of {name} at {experiment.size} "
            f"px one value a channel: take {min_batch(experiment)} and more, with ACCUMULATE, or "
            "-p FREEZE_BATCH_NORM True"
        )
    encoders.check(experiment.encoder)


def min_batch(experiment: Experiment) -> int:
    """Return how many images a training batch needs for the batch norm of a single pixel.

    At 32 px that is the deepest level of every network.
    """
    if experiment.freeze_batch_norm:
        return 1
    return max(network_class(experiment.network).min_batch, 2 if experiment.size == 32 else 1)


def build(experiment: Experiment) -> Network:
    """Return the network of an experiment with random weights, in channels_last.

    InputError for an unknown network or encoder, and for two that do not fit at that size.
    """
    check(experiment)
    fault = (
        f"ENCODER {experiment.encoder!r} does not fit {experiment.network} at {experiment.size} px"
    )
    try:
        model = NETWORKS[experiment.network](experiment)
    except InputError as error:
        raise InputError(f"{fault} ({error}") from error
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        # Of a decoder that was not written for such features.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{fault} ({reason}): take a ResNet") from error
    return model.to(memory_format=torch.channels_last)


def check_sizes(model: Network, experiment: Experiment, sizes: Iterable[int]) -> None:
    """Raise InputError if the network cannot take images of its size, or of one that TTA needs."""
    size, encoder = experiment.size, experiment.encoder
    if (problem := _problem(model, size)) is not None:
        raise InputError(
            f"ENCODER {encoder!r} does not fit {experiment.network} at {size} px ({problem}): "
            "take a ResNet"
        )
    for other in sorted(set(sizes) - {size}):
        if (problem := encoders.problem_at(model.encoder, encoder, other)) is not None:
            raise InputError(
                f"TTA {experiment.tta} looks at {other} px, and ENCODER {encoder!r} at SIZE {size} "
                f"takes no other size ({problem}): take -p TTA hflip, or a ResNet"
            )


def _problem(model: nn.Module, size: int) -> str | None:
    """Return why a training step fails at that size; None if it does not.

    Tried on the meta device and, where that fails, with numbers.
    """
    levels = torch.zeros(2, 1, size, size)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            trial = copy.deepcopy(model)  # as for the averaged weights
            try:
                copy.deepcopy(trial).to("meta")(levels.to("meta"))
            except Exception:  # whatever encoders raise, also for constants that meta lacks
                trial(levels)
        except Exception as error:
            return " ".join(str(error).split()) or type(error).__name__
    return None


def parameter_groups(model: nn.Module, experiment: Experiment) -> list[dict]:
    """Return the parameters of the encoder and the others, with their factors of the rate."""
    encoder = list(model.encoder.parameters())
    ids = {id(p) for p in encoder}
    others = [p for p in model.parameters() if id(p) not in ids]
    return [
        {"params": encoder, "lr_factor": experiment.encoder_lr_factor},
        {"params": others, "lr_factor": 1.0},
    ]


def batch_norms(model: nn.Module) -> Iterator[nn.modules.batchnorm._BatchNorm]:
    """Yield all batch normalisations of a network."""
    return (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
