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
        self._of: nn.Module | None = None  # the network whose tensors `_pairs` holds
        self._pairs: dict[bool, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the weights after one more optimiser step."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.decay else 0.0
        if self._of is not model:
            self._of, self._pairs = model, self._paired(model)
        average, values = self._pairs[True]
        values = [v.to(a.dtype) for a, v in zip(average, values, strict=True)]
        torch._foreach_lerp_(average, values, 1 - keep)
        if self._pairs[False][0]:
            torch._foreach_copy_(*self._pairs[False])

    def _paired(
        self, model: nn.Module
    ) -> dict[bool, tuple[list[torch.Tensor], list[torch.Tensor]]]:
        """Return average and current tensors, those of floating-point numbers under True.

        Listing them takes milliseconds of each step; training changes them in place.
        """
        average, current = self.model.state_dict(), model.state_dict()
        return {
            floating: tuple(
                [state[k] for k in average if average[k].is_floating_point() == floating]
                for state in (average, current)
            )
            for floating in (True, False)
        }

    def state_dict(self) -> dict:
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]
