"""Optimisers and learning-rate schedules by name; a rate is a function of progress alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from kernel_lib.config import Experiment
from kernel_lib.registry import lookup

# (progress 0–1, factor at the end) → factor of the row's rate
Schedule = Callable[[float, float], float]


def cosine(progress: float, end: float) -> float:
    """Half a cosine from 1 to `end` (Loshchilov 2017, without restarts)."""
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))


def poly(progress: float, end: float) -> float:
    """(1 − progress)^0.9 from 1 to `end` (Chen 2018)."""
    return end + (1 - end) * (1 - progress) ** 0.9


def constant(progress: float, end: float) -> float:
    """The row's rate throughout."""
    return 1.0


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "poly": poly, "constant": constant}


def _sgd(groups: list[dict], row: Experiment) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=row.lr, momentum=row.momentum, weight_decay=row.weight_decay)


def _adamw(groups: list[dict], row: Experiment) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=row.lr, weight_decay=row.weight_decay)


OPTIMIZERS = {"sgd": _sgd, "adamw": _adamw}


def check(row: Experiment) -> None:
    """InputError for an optimiser or schedule that does not exist."""
    lookup("optimizer", row.optimizer, OPTIMIZERS)
    lookup("schedule", row.schedule, SCHEDULES)


def optimizer(groups: list[dict], row: Experiment) -> torch.optim.Optimizer:
    """The row's optimiser over parameter groups that carry an `lr_factor`."""
    check(row)
    return OPTIMIZERS[row.optimizer](groups, row)


def rate(row: Experiment, epochs_done: float) -> float:
    """The learning rate after so many epochs, a fraction counted; warm-up rises in a line."""
    if epochs_done < row.warmup_epochs:
        return row.lr * max(epochs_done / row.warmup_epochs, 0.01)
    span = row.epochs - row.warmup_epochs
    progress = (epochs_done - row.warmup_epochs) / span if span > 0 else 1.0
    return row.lr * SCHEDULES[row.schedule](min(1.0, progress), row.lr_end_factor)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group its own share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
