"""The networks: a grey radiograph in, logits out. `NETWORKS` is where a new one is named."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import nn

from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.models import encoders
from kernel_lib.models.attention import AttentionGate
from kernel_lib.models.encoders import input_statistics
from kernel_lib.models.heads import Hypercolumn, LabelHead, SideMasks, rarely, resized
from kernel_lib.registry import lookup

ASPP_CHANNELS = 256


class Logits(NamedTuple):
    """What every network returns; losses and prediction know no other form.

    Side masks are there in training only (`heads.SideMasks`), coarse to fine, at full size.
    """

    mask: torch.Tensor | None  # (B, 1, H, W) logits; None from a classifier
    label: torch.Tensor | None = None  # (B,) logits of "has a pneumothorax"
    sides: tuple[torch.Tensor, ...] = ()  # each (B, 1, H, W) logits


class GreyInput(nn.Module):
    """Pixels as they lie in the cache to what an ImageNet encoder expects.

    (B, 1, H, W) uint8 levels to (B, 3, H, W): scaled to 0–1, the one channel repeated to three,
    each with the mean and standard deviation that the encoder's ImageNet weights were trained
    with. Both are buffers, so a checkpoint keeps the statistics that it was trained with.
    """

    def __init__(self, encoder: str) -> None:
        super().__init__()
        mean, std = input_statistics(encoder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        return (levels.float() - self.mean) / self.std  # broadcast to (B, 3, H, W)


class UNet(nn.Module):
    """U-Net (Ronneberger 2015) with scSE (Roy 2018) in the decoder and a hypercolumn head.

    With fewer than five decoder levels it stops that much below full size, and its logits are
    upsampled: cheaper, and coarser at the edges. A label is read from the centre block (without one
    from the deepest features), side masks from every decoder level.
    """

    gated = False  # whether attention weighs what a skip brings

    def __init__(self, row: Experiment) -> None:
        super().__init__()
        self.input = GreyInput(row.encoder)
        self.encoder = encoders.build(row.encoder, row.size)
        self.decoder = UnetDecoder(
            encoder_channels=self.encoder.out_channels,
            decoder_channels=row.decoder_channels,
            n_blocks=len(row.decoder_channels),
            attention_type="scse",
            add_center_block=row.centre_block,
        )
        if len(row.decoder_channels) == len(self.encoder.out_channels) - 1:
            # It looks at what a skip brings; full size has none, so it would never learn.
            self.decoder.blocks[-1].attention1 = nn.Identity()
        self.head = Hypercolumn(row.decoder_channels)
        # From here on what a row may add, so that a seed draws the same weights above without it.
        self.gates = self._gates(row.decoder_channels) if self.gated else nn.ModuleDict()
        self.sides = SideMasks(row.decoder_channels) if row.side_weight > 0 else None
        self.label = LabelHead(self.encoder.out_channels[-1]) if row.label_weight > 0 else None

    def forward(self, levels: torch.Tensor) -> Logits:
        """(B, 1, H, W) uint8 levels to logits; H and W are multiples of 32."""
        size = levels.shape[2:]
        features = self.encoder(self.input(levels))  # H, H/2, … H/32
        centre = self.decoder.center(features[-1])  # (B, C, H/32, W/32)
        outputs = self._decode(centre, features)
        return Logits(
            mask=resized(self.head(outputs), size),
            label=self.label(centre) if self.label is not None else None,
            sides=self.sides(outputs, size) if self.sides is not None else (),
        )

    def _decode(self, x: torch.Tensor, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Outputs of all decoder levels, H/16 to H; the library's decoder returns only the last."""
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
        """A gate for every decoder level that has a skip, by the level's number, coarsest 0."""
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
    """Attention U-Net (Oktay 2018): the U-Net above with a gate on each skip.

    The gating signal is the output of the next coarser level, the centre block's for the coarsest.
    Its other weights are those that the same seed draws for the plain U-Net.
    """

    gated = True


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ (Chen 2018), output stride 16, or 32 of an encoder that cannot be dilated.

    A label is read from the ASPP's output, not from the encoder's, because that is what the mask's
    decoder gets too, as it gets the centre block in the U-Net. Side masks are read at stride 16
    from the encoder's stage before the last, where Zhao 2017 has its auxiliary loss, and from the
    ASPP's output. At stride 4 the decoder's fused features are what the mask itself is read from
    by one 1×1 convolution, and the encoder's are edges, too early to tell a pneumothorax.
    """

    def __init__(self, row: Experiment) -> None:
        super().__init__()
        self.input = GreyInput(row.encoder)
        self.encoder = encoders.build(row.encoder, row.size, output_stride=16)
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
        rarely(self.head[0])
        side_channels = (self.encoder.out_channels[-2], ASPP_CHANNELS)
        self.sides = SideMasks(side_channels) if row.side_weight > 0 else None
        self.label = LabelHead(ASPP_CHANNELS) if row.label_weight > 0 else None
        if stride > 16:
            self.note = (
                f"note: {row.encoder} cannot be dilated, so that DeepLabV3Plus takes its deepest "
                f"features at stride {stride} instead of 16"
            )

    def forward(self, levels: torch.Tensor) -> Logits:
        """(B, 1, H, W) uint8 levels to logits; B is at least 2 in training (pooled batch norm)."""
        size = levels.shape[2:]
        features = self.encoder(self.input(levels))  # H, H/2, … H/16, H/16 (H/32 undilated)
        aspp = self.decoder.aspp(features[-1])  # (B, 256, H/16, W/16), or at stride 32
        return Logits(
            mask=self.head(self._decode(aspp, features)),
            label=self.label(aspp) if self.label is not None else None,
            sides=self.sides((features[-2], aspp), size) if self.sides is not None else (),
        )

    def _decode(self, aspp: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
        """The fused features (B, 256, H/4, W/4); the library's decoder keeps the ASPP's output."""
        early = self.decoder.block1(features[2])  # (B, 48, H/4, W/4)
        return self.decoder.block2(torch.cat([self.decoder.up(aspp), early], dim=1))


class Classifier(nn.Module):
    """An encoder and a label head on its deepest features: "has a pneumothorax", and no mask.

    Its encoder has the names of the other networks' encoders, so it can start one of them.
    """

    def __init__(self, row: Experiment) -> None:
        super().__init__()
        self.input = GreyInput(row.encoder)
        self.encoder = encoders.build(row.encoder, row.size)
        self.label = LabelHead(self.encoder.out_channels[-1])

    def forward(self, levels: torch.Tensor) -> Logits:
        """(B, 1, H, W) uint8 levels to logits; H and W are multiples of 32."""
        deepest = self.encoder(self.input(levels))[-1]  # (B, C, H/32, W/32)
        return Logits(mask=None, label=self.label(deepest))


NETWORKS: dict[str, Callable[[Experiment], nn.Module]] = {
    "UNet": UNet,
    "AttentionUNet": AttentionUNet,
    "DeepLabV3Plus": DeepLabV3Plus,
    "Classifier": Classifier,
}


def check(row: Experiment) -> None:
    """InputError for a network or encoder that does not exist, with the nearest names.

    So too for heads that the network cannot have, and for batches too small for its batch norm.
    """
    lookup("network", row.network, NETWORKS)
    if row.network == "Classifier" and row.label_weight == 0:
        raise InputError(
            "label_weight 0 leaves a Classifier nothing to learn: give its row one above 0, say 1"
        )
    if row.network == "Classifier" and row.side_weight > 0:
        raise InputError(
            f"side_weight {row.side_weight:g} asks a Classifier for masks, and it has none: give "
            "its row 0, or take another network"
        )
    if row.batch_size == 1 and needs_pairs(row):
        raise InputError(
            f"BATCH_SIZE 1 gives a batch norm of {row.network} at {row.size} px one value a "
            "channel: take 2 and more, with ACCUMULATE, or -p FREEZE_BATCH_NORM True"
        )
    encoders.check(row.encoder)


def needs_pairs(row: Experiment) -> bool:
    """Whether a training batch needs two images, because a batch norm stands at a single pixel.

    DeepLabV3+ pools its image to one; at 32 px the deepest level of the others is one.
    """
    return not row.freeze_batch_norm and (row.network == "DeepLabV3Plus" or row.size == 32)


def build(row: Experiment) -> nn.Module:
    """The row's network with fresh random weights, in channels_last.

    Raises InputError for an unknown network or encoder, with the nearest names, and for an encoder
    that this network cannot have at the row's size.
    """
    check(row)
    where = f"ENCODER {row.encoder!r} does not fit {row.network} at {row.size} px"
    try:
        model = NETWORKS[row.network](row)
    except InputError as error:
        raise InputError(f"{where} ({error}") from error
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        # Of a decoder whose library did not think of such features.
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where} ({why}): take a ResNet") from error
    return model.to(memory_format=torch.channels_last)


def check_sizes(model: nn.Module, row: Experiment, sizes: Iterable[int]) -> None:
    """Raise InputError if the network cannot look at images of its size, or of one TTA brings."""
    if (problem := _problem(model, row.size)) is not None:
        raise InputError(
            f"ENCODER {row.encoder!r} does not fit {row.network} at {row.size} px ({problem}): "
            "take a ResNet"
        )
    for size in sorted(set(sizes) - {row.size}):
        problem = encoders.problem_at(model.encoder, row.encoder, size)
        if problem is not None:
            raise InputError(
                f"TTA {row.tta} looks at {size} px, and ENCODER {row.encoder!r} at SIZE {row.size} "
                f"takes no other size ({problem}): take -p TTA hflip, or a ResNet"
            )


def _problem(model: nn.Module, size: int) -> str | None:
    """Return why a training step cannot be taken at that size; None if it can.

    On the meta device, and where that cannot say, by numbers.
    """
    levels = torch.zeros(2, 1, size, size)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            trial = copy.deepcopy(model)  # as the averaged weights are made, too
            try:
                copy.deepcopy(trial).to("meta")(levels.to("meta"))
            except Exception:  # whatever encoders raise, also of constants that meta lacks
                trial(levels)
        except Exception as error:
            return " ".join(str(error).split()) or type(error).__name__
    return None


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
