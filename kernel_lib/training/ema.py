"""An exponential moving average of a network's weights and statistics."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """Average of the weights (Polyak 1992), in float32, by `decay` an optimiser step.

    Early on the decay is (1 + n) / (10 + n) where that is less, so that the random start fades.
    Batch norm's running statistics are averaged alike; with `decay` 0 it is a plain copy.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one more optimiser step."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.decay else 0.0
        mine, theirs = self.model.state_dict(), model.state_dict()
        floats = [k for k in mine if mine[k].is_floating_point()]
        torch._foreach_lerp_(
            [mine[k] for k in floats], [theirs[k].to(mine[k].dtype) for k in floats], 1 - keep
        )
        for key in mine.keys() - set(floats):
            mine[key].copy_(theirs[key])

    def state_dict(self) -> dict:
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]
