"""Optimisers and learning-rate schedules by name; a rate is a function of progress only."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from kernel_lib.config import Experiment
from kernel_lib.registry import lookup

# (progress 0–1, factor at the end) → factor of the experiment's rate
Schedule = Callable[[float, float], float]


def cosine(progress: float, end: float) -> float:
    """Return half a cosine from 1 to `end` (Loshchilov 2017, without restarts)."""
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))


def poly(progress: float, end: float) -> float:
    """Return (1 − progress)^0.9 from 1 to `end` (Chen 2018)."""
    return end + (1 - end) * (1 - progress) ** 0.9


def constant(progress: float, end: float) -> float:
    """Return 1."""
    return 1.0


def sgd(groups: list[dict], experiment: Experiment) -> torch.optim.Optimizer:
    """Return SGD with momentum and weight decay."""
    decay = experiment.weight_decay
    momentum = experiment.momentum
    return torch.optim.SGD(groups, lr=experiment.lr, momentum=momentum, weight_decay=decay)


def adamw(groups: list[dict], experiment: Experiment) -> torch.optim.Optimizer:
    """Return AdamW with weight decay."""
    return torch.optim.AdamW(groups, lr=experiment.lr, weight_decay=experiment.weight_decay)


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "poly": poly, "constant": constant}
OPTIMIZERS = {"sgd": sgd, "adamw": adamw}


def check(experiment: Experiment) -> None:
    """Raise InputError for an unknown optimiser or schedule."""
    lookup("optimizer", experiment.optimizer, OPTIMIZERS)
    lookup("schedule", experiment.schedule, SCHEDULES)


def optimizer(groups: list[dict], experiment: Experiment) -> torch.optim.Optimizer:
    """Return the optimiser of parameter groups that have an `lr_factor`."""
    check(experiment)
    return OPTIMIZERS[experiment.optimizer](groups, experiment)


def rate(experiment: Experiment, epochs_done: float) -> float:
    """Return the learning rate after so many epochs, in fractions; linear during warm-up."""
    warmup = experiment.warmup_epochs
    if epochs_done < warmup:
        return experiment.lr * max(epochs_done / warmup, 0.01)
    span = experiment.epochs - warmup
    progress = min(1.0, (epochs_done - warmup) / span) if span > 0 else 1.0
    return experiment.lr * SCHEDULES[experiment.schedule](progress, experiment.lr_end_factor)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of each group to `lr` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
