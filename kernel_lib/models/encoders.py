"""Encoders by name: which exist, how one is built at a size, what statistics its input has."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import timm
import torch
from segmentation_models_pytorch.encoders import encoders, get_encoder
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_DPN_MEAN,
    IMAGENET_DPN_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from torch import nn

from kernel_lib.errors import InputError
from kernel_lib.registry import nearest

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Of encoders whose statistics segmentation-models-pytorch keeps on its hub alone, those that are
# not ImageNet's own: what their weights' authors published.
_INCEPTION = (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD)
_DPN = (IMAGENET_DPN_MEAN, IMAGENET_DPN_STD)
_STATISTICS = {
    **dict.fromkeys(("inceptionresnetv2", "inceptionv4", "xception"), _INCEPTION),
    **dict.fromkeys(("dpn68", "dpn68b", "dpn92", "dpn98", "dpn107", "dpn131"), _DPN),
}

_SIZES = (224, 256, 512)  # tried for the error of an encoder that refuses another


def timm_name(encoder: str) -> str | None:
    """Return timm's name of the model whose weights an encoder takes; None if timm has none.

    The name has a tag where the encoder stands for one variant of the weights.
    """
    if encoder.startswith("timm-efficientnet-"):  # the ports of the TensorFlow weights
        size = encoder.removeprefix("timm-efficientnet-")
        tag = {"b8": "ra_in1k", "l2": "ns_jft_in1k"}.get(size, "aa_in1k")
        return f"tf_efficientnet_{size}.{tag}"
    name = encoder.removeprefix("tu-").removeprefix("timm-")
    return name if timm.is_model(name) else None


def check(encoder: str) -> None:
    """Raise InputError for an encoder, or a tag of its weights, that does not exist."""
    if encoder in encoders:
        return
    name = timm_name(encoder) if encoder.startswith("tu-") else None
    if name is None:
        everything = [*encoders, *(f"tu-{n}" for n in timm.list_models())]
        raise InputError(f"ENCODER {encoder!r} is unknown; nearest: {nearest(encoder, everything)}")
    arch, _, tag = name.partition(".")
    tagged = timm.list_models(f"{arch}.*", pretrained=True)
    if tag and name not in tagged:
        raise InputError(
            f"ENCODER {encoder!r}: {arch} has no weights {tag!r}; take one of "
            f"{', '.join(f'tu-{n}' for n in tagged) or f'tu-{arch}, without a tag'}"
        )


def input_statistics(encoder: str) -> Statistics:
    """Return the mean and standard deviation, of levels 0–1, of an encoder's ImageNet weights.

    timm's own for `tu-*` and `timm-*`, segmentation-models-pytorch's table for its own encoders.
    """
    if encoder.startswith(("tu-", "timm-")):
        config = timm.models.get_pretrained_cfg(timm_name(encoder))
        if config is not None:  # None: timm publishes no weights of it
            return tuple(config.mean), tuple(config.std)
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    weights = encoders[encoder]["pretrained_settings"].get("imagenet", {})
    if "mean" in weights:
        return tuple(weights["mean"]), tuple(weights["std"])
    return _STATISTICS.get(encoder, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))


def build(encoder: str, size: int, output_stride: int = 32) -> nn.Module:
    """Return an encoder with random weights whose features fit images of (size, size).

    An encoder that cannot be dilated to `output_stride` is built with stride 32; its attribute
    `output_stride` tells. What timm needs besides for that size is kept in its `timm_options`.

    Raises:
        InputError: no form of it takes that size; with the reason, and sizes that it takes.
    """
    options, problem = _fitting(encoder, size, output_stride)
    if options is None:
        others = [s for s in _SIZES if s != size and _fitting(encoder, s, 32)[0] is not None]
        fix = f"-p SIZE {' or '.join(map(str, others))}, or a ResNet" if others else "a ResNet"
        raise InputError(f"{problem}): take {fix}")
    built = _get(encoder, options)
    if hasattr(built, "conv_head"):
        # Of the classifier, and unused: a tenth of the smallest EfficientNet's weights, whose
        # missing gradient would stop training by several processes.
        del built.conv_head, built.bn2
    for conv in built.modules():
        if isinstance(conv, nn.Conv2d) and _crashes(conv):
            conv.register_forward_pre_hook(partial(_subsampled, stride=conv.stride))
            conv.stride = (1, 1)
    built.timm_options = {k: v for k, v in options.items() if k != "output_stride"}
    return built


def _crashes(conv: nn.Conv2d) -> bool:
    """Whether the backward pass of a first layer ends the process on a CPU, in channels_last.

    oneDNN writes beyond its memory for a 1×1 convolution of three channels with a stride, which
    RepVGG's kind (MobileOne, FastViT) begins with. The same of every second pixel is the same.
    """
    return (conv.in_channels, conv.kernel_size, conv.padding) == (3, (1, 1), (0, 0)) and (
        conv.stride != (1, 1)
    )


def _subsampled(conv: nn.Module, given: tuple[torch.Tensor], stride: tuple[int, int]) -> tuple:
    (x,) = given
    return (x[:, :, :: stride[0], :: stride[1]],)


def problem_at(encoder: nn.Module, name: str, size: int) -> str | None:
    """Return why a built encoder cannot look at images of another size; None if it can."""
    options = {"output_stride": encoder.output_stride, **encoder.timm_options}
    return _problem(name, size, options)


def _fitting(
    encoder: str, size: int, output_stride: int
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the plainest options that fit, or None and what the plainest of all failed at."""
    problems = []
    for options in _options(encoder, size, output_stride):
        problem = _problem(encoder, size, options)
        if problem is None:
            return options, None
        problems.append(problem)
    return None, problems[0]


def _options(encoder: str, size: int, output_stride: int) -> Iterator[dict[str, Any]]:
    """Yield the ways to build an encoder, the plainest first."""
    ways: list[dict[str, Any]] = [{}]
    if encoder.startswith("tu-"):
        # Swin pads its windows then, and takes any size; others are built for one size.
        ways += [{"strict_img_size": False}, {"img_size": size}]
    for stride in dict.fromkeys((output_stride, 32)):
        yield from ({"output_stride": stride, **way} for way in ways)


def _get(encoder: str, options: dict[str, Any]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the names `timm-*`
        return get_encoder(encoder, in_channels=3, depth=5, weights=None, **options)


def _problem(encoder: str, size: int, options: dict[str, Any]) -> str | None:
    """Return why an encoder built so has not the features that a decoder needs; None if it has.

    The trial runs on the meta device, which computes shapes alone, and draws no random number.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            try:
                with torch.device("meta"):
                    trial = _get(encoder, options)
            except (RuntimeError, NotImplementedError):  # some read values as they are built
                trial = _get(encoder, options).to("meta")
            features = trial.eval()(torch.empty(2, 3, size, size, device="meta"))
    except Exception as error:  # whatever smp and timm raise, asserts included
        return " ".join(str(error).split()) or f"{type(error).__name__} at {size} px"
    sizes = [feature.shape[-1] for feature in features]
    wanted = [size // min(2**level, options["output_stride"]) for level in range(6)]
    return None if sizes == wanted else f"its features have sizes {sizes}, not {wanted}"
