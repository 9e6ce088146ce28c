"""Exponential moving average of the weights and statistics of a network."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """Average of the weights (Polyak 1992), in float32, with `decay` per optimiser step.

    Early on the decay is (1 + n) / (10 + n) if that is less, so that the random start fades. The
    running statistics of batch norm are averaged too; `decay` 0 is a plain copy.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the weights after one more optimiser step."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.decay else 0.0
        average, current = self.model.state_dict(), model.state_dict()
        floats = [k for k in average if average[k].is_floating_point()]
        values = [current[k].to(average[k].dtype) for k in floats]
        torch._foreach_lerp_([average[k] for k in floats], values, 1 - keep)
        for key in average.keys() - set(floats):
            average[key].copy_(current[key])

    def state_dict(self) -> dict:
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]
