"""Encoders by name: which exist, how to build one for an image size, and its input statistics."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from segmentation_models_pytorch.encoders import encoders, get_encoder
from timm.data import constants
from timm.models import group_parameters
from torch import nn

from kernel_lib.errors import InputError
from kernel_lib.registry import nearest

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# segmentation-models-pytorch keeps the statistics of some encoders only on the Hugging Face Hub.
# These are the ones that differ from ImageNet's, as published by the authors of their weights.
_IMAGENET = (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD)
_INCEPTION = (constants.IMAGENET_INCEPTION_MEAN, constants.IMAGENET_INCEPTION_STD)
_DPN = (constants.IMAGENET_DPN_MEAN, constants.IMAGENET_DPN_STD)
_STATISTICS = {
    **dict.fromkeys(("inceptionresnetv2", "inceptionv4", "xception"), _INCEPTION),
    **dict.fromkeys(("dpn68", "dpn68b", "dpn92", "dpn98", "dpn107", "dpn131"), _DPN),
}
PARTS = 12  # groups of an encoder's layers for layer_decay, as in ConvNeXt (Liu 2022)
_SUGGESTED_SIZES = (224, 256, 512)  # tried for the error message if an encoder refuses a size


def timm_name(encoder: str) -> str | None:
    """Return the name of timm's model with the weights of an encoder; None if timm has none.

    The name has a tag if the encoder's name implies one variant of the weights.
    """
    if encoder.startswith("timm-efficientnet-"):  # ported TensorFlow weights
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
        known = [*encoders, *(f"tu-{model}" for model in timm.list_models())]
        raise InputError(f"ENCODER {encoder!r} is unknown; nearest: {nearest(encoder, known)}")
    arch, _, tag = name.partition(".")
    tagged = timm.list_models(f"{arch}.*", pretrained=True)
    if tag and name not in tagged:
        raise InputError(
            f"ENCODER {encoder!r}: {arch} has no weights {tag!r}; take one of "
            f"{', '.join(f'tu-{model}' for model in tagged) or f'tu-{arch}, without a tag'}"
        )


def input_statistics(encoder: str) -> Statistics:
    """Return the mean and standard deviation (of levels 0–1) that an encoder was trained with.

    Source: timm for `tu-*` and `timm-*`, segmentation-models-pytorch for its own encoders.
    """
    if encoder.startswith(("tu-", "timm-")):
        config = timm.models.get_pretrained_cfg(timm_name(encoder))  # None: no weights published
        return (tuple(config.mean), tuple(config.std)) if config is not None else _IMAGENET
    settings = encoders[encoder]["pretrained_settings"].get("imagenet", {})
    if "mean" in settings:
        return tuple(settings["mean"]), tuple(settings["std"])
    return _STATISTICS.get(encoder, _IMAGENET)


def build(encoder: str, size: int, output_stride: int = 32, drop_path: float = 0.0) -> nn.Module:
    """Return an encoder with random weights for images of (size, size).

    In training its blocks are skipped with a probability that grows with depth to `drop_path`; 0
    keeps the encoder's own rate.

    An encoder that cannot be dilated to `output_stride` gets stride 32; its attribute
    `output_stride` holds the actual one. Its attribute `timm_options` holds what timm needs for
    that size. Raises: InputError, with sizes that fit, if no variant of the encoder takes that
    size, and if it does not support `drop_path`.
    """
    options, problem = _fitting_options(encoder, size, output_stride)
    if options is None:
        others = [
            other
            for other in _SUGGESTED_SIZES
            if other != size and _fitting_options(encoder, other, 32)[0] is not None
        ]
        fix = f"-p SIZE {' or '.join(map(str, others))}, or a ResNet" if others else "a ResNet"
        raise InputError(f"{problem}): take {fix}")
    built = (
        _create_skipping(encoder, options, drop_path) if drop_path else _create(encoder, options)
    )
    if hasattr(built, "conv_head"):
        # Unused layers of the classifier: a tenth of the smallest EfficientNet's weights. They
        # get no gradient, which would stop training with several processes.
        del built.conv_head, built.bn2
    for conv in built.modules():
        # On a CPU in channels_last, oneDNN writes out of bounds in the backward pass of a strided
        # 1×1 convolution of three channels, the first layer of RepVGG-like encoders (MobileOne,
        # FastViT). Subsampling its input gives the same result.
        if (
            isinstance(conv, nn.Conv2d)
            and (conv.in_channels, conv.kernel_size, conv.padding) == (3, (1, 1), (0, 0))
            and conv.stride != (1, 1)
        ):
            conv.register_forward_pre_hook(partial(_subsample, stride=conv.stride))
            conv.stride = (1, 1)
    built.timm_options = {k: v for k, v in options.items() if k != "output_stride"}
    return built


def _subsample(conv: nn.Module, inputs: tuple[torch.Tensor], stride: tuple[int, int]) -> tuple:
    (x,) = inputs
    return (x[:, :, :: stride[0], :: stride[1]],)


def problem_at(encoder: nn.Module, name: str, size: int) -> str | None:
    """Return why a built encoder cannot take images of another size; None if it can."""
    options = {"output_stride": encoder.output_stride, **encoder.timm_options}
    return _problem(name, size, options)


def _fitting_options(
    encoder: str, size: int, output_stride: int
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the first options that fit and None, or None and the problem of the first options."""
    variants: list[dict[str, Any]] = [{}]
    if encoder.startswith("tu-"):
        # The first lets Swin pad its windows and take any size; the second builds for one size.
        variants += [{"strict_img_size": False}, {"img_size": size}]
    problems = []
    for stride in dict.fromkeys((output_stride, 32)):
        for variant in variants:
            options = {"output_stride": stride, **variant}
            problem = _problem(encoder, size, options)
            if problem is None:
                return options, None
            problems.append(problem)
    return None, problems[0]


def _create(encoder: str, options: dict[str, Any]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about the names `timm-*`
        return get_encoder(encoder, in_channels=3, depth=5, weights=None, **options)


def _create_skipping(encoder: str, options: dict[str, Any], drop_path: float) -> nn.Module:
    """Return an encoder with that drop path. Raises: InputError if it has none."""
    try:
        if encoder.startswith("tu-"):
            built = _create(encoder, {**options, "drop_path_rate": drop_path})
        else:
            built = _create(encoder, options)
            built.reset_drop_path(drop_path)
    except (TypeError, AttributeError):  # from an encoder without drop path
        built = nn.Identity()
    if not any(getattr(module, "drop_prob", 0) for module in built.modules()):
        raise InputError(
            f"it skips no blocks, as drop_path {drop_path:g} asks): give its experiment drop_path "
            "0, or take an encoder of timm, such as tu-convnext_tiny"
        )
    return built


def parts(encoder: nn.Module, name: str) -> list[list[nn.Parameter]]:
    """Return the parameters of a built encoder by depth, in at most `PARTS` parts, shallow first.

    The depths are those of timm's model. Raises: InputError if timm has no such model or no depths.
    """
    model = timm_name(name)
    complete = on_meta(partial(timm.create_model, model)) if model else nn.Identity()
    # smp wraps timm's model, and timm's feature extractors write stages.0 as stages_0.
    named = {
        re.sub(r"^(?:model\.)*([a-z]+)_(\d+)\.", r"\1.\2.", k.removeprefix("model.")): p
        for k, p in encoder.named_parameters()
    }
    depths: dict[str, int] = {}
    if hasattr(complete, "group_matcher"):
        depths = group_parameters(complete, complete.group_matcher(), reverse=True)
    if not named.keys() <= depths.keys():
        raise InputError(
            f"ENCODER {name!r} has no layers in an order that timm knows, as layer_decay needs: "
            "give its experiment layer_decay 1, or take an encoder of timm, such as "
            "tu-convnext_tiny"
        )
    own_depths = sorted({depths[key] for key in named})  # without the classifier's
    result: list[list[nn.Parameter]] = [[] for _ in range(min(len(own_depths), PARTS))]
    for key, parameter in named.items():
        result[own_depths.index(depths[key]) * len(result) // len(own_depths)].append(parameter)
    return result


def _problem(encoder: str, size: int, options: dict[str, Any]) -> str | None:
    """Return why an encoder with these options lacks the features that decoders need, or None."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            trial = on_meta(partial(_create, encoder, options)).eval()
            features = trial(torch.empty(2, 3, size, size, device="meta"))
    except Exception as error:  # whatever smp and timm raise, also AssertionError
        return " ".join(str(error).split()) or f"{type(error).__name__} at {size} px"
    sizes = [feature.shape[-1] for feature in features]
    wanted = [size // min(2**level, options["output_stride"]) for level in range(6)]
    return None if sizes == wanted else f"its features have sizes {sizes}, not {wanted}"


def on_meta(create: Callable[[], nn.Module]) -> nn.Module:
    """Return a module on the meta device: shapes without values; draws no random numbers."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return create()
        except (RuntimeError, NotImplementedError):  # some read values while being built
            return create().to("meta")
