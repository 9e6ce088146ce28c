"""Numbers that are none, and the one rule for them.

An optimiser step whose loss or gradient is not finite changes nothing: weights, their average and
batch norm's statistics stay as they were. In float32 and bfloat16 the training stops there, with
the images named, since the next time would be no different. In float16 such a step is most often
an overflow that ends once the scale of the gradients is halved: it is skipped, counted and logged,
and `IN_A_ROW` of them stop the training. Weights that are not finite are never saved, and an epoch
whose metric is not a number is never kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

# So many halvings bring the first scale, 65536, to 1: what then overflows is the network's own.
IN_A_ROW = 16


class Steps:
    """Decides of each optimiser step whether it is taken, skipped or the end."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.in_a_row = 0

    @contextmanager
    def undone_unless_taken(self) -> Iterator[None]:
        """What a step's forward passes do to the network's statistics goes where it is skipped."""
        buffers = list(self.model.buffers()) if self.scaler.is_enabled() else []
        before = [buffer.clone() for buffer in buffers]
        yield
        if self.in_a_row:
            with torch.no_grad():
                for buffer, was in zip(buffers, before, strict=True):
                    buffer.copy_(was)

    def take(self, values: Sequence[float], clip_norm: float | None, where: str) -> bool:
        """Step with the gradients there are, from batches of these losses; False where skipped.

        Raises FloatingPointError, naming `where`, as the module says.
        """
        self.scaler.unscale_(self.optimizer)
        norm = self._norm(clip_norm)
        if math.isfinite(norm) and all(map(math.isfinite, values)):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.in_a_row = 0
        else:
            self._refuse(f"the loss is {values[-1]}, the norm of its gradient {norm}", where)
        self.optimizer.zero_grad(set_to_none=True)
        return not self.in_a_row

    def _norm(self, clip_norm: float | None) -> float:
        """The norm of the gradient, which is then at most `clip_norm`."""
        if clip_norm is not None:
            return float(nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm))
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    def check_loss(self, value: float, where: str) -> None:
        """Stop at a batch whose loss cannot be mended; in float16 `take` decides."""
        if not (math.isfinite(value) or self.scaler.is_enabled()):
            raise stopped(f"the loss is {value}", where)

    def _refuse(self, what: str, where: str) -> None:
        self.in_a_row += 1
        if not self.scaler.is_enabled():
            raise stopped(what, where)
        if self.in_a_row == IN_A_ROW:
            raise stopped(f"{IN_A_ROW} steps in a row overflowed float16; at last {what}", where)
        self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())


def check_weights(model: nn.Module, where: str) -> None:
    """FloatingPointError where a weight or a statistic is not finite: it is not to be saved."""
    if not _all_finite(model.state_dict().values()):
        raise stopped("the weights are not finite", where)


def stopped(what: str, where: str) -> FloatingPointError:
    return FloatingPointError(
        f"{what} {where}: lower LR, or -p PRECISION float32; the last checkpoint is intact"
    )


def _all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    floats = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    # One number, and so one wait for a GPU.
    return math.isfinite(float(nn.utils.get_total_norm(floats, norm_type=math.inf)))
