"""Networks by name: checks before one is built, and functions on a built one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.models import encoders
from kernel_lib.models.architectures import NETWORKS
from kernel_lib.models.base import Network
from kernel_lib.registry import lookup


def network_class(name: str) -> type[Network]:
    """Return the network of that name; InputError with the known names if there is none."""
    return lookup("network", name, NETWORKS)


def check(experiment: Experiment) -> None:
    """Raise InputError for a network, encoder, head or batch size that cannot be trained."""
    name, network = experiment.network, network_class(experiment.network)
    if not network.has_mask and experiment.label_weight == 0:
        raise InputError(
            f"label_weight 0 leaves a {name} nothing to learn: give its experiment one above 0, "
            "say 1"
        )
    if experiment.side_weight > 0 and not network.has_sides:
        lack = "its decoder has one level, that of the mask" if network.has_mask else "it has none"
        raise InputError(
            f"side_weight {experiment.side_weight:g} asks a {name} for "
            f"{'side masks' if network.has_mask else 'masks'}, and {lack}: give its experiment 0, "
            "or take another network"
        )
    if experiment.batch_size < min_batch(experiment):
        raise InputError(
            f"BATCH_SIZE {experiment.batch_size} gives a batch norm of {name} at {experiment.size} "
            f"px one value per channel: take {min_batch(experiment)} or more, with ACCUMULATE, or "
            "-p FREEZE_BATCH_NORM True"
        )
    encoders.check(experiment.encoder)


def min_batch(experiment: Experiment) -> int:
    """Return how many images a training batch needs so that batch norm has several values.

    At 32 px the deepest level of every network is a single pixel, which needs two images.
    """
    if experiment.freeze_batch_norm:
        return 1
    return max(network_class(experiment.network).min_batch, 2 if experiment.size == 32 else 1)


def build(experiment: Experiment) -> Network:
    """Return the network of an experiment with random weights, in channels_last.

    Raises: InputError for an unknown network or encoder, and for two that do not fit together at
        that size.
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
        # From a decoder that cannot use such features.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{fault} ({reason}): take a ResNet") from error
    return model.to(memory_format=torch.channels_last)


def check_sizes(model: Network, experiment: Experiment, sizes: Iterable[int]) -> None:
    """Raise InputError if the network cannot take images of its size, or of a size of its TTA."""
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

    Tried on the meta device and, if that fails, on the CPU.
    """
    levels = torch.zeros(2, 1, size, size)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            trial = copy.deepcopy(model)  # also for the averaged weights, EMA
            try:
                copy.deepcopy(trial).to("meta")(levels.to("meta"))
            except Exception:  # whatever encoders raise, also for values that meta tensors lack
                trial(levels)
        except Exception as error:
            return " ".join(str(error).split()) or type(error).__name__
    return None


def parameter_groups(model: nn.Module, experiment: Experiment) -> list[dict]:
    """Return groups of parameters, encoder and others, with factors of the learning rate.

    With a `layer_decay` below 1 the encoder is split into parts, shallow first, each with
    `layer_decay` times the rate of the next. Raises: InputError if it cannot be split.
    """
    factor, decay = experiment.encoder_lr_factor, experiment.layer_decay
    encoder = list(model.encoder.parameters())
    ids = {id(p) for p in encoder}
    others = [p for p in model.parameters() if id(p) not in ids]
    parts = [encoder] if decay == 1 else encoders.parts(model.encoder, experiment.encoder)
    return [
        *(
            {"params": part, "lr_factor": factor * decay**below}
            for below, part in zip(range(len(parts), 0, -1), parts, strict=True)
        ),
        {"params": others, "lr_factor": 1.0},
    ]


def batch_norms(model: nn.Module) -> Iterator[nn.modules.batchnorm._BatchNorm]:
    """Yield all batch normalisations of a network."""
    return (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
