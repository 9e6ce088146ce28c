"""Networks of torch exported to ONNX, and run by onnxruntime in place of the network.

torch's older exporter is used: its networks are as exact as those of the newer one, in a tenth of
the time and without onnxscript.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from kernel_lib.errors import InputError
from kernel_lib.inference import onnx_file
from kernel_lib.inference.onnx_file import LABEL, LEVELS, MASK
from kernel_lib.models.base import Logits, Network

# Of logits, relative to the largest. Rounding stays below 3e-5; bfloat16 gives 1e-2 and more.
TOLERANCE = 3e-4


class _SideBySide(nn.Module):
    """Several checkpoints of one network as one network, with the logits of each."""

    def __init__(self, models: Sequence[Network]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, levels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return masks (B, K, S, S) and labels (B, K) of K networks, as far as they have them."""
        outputs = [model(levels) for model in self.models]
        heads = []
        if outputs[0].mask is not None:
            heads.append(torch.cat([output.mask for output in outputs], dim=1))
        if outputs[0].label is not None:
            heads.append(torch.stack([output.label for output in outputs], dim=1))
        return tuple(heads)


class _MergedInput(nn.Module):
    """`GreyInput` with one channel for all three, and one of ones if their statistics differ."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, with_ones: bool) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.with_ones = with_ones

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        grey = (levels.float() - self.mean) / self.std
        return torch.cat([grey, torch.ones_like(grey)], dim=1) if self.with_ones else grey


def with_merged_stem(model: Network) -> Network:
    """Return a copy whose first convolution reads the grey level once, not three times.

    It is the same function: the channels are a·grey + b each, so the weights are summed, weighted
    by a for the grey channel and by b for a channel of ones, which keeps the zeros of the padding.
    onnxruntime's rounding of three nearly equal channels is ten times torch's, and all later layers
    amplify it. A network without exactly one such convolution is returned as it is.
    """
    merged = copy.deepcopy(model)
    layers = (m for m in merged.encoder.modules() if isinstance(m, nn.Conv2d))
    stems = [layer for layer in layers if layer.in_channels == 3 and layer.groups == 1]
    if len(stems) != 1:
        return model
    (stem,) = stems
    mean, std = merged.input.mean.double(), merged.input.std.double()  # (1, 3, 1, 1)
    scale, shift = std[:, :1] / std, (mean[:, :1] - mean) / std
    weight = stem.weight.detach().double()
    parts = [(weight * scale).sum(dim=1, keepdim=True)]
    if with_ones := bool((shift != 0).any()):
        parts.append((weight * shift).sum(dim=1, keepdim=True))
    stem.weight = nn.Parameter(torch.cat(parts, dim=1).to(stem.weight.dtype))
    stem.in_channels = len(parts)
    merged.input = _MergedInput(merged.input.mean[:, :1], merged.input.std[:, :1], with_ones)
    return merged


class OnnxNetwork(nn.Module):
    """A network computed by onnxruntime, in place of the torch network it was exported from."""

    def __init__(self, model: Network, size: int) -> None:
        super().__init__()
        self.session = onnx_file.session(to_onnx([model], size), torch.get_num_threads())

    def forward(self, levels: torch.Tensor) -> Logits:
        """Return the logits of (B, 1, S, S) uint8 levels."""
        outputs = onnx_file.run(self.session, levels.contiguous().numpy())
        mask, label = outputs.get(MASK), outputs.get(LABEL)
        return Logits(
            mask=None if mask is None else torch.from_numpy(mask),
            label=None if label is None else torch.from_numpy(label[:, 0]),
        )


def to_onnx(models: Sequence[Network], size: int) -> bytes:
    """Return networks of one architecture, on the CPU, as one ONNX network for one image size.

    It takes any number of images, and is compared with torch on a pattern from black to white.
    Raises: InputError if an encoder cannot be exported, or onnx is not installed.
    """
    try:
        import onnx  # noqa: F401  # torch's exporter needs it
    except ImportError:
        raise InputError(
            "onnx is not installed: pip install onnx, or pip install .[onnx]"
        ) from None
    combined = _SideBySide(models).eval()
    merged = _SideBySide([with_merged_stem(model) for model in models]).eval()
    side = torch.arange(size) * 255 // (size - 1)
    pattern = torch.minimum(side[:, None], side.flip(0)).to(torch.uint8).expand(1, 1, size, size)
    with torch.no_grad():
        expected = [heads.numpy() for heads in combined(pattern)]
    names = [name for name, has in ((MASK, models[0].has_mask), (LABEL, True)) if has]
    names = names[: len(expected)]
    content = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as that the size is constant, which is intended
            torch.onnx.export(
                merged, (pattern.repeat(2, 1, 1, 1),), content, dynamo=False,
                input_names=[LEVELS], output_names=names,
                dynamic_axes={name: {0: "images"} for name in (LEVELS, *names)},
            )  # fmt: skip
        exported = onnx_file.run(onnx_file.session(content.getvalue(), 1), pattern.numpy())
    except InputError:
        raise
    except Exception as error:  # of torch or onnxruntime, without a common base class
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"the network cannot be exported to ONNX ({reason})") from error
    for name, logits in zip(names, expected, strict=True):
        apart = float(np.abs(exported[name] - logits).max())
        if not apart <= TOLERANCE * max(1.0, float(np.abs(logits).max())):
            raise InputError(
                f"the exported network's {name} logits differ from torch's by {apart:.2g}: its "
                "encoder cannot be exported to ONNX exactly"
            )
    return content.getvalue()
