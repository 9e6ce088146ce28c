"""Optimisers and learning-rate schedules by name, and the moving average of the weights.

A rate is a function of progress only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import nn

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


class Ema:
    """Average of the weights (Polyak 1992), in float32, with `decay` per optimiser step.

    Early on the decay is (1 + n) / (10 + n) if that is less, so that the random start fades. The
    running statistics of batch norm are averaged too; `decay` 0 is a plain copy.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0
        self._of: nn.Module | None = None  # the network whose tensors `_list_tensors` listed

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the weights after one more optimiser step."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.decay else 0.0
        if self._of is not model:
            self._list_tensors(model)
        averages, values = self._floats
        values = [v.to(a.dtype) for a, v in zip(averages, values, strict=True)]
        torch._foreach_lerp_(averages, values, 1 - keep)
        if self._counters[0]:
            torch._foreach_copy_(*self._counters)

    def _list_tensors(self, model: nn.Module) -> None:
        """List average and current tensors: it takes milliseconds, and they change in place."""
        self._of, self._floats, self._counters = model, ([], []), ([], [])
        current = model.state_dict()
        for name, average in self.model.state_dict().items():
            averages, values = self._floats if average.is_floating_point() else self._counters
            averages.append(average)
            values.append(current[name])

    def state_dict(self) -> dict:
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]
