"""What happens if a loss, a gradient or a weight is not finite.

An optimiser step whose loss or gradient is not finite changes nothing: weights, their average and
the statistics of batch norm stay as they were. In float32 and bfloat16 the training stops there and
names the images, since a repetition would be the same. In float16 such a step is mostly an overflow
that a smaller scale of the gradients avoids: the scale is halved and the step skipped, counted and
logged; `IN_A_ROW` skipped steps stop the training. Weights that are not finite are never saved, and
an epoch whose metric is not a number is never kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

# So many halvings reduce the first scale, 65536, to 1: the network itself then overflows.
IN_A_ROW = 16


class Steps:
    """Takes or skips each optimiser step, or stops the training."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.in_a_row = 0

    @contextmanager
    def undone_unless_taken(self) -> Iterator[None]:
        """Restore the buffers that forward passes changed if the step is skipped."""
        buffers = list(self.model.buffers()) if self.scaler.is_enabled() else []
        before = [buffer.clone() for buffer in buffers]
        yield
        if self.in_a_row:
            with torch.no_grad():
                for buffer, value in zip(buffers, before, strict=True):
                    buffer.copy_(value)

    def take(self, losses: Sequence[float], clip_norm: float | None, where: str) -> bool:
        """Step with the gradients of batches of these losses; return False if skipped.

        Raises:
            FloatingPointError: the training must stop, with `where`.
        """
        self.scaler.unscale_(self.optimizer)
        norm = self._clipped_norm(clip_norm)
        if math.isfinite(norm) and all(map(math.isfinite, losses)):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.in_a_row = 0
        else:
            self._refuse(f"the loss is {losses[-1]}, the norm of its gradient {norm}", where)
        self.optimizer.zero_grad(set_to_none=True)
        return not self.in_a_row

    def _clipped_norm(self, clip_norm: float | None) -> float:
        """Return the norm of the gradient, before it is clipped to `clip_norm`."""
        if clip_norm is not None:
            return float(nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm))
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    def check_loss(self, loss: float, where: str) -> None:
        """Stop at a loss that is not finite; in float16 `take` decides."""
        if not (math.isfinite(loss) or self.scaler.is_enabled()):
            raise _stopped(f"the loss is {loss}", where)

    def _refuse(self, reason: str, where: str) -> None:
        self.in_a_row += 1
        if not self.scaler.is_enabled():
            raise _stopped(reason, where)
        if self.in_a_row == IN_A_ROW:
            raise _stopped(f"{IN_A_ROW} steps in a row overflowed float16; at last {reason}", where)
        self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())


def check_weights(model: nn.Module, where: str) -> None:
    """Raise FloatingPointError if a weight or a statistic is not finite."""
    tensors = (t.detach() for t in model.state_dict().values())
    floats = [t for t in tensors if t.is_floating_point() and t.numel()]
    # A single number, so that a GPU is waited for once.
    if not math.isfinite(float(nn.utils.get_total_norm(floats, norm_type=math.inf))):
        raise _stopped("the weights are not finite", where)


def _stopped(reason: str, where: str) -> FloatingPointError:
    return FloatingPointError(
        f"{reason} {where}: lower LR, or -p PRECISION float32; the last checkpoint is intact"
    )
